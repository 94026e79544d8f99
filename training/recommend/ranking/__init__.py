"""Ranking of candidates: moments at which somebody came, and what was known at each."""
