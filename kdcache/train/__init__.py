"""Training: a recipe, images and caches in, a student out."""

from kdcache.train.log import read_metrics
from kdcache.train.run import RECIPE, Online, Outcome, run_training

__all__ = ["RECIPE", "Online", "Outcome", "read_metrics", "run_training"]
