"""A witness must tell the first stage at which two renderings part."""

import dataclasses
import math

import numpy as np
import pytest

from kdcache.views import (
    compare,
    take_witness,
    witness_mask,
    witnesses_from_arrays,
    witnesses_to_arrays,
)
from kdcache.views.witness import STAGES


def test_all_views_of_a_small_cache_are_kept():
    assert witness_mask(np.arange(64), np.arange(4), 64, 4).all()


@pytest.mark.parametrize(("num_rows", "num_views"), [(257, 1), (300, 40), (20_000, 8)])
def test_about_256_views_of_a_large_cache_are_kept(num_rows, num_views):
    kept = witness_mask(np.arange(num_rows), np.arange(num_views), num_rows, num_views).sum()
    assert abs(kept - 256) < 5 * math.sqrt(256)


def test_workers_agree_on_what_is_kept():
    whole = witness_mask(np.arange(500), np.arange(6), 500, 6)
    rows, views = np.array([77, 3, 499], np.int32), np.array([5, 0], np.int32)
    part = witness_mask(rows, views, 500, 6)
    np.testing.assert_array_equal(part, whole[np.ix_(rows, views)])
    assert whole.any(axis=0).all()


def test_rows_beyond_32_bits_are_told_apart():
    near = witness_mask(np.arange(4000), np.arange(4), 4000, 4)
    far = witness_mask(np.arange(4000) + 2**32, np.arange(4), 4000, 4)
    assert not np.array_equal(near, far)


def test_the_same_view_has_the_same_witness(make_maker):
    kept, now = (take_witness(make_maker(), 1, 9) for _ in range(2))
    assert compare(kept, now) is None


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_stage_that_differs_is_named(make_maker, stage):
    kept = take_witness(make_maker(), 1, 9)
    later = STAGES[STAGES.index(stage) :]
    thumbnail = kept.thumbnail.copy()
    thumbnail[0, 0, 0] ^= 64
    now = dataclasses.replace(
        kept, thumbnail=thumbnail, **dict.fromkeys(later, b"another digest..")
    )
    difference = compare(kept, now)
    assert (difference.row, difference.view, difference.stage) == (1, 9, stage)
    assert difference.max_levels == 64
    assert difference.mean_levels == pytest.approx(64 / (32 * 32 * 3))


def test_a_thumbnail_is_the_mean_of_areas(make_maker):
    maker = make_maker(size=64)
    pixels = maker.make(np.array([0]), np.array([2])).pixels[0][0]
    means = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(take_witness(maker, 0, 2).thumbnail, means, atol=0.51)


def test_a_thumbnail_of_a_small_crop_is_the_mean_of_areas_too(make_maker):
    maker = make_maker("multicrop", size=149)
    pixels = maker.make(np.array([0]), np.array([3])).pixels[0][0]
    assert pixels.shape == (64, 64, 3)
    means = pixels.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(take_witness(maker, 0, 3).thumbnail, means, atol=0.51)


def test_a_crop_smaller_than_its_thumbnail_has_one(make_maker):
    """Its nearest pixels, give or take what lies between them."""
    maker = make_maker("multicrop", size=38)
    pixels = maker.make(np.array([0]), np.array([3])).pixels[0][0]
    assert pixels.shape == (16, 16, 3)
    thumbnail = take_witness(maker, 0, 3).thumbnail
    np.testing.assert_array_equal(thumbnail.max((0, 1)), pixels.max((0, 1)))
    np.testing.assert_allclose(thumbnail.mean((0, 1)), pixels.mean((0, 1)), atol=1)


def test_witnesses_survive_as_arrays(make_maker):
    maker = make_maker()
    made = maker.make(np.arange(7), np.arange(3), witness=np.ones((7, 3), np.bool_))
    arrays = witnesses_to_arrays(made.witnesses[::-1])
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "row": "int64",
        "view": "int64",
        "thumbnail": "uint8",
        **dict.fromkeys(STAGES, "uint8"),
    }
    again = witnesses_from_arrays(arrays)
    assert len(again) == 6 * 3
    for kept, now in zip(made.witnesses, again, strict=True):
        assert compare(kept, now) is None
        np.testing.assert_array_equal(kept.thumbnail, now.thumbnail)


def test_no_witness_at_all_survives_as_arrays():
    arrays = witnesses_to_arrays([])
    assert arrays["thumbnail"].shape == (0, 32, 32, 3)
    assert arrays["decode"].shape == (0, 16)
    assert witnesses_from_arrays(arrays) == []
