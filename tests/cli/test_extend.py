"""`kdcache extend` as a user meets it."""

import pytest
from commands import kdcache
from small import make_cache, tree_of

from kdcache.store import open_cache


@pytest.fixture(scope="module")
def cache(tiny_images, tiny_weights, tmp_path_factory):
    """A cache of 2 views, not to be changed."""
    out = tmp_path_factory.mktemp("cache") / "c.zarr"
    make_cache(tiny_images, tiny_weights, out)
    return out


def test_more_views_of_the_same_images(cache, tiny_images, tiny_weights, tmp_path):
    new = tmp_path / "new"
    options = ("--data", tiny_images, "--weights", tiny_weights, "--views", 3, "--workers", 0)
    code, stdout, stderr = kdcache("extend", cache, "--out", new, *options)
    assert code == 0, stderr
    assert stdout.strip() == open_cache(new).identity
    assert "note: 96 of 144 views are known" in stderr
    assert "the teacher sees 48; 0 images are new, 0 are gone" in stderr
    assert "are files of" in stderr
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=3)
    assert tree_of(new) == tree_of(tmp_path / "direct")
    code, _, stderr = kdcache("verify", new)
    assert code == 0, stderr
    code, _, stderr = kdcache("extend", cache, "--out", new, *options)  # once more: it is done
    assert code == 0, stderr
    assert " views in " not in stderr


def test_missing_images_and_missing_cache_are_told(cache, tiny_weights, tmp_path):
    weights = ("--weights", tiny_weights)
    code, _, stderr = kdcache("extend", cache, "--out", tmp_path / "new", "--views", 3, *weights)
    assert code == 1
    assert "error: images have to be rendered" in stderr
    assert "hint: give them: --data DIR" in stderr
    code, _, stderr = kdcache("extend", tmp_path / "none", "--out", tmp_path / "new", *weights)
    assert code == 1
    assert "error: there is no cache at" in stderr
    assert not (tmp_path / "new").exists()
