"""A shop's traffic for benchmarks: bodies made ahead, sent on time, checked afterwards."""
