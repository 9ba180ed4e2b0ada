"""Report: what runs were, how they went and what they are worth, on one page without a network."""

from kdcache.report.make import Form, make_report, save_report
from kdcache.report.read import RunFacts, read_run, read_runs
from kdcache.report.space import HeldOut

__all__ = [
    "Form",
    "HeldOut",
    "RunFacts",
    "make_report",
    "read_run",
    "read_runs",
    "save_report",
]
