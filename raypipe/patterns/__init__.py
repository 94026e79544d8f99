"""Event patterns: ordered steps over one key's events, declared as data, run in log order."""
