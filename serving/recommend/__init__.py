"""Recommendations over HTTP: candidates, their order, and what of it is shown."""
