"""Profiles: slow features, made once a day by Ray Data and served through Feast."""
