"""Evals: what a network is worth, measured on labelled images it was not trained to name."""

from kdcache.evals.dataset import Splits, open_splits
from kdcache.evals.exam import KS, check_protocols, examine, examine_pixels
from kdcache.evals.features import Features, extract_features, pixel_features
from kdcache.evals.knn import knn_accuracy, knn_scores
from kdcache.evals.linear import linear_probe, linear_probe_augmented
from kdcache.evals.result import Score, chance
from kdcache.evals.subject import Subject, open_subject, untrained_like
from kdcache.evals.teacher_check import TeacherCheck, check_teacher

__all__ = [
    "KS",
    "Features",
    "Score",
    "Splits",
    "Subject",
    "TeacherCheck",
    "chance",
    "check_protocols",
    "check_teacher",
    "examine",
    "examine_pixels",
    "extract_features",
    "knn_accuracy",
    "knn_scores",
    "linear_probe",
    "linear_probe_augmented",
    "open_splits",
    "open_subject",
    "pixel_features",
    "untrained_like",
]
