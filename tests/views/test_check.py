"""Views that the teacher did not see must be refused, and the stage named."""

import dataclasses

import numpy as np
import pytest

from kdcache.errors import CacheMismatch, DataError
from kdcache.views import check_witnesses, take_witness
from kdcache.views.render import R1

ROWS = np.array([0, 1, 2, 4, 5, 6])
VIEWS = np.arange(5)


class Shifted(R1):
    """r1 with levels moved by the same number in one stage."""

    def __init__(self, stage, levels):
        self.stage, self.levels = stage, levels

    def geometry(self, pixels, view, size):
        return self.shifted("geometry", super().geometry(pixels, view, size))

    def colour(self, pixels, view):
        return self.shifted("colour", super().colour(pixels, view))

    def shifted(self, stage, pixels):
        moved = np.minimum(pixels.astype(int) + self.levels, 255).astype(np.uint8)
        return moved if stage == self.stage else pixels


@pytest.fixture
def kept(make_maker):
    """Witnesses of the policy `weak`, whose colour stage adds nothing of its own."""
    everything = np.ones((len(ROWS), len(VIEWS)), np.bool_)
    return make_maker("weak").make(ROWS, VIEWS, witness=everything).witnesses


def test_the_same_views_are_the_same_bits(make_maker, kept):
    report = check_witnesses(kept, make_maker("weak"))
    assert report.num_checked == 16
    assert report.differences == ()
    assert str(report) == "16 of 16 views are the same bits"


@pytest.mark.parametrize("size", [40, 224])
def test_small_crops_are_checked_at_their_own_side(make_maker, size):
    views = np.arange(7)
    everything = np.ones((len(ROWS), 7), np.bool_)
    maker = make_maker("multicrop", size=size)
    kept = maker.make(ROWS, views, witness=everything).witnesses
    assert {one.view for one in kept} == set(range(7))
    assert check_witnesses(kept, maker, count=42).differences == ()
    small = [one for one in kept if one.view == 5]
    with pytest.raises(CacheMismatch, match="stage that differs is `geometry`"):
        check_witnesses(small, dataclasses.replace(maker, renderer=Shifted("geometry", 9)))


def test_fewer_witnesses_than_asked_for_are_all_checked_once(make_maker, kept):
    assert check_witnesses(kept[:3], make_maker("weak"), count=16).num_checked == 3


def test_the_checked_views_are_spread_over_the_rows(make_maker, kept):
    """With every row but the last damaged, a check of two still meets both ends."""
    first, last = kept[0], kept[-1]
    broken = [dataclasses.replace(one, crop=b"another digest..") for one in kept[1:-1]]
    assert check_witnesses([last, *broken, first], make_maker("weak"), count=2).num_checked == 2


@pytest.mark.parametrize("stage", ["geometry", "colour"])
def test_a_level_of_noise_is_reported_and_tolerated(make_maker, kept, stage):
    maker = dataclasses.replace(make_maker("weak"), renderer=Shifted(stage, 1))
    report = check_witnesses(kept, maker)
    assert {difference.stage for difference in report.differences} == {stage}
    assert f"0 of 16 views are the same bits; the others differ first in {stage}" in str(report)


@pytest.mark.parametrize(("stage", "library"), [("geometry", "torch"), ("colour", "OpenCV")])
def test_other_pixels_are_refused_with_their_stage(make_maker, kept, stage, library):
    maker = dataclasses.replace(make_maker("weak"), renderer=Shifted(stage, 4))
    with pytest.raises(CacheMismatch, match=f"stage that differs is `{stage}`") as error:
        check_witnesses(kept, maker)
    assert library in error.value.hint


def test_another_seed_is_refused_as_another_crop(make_maker, kept):
    with pytest.raises(CacheMismatch, match="stage that differs is `crop`") as error:
        check_witnesses(kept, make_maker("weak", seed=6))
    assert "seed" in error.value.hint


def test_another_decoder_is_refused_however_small_the_difference(make_maker, kept):
    other = [dataclasses.replace(one, decode=b"another digest..") for one in kept]
    with pytest.raises(CacheMismatch, match="stage that differs is `decode`"):
        check_witnesses(other, make_maker("weak"))


def test_a_cache_without_witnesses_is_refused(make_maker):
    with pytest.raises(CacheMismatch, match="no witness"):
        check_witnesses([], make_maker("weak"))


def test_an_image_that_became_unreadable_is_named(make_maker):
    with pytest.raises(DataError, match=r"`3.png` cannot be decoded: .+") as error:
        take_witness(make_maker("weak"), 3, 0)
    assert "librar" in error.value.hint
