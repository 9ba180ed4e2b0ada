"""Drawn parameters: pure, pinned, and distributed as torchvision's."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import ColorJitter, RandomResizedCrop

from kdcache.views import VIEW, available_policies, draw, get_policy, philox4x32
from kdcache.views.draw import _exp

SHAPES = [(375, 500), (64, 64), (500, 120), (90, 800), (1, 1)]


def fixed_ids(num):
    digests = [hashlib.sha256(str(i).encode()).digest()[:16] for i in range(num)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(num, 16)


def draw_many(name, num_images, num_views, shape=(375, 500), seed=7):
    heights, widths = (np.full(num_images, side) for side in shape)
    ids = fixed_ids(num_images)
    return draw(get_policy(name), seed, ids, np.arange(num_views), heights, widths)


# SHA-256 of 40 images in 5 views. A digest that changes is a policy with another meaning: raise its
# version, and every cache made with the old one can no longer be trained from.
MEANINGS = {
    ("center", 1): "1aa9994b6b8e1d7417839c23ed622e108c87fd1b1fcaba1364baebdfbe632083",
    ("full", 1): "86782d6f9d0e3fc84ec5cc65c131fe306395d7f7e9ce9875eab740951297e3f1",
    ("weak", 1): "b278657304a54e1b83625276c79314de555f65dfcafb6f7bbac4319f533a6d9c",
    ("compress", 1): "ed5674dfa1a9b2e57b37d0f93ddc6f4542826ce199d107afcef0d1fba7017e7e",
    ("moco_v2", 1): "92359552ca8d0ccea916621471aa1f4cf6c26e28a12cb96f16f8dc531e136c95",
    ("swav", 1): "98180725f1db4731303670b1ef9b6a5065b3134cf02058b8762d38cd237e3aeb",
    ("multicrop", 1): "3381b36aa73810f378556c739ef652705a9c1a4bd6b9090833782e484a9f1f1a",
}


@pytest.mark.parametrize("name", available_policies())
def test_a_policy_means_what_it_meant(name):
    policy = get_policy(name)
    sides = np.array(SHAPES * 8)
    views = np.array([0, 1, 2, 1000, 2**32 - 1])
    drawn = draw(policy, 2**63 + 5, fixed_ids(40), views, sides[:, 0], sides[:, 1])
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == MEANINGS[name, policy.version]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_parameters_do_not_depend_on_the_batch_or_its_order(data):
    num_images, num_views = 9, 6
    policy = get_policy(data.draw(st.sampled_from(available_policies())))
    ids, views = fixed_ids(num_images), np.array([0, 1, 2, 77, 1000, 2**32 - 1])
    heights, widths = np.arange(1, 10) * 37, np.arange(9, 0, -1) * 41
    whole = draw(policy, 3, ids, views, heights, widths)
    rows = data.draw(st.lists(st.integers(0, num_images - 1), max_size=12))
    columns = data.draw(st.lists(st.integers(0, num_views - 1), max_size=8))
    rows, columns = np.array(rows, int), np.array(columns, int)
    part = draw(policy, 3, ids[rows], views[columns], heights[rows], widths[rows])
    np.testing.assert_array_equal(part, whole[np.ix_(rows, columns)])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    name=st.sampled_from(available_policies()),
)
def test_every_box_lies_in_its_image(height, width, name):
    drawn = draw_many(name, 4, 4, (height, width))
    assert np.all((drawn["height"] >= 1) & (drawn["width"] >= 1))
    assert np.all((drawn["top"] >= 0) & (drawn["top"] + drawn["height"] <= height))
    assert np.all((drawn["left"] >= 0) & (drawn["left"] + drawn["width"] <= width))


@pytest.mark.parametrize("view", [-1, 2**32])
def test_a_view_index_out_of_range_is_our_own_bug(view):
    side = np.array([64])
    with pytest.raises(AssertionError, match="view index"):
        draw(get_policy("weak"), 0, fixed_ids(1), np.array([view]), side, side)


def slow_view(policy, seed, image_id, view, height, width):
    """One view, by the table of slots and torchvision's loop, in plain Python."""
    word0, word1 = (int.from_bytes(image_id[i : i + 4], "little") for i in (0, 4))
    key = (seed % 2**32, seed // 2**32)

    def uniform(block, word):
        counter = np.array([word0, word1, view, block], np.uint32)
        return int(philox4x32(counter, key)[word]) / 2**32

    def between(low, high, *slot):
        return low + (high - low) * uniform(*slot)

    small = policy.name == "multicrop" and view % 7 != 0
    scale = policy.small.scale if small else policy.scale
    low, high = policy.ratio
    box_height = height if width / height >= low else round(width / low)
    box_width = width if width / height <= high else round(height * high)
    top, left = (height - box_height) // 2, (width - box_width) // 2
    for block in range(4, 14):
        area = height * width * between(*scale, block, 0)
        aspect = math.exp(between(math.log(low), math.log(high), block, 1))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < w <= width and 0 < h <= height:
            box_height, box_width = h, w
            top = int(uniform(block, 2) * (height - h + 1))
            left = int(uniform(block, 3) * (width - w + 1))
            break
    factors, hue, order = (4096, 4096, 4096), 0, 0
    jitter = uniform(0, 1) < policy.jitter
    if jitter:
        slots = {"brightness": (0, 2), "contrast": (0, 3), "saturation": (1, 0)}
        reaches = {name: getattr(policy, name) for name in slots}
        factors = [round(4096 * between(1 - r, 1 + r, *slots[n])) for n, r in reaches.items()]
        hue = round(4096 * between(-policy.hue, policy.hue, 1, 1))
        order = int(uniform(1, 2) * 24)
    grey = uniform(1, 3) < policy.grey
    sigma = 0
    if uniform(2, 0) < policy.blur:
        sigma = round(1024 * between(*policy.sigma, 2, 1) * (224 / 96 if small else 1))
    box = (top, left, box_height, box_width)
    return (*box, uniform(0, 0) < policy.flip, jitter, *factors, hue, order, grey, sigma)


@pytest.mark.parametrize(
    ("name", "num_views"),
    [("weak", 3), ("compress", 3), ("moco_v2", 3), ("swav", 3), ("multicrop", 9)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_is_the_one_of_the_table_of_slots(name, num_views, shape):
    drawn = draw_many(name, 12, num_views, shape, seed=2**40 + 3)
    for row, image_id in enumerate(fixed_ids(12)):
        for view in range(num_views):
            slow = slow_view(get_policy(name), 2**40 + 3, image_id.tobytes(), view, *shape)
            assert drawn[row, view].item() == slow


def test_the_central_box_has_its_share_of_the_shorter_side():
    (view,) = draw_many("center", 1, 1)[0]
    assert tuple(view)[:4] == (23, 86, 328, 328)
    (view,) = draw_many("full", 1, 1)[0]
    assert tuple(view)[:4] == (0, 62, 375, 375)


@pytest.mark.parametrize("name", ["center", "full", "weak", "compress"])
def test_what_a_policy_does_not_ask_for_is_neutral(name):
    drawn = draw_many(name, 50, 4)
    for field in ("brightness", "contrast", "saturation"):
        assert np.all(drawn[field] == 4096)
    for field in ("jitter", "hue", "order", "grey", "sigma"):
        assert not drawn[field].any()


def test_two_policies_of_one_seed_share_what_both_ask_for():
    """Fixed slots: colour moves no box."""
    weak, strong = draw_many("weak", 30, 3), draw_many("moco_v2", 30, 3)
    for field in ("top", "left", "height", "width", "flip"):
        np.testing.assert_array_equal(weak[field], strong[field])


def test_the_exponential_is_that_of_the_library():
    x = np.linspace(-1.5, 1.5, 1001)
    np.testing.assert_allclose(_exp(x), np.exp(x), rtol=1e-14)


# Distribution ----------------------------------------------------------------------------------


def assert_same_distribution(ours, theirs, chance=1e-4):
    """Two-sample Kolmogorov-Smirnov."""
    grid = np.concatenate([ours, theirs])
    steps = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (ours, theirs)]
    distance = np.abs(steps[0] - steps[1]).max()
    n, m = len(ours), len(theirs)
    assert distance < math.sqrt(-math.log(chance / 2) / 2 * (n + m) / (n * m))


@pytest.mark.parametrize(
    ("name", "views", "scale"),
    [
        ("weak", [0, 1], [0.2, 1.0]),
        ("compress", [0, 1], [0.08, 1.0]),
        ("swav", [0, 1], [0.14, 1.0]),
        ("multicrop", [0, 7], [0.14, 1.0]),
        ("multicrop", [1, 6], [0.05, 0.14]),
        ("multicrop", [3, 11], [0.05, 0.14]),
    ],
)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_boxes_are_distributed_as_those_of_torchvision(name, views, scale, shape):
    height, width = shape
    drawn = draw_many(name, 1500, 14, shape)[:, views].ravel()
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, scale, [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    ours = np.stack([drawn[field] for field in ("top", "left", "height", "width")], 1)
    ours, theirs = ours.astype(float), theirs.astype(float)
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])


def is_central(boxes, shape):
    """Whether a box is the one that torchvision falls back to in a wide image."""
    height, width = shape
    side = round(height * 4 / 3)
    return (boxes == (0, (width - side) // 2, height, side)).all(1).mean()


def test_as_many_views_fall_back_to_the_centre_as_in_torchvision():
    """In an image of 90 x 800 the ten tries of a large crop mostly fail."""
    shape = (90, 800)
    drawn = draw_many("weak", 3000, 1, shape).ravel()
    ours = np.stack([drawn[field] for field in ("top", "left", "height", "width")], 1)
    torch.manual_seed(0)
    image = torch.empty(1, *shape)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    )
    ours_rate, theirs_rate = is_central(ours, shape), is_central(theirs, shape)
    assert theirs_rate > 0.5
    assert abs(ours_rate - theirs_rate) < 4 * math.sqrt(2 * 0.25 / 3000)


def test_jitter_is_distributed_as_that_of_torchvision():
    drawn = draw_many("moco_v2", 3000, 2).ravel()
    drawn = drawn[drawn["jitter"]]
    torch.manual_seed(0)
    transform = ColorJitter(0.4, 0.4, 0.4, 0.1)
    ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
    theirs = [ColorJitter.get_params(*ranges)[1:] for _ in range(3000)]
    theirs = np.array(theirs)
    for column, field in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert_same_distribution(drawn[field] / 4096, theirs[:, column])


def test_the_four_changes_come_in_every_order_equally_often():
    drawn = draw_many("moco_v2", 6000, 2).ravel()
    counts = np.bincount(drawn["order"][drawn["jitter"]], minlength=24)
    expected = counts.sum() / 24
    assert len(counts) == 24
    # Chi squared with 23 degrees of freedom passes 58.6 in 1 of 16,000 draws.
    assert ((counts - expected) ** 2 / expected).sum() < 58.6


@pytest.mark.parametrize(
    ("field", "probability"), [("flip", 0.5), ("jitter", 0.8), ("grey", 0.2), ("sigma", 0.5)]
)
def test_each_change_happens_at_its_rate(field, probability):
    drawn = draw_many("moco_v2", 5000, 2)
    rate = (drawn[field] != 0).mean()
    assert abs(rate - probability) < 4 * math.sqrt(probability * (1 - probability) / drawn.size)


def test_sigma_is_uniform_in_its_span():
    sigma = draw_many("moco_v2", 4000, 2)["sigma"].ravel()
    sigma = sigma[sigma > 0] / 1024
    assert_same_distribution(sigma, np.random.default_rng(0).uniform(0.1, 2.0, 5000))


def test_sigma_of_a_small_crop_is_uniform_in_pixels_of_its_own():
    sigma = draw_many("multicrop", 1200, 7)["sigma"]
    expected = np.random.default_rng(0).uniform(0.1, 2.0, 5000)
    for views, side in ((sigma[:, :1], 224), (sigma[:, 1:], 96)):
        assert_same_distribution(views[views > 0] / 1024 * side / 224, expected)


def test_the_views_of_multicrop_are_those_of_swav_but_for_the_small_boxes():
    """Fixed slots again: of a set the large crop is the very same, of the others all but box and
    blur."""
    swav, multicrop = draw_many("swav", 40, 14), draw_many("multicrop", 40, 14)
    np.testing.assert_array_equal(multicrop[:, [0, 7]], swav[:, [0, 7]])
    for field in ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "order", "grey"):
        np.testing.assert_array_equal(multicrop[field], swav[field])
    area = multicrop["height"] * multicrop["width"] / (375 * 500)
    assert area[:, [0, 7]].max() > 0.8
    assert np.delete(area, [0, 7], axis=1).max() < 0.142


def as_numbers(drawn):
    return np.stack([drawn[field].ravel().astype(float) for field in VIEW.names], 1)


def test_different_views_seeds_and_parameters_are_uncorrelated():
    num = 4000
    first, second = (as_numbers(draw_many("moco_v2", num, 2)[:, v : v + 1]) for v in (0, 1))
    other_seed = as_numbers(draw_many("moco_v2", num, 1, seed=8))
    other_id = np.roll(first, 1, axis=0)
    for other in (second, other_seed, other_id):
        correlation = np.corrcoef(first.T, other.T)[: first.shape[1], first.shape[1] :]
        assert np.abs(correlation).max() < 5 / math.sqrt(num)


def test_a_low_and_a_high_word_of_the_seed_both_count():
    drawn = [draw_many("weak", 8, 2, seed=seed) for seed in (0, 1, 2**32)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
