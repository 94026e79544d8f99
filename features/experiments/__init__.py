"""What became of an experiment's units, out of the log."""
