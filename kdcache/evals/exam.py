"""An exam: one subject, a labelled data set, the protocols that were asked for."""

from collections.abc import Sequence

import torch

from kdcache.errors import ConfigError
from kdcache.evals.dataset import Splits
from kdcache.evals.features import Features, extract_features, pixel_features
from kdcache.evals.knn import knn_scores
from kdcache.evals.linear import SIMREG, linear_probe, linear_probe_augmented
from kdcache.evals.result import Score
from kdcache.evals.subject import Subject
from kdcache.progress import Bar
from kdcache.views import get_policy

PROTOCOLS = ("knn", "knn-weighted", "linear", "linear-augmented")
"""kNN with a plain or a weighted vote; the linear probe on one centred view or augmented views."""

KS = (1, 10, 20)
"""Neighbours that vote."""


def examine(
    subject: Subject,
    splits: Splits,
    protocols: Sequence[str],
    *,
    ks: Sequence[int] = KS,
    policy: str = "center",
    device: torch.device,
    workers: int,
    bar: Bar,
) -> list[Score]:
    """The scores of a subject.

    Args:
        protocols: some of `PROTOCOLS`.
        ks: numbers of neighbours for kNN.
        policy: of the one view by which an image is judged, `center` or `full`.

    Raises:
        ConfigError: an unknown protocol, or a policy that draws at random.
    """
    check_protocols(protocols)
    if get_policy(policy).crop != "center":
        raise ConfigError(
            f"`{policy}` views are drawn at random, so they are no exam",
            hint="--policy center, or --policy full",
        )
    sides = []
    for images, ids in ((splits.train, splits.train_ids), (splits.test, splits.test_ids)):
        with bar(f"features of {subject.name}", total=len(images), unit="images") as progress:
            features = extract_features(
                subject.network,
                images,
                image_size=subject.image_size,
                policy=get_policy(policy),
                ids=ids,
                device=device,
                workers=workers,
                progress=progress,
            )
        sides.append(features)
    train, test = sides
    scores = _score_features(train, test, protocols, ks, device, bar)
    if "linear-augmented" in protocols:
        total = SIMREG.epochs * len(splits.train)
        with bar("linear probe, augmented", total=total, unit="images") as progress:
            scores += linear_probe_augmented(
                subject.network,
                splits.train,
                train,
                test,
                image_size=subject.image_size,
                ids=splits.train_ids,
                device=device,
                workers=workers,
                progress=progress,
            )
    return scores


def examine_pixels(
    splits: Splits, protocols: Sequence[str], *, ks: Sequence[int] = KS, workers: int, bar: Bar
) -> list[Score]:
    """The scores of 16 x 16 RGB pixels, the floor of every table; there is nothing to augment."""
    train = pixel_features(splits.train, ids=splits.train_ids, workers=workers)
    test = pixel_features(splits.test, ids=splits.test_ids, workers=workers)
    return _score_features(train, test, protocols, ks, torch.device("cpu"), bar)


def check_protocols(protocols: Sequence[str]) -> None:
    """Refuse a protocol that there is not."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise ConfigError(f"no protocol `{name}`", hint=f"there are: {', '.join(PROTOCOLS)}")


def _score_features(
    train: Features,
    test: Features,
    protocols: Sequence[str],
    ks: Sequence[int],
    device: torch.device,
    bar: Bar,
) -> list[Score]:
    """The scores that need no more than features."""
    scores: list[Score] = []
    if "knn" in protocols:
        scores += knn_scores(train, test, ks)
    if "knn-weighted" in protocols:
        scores += knn_scores(train, test, ks, vote="weighted")
    if "linear" in protocols:
        with bar("linear probe", total=SIMREG.epochs, unit="epochs") as progress:
            scores += linear_probe(train, test, device=device, progress=progress)
    return scores
