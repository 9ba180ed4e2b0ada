"""A small cache, made once, of which each test has its own copy."""

import os
import shutil

import pytest
from store import making
from verify import damage

from kdcache.store import layout

_NAMES = ("PIECE_ROWS", "SHARD_BYTES", "MIN_SHARD_ROWS", "MAX_SHARD_ROWS", "CHUNK_BYTES")


def _shrink(monkeypatch):
    for name in _NAMES:
        monkeypatch.setattr(layout, name, getattr(layout, name))  # so that it is put back
    making.shrink_shards()
    monkeypatch.setattr(layout, "MAX_SHARD_ROWS", 64)  # five blocks
    monkeypatch.setattr(layout, "CHUNK_BYTES", 512)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # matters to machines that lose power


@pytest.fixture
def small_shards(monkeypatch):
    _shrink(monkeypatch)


@pytest.fixture(scope="session")
def small_once(tmp_path_factory):
    """The finished cache; not to be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _shrink(monkeypatch)
        return damage.make_small(tmp_path_factory.mktemp("verify") / "small")


@pytest.fixture
def small(tmp_path, small_shards, small_once):
    """A copy to be damaged."""
    return shutil.copytree(small_once, tmp_path / "small")
