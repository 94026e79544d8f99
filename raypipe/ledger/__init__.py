"""Decision records and, later, their proofs."""
