"""Extraction: images, views and a teacher in, a cache out."""

from kdcache.extract.again import job_again, maker_of, teacher_of
from kdcache.extract.ask import hear
from kdcache.extract.begin import made_with
from kdcache.extract.cluster import Cluster, join_ray
from kdcache.extract.engine import extract, renderers
from kdcache.extract.extend import Extension, run_extension
from kdcache.extract.job import Job, describe
from kdcache.extract.report import Report
from kdcache.extract.run import Outcome, run_extraction
from kdcache.extract.settings import Extraction
from kdcache.extract.together import run_extractions

__all__ = [
    "Cluster",
    "Extension",
    "Extraction",
    "Job",
    "Outcome",
    "Report",
    "describe",
    "extract",
    "hear",
    "job_again",
    "join_ray",
    "made_with",
    "maker_of",
    "renderers",
    "run_extension",
    "run_extraction",
    "run_extractions",
    "teacher_of",
]
