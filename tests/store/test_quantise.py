"""Quantised rows mean what they meant, within half a scale, in order, the same on any machine."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdcache.store import Quantised, dequantise, quantise

LARGEST = float(np.float32(1e38))
FLOATS = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=True)
NARROW = st.floats(-1.0, 1.0, width=32)
ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.one_of(
        FLOATS,
        NARROW,
        st.sampled_from([float(np.float32(x)) for x in (0.0, -0.0, 1000.0, 1000.0001, 1e-42)]),
    ),
)


def bytes_of(quantised: Quantised) -> list[bytes]:
    return [part.tobytes() for part in (quantised.values, quantised.scale, quantised.minimum)]


def test_levels_by_hand():
    rows = np.array([[0.0, 0.5, 1.5, 2.5, 255.0], [-3.0, -3.0, -3.0, -3.0, -3.0]], np.float32)
    quantised = quantise(rows)
    assert quantised.values.tolist() == [[0, 0, 2, 2, 255], [0, 0, 0, 0, 0]]  # halves to even
    assert quantised.scale.tolist() == [1.0, 0.0]
    assert quantised.minimum.tolist() == [0.0, -3.0]
    assert dequantise(quantised).tolist() == [[0, 0, 2, 2, 255], [-3, -3, -3, -3, -3]]


SUBNORMAL = np.float32(2.0**-149)  # the smallest float32 there is


@given(ROWS)
@example(np.array([[0, 100, 50], [0, 382, 200]], np.float32) * SUBNORMAL)
def test_no_value_is_off_by_more_than_half_a_scale(rows):
    quantised = quantise(rows)
    back = dequantise(quantised)
    assert np.isfinite(quantised.scale).all()
    assert ((quantised.scale == 0) | (quantised.scale >= 2.0**-126)).all()
    error = np.abs(back.astype(np.float64) - rows.astype(np.float64))
    # What float32 itself adds: the last bit of the largest value, and of up to 255 scales.
    rounding = np.spacing(np.abs(rows).max(axis=-1)) + 1e-4 * quantised.scale
    assert (error <= (quantised.scale.astype(np.float64) / 2 + rounding)[..., None]).all()


@given(ROWS)
def test_order_is_kept_and_the_smallest_is_exact(rows):
    back = dequantise(quantise(rows))
    order = np.argsort(rows, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(back, order, axis=-1), axis=-1) >= 0).all()
    assert np.array_equal(back.min(axis=-1), rows.min(axis=-1))
    largest = rows.max(axis=-1)
    last_bits = 4 * np.spacing(np.abs(rows).max(axis=-1))
    is_normal = largest - rows.min(axis=-1) > 1e-30
    assert (np.abs(back.max(axis=-1) - largest) <= last_bits)[is_normal].all()


@given(hnp.arrays(np.float32, (3, 4), elements=FLOATS))
def test_constant_rows_are_exact(rows):
    constant = np.repeat(rows[:, :1], 4, axis=1)
    quantised = quantise(constant)
    assert np.array_equal(dequantise(quantised), constant)
    assert not quantised.scale.any()
    assert not quantised.values.any()


@given(ROWS)
def test_a_row_does_not_depend_on_the_others(rows):
    whole = quantise(rows)
    for i in range(len(rows)):
        assert bytes_of(whole[i : i + 1]) == bytes_of(quantise(rows[i : i + 1]))


def test_zeros_of_both_signs_have_the_same_bytes():
    """Which of them is the smallest is the processor's choice."""
    zero = quantise(np.zeros((1, 64), np.float32))
    for rows in (np.full((1, 64), -0.0), np.array([[0.0, -0.0] * 32])):
        assert bytes_of(quantise(rows)) == bytes_of(zero)


def test_half_precision_is_quantised_by_its_values():
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float16)
    assert bytes_of(quantise(rows)) == bytes_of(quantise(rows.astype(np.float32)))


@pytest.mark.parametrize("num_rows", [0, 1, 1023, 2500])
def test_dequantised_is_the_formula_in_float32(num_rows):
    random = np.random.default_rng(1)
    stored = quantise(random.normal(size=(num_rows, 3)).astype(np.float32))
    out = np.full((num_rows, 3), 9, np.float32)
    assert dequantise(stored, out) is out
    for row in range(0, num_rows, 97):
        for dim in range(3):
            step = np.float32(stored.scale[row] * np.float32(stored.values[row, dim]))
            assert out[row, dim] == np.float32(stored.minimum[row] + step)
    assert np.array_equal(dequantise(stored), out)


def test_floats_are_given_back_as_they_are():
    rows = np.ones((2, 3), np.float16)
    assert dequantise(rows) is rows


def test_embeddings_keep_the_fidelity_that_was_measured_for_the_choice():
    """`storage.md` section 2: the mean cosine of 128 numbers is above 0.9999."""
    rows = np.random.default_rng(2).normal(size=(200, 128)).astype(np.float32)
    back = dequantise(quantise(rows))
    cosine = (rows * back).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(back, axis=1)
    assert 0.9999 < cosine.mean() < 1
