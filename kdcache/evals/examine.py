"""Examining: one subject, a labelled data set, the protocols that were asked for."""

from collections.abc import Sequence
from pathlib import Path

import torch

from kdcache.errors import ConfigError, DataError
from kdcache.evals.dataset import Splits
from kdcache.evals.exam import Beside, Exam
from kdcache.evals.features import Pixels, match_classes
from kdcache.evals.protocols import Asked, Need, ask, available_protocols, get_protocol
from kdcache.evals.result import Score
from kdcache.evals.subject import Subject
from kdcache.progress import Bar, Tell
from kdcache.views import get_policy

PIXELS = "pixels 16x16"

_OPTIONS: dict[Need, str] = {
    "transfer": "--transfer DIR",
    "ood": "--ood DIR",
    "teacher": "--cache CACHE or --teacher NAME",
    "labelled_list": "--labelled-list FILE",
}


def _nobody(_: str) -> None:
    """Told of what a caller who does not look is told."""


def examine(
    subject: Subject,
    splits: Splits,
    protocols: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    ks: Sequence[int] | None = None,
    policy: str | None = None,
    beside: Beside | None = None,
    keep: Path | None = None,
    device: torch.device,
    workers: int,
    bar: Bar,
    tell: Tell = _nobody,
) -> list[Score]:
    """The scores of a subject, family by family; what can be shared is computed once.

    Args:
        protocols: names such as `knn:dino`; `available_presets` has them all.
        overrides, ks, policy: what is not to be as the presets have it (`protocols.ask`).
        keep: a folder that keeps features between calls.
        tell: told of images that cannot be read, and are not scored.

    Raises:
        ConfigError: an unknown protocol or setting, a policy that draws at random, or something
            beside that is missing, or that no protocol asks for.
        DataError: the data set has one class, or does not serve the protocols.
    """
    asked = ask(protocols, overrides=overrides, ks=ks, policy=policy)
    exam = Exam(
        subject=subject,
        splits=splits,
        device=device,
        workers=workers,
        bar=bar,
        tell=tell,
        beside=beside or Beside(),
        keep=keep,
    )
    check_exam(exam, asked)
    return _run(exam, asked)


def examine_pixels(
    splits: Splits,
    protocols: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    ks: Sequence[int] | None = None,
    beside: Beside | None = None,
    workers: int,
    bar: Bar,
) -> list[Score]:
    """The scores of 16 x 16 RGB pixels, the floor of every table; there is nothing to augment."""
    everything = ask(protocols, overrides=overrides, ks=ks)
    exam = Exam(
        subject=Subject(PIXELS, Pixels(), 16, "pixels"),
        splits=splits,
        device=torch.device("cpu"),
        workers=workers,
        bar=bar,
        tell=_nobody,
        beside=beside or Beside(),
        view="full",
    )
    return _run(exam, [one for one in everything if get_protocol(one.family).of_features])


def check_exam(exam: Exam, asked: Sequence[Asked]) -> None:
    """Refuse what cannot be, before anything is computed."""
    for one in asked:
        if get_policy(one.view).crop != "center":
            raise ConfigError(
                f"`{one.view}` views are drawn at random, so they are no exam",
                hint="--policy center, or --policy full",
            )
    _check_beside(exam.beside, asked)
    match_classes(exam.splits.train, exam.splits.test)
    if exam.splits.gallery.num_classes() < 2:
        raise DataError(
            f"`{exam.splits.train.source}` has one class only, and whoever always answers it is "
            "right",
            hint="give --data a folder whose train/ holds a folder of images for each class",
        )
    for family, group in _groups(asked).items():
        get_protocol(family).check(exam, group)


def _check_beside(beside: Beside, asked: Sequence[Asked]) -> None:
    used: set[Need] = set()
    for one in asked:
        protocol = get_protocol(one.family)
        used |= protocol.requires | protocol.accepts
        for need in sorted(protocol.requires):
            if getattr(beside, need) is None:
                raise ConfigError(
                    f"`{one.name}` needs {_OPTIONS[need]}, which is not given",
                    hint=f"add {_OPTIONS[need]}, or leave `{one.name}` out of --protocol",
                )
    for need, option in _OPTIONS.items():
        if getattr(beside, need) is not None and need not in used:
            raise ConfigError(
                f"{option} is given, but no protocol that was asked for looks at it",
                hint=f"leave it out, or ask for one that does: {', '.join(_users(need))}",
            )


def _users(need: Need) -> list[str]:
    families = [(f, get_protocol(f)) for f in available_protocols()]
    return [family for family, p in families if need in p.requires | p.accepts]


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [
        score
        for family, group in _groups(asked).items()
        for score in get_protocol(family).run(exam, group)
    ]


def _groups(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    """The families in the order in which they were first asked for."""
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(one.family, []).append(one)
    return groups
