"""Policies are data: they travel in a cache, and what does not fit is refused by name."""

import json

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
