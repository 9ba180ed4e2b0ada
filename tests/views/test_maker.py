"""The maker must leave no trace of batch, order, worker or process in the pixels."""

import dataclasses
import functools
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from kdcache.errors import DataError
from kdcache.images import ImageSet, decode
from kdcache.views import available_policies, draw

VIEWS = np.array([0, 1, 5])
ROWS = np.arange(7)
TORN = 3


def assert_same_pixels(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", ["moco_v2", "multicrop"])
def test_a_view_is_drawn_then_rendered_by_itself(make_maker, policy):
    maker = make_maker(policy)
    made = maker.make(ROWS, VIEWS)
    for row in (0, 1, 6):
        image = decode(maker.images.read(row))
        sides = [np.array([side]) for side in image.shape[:2]]
        (drawn,) = draw(maker.policy, maker.seed, maker.ids[row : row + 1], VIEWS, *sides)
        for j, view in enumerate(drawn):
            side = 17 if policy == "multicrop" and j > 0 else 40
            shaped = maker.renderer.geometry(image, view, side)
            expected = maker.renderer.colour(shaped, view)
            np.testing.assert_array_equal(made.pixels[j][row], expected)


def test_every_seventh_view_of_multicrop_is_large(make_maker):
    made = make_maker("multicrop", size=70).make(ROWS, np.array([13, 7, 0, 1, 6]))
    sides = [pixels.shape[1:] for pixels in made.pixels]
    assert sides == [(side, side, 3) for side in (30, 70, 70, 30, 30)]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_pixels_do_not_depend_on_the_batch_or_its_order(make_maker, data):
    maker = make_maker(data.draw(st.sampled_from(available_policies())))
    whole = maker.make(ROWS, VIEWS).pixels
    rows = np.array(data.draw(st.lists(st.integers(0, 6), max_size=40)), int)
    columns = np.array(data.draw(st.lists(st.integers(0, 2), max_size=4)), int)
    part = maker.make(rows, VIEWS[columns]).pixels
    assert_same_pixels(part, [whole[column][rows] for column in columns])


# From Python 3.12 on a fork next to threads warns; the images room takes care of its own lock.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("num_workers", "context", "batch_size"),
    [
        (0, None, 3),
        (1, "fork", 2),
        (2, "fork", 1),
        pytest.param(1, "spawn", 3, marks=pytest.mark.slow),
    ],
)
def test_pixels_do_not_depend_on_workers(make_maker, num_workers, context, batch_size):
    maker = make_maker("multicrop")
    order = ROWS[::-1]
    batches = [order[i : i + batch_size] for i in range(0, 7, batch_size)]
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
        collate_fn=functools.partial(maker.make, views=VIEWS),
    )
    made = list(loader)
    pixels = [np.concatenate(parts) for parts in zip(*(one.pixels for one in made), strict=True)]
    assert_same_pixels(pixels, maker.make(order, VIEWS).pixels)
    assert [row for one in made for row in one.unreadable] == [TORN]


def test_a_pickled_maker_makes_the_same_bits(make_maker):
    maker = make_maker()
    again = pickle.loads(pickle.dumps(maker))
    assert_same_pixels(again.make(ROWS, VIEWS).pixels, maker.make(ROWS, VIEWS).pixels)


def test_an_unreadable_image_is_black_and_says_why(make_maker):
    made = make_maker().make(ROWS, VIEWS)
    assert list(made.unreadable) == [TORN]
    assert "damaged" in made.unreadable[TORN]
    for pixels in made.pixels:
        assert np.flatnonzero(~pixels.any((1, 2, 3))).tolist() == [TORN]


def test_a_changed_image_is_refused(make_maker):
    maker = make_maker()
    ids = maker.ids.copy()
    ids[2, 0] ^= 1
    with pytest.raises(DataError, match=r"`2.jpg` has changed since it was indexed") as error:
        dataclasses.replace(maker, ids=ids).make(ROWS, VIEWS)
    assert ids[2].tobytes().hex() in str(error.value)
    assert "original" in error.value.hint


@dataclass(frozen=True, eq=False)
class CountingSet(ImageSet):
    """A set that writes down which rows were read."""

    inner: ImageSet
    rows_read: list[int]

    def read(self, row: int) -> bytes:
        self.rows_read.append(row)
        return self.inner.read(row)


def test_an_image_is_read_once_for_all_its_views(make_maker):
    maker = make_maker()
    images = maker.images
    counting = CountingSet(
        images.source, images.paths, images.labels, images.classes, inner=images, rows_read=[]
    )
    dataclasses.replace(maker, images=counting).make(np.array([0, 4]), np.arange(6))
    assert counting.rows_read == [0, 4]


def test_another_seed_makes_other_pixels(make_maker):
    first, second = (make_maker(seed=seed).make(ROWS, VIEWS).pixels for seed in (5, 6))
    assert not np.array_equal(first, second)


def test_witnesses_are_taken_of_the_asked_views_alone(make_maker):
    maker = make_maker()
    mask = np.zeros((7, 3), np.bool_)
    mask[0, 2] = mask[4, 0] = mask[TORN, 1] = True
    made = maker.make(ROWS, VIEWS, witness=mask)
    assert [(one.row, one.view) for one in made.witnesses] == [(0, 5), (4, 0)]
