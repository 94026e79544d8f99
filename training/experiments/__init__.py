"""What the table of an experiment's units says: analysis and report."""
