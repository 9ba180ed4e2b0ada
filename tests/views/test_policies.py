"""Policies are data: they travel in a cache, and what does not fit is refused by name."""

import json

import numpy as np
import pytest

from kdcache.errors import ConfigError
from kdcache.views import Policy, available_policies, get_policy


@pytest.mark.parametrize("name", available_policies())
def test_a_policy_survives_its_way_through_json(name):
    policy = get_policy(name)
    assert policy.name == name
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no policy `strong`") as error:
        get_policy("strong")
    assert all(name in error.value.hint for name in available_policies())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("flip", 1.5, "`policy.flip` is 1.5"),
        ("crop", "left", "`policy.crop` is 'left'"),
        ("flop", 0.5, "unknown key `policy.flop`"),
        ("scale", [0.5, 0.2], "`policy.scale` is `0.5` to `0.2`"),
        ("ratio", [0.0, 1.0], "`policy.ratio` is `0.0` to `1.0`"),
        ("small", {"count": 0, "side": 96, "scale": [0.1, 0.2]}, "`policy.small.count` is 0"),
        ("small", {"count": 6, "scale": [0.1, 0.2]}, "`policy.small.side` is not set"),
        ("small", {"count": 6, "side": 96, "scale": [0.2, 0.1]}, "`policy.small.scale` is `0.2`"),
    ],
)
def test_a_table_that_is_no_policy_is_refused_with_its_key(key, value, message):
    table = get_policy("weak").to_dict() | {key: value}
    with pytest.raises(ConfigError, match=message):
        Policy.from_dict(table)


def test_a_policy_without_version_is_refused():
    table = get_policy("weak").to_dict()
    del table["version"]
    with pytest.raises(ConfigError, match=r"`policy.version` is not set"):
        Policy.from_dict(table)


def test_the_published_numbers_are_kept():
    """SimReg's scale is not torchvision's default, which CompRess uses (methods.md, 13.7)."""
    assert get_policy("weak").scale == (0.2, 1.0)
    assert get_policy("compress").scale == (0.08, 1.0)
    strong = get_policy("moco_v2")
    jitter = (strong.brightness, strong.contrast, strong.saturation, strong.hue, strong.jitter)
    assert jitter == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert (strong.grey, strong.blur, strong.sigma, strong.flip) == (0.2, 0.5, (0.1, 2.0), 0.5)


def test_the_two_policies_of_swav_teachers_are_seeds():
    """methods.md 2.3: moco_v2's colours, scale .14 to 1; 6 x 96 of scale .05 to .14."""
    strong, swav, multicrop = (get_policy(n).to_dict() for n in ("moco_v2", "swav", "multicrop"))
    assert swav == strong | {"name": "swav", "scale": [0.14, 1.0]}
    small = {"count": 6, "side": 96, "scale": [0.05, 0.14]}
    assert multicrop == swav | {"name": "multicrop", "small": small}


# What caches of format 1 carry. A line that changes makes every one of them another policy's.
_PLAIN = (
    '{"name": "%s", "version": 1, "crop": "%s", "center_fraction": %s, "scale": [%s, 1.0], '
    '"ratio": [0.75, 1.3333333333333333], "flip": %s, "jitter": 0.0, "brightness": 0.0, '
    '"contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0, "sigma": [0.1, 2.0]}'
)
TABLES = {
    "center": _PLAIN % ("center", "center", "0.875", "0.2", "0.0"),
    "full": _PLAIN % ("full", "center", "1.0", "0.2", "0.0"),
    "weak": _PLAIN % ("weak", "random", "0.875", "0.2", "0.5"),
    "compress": _PLAIN % ("compress", "random", "0.875", "0.08", "0.5"),
    "moco_v2": '{"name": "moco_v2", "version": 1, "crop": "random", "center_fraction": 0.875, '
    '"scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5, "jitter": 0.8, '
    '"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2, "blur": 0.5, '
    '"sigma": [0.1, 2.0]}',
}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_a_policy_in_old_caches_is_the_same_text(name):
    assert json.dumps(get_policy(name).to_dict()) == TABLES[name]
    assert Policy.from_dict(json.loads(TABLES[name])) == get_policy(name)


def test_small_crops_need_a_random_crop():
    table = get_policy("multicrop").to_dict() | {"crop": "center"}
    with pytest.raises(ConfigError, match=r"`policy.small` is set, but `policy.crop` is `center`"):
        Policy.from_dict(table)


def test_a_set_is_one_large_crop_and_six_small_ones():
    policy = get_policy("multicrop")
    assert policy.views_in_set == 7
    assert [policy.side(view, 224) for view in range(8)] == [224, *[96] * 6, 224]
    assert [policy.side(1, size) for size in (8, 32, 64, 128, 160)] == [3, 14, 27, 55, 69]
    assert np.flatnonzero(~policy.is_small(np.arange(22))).tolist() == [0, 7, 14, 21]


@pytest.mark.parametrize("name", [*TABLES, "swav"])
def test_the_views_of_a_plain_policy_are_all_of_one_size(name):
    policy = get_policy(name)
    assert policy.views_in_set == 1
    assert {policy.side(view, 128) for view in range(20)} == {128}
    assert not policy.is_small(np.arange(20)).any()
