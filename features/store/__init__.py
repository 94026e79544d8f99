"""Feast as the catalogue, the offline and the online store of window values."""
