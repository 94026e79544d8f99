"""Benchmarks of raypipe beside the peers that a user would pick instead.

The contract is benchmarks/README.md; ``python -m benchmarks`` lists the suites.
"""
