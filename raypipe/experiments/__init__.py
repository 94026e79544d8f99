"""Experiments: who sees which arm, what is counted, and what may be said of it."""
