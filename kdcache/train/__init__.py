"""Training: a recipe, images and caches in, a student out."""

from kdcache.train.log import read_metrics
from kdcache.train.rehearse import rehearse
from kdcache.train.run import RECIPE, Job, Online, Outcome, run_together, run_training

__all__ = [
    "RECIPE",
    "Job",
    "Online",
    "Outcome",
    "read_metrics",
    "rehearse",
    "run_together",
    "run_training",
]
