"""A seeded world of synthetic payments with ground truth, for tests and demonstrations."""
