"""Training: a recipe, images and a cache in, a student out."""

from kdcache.train.log import read_metrics
from kdcache.train.run import Outcome, run_training

__all__ = ["Outcome", "read_metrics", "run_training"]
