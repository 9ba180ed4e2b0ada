"""Pieces are claimed by locks that end with their process, and a cache is begun by one alone."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import make_cache, tree_of

from kdcache.errors import CacheMismatch, CacheUnfinished, DataError
from kdcache.extract import claims, run
from kdcache.extract.claims import join
from kdcache.extract.engine import Report
from kdcache.progress import silent
from kdcache.store import CacheWriter, layout

ROOT = Path(__file__).parents[2]

# Joins a cache, tells what it is and what it can claim of pieces 0 to 3, and waits to be ended.
OTHER = """
import sys
from pathlib import Path
from kdcache.extract.claims import join
with join(Path(sys.argv[1])) as mine:
    claimed = [piece for piece in map(int, sys.argv[2:]) if mine._take(piece)]
    if mine.is_first:
        (Path(sys.argv[1]) / "recipe.json").touch()
        mine.begun()
    print(mine.is_first, *claimed, flush=True)
    sys.stdin.readline()
"""


def other(out, *pieces):
    """A process that has claimed pieces, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(out), *map(str, pieces)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().split()


@pytest.mark.dist
@pytest.mark.slow
def test_claim_ends_with_its_process_even_if_that_is_killed(tmp_path):
    first, said = other(tmp_path / "c", 0, 1)
    assert said == ["True", "0", "1"]
    with join(tmp_path / "c") as mine:
        assert not mine.is_first
        assert [piece for piece in range(4) if mine._take(piece)] == [2, 3]
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert mine._take(0)
        second, said = other(tmp_path / "c", 0, 1, 2)
        assert said == ["False", "1"]
        second.communicate("\n")
    with join(tmp_path / "c") as alone:
        assert alone.is_first


class Pieces(CacheWriter):
    """A writer of ten pieces, of which some are there."""

    def __init__(self, *there: int) -> None:
        self.path = Path("c")
        self.there = set(there)

    def missing(self) -> list[int]:
        return [piece for piece in range(10) if piece not in self.there]

    def has(self, piece: int) -> bool:
        return piece in self.there

    def piece_rows(self, piece: int) -> range:
        return range(256)


def walk(writer, out, others=()):
    """The pieces that this process computes, while others finish theirs, and images told of."""
    computed, told = [], []

    def compute(pieces, progress):
        for piece in pieces:
            computed.append(piece)
            writer.there |= {piece, *others}
            progress(256)
        return Report(views=1)

    with join(out) as mine:
        (out / "recipe.json").touch()
        mine.begun()
        mine.work_through(writer, compute, told.append)
    return computed, sum(told)


def test_what_others_finish_meanwhile_is_stepped_over_and_counted(tmp_path):
    assert walk(Pieces(0, 5), tmp_path, others=(2, 8)) == ([1, 3, 4, 6, 7, 9], 8 * 256)


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "2"},
    ],
)
def test_processes_begin_apart_where_they_know_how_many_they_are(tmp_path, monkeypatch, told):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert walk(Pieces(), tmp_path)[0] == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_file_system_without_locks_is_made_do_with(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", none)
    assert walk(Pieces(0), tmp_path)[0] == list(range(1, 10))


def test_other_trouble_with_locks_is_told(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", broken)
    with pytest.raises(OSError, match="Input/output"), join(tmp_path / "c"):
        pass


def test_piece_that_is_never_seen_here_is_told_of(tmp_path, monkeypatch):
    """As by actors whose folder is another one."""
    monkeypatch.setattr(claims, "_SHOWN_WITHIN_S", 0.0)
    monkeypatch.setattr(claims, "_LOOK_EVERY_S", 0.0)
    with join(tmp_path / "c") as mine, pytest.raises(CacheUnfinished, match=r"10 pieces.*not seen"):
        mine.work_through(Pieces(), lambda pieces, _: [*pieces] and Report(), silent)


def test_where_nothing_was_begun_no_trace_is_left(tmp_path):
    with join(tmp_path / "a" / "c"):
        pass
    assert not (tmp_path / "a" / "c").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with join(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.fixture
def joined(tiny_images, tiny_weights, tmp_path, monkeypatch):
    """A folder in which another process is, that has begun the cache and computed nothing."""
    monkeypatch.setattr(layout, "PIECE_ROWS", 16)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_cache(tiny_images, tiny_weights, tmp_path / "c")
    process, said = other(tmp_path / "c")
    assert said == ["True"]
    yield tmp_path / "c"
    process.communicate("\n")


def never(*_, **__):
    raise AssertionError("an image was read")


@pytest.mark.dist
@pytest.mark.slow
def test_who_joins_takes_the_index_of_who_is_there(
    joined, tiny_images, tiny_weights, tmp_path, monkeypatch
):
    make_cache(tiny_images, tiny_weights, tmp_path / "whole")
    monkeypatch.setattr(run, "index_images", never)
    make_cache(tiny_images, tiny_weights, joined)
    assert tree_of(joined) == tree_of(tmp_path / "whole")


@pytest.mark.dist
@pytest.mark.slow
def test_who_joins_with_other_images_or_settings_is_refused(
    joined, tiny_images, tiny_weights, tmp_path
):
    with pytest.raises(CacheMismatch, match=r"views.seed: `0` -> `1`"):
        make_cache(tiny_images, tiny_weights, joined, seed=1)
    fewer = shutil.copytree(tiny_images, tmp_path / "train")
    (fewer / "class1" / "004.jpg").unlink()
    with pytest.raises(DataError, match=r"holds 47 images here.* begun with 48"):
        make_cache(fewer, tiny_weights, joined)
    (fewer / "class1" / "004x.jpg").touch()
    with pytest.raises(CacheMismatch, match=r"images.fingerprint"):
        make_cache(fewer, tiny_weights, joined)
