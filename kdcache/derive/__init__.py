"""What is worked out from a cache alone, without images or a teacher."""

from kdcache.derive.diagnosis import Diagnosis, diagnose
from kdcache.derive.effect import HEADINGS, Effect, how_measured, measure
from kdcache.derive.head import HeadReport, run_head
from kdcache.derive.neighbours import GraphReport, run_neighbours

__all__ = [
    "HEADINGS",
    "Diagnosis",
    "Effect",
    "GraphReport",
    "HeadReport",
    "diagnose",
    "how_measured",
    "measure",
    "run_head",
    "run_neighbours",
]
