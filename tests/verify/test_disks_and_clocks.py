"""A disk that fills, a lock that is lost and a clock that jumps: each is survived or explained."""

import ast
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from commands import Done, kdcache, refused
from small import make_cache, tree_of
from store import making
from verify import damage

from kdcache.errors import CacheMismatch
from kdcache.files import exclusive
from kdcache.store import grow, grow_cache, layout, open_cache
from kdcache.verify import copy_at, repair_cache, verify_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 900 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def extract(data, weights, out) -> Done:
    """Run the command."""
    return kdcache(
        "extract", "--teacher", "timm:test_resnet", "--weights", weights, "--data", data,
        "--out", out, "--views", 2, "--image-size", 32, "--dtype", "float32", "--batch-size", 16,
        "--workers", 0, "--device", "cpu",
    )  # fmt: skip


def test_disk_that_fills_in_an_extraction_is_explained_and_nothing_is_lost(
    tiny_images, tiny_weights, tmp_path, small_disk, monkeypatch
):
    monkeypatch.setattr(layout, "PIECE_ROWS", 16)
    with monkeypatch.context() as patched:
        # There was room, and others have filled it since.
        patched.setattr("kdcache.extract.run._check_room", lambda writer, out: None)
        done = extract(tiny_images, tiny_weights, small_disk / "c")
    message = "no space left on device; nothing that was finished is lost"
    refused(done, message, "run the same command again")
    assert not (small_disk / "c" / "manifest.json").exists()
    assert list((small_disk / "c" / ".work" / "pieces").glob("*.npz"))
    shutil.copytree(small_disk / "c", tmp_path / "c")  # to where there is space
    assert extract(tiny_images, tiny_weights, tmp_path / "c").returncode == 0
    assert verify_cache(tmp_path / "c").whole
    make_cache(tiny_images, tiny_weights, tmp_path / "whole")
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "whole")


def test_disk_that_fills_in_a_repair_leaves_every_file_as_it_was(small, small_once, small_disk):
    shutil.copytree(small, small_disk / "c")
    for name in damage.shards_of(small_disk / "c"):
        data = (small_disk / "c" / name).read_bytes()
        damage.replace(small_disk / "c", name, data[:-1] + bytes([data[-1] ^ 1]))
    before = tree_of(small_disk / "c")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free))
    with pytest.raises(OSError, match="No space left"):
        repair_cache(small_disk / "c", copy=copy_at(str(small_once)))
    left = {name: data for name, data in tree_of(small_disk / "c").items() if name in before}
    assert left == before
    (small_disk / "filler").unlink()
    assert repair_cache(small_disk / "c", copy=copy_at(str(small_once)))[0].whole


def test_lock_whose_file_was_taken_away_is_not_held_for_nobody(tmp_path, monkeypatch):
    """Between opening the file and locking it, somebody cleans up."""
    import fcntl

    true, taken = fcntl.flock, []

    def cleaned(handle, how):
        if not taken:
            taken.append((tmp_path / ".lock").unlink())
        return true(handle, how)

    monkeypatch.setattr(fcntl, "flock", cleaned)
    with exclusive(tmp_path):
        held = os.stat(tmp_path / ".lock")
        assert held.st_nlink == 1
        command = ["flock", "--nonblock", str(tmp_path / ".lock"), "true"]
        if shutil.which("flock"):
            assert subprocess.run(command, check=False).returncode == 1


def test_growth_whose_lock_was_lost_is_refused_and_the_other_stands(small, monkeypatch):
    """Somebody took the lock's file away, and a second process grew the cache meanwhile."""
    true, nested = grow._add, []

    def interrupted(cache, files):
        if not nested:
            nested.append(1)
            (small / "manifests/.lock").unlink()
            grow_cache(open_cache(small), making.fitted_head())
        return true(cache, files)

    monkeypatch.setattr(grow, "_add", interrupted)
    with pytest.raises(CacheMismatch, match="what was made now has"):
        grow_cache(open_cache(small), making.graph(num_rows=300))
    assert open_cache(small).head() is not None
    assert verify_cache(small).whole
    assert grow_cache(open_cache(small), making.graph(num_rows=300)).neighbours() is not None
    assert verify_cache(small).whole


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_clock_that_jumps_leaves_no_trace(tiny_images, tiny_weights, tmp_path, monkeypatch, jump_s):
    monkeypatch.setattr(layout, "PIECE_ROWS", 16)
    make_cache(tiny_images, tiny_weights, tmp_path / "steady")
    true, calls = time.time, []

    def jumping():
        calls.append(1)
        return true() + (jump_s if len(calls) % 2 else 0)

    monkeypatch.setattr(time, "time", jumping)
    make_cache(tiny_images, tiny_weights, tmp_path / "jumping")
    assert verify_cache(tmp_path / "jumping").whole
    for path in (tmp_path / "jumping").rglob("*"):
        os.utime(path, (0, 0))
    assert verify_cache(tmp_path / "jumping").whole
    assert tree_of(tmp_path / "jumping") == tree_of(tmp_path / "steady")


WALL_CLOCK = {"time.time", "datetime.now", "datetime.utcnow", "date.today", "time.localtime"}


def test_nothing_depends_on_the_wall_clock():
    for path in sorted(ROOT.glob("kdcache/**/*.py")) + sorted(ROOT.glob("cli/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name = f"{getattr(node.value, 'id', '')}.{node.attr}"
                assert name not in WALL_CLOCK, f"{path}:{node.lineno} asks `{name}`"
                if path.name == "tier.py":  # which view of a far cache makes room first, no more
                    continue
                assert node.attr not in {"st_mtime", "st_ctime", "st_mtime_ns"}, f"{path}"
