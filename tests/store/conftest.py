"""Small shards for every test that does not ask for the true ones."""

import os
import shutil

import pytest
from store import making

from kdcache.store import layout

_NAMES = ("PIECE_ROWS", "SHARD_BYTES", "MIN_SHARD_ROWS", "MAX_SHARD_ROWS", "CHUNK_BYTES")


def _shrink(monkeypatch):
    for name in _NAMES:
        monkeypatch.setattr(layout, name, getattr(layout, name))  # so that it is put back
    making.shrink_shards()
    # Waiting for the disk takes most of the time of these tests, and matters to machines that
    # lose power only.
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def small_shards(monkeypatch):
    _shrink(monkeypatch)


@pytest.fixture(scope="session")
def _whole_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        _shrink(monkeypatch)
        path = tmp_path_factory.mktemp("store") / "whole"
        making.make(path)
    return path


@pytest.fixture
def whole(tmp_path, small_shards, _whole_once):
    """The folder of a finished cache that was never interrupted."""
    return shutil.copytree(_whole_once, tmp_path / "whole")
