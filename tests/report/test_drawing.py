"""Drawings take their colours from the page, and those can be told apart there."""

import re
from pathlib import Path

import numpy as np
import pytest

import kdcache.report
from kdcache.report.drawing import (
    _DASHES,
    _MARKERS,
    NUM_STYLES,
    Line,
    _thinned,
    draw_lines,
    draw_sign,
    smoothed,
)

CSS = (Path(kdcache.report.__file__).parent / "page.css").read_text()


def test_smoothing_is_the_mean_around_each_value_of_those_that_are_numbers():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0, np.inf, 8.0])
    found = smoothed(values, 3)
    for i, value in enumerate(values):
        around = [v for v in values[max(0, i - 1) : i + 2] if np.isfinite(v)]
        if np.isfinite(value):
            assert found[i] == pytest.approx(np.mean(around))
        else:
            assert np.isnan(found[i])
    np.testing.assert_array_equal(smoothed(np.array([3.0]), 9), [3.0])


def test_thinning_keeps_the_extremes_and_the_order():
    x = np.arange(10_000.0)
    y = np.sin(x / 50) + (x == 4321) * 99.0
    y[77] = np.nan
    few_x, few_y = _thinned(x, y)
    assert len(few_x) <= 500
    assert (np.diff(few_x) > 0).all()
    assert few_y.max() == y[4321]
    assert np.nanmin(y) == few_y.min()


def test_drawing_names_no_colour_of_its_own_and_no_address():
    x = np.arange(30.0)
    line = Line(2, x, x**2, smoothed(x**2, 3))
    svg = draw_lines(
        "k", "t", [line], x_label="<epoch> $x$", y_label="y", text="", from_zero=False
    ).svg
    assert svg.startswith("<svg viewBox=")
    assert "var(--s2)" in svg
    assert "currentColor" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "http" not in svg
    assert "<style" not in svg
    assert "&lt;epoch&gt; $x$" in svg
    again = draw_lines(
        "k", "t", [line], x_label="<epoch> $x$", y_label="y", text="", from_zero=False
    ).svg
    assert svg == again


@pytest.mark.parametrize(
    "values", [[np.nan] * 3, [1.0, np.nan, 1.0], [0.0, 0.0, 0.0], [-5, 1e9, 3]]
)
def test_odd_values_are_drawn(values):
    y = np.array(values, dtype=float)
    line = Line(0, np.arange(3.0), y, smoothed(y, 1))
    for from_zero in (False, True):
        drawn = draw_lines("k", "t", [line], x_label="", y_label="", text="", from_zero=from_zero)
        assert drawn.svg.endswith("</svg>")


def test_colour_is_never_the_only_sign():
    assert len(set(_MARKERS)) == NUM_STYLES
    assert len({draw_sign(i, line=True) for i in range(NUM_STYLES)}) == NUM_STYLES
    assert len(set(map(str, _DASHES))) >= NUM_STYLES - 1


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", range(3), ids=["light", "dark", "print"])
def test_contrast_is_that_of_wcag_2(scheme):
    """4.5 for letters, 3 for lines, markers and frames (WCAG 2.2, 1.4.3 and 1.4.11, AA)."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    assert len(blocks) == 3
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for back in ("paper", "card"):
        for letters in ("ink", "soft", "link"):
            assert contrast(colours[letters], colours[back]) >= 4.5, (letters, back)
        for i in range(NUM_STYLES):
            assert contrast(colours[f"s{i}"], colours[back]) >= 3, (i, back)
        assert contrast(colours["rule"], colours[back]) >= 3
    for letters in ("ink", "warn"):
        assert contrast(colours[letters], colours["warn-paper"]) >= 4.5
