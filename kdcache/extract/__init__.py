"""Extraction: images, views and a teacher in, a cache out."""

from kdcache.extract.again import job_again, maker_of, teacher_of
from kdcache.extract.engine import Report, extract, hear
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
    "hear",
    "job_again",
    "maker_of",
    "run_extension",
    "run_extraction",
    "teacher_of",
]
