"""A model artefact as a scorer of one row at a time, and what raised a score."""

from serving.scoring.judge import feature_names, load_judge
from serving.scoring.scorer import TreeScorer, load_scorer

__all__ = ["TreeScorer", "feature_names", "load_judge", "load_scorer"]
