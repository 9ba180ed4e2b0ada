"""Processes of one command make one cache: each piece once, and the bytes of one process."""

import os
import signal
import subprocess
import sys
import time

import pytest
from extract.noted import NAME, Notes
from small import tree_of

pytestmark = [pytest.mark.dist, pytest.mark.slow]

NUM_PIECES = 12


def command(data, out, *more):
    return [
        "-m", "kdcache_cli", "extract", "--teacher", NAME, "--data", data, "--out", out,
        "--views", 2, "--batch-size", 8, "--workers", 0, "--device", "cpu", *more,
    ]  # fmt: skip


def start(notes, *arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | notes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(num_ranks):
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", num_ranks]


def note_in(folder):
    folder.mkdir()
    return Notes(folder)


@pytest.fixture(scope="module")
def whole(tiny_images, tmp_path_factory):
    """The cache that one process makes."""
    notes = Notes(tmp_path_factory.mktemp("notes"))
    out = tmp_path_factory.mktemp("whole") / "c"
    done = start(notes, *command(tiny_images, out))
    said, errors = done.communicate()
    assert done.returncode == 0, errors
    assert sorted(notes.count("end").items()) == [(piece, 1) for piece in range(NUM_PIECES)]
    return out, said.strip()


def test_ranks_share_the_pieces_and_end_in_the_same_bytes(whole, tiny_images, tmp_path):
    notes = note_in(tmp_path / "notes")
    notes.hold()
    run = start(notes, *torchrun(2), *command(tiny_images, tmp_path / "c"))
    notes.await_pids(2)  # both ranks are at work at once
    notes.go_on()
    said, errors = run.communicate()
    assert run.returncode == 0, errors
    assert said.strip() == whole[1]  # one of them tells
    assert tree_of(tmp_path / "c") == tree_of(whole[0])
    assert sorted(notes.count("begin").items()) == [(piece, 1) for piece in range(NUM_PIECES)]


def test_rank_that_dies_ends_the_run_and_the_same_command_finishes(whole, tiny_images, tmp_path):
    notes = note_in(tmp_path / "notes")
    notes.hold()
    run = start(notes, *torchrun(2), *command(tiny_images, tmp_path / "c"))
    pids = notes.await_pids(2)
    notes.go_on()
    notes.await_that(lambda: notes.count("end").total() >= 2)
    os.kill(pids[1], signal.SIGKILL)
    _, errors = run.communicate()
    assert run.returncode != 0
    assert "SIGKILL" in errors
    kept = set(notes.count("end"))
    again = start(notes, *torchrun(2), *command(tiny_images, tmp_path / "c"))
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert tree_of(tmp_path / "c") == tree_of(whole[0])
    begun = notes.count("begin")
    assert all(begun[piece] == 1 for piece in kept)
    assert begun.total() <= NUM_PIECES + 2


def test_process_that_joins_later_takes_its_part_and_outlives_the_first(
    whole, tiny_images, tmp_path
):
    """Two commands that know nothing of each other, as the tasks of a SLURM array."""
    notes = note_in(tmp_path / "notes")
    notes.hold()
    first = start(notes, *command(tiny_images, tmp_path / "c"))
    notes.await_pids(1)
    second = start(notes, *command(tiny_images, tmp_path / "c"))
    notes.await_pids(2)
    assert set(notes.count("begin")) == {0, 1}
    first.send_signal(signal.SIGTERM)
    began = time.monotonic()
    first.communicate()
    assert first.returncode == -signal.SIGTERM
    assert time.monotonic() - began < 10
    notes.go_on()
    said, errors = second.communicate()
    assert second.returncode == 0, errors
    assert said.strip() == whole[1]
    assert tree_of(tmp_path / "c") == tree_of(whole[0])
    begun = notes.count("begin")
    assert begun.total() == NUM_PIECES + 1  # what the first had in hand
    assert begun[0] == 2
