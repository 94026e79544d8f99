"""From a score to an action, by immutable rules that are data."""
