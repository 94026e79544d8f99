"""From fields and window values to the feature vector of a model."""
