"""The curves of runs, in groups: one picture for all runs, or one for each where they are many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.progress import Progress
from kdcache.report.drawing import NUM_STYLES, Line, Picture, draw_lines, smoothed, spread
from kdcache.report.read import RunFacts
from kdcache.shapes import Float

_WINDOW = 25
"""A smoothed value is the mean over so many parts of a run: 1/25 of its records."""
_KNOWN = {
    "lr": ("learning rate", "learning rate", True),
    "images_per_s": ("throughput", "images/s", True),
    "gradient_norm": ("norm of the gradient", "L2 norm", False),
}
_AXES = {"step", "epoch"}


@dataclass(frozen=True)
class Group:
    """Pictures of one quantity."""

    key: str
    title: str
    note: str
    pictures: tuple[Picture, ...]
    overlaid: bool
    """Whether runs share a picture, and so need a legend."""
    minor: bool
    """Whether it may be folded away."""


def num_curves(runs: Sequence[RunFacts]) -> int:
    """How many curves `curve_groups` draws."""
    return sum(len({key for r in run.records for key in r} - _AXES) for run in runs)


def curve_groups(runs: Sequence[RunFacts], progress: Progress) -> list[Group]:
    """Loss, accuracy during training, learning rate, throughput, gradient, the methods' figures.

    Args:
        progress: told of curves.
    """
    there = [(i, run) for i, run in enumerate(runs) if run.records]
    if not there:
        return []
    keys = list(dict.fromkeys(key for _, run in there for r in run.records for key in r))
    evals = [key for key in keys if key.startswith("eval/")]
    own = [key for key in keys if key not in _AXES | {"loss"} | set(_KNOWN) and key not in evals]
    groups = [_losses(there, len(runs), progress)] if "loss" in keys else []
    if evals:
        note = "On labelled images kept out of the training, as it went on."
        groups.append(
            _group("eval", "Accuracy during training", note, evals, there, len(runs), progress)
        )
    course = [key for key in _KNOWN if key in keys]
    many = len(runs) > NUM_STYLES
    for some in [[key] for key in course] if many else [course]:
        title = ", ".join(_KNOWN[key][0] for key in some)
        groups.append(
            _group("course", title.capitalize(), "", some, there, len(runs), progress, minor=many)
        )
    if own:
        note = "What the methods tell of themselves; equal names need not mean equal things."
        groups.append(
            _group("own", "The methods' own figures", note, own, there, len(runs), progress, True)
        )
    return groups


def _losses(there: Sequence[tuple[int, RunFacts]], num_runs: int, progress: Progress) -> Group:
    """One picture a method: losses of different methods are different things."""
    methods = list(dict.fromkeys(run.method for _, run in there))
    pictures = [
        picture
        for method in methods
        for picture in _pictures(
            "loss",
            f"Loss of {method}",
            "loss",
            [(i, run) for i, run in there if run.method == method],
            num_runs,
            False,
            progress,
        )
    ]
    note = (
        "Losses of different methods are different quantities, so each method has axes of its own."
    )
    return Group("loss", "Loss", note, tuple(pictures), num_runs <= NUM_STYLES, False)


def _group(
    key: str,
    title: str,
    note: str,
    keys: Sequence[str],
    there: Sequence[tuple[int, RunFacts]],
    num_runs: int,
    progress: Progress,
    minor: bool = False,
) -> Group:
    pictures: list[Picture] = []
    for one in keys:
        of_this = [(i, run) for i, run in there if any(one in r for r in run.records)]
        name, label, from_zero = _KNOWN.get(one, (one.removeprefix("eval/"), _unit(one), False))
        pictures += _pictures(one, name, label, of_this, num_runs, from_zero, progress)
    return Group(key, title, note, tuple(pictures), num_runs <= NUM_STYLES, minor)


def _unit(key: str) -> str:
    return "%" if key.startswith("eval/") else key


def _pictures(
    key: str,
    title: str,
    label: str,
    of_this: Sequence[tuple[int, RunFacts]],
    num_runs: int,
    from_zero: bool,
    progress: Progress,
) -> list[Picture]:
    curves = [(i, run, *_curve(run, key)) for i, run in of_this]
    named = f"{key}-{title}".replace(" ", "-").replace("/", "-").lower()

    def picture(
        name: str, heading: str, some: Sequence[int], style: Callable[[int], int]
    ) -> Picture:
        chosen = [curves[n] for n in some]
        drawn = draw_lines(
            name,
            heading,
            [Line(style(i), x, y, _smooth(key, y)) for i, _, x, y in chosen],
            x_label="epoch",
            y_label=label,
            text=". ".join(_words(run, x, y) for _, run, x, y in chosen),
            from_zero=from_zero,
            limits=spread(np.concatenate([y for *_, y in curves])),
        )
        progress(len(chosen))
        return drawn

    if num_runs <= NUM_STYLES:
        return [picture(named, title, range(len(curves)), lambda i: i)]
    return [
        picture(f"{named}-{i}", f"{title}: {run.name}", [n], lambda _: 0)
        for n, (i, run, *_) in enumerate(curves)
    ]


def _curve(run: RunFacts, key: str) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Epochs, and values where there are any."""
    points = [(r.get("epoch", r["step"]), r[key]) for r in run.records if key in r]
    table = np.array(points, dtype=np.float64)
    return table[:, 0], table[:, 1]


def _smooth(key: str, y: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """Accuracies and learning rates are what they are; the rest is noisy."""
    if key == "lr" or key.startswith("eval/"):
        return y
    return smoothed(y, max(1, len(y) // _WINDOW))


def _words(run: RunFacts, x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"]) -> str:
    finite = np.flatnonzero(np.isfinite(y))
    if not len(finite):
        return f"{run.name}: no value is a number"
    first, last = finite[0], finite[-1]
    low, high = spread(y)
    return (
        f"{run.name}: {y[first]:.4g} at epoch {x[first]:.1f}, {y[last]:.4g} at epoch {x[last]:.1f},"
        f" between {low:.4g} and {high:.4g}"
    )
