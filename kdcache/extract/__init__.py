"""Extraction: images, views and a teacher in, a cache out."""

from kdcache.extract.engine import Report, extract
from kdcache.extract.extend import Extension, run_extension
from kdcache.extract.job import Job, describe
from kdcache.extract.run import Outcome, run_extraction

__all__ = [
    "Extension",
    "Job",
    "Outcome",
    "Report",
    "describe",
    "extract",
    "run_extension",
    "run_extraction",
]
