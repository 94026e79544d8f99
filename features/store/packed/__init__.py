"""The online store behind Feast's API: one packed value per entity and view, SQLite or Redis."""
