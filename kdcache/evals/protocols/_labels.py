"""The few labels of a semi-supervised protocol: which images they are of, and how to name them."""

from collections.abc import Sequence

from kdcache.errors import ConfigError
from kdcache.evals.dataset import LabelledSet
from kdcache.evals.exam import Exam
from kdcache.evals.features import match_classes
from kdcache.evals.protocols._base import Asked
from kdcache.evals.subset import listed_rows, seeded_rows

_FAR = 2.0


def labelled_part(exam: Exam, percent: float) -> tuple[LabelledSet, str]:
    """The images whose labels may be used, and what to call them."""
    gallery, path = exam.splits.gallery, exam.beside.labelled_list
    if path is None:
        rows = seeded_rows(gallery, percent, exam.seed)
        return gallery.take(rows), f"{len(rows)} by seed {exam.seed}"
    rows = listed_rows(gallery, path)
    return gallery.take(rows), f"{len(rows)} of {path.name}"


def check_labels(exam: Exam, asked: Sequence[Asked], percents: Sequence[float]) -> None:
    """Refuse labels that do not make up the share that a preset is named after.

    Raises:
        ConfigError: a list is of another share.
        DataError: a class of the test images has no label, or the list does not fit the data.
    """
    num_images = len(exam.splits.train)
    for one, percent in zip(asked, percents, strict=True):
        part, _ = labelled_part(exam, percent)
        share = 100 * len(part.images) / num_images
        if exam.beside.labelled_list is not None and not (
            percent / _FAR <= share <= percent * _FAR
        ):
            raise ConfigError(
                f"`{exam.beside.labelled_list}` names {len(part.images)} of {num_images} training "
                f"images, {share:.1f} %, and `{one.name}` is of {percent:g} %",
                hint="ask for the protocol of the list's share, or give the other list",
            )
        match_classes(part.images, exam.splits.test)
