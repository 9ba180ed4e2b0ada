"""Linear layers on augmented views: what the protocols that fit them have in common."""

from collections.abc import Sequence

from kdcache.evals.dataset import LabelledSet
from kdcache.evals.exam import Exam
from kdcache.evals.features import Features
from kdcache.evals.probe import Probe, ProbeSettings, fit_augmented
from kdcache.evals.subject import Subject


def fit_probes(
    exam: Exam,
    subject: Subject,
    images: LabelledSet,
    train: Features,
    settings: Sequence[ProbeSettings],
    title: str,
) -> list[Probe]:
    """A layer for each of the settings, all in one pass over the views.

    Args:
        images: what is learned from, of which `train` are the features.
        title: of the bar.
    """
    total = max(one.epochs for one in settings) * len(train)
    with exam.bar(title, total=total, unit="images") as progress:
        return fit_augmented(
            subject,
            images,
            train,
            settings,
            seed=exam.seed,
            device=exam.device,
            workers=exam.workers,
            keep=exam.keep,
            progress=progress,
        )
