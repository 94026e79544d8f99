"""raypipe: real-time decisions for commerce and payments, from one feature definition."""

__version__ = "0.1.0"
