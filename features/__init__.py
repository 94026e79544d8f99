"""From events to feature values: declarations, batch execution and the Feast store."""
