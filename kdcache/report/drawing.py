"""Drawing: curves and maps as SVG that takes its colours and its letters from the page around it.

Colour is never the only sign: a run also has a line style and a marker, a class has a marker. The
colours are Okabe and Ito's (jfly.uni-koeln.de/color, 2008), told apart by colour-blind people;
where one is too faint for the page's background, `page.css` has a darker or lighter shade of it.
"""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from kdcache.shapes import Float

NUM_STYLES = 8
_DASHES: tuple[Any, ...] = (
    "-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)),
    (0, (10, 3)), (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)), "-",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_WIDTH, _HEIGHT = 384, 250
_SQUARE = 320
_MARKERS_A_LINE = 7
_LOG_FROM = 20.0
"""A positive quantity that spans more than this factor gets a logarithmic axis."""

# Colours that stand for those of the page, and what they become.
_INK, _GRID = "#0c0c01", "#0c0c02"
_SERIES = tuple(f"#0c0d0{i}" for i in range(NUM_STYLES))
_PAGE_COLOURS = {_INK: "currentColor", _GRID: "var(--grid)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(_SERIES)
}
_LOOK: dict[str, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "grid.color": _GRID,
    "legend.frameon": False,
    "path.simplify": True,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Picture:
    """A drawing and its words."""

    key: str
    title: str
    text: str
    """What it shows, for those who do not see it."""
    svg: str


@dataclass(frozen=True)
class Line:
    """A curve: what was logged and what is smoothed of it, over the same x."""

    style: int
    x: Float[np.ndarray, " P"]
    raw: Float[np.ndarray, " P"]
    smooth: Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Dots:
    """Points of one look."""

    style: int | None
    """None: faint and without a marker of its own."""
    points: Float[np.ndarray, "P 2"]


def draw_lines(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    text: str,
    from_zero: bool,
    limits: tuple[float, float] | None = None,
) -> Picture:
    """Curves over each other, each faint as it was logged and firm as it is smoothed.

    Args:
        limits: of the y axis, for pictures that are compared; those of the lines unless given.
    """
    with _look(key):
        figure, axes = _new(_WIDTH, _HEIGHT)
        for line in lines:
            colour, dash, marker = _SERIES[line.style], _DASHES[line.style], _MARKERS[line.style]
            axes.plot(*_thinned(line.x, line.raw), color=colour, alpha=0.3, linewidth=1)
            every = max(1, len(line.x) // _MARKERS_A_LINE)
            axes.plot(
                line.x, line.smooth, color=colour, linewidth=2, linestyle=dash, marker=marker,
                markersize=6, markevery=(line.style * every // NUM_STYLES, every),
            )  # fmt: skip
        _scale(axes, np.concatenate([line.raw for line in lines]), limits, from_zero)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True, axis="y")
        return Picture(key, title, text, _svg(figure))


def draw_dots(
    key: str, title: str, dots: Sequence[Dots], *, x_label: str, y_label: str, text: str
) -> Picture:
    """Points on a logarithmic x axis: what is gained against what is paid."""
    with _look(key):
        figure, axes = _new(_WIDTH, _HEIGHT)
        for group in dots:
            assert group.style is not None
            axes.plot(
                *group.points.T, color=_SERIES[group.style], marker=_MARKERS[group.style],
                markersize=9, linestyle="none",
            )  # fmt: skip
        x = np.concatenate([group.points[:, 0] for group in dots])
        axes.set_xscale("log")
        axes.set_xlim(x.min() / 1.5, x.max() * 1.5)
        _plain_log(axes.xaxis)
        axes.margins(y=0.15)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True)
        return Picture(key, title, text, _svg(figure))


def draw_map(key: str, title: str, dots: Sequence[Dots], *, half: float, text: str) -> Picture:
    """Points in the plane, both axes from -half to half; no ticks, since only places count."""
    with _look(key):
        figure, axes = _new(_SQUARE, _SQUARE)
        for group in dots:
            if group.style is None:
                look: dict[str, Any] = {
                    "color": _INK,
                    "alpha": 0.35,
                    "marker": ".",
                    "markersize": 4,
                }
            else:
                look = {
                    "color": _SERIES[group.style],
                    "marker": _MARKERS[group.style],
                    "markersize": 6,
                }
            axes.plot(*group.points.T, linestyle="none", markeredgewidth=0, **look)
        axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)
        return Picture(key, title, text, _svg(figure))


def draw_sign(style: int, *, line: bool) -> str:
    """What stands for a run (a line and its marker) or for a class (a marker) in a legend."""
    with _look(f"sign{style}{line}"):
        figure, axes = _new(44 if line else 18, 18, layout=None)
        axes.set_position((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], color=_SERIES[style], linewidth=2 if line else 0,
                  linestyle=_DASHES[style] if line else "none", marker=_MARKERS[style],
                  markevery=[1], markersize=7)  # fmt: skip
        axes.set_xlim(0, 2)
        return _svg(figure)


def smoothed(values: Float[np.ndarray, " P"], window: int) -> Float[np.ndarray, " P"]:
    """Mean over the `window` values around each, of those that are numbers; NaN where none is."""
    kernel = np.ones(min(window, len(values)))
    there = np.isfinite(values)
    sums = np.convolve(np.where(there, values, 0.0), kernel, mode="same")
    counts = np.convolve(there.astype(float), kernel, mode="same")
    mean = np.full(len(values), np.nan)
    np.divide(sums, counts, out=mean, where=(counts > 0.5) & there)
    return mean


def _look(key: str) -> AbstractContextManager[None]:
    """The settings of a picture; names inside of it come from its key, so that none come twice."""
    settings: Any = {**_LOOK, "svg.hashsalt": key}
    return mpl.rc_context(settings)


def _new(width: int, height: int, layout: str | None = "constrained") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), layout=layout)  # type: ignore[arg-type]
    return figure, figure.subplots()


def _thinned(
    x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"], most: int = 500
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Few enough points for a small file; of those left out the extremes stay."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most // 2)
    keep: list[int] = []
    for part in parts:
        finite = part[np.isfinite(y[part])]
        if len(finite):
            keep += sorted({int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])})
    return x[keep], y[keep]


def _scale(
    axes: Axes,
    values: Float[np.ndarray, " P"],
    limits: tuple[float, float] | None,
    from_zero: bool,
) -> None:
    low, high = limits or spread(values)
    if low > 0 and high / low > _LOG_FROM and not from_zero:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        _plain_log(axes.yaxis)
        return
    if from_zero:
        low = min(low, 0.0)
    room = 0.05 * (high - low) or 0.5
    axes.set_ylim(low if from_zero else low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def spread(values: Float[np.ndarray, " P"]) -> tuple[float, float]:
    """Smallest and largest of the values that are numbers."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _plain_log(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _svg(figure: Figure) -> str:
    """The figure as an element of an HTML page: no prolog, no style sheet, no names of its own."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    text = re.sub(r'( (?:d|x|y)=")([^"]*)', lambda m: m[1] + _short(m[2]), text)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    opening = f'<svg viewBox="0 0 {size[1]} {size[2]}" width="{size[1]}" height="{size[2]}"'
    text = re.sub(r"^<svg[^>]*", opening, text).replace("xlink:href", "href")
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return re.sub(r">\s+<", "><", text.strip())


def _short(numbers: str) -> str:
    """Two decimals of a pixel are enough."""
    return re.sub(r"(\.\d\d)\d+", r"\1", numbers).replace("\n", "").replace(" L ", "L")
