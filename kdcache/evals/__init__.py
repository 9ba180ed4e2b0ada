"""Evals: what a network is worth, measured on labelled images it was not trained to name."""

from kdcache.evals.dataset import LabelledSet, Splits, open_labelled, open_splits
from kdcache.evals.during import Watch, watch
from kdcache.evals.exam import Beside, Exam
from kdcache.evals.examine import examine, examine_pixels
from kdcache.evals.features import Features, extract_features, pixel_features
from kdcache.evals.kept import keep_features
from kdcache.evals.ledger import append_scores, keep_scores, read_scores
from kdcache.evals.probe import SIMREG, ProbeSettings, fit_augmented, fit_cached, probe_scores
from kdcache.evals.protocols import (
    ALIASES,
    about_protocol,
    ask,
    available_presets,
    available_protocols,
    get_protocol,
)
from kdcache.evals.protocols.knn import knn_accuracy
from kdcache.evals.result import Score, chance
from kdcache.evals.subject import Subject, open_subject, untrained_like
from kdcache.evals.teacher_check import TeacherCheck, check_teacher

__all__ = [
    "ALIASES",
    "SIMREG",
    "Beside",
    "Exam",
    "Features",
    "LabelledSet",
    "ProbeSettings",
    "Score",
    "Splits",
    "Subject",
    "TeacherCheck",
    "Watch",
    "about_protocol",
    "append_scores",
    "ask",
    "available_presets",
    "available_protocols",
    "chance",
    "check_teacher",
    "examine",
    "examine_pixels",
    "extract_features",
    "fit_augmented",
    "fit_cached",
    "get_protocol",
    "keep_features",
    "keep_scores",
    "knn_accuracy",
    "open_labelled",
    "open_splits",
    "open_subject",
    "pixel_features",
    "probe_scores",
    "read_scores",
    "untrained_like",
    "watch",
]
