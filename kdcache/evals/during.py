"""During: kNN and fast linear of a student while it trains, on labelled images kept out of it.

The training knows nothing of labels: it calls a `Watch` at some epochs and logs what comes back.
Nothing that the training draws or moves is touched: random numbers are given back as they were, and
the student is in evaluation mode, without gradients, only meanwhile. Of several processes each
looks at its part of the images, and the first one keeps the score.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdcache import distributed
from kdcache.errors import ConfigError, DataError
from kdcache.evals.batches import build_maker
from kdcache.evals.dataset import LabelledSet, Splits, build_splits, open_labelled, open_splits
from kdcache.evals.features import Features, match_classes, see
from kdcache.evals.probe import fit_cached, probe_scores
from kdcache.evals.protocols.knn import knn_accuracy
from kdcache.networks import Backbone
from kdcache.progress import Bar, Tell, silent_bar
from kdcache.views import get_policy

NEIGHBOURS = 10
_VIEW = "center"


@dataclass(frozen=True)
class Watch:
    """Scores a student at some epochs of its training."""

    splits: Splits
    every: int
    """Epochs from one time to the next; the last epoch is always one."""
    device: torch.device
    workers: int
    tell: Tell

    def __call__(self, student: Backbone, epoch: int) -> dict[str, float]:
        """What goes into the log, in percent; nothing in processes other than the first.

        All processes must call it.

        Raises:
            DataError: an image has changed, or the student gives NaN or infinity.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            train, test = (
                self._features(student, part) for part in (self.splits.gallery, self.splits.queries)
            )
            if not distributed.is_first():
                return {}
            knn = knn_accuracy(train, test, (NEIGHBOURS,))[NEIGHBOURS]
            probe = fit_cached(train, device=self.device)
            linear = probe_scores(probe, train, test, protocol="fast-linear", setting={})[0].value
        self.tell(f"after epoch {epoch}: kNN (k = {NEIGHBOURS}) {knn:.1f} %, "
                  f"fast linear {linear:.1f} %")  # fmt: skip
        return {f"eval/knn{NEIGHBOURS}": knn, "eval/fast_linear": linear}

    def _features(self, student: Backbone, part: LabelledSet) -> Features:
        """Those of all images, of which each process computes its part."""
        num_images, num_parts = len(part.images), distributed.world_size()
        own = np.arange(distributed.rank(), num_images, num_parts)
        maker = build_maker(part.images, get_policy(_VIEW), student.image_size, ids=part.ids)
        # The last column says which rows are there; all processes send equally many.
        table = torch.zeros(math.ceil(num_images / num_parts), student.feature_dim + 1)
        for seen in see(student, maker, own, device=self.device, workers=self.workers):
            places = torch.from_numpy(seen.rows // num_parts)
            if len(places):
                table[places, :-1] = torch.from_numpy(seen.values)
                table[places, -1] = 1
        together = distributed.gather_rows(table).reshape(num_parts, *table.shape)
        in_order = together.transpose(0, 1).reshape(-1, table.shape[1])[:num_images].numpy()
        there = in_order[:, -1] == 1
        return Features(
            values=np.ascontiguousarray(in_order[there, :-1]),
            labels=part.images.labels[there].astype(np.int64),
            classes=part.images.classes,
            source=part.images.source,
            view=_VIEW,
        )


def watch(
    data: Path,
    every: int,
    *,
    device: torch.device,
    workers: int,
    tell: Tell,
    bar: Bar = silent_bar,
) -> Watch:
    """A watch over images that take no part in the training.

    Args:
        data: holds train/ and val/ or test/; or a folder of images for each class, of which every
            second image asks the others.

    Raises:
        ConfigError: there is no such folder.
        DataError: its images have no classes, one class only, or are too few.
    """
    if not data.is_dir():
        raise ConfigError(
            f"no folder `{data}`", hint="give --eval-data a folder of labelled images"
        )
    splits = open_splits(data, bar=bar) if (data / "train").is_dir() else _halves(data, bar)
    match_classes(splits.train, splits.test)
    if splits.gallery.num_classes() < 2 or len(splits.train) < NEIGHBOURS:
        raise DataError(
            f"`{data}` gives {len(splits.train)} images of {splits.gallery.num_classes()} classes "
            f"to learn from; {NEIGHBOURS} of two classes are needed",
            hint="give --eval-data a folder with more images",
        )
    return Watch(splits, every, device, workers, tell)


def _halves(data: Path, bar: Bar) -> Splits:
    """The images of each class by turns."""
    whole = open_labelled(data, bar=bar)
    labels = whole.images.labels
    second = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        second[np.flatnonzero(labels == label)[1::2]] = True
    gallery, queries = (whole.take(np.flatnonzero(rows)) for rows in (~second, second))
    return build_splits(gallery, queries, "every second image")
