"""From feature values to a model: dataset, sweep, evaluation, artefact."""
