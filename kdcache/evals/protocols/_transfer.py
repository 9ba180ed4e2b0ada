"""What the transfer protocols share: another data set, and what it must be."""

from collections.abc import Sequence
from pathlib import Path

from kdcache.errors import DataError
from kdcache.evals.dataset import Splits
from kdcache.evals.exam import Exam
from kdcache.evals.features import match_classes
from kdcache.evals.protocols._base import Asked


def transfer_splits(exam: Exam) -> Splits:
    """The other data set, which has been asked for before."""
    assert exam.beside.transfer is not None
    return exam.beside.transfer


def transfer_name(splits: Splits) -> str:
    """What a score calls the data set: its folder's name, wherever that lies."""
    return Path(splits.train.source).absolute().parent.name


def check_transfer(exam: Exam, _: Sequence[Asked]) -> None:
    """Refuse a data set that tells nothing.

    Raises:
        DataError: it has one class only, or classes that differ between its splits.
    """
    splits = transfer_splits(exam)
    num_classes = splits.gallery.num_classes()
    if num_classes < 2:
        raise DataError(
            f"`{splits.train.source}` has {num_classes} class, and whoever always answers it is "
            "right: a transfer set needs two or more",
            hint="give --transfer a folder whose train/ holds a folder of images for each class",
        )
    match_classes(splits.train, splits.test)
