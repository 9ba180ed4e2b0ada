"""Extraction: images, views and a teacher in, a cache out."""

from kdcache.extract.engine import Report, extract
from kdcache.extract.job import Job, describe
from kdcache.extract.run import Outcome, run_extraction

__all__ = ["Job", "Outcome", "Report", "describe", "extract", "run_extraction"]
