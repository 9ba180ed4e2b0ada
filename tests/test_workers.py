"""Rendering ahead keeps the order, the errors and the run's random numbers."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from kdcache.errors import DataError, WorkerKilled
from kdcache.workers import render_ahead


class Squares:
    """Item n is n * n; 7 is refused, 8 cannot be opened."""

    def __getitem__(self, item: int) -> torch.Tensor:
        if item == 7:
            raise DataError("seven is `broken`", hint="mend seven")
        if item == 8:
            raise PermissionError(errno.EACCES, "Permission denied", "/eight.jpg")
        return torch.tensor(item * item)


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_the_order_that_was_asked_for(workers):
    found = [int(item) for item in render_ahead(Squares(), [3, 1, 2, 0], workers=workers)]
    assert found == [9, 1, 4, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_keep_hint_errno_and_file(workers):
    with pytest.raises(DataError, match="seven is `broken`") as caught:
        list(render_ahead(Squares(), [1, 7], workers=workers))
    assert caught.value.hint == "mend seven"
    with pytest.raises(PermissionError) as caught:
        list(render_ahead(Squares(), [1, 8], workers=workers))
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, "/eight.jpg")


@pytest.mark.parametrize("workers", [0, 1])
def test_runs_own_random_numbers_are_left_alone(workers):
    """A resumed run asks for a loader once more than one that went on."""
    before = torch.get_rng_state()
    list(render_ahead(Squares(), [1, 2], workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


class Children:
    """Item n is the process that made it, and that process's parent."""

    def __getitem__(self, item: int) -> tuple[int, int]:
        return os.getpid(), os.getppid()


def test_workers_are_not_forked_from_here():
    """Where threads may hold locks."""
    found = set(render_ahead(Children(), range(8), workers=2))
    assert {os.getpid()}.isdisjoint(server for _, server in found)


class Told:
    """What the environment says of an item."""

    def __getitem__(self, item: str) -> str | None:
        return os.environ.get(item)


def test_workers_see_the_environment_as_it_is_now(monkeypatch):
    """Credentials that are set after other workers were started, and before these."""
    assert list(render_ahead(Told(), ["KDCACHE_TOLD"], workers=1)) == [None]
    monkeypatch.setenv("KDCACHE_TOLD", "late")
    assert list(render_ahead(Told(), ["KDCACHE_TOLD"], workers=1)) == ["late"]


def test_killed_worker_is_told_of():
    items = render_ahead(Children(), range(1000), workers=1)
    worker, _ = next(items)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerKilled, match="was killed from outside") as caught:
        list(items)
    assert "--workers" in caught.value.hint


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_process_that_goes_while_its_tensor_is_fetched_is_told_of(monkeypatch, error):
    """It is asked for the shared memory through a socket, which is gone with it."""

    def cut_off(self):
        raise error
        yield

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", cut_off)
    with pytest.raises(WorkerKilled, match="killed from outside"):
        list(render_ahead(Squares(), [1, 2], workers=2))


def test_workers_start_after_threads_have_been_used():
    """Forked from a process whose libraries have threads, they would hang now and then."""
    import cv2
    import numpy as np

    torch.nn.functional.conv2d(torch.randn(8, 8, 64, 64), torch.randn(8, 8, 3, 3))
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 5)
    assert [int(i) for i in render_ahead(Squares(), range(4), workers=2)] == [0, 1, 4, 9]


ENDLESS = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
from test_workers import Squares
from kdcache.workers import render_ahead
for item in render_ahead(Squares(), [1] * 10**9, workers=2):
    print(int(item), flush=True)
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_was_killed():
    """None of them stays behind with its memory."""
    command = [sys.executable, "-c", ENDLESS, os.path.dirname(__file__)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout.readline() == b"1\n"
    child.kill()
    child.wait()
    child.stdout.close()
    for _ in range(3000):
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    pytest.fail("processes of a killed run are still there after 30 s")
