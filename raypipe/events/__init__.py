"""Events: declared schemas, validation, quarantine and table loaders."""
