"""What users would pick instead, as small programs of their own."""
