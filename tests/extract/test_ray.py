"""A Ray cluster makes the cache of one process, whoever dies or comes meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from extract.noted import NAME, PIECE_ROWS, Notes
from small import CPU, small_extraction, tree_of

from kdcache.extract import join_ray, run_extraction
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.store import layout
from kdcache.teachers import load_teacher

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'kdcache[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.dist, pytest.mark.slow]

NUM_PIECES = 12
SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False}
# A node that says nothing for 4 seconds is dead.
IMPATIENT = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A cluster of several nodes on this machine: a head without cores, and nodes of one each."""

    def __init__(self, notes: Notes) -> None:
        from ray.cluster_utils import Cluster

        self.notes = notes
        self._nodes = []
        with self._environment():
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={**SMALL, "num_cpus": 0, "_system_config": IMPATIENT},
            )

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """What the processes of a node are to know, and this one is not."""
        added = {**self.notes.environment(), "RAY_USAGE_STATS_ENABLED": "0"}
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def add(self) -> None:
        with self._environment():
            self._nodes.append(self.cluster.add_node(num_cpus=1, **SMALL))

    def remove(self, node) -> None:
        self._nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        while sum(one["Alive"] for one in ray.nodes()) > 1 + len(self._nodes):
            time.sleep(0.1)

    def set_number(self, number: int) -> None:
        while len(self._nodes) > number:
            self.remove(self._nodes[-1])
        while len(self._nodes) < number:
            self.add()

    def forget(self, raylet: int) -> None:
        """A node that has ended by itself."""
        (node,) = (node for node in self._nodes if raylet_of(node) == raylet)
        self.remove(node)

    def of(self, pid: int):
        """The node of an actor, which its raylet has started."""
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        (node,) = (node for node in self._nodes if raylet_of(node) == parent)
        return node


def raylet_of(node) -> int:
    return node.all_processes["raylet"][0].process.pid


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(Notes(tmp_path_factory.mktemp("notes")))
    nodes.set_number(1)
    ray.init(nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture
def notes(nodes):
    """Empty, and everybody waits with the first piece in hand."""
    (nodes.notes.folder / "log").write_text("")
    nodes.notes.hold()
    yield nodes.notes
    nodes.notes.go_on()


def make(data, out, cluster=None):
    return run_extraction(
        open_images(data), load_teacher(NAME), out, small_extraction(batch_size=8),
        device=CPU, workers=0, bar=silent_bar,
        cluster=cluster,
    )  # fmt: skip


def make_on_ray(data, out, notes, disturb):
    """Make a cache on the cluster, in a thread: Ray adds nodes from the main one only."""

    def run():
        with join_ray(None, weights=None, device=None, workers=None) as cluster:
            return make(data, out, cluster)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run)
        try:
            disturb()
        finally:
            notes.go_on()
        return running.result()


@pytest.fixture
def whole(tiny_images, tmp_path, monkeypatch):
    """The cache that this process makes alone, of pieces of the same size."""
    monkeypatch.setattr(layout, "PIECE_ROWS", PIECE_ROWS)
    make(tiny_images, tmp_path / "whole")
    return tree_of(tmp_path / "whole")


def test_one_actor_that_is_killed_is_started_again(nodes, notes, whole, tiny_images, tmp_path):
    nodes.set_number(1)

    def disturb():
        os.kill(notes.await_pids(1)[0], signal.SIGKILL)
        notes.await_pids(2)

    outcome = make_on_ray(tiny_images, tmp_path / "c", notes, disturb)
    assert tree_of(tmp_path / "c") == whole
    assert outcome.report.views == 48 * 2
    assert outcome.report.teachers == 1
    assert notes.count("end").total() == NUM_PIECES
    assert notes.count("begin").total() == NUM_PIECES + 1  # what it had in hand


def test_node_that_is_removed_leaves_its_piece_to_the_other(
    nodes, notes, whole, tiny_images, tmp_path
):
    nodes.set_number(2)

    def disturb():
        pids = notes.await_pids(2)
        nodes.remove(nodes.of(pids[1]))

    make_on_ray(tiny_images, tmp_path / "c", notes, disturb)
    assert tree_of(tmp_path / "c") == whole
    assert sorted(notes.count("end").items()) == [(piece, 1) for piece in range(NUM_PIECES)]
    assert notes.count("begin").total() == NUM_PIECES + 1


def test_three_actors_one_cut_off_for_a_while_and_another_node_come_to_the_same(
    nodes, notes, whole, tiny_images, tmp_path
):
    nodes.set_number(3)
    stopped = []

    def disturb():
        notes.await_pids(3)
        (pid,) = (int(pid) for _, piece, pid in notes.lines() if piece == "0")
        stopped.extend([raylet_of(nodes.of(pid)), pid])
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        nodes.add()
        notes.await_pids(4)  # the new one has work, while the others are held

    try:
        outcome = make_on_ray(tiny_images, tmp_path / "c", notes, disturb)
        assert tree_of(tmp_path / "c") == whole
        assert outcome.report.teachers >= 3
        assert sorted(notes.count("end").items()) == [(piece, 1) for piece in range(NUM_PIECES)]
        assert notes.count("begin").total() <= NUM_PIECES + 1
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    # Back again with a piece in hand, the actor finds the cache finished. Ray has given it up, and
    # leaves it alone.
    notes.await_that(lambda: notes.count("end")[0] == 2 or not is_alive(stopped[1]))
    assert tree_of(tmp_path / "c") == whole
    if is_alive(stopped[1]):
        os.kill(stopped[1], signal.SIGKILL)
    nodes.forget(stopped[0])


def is_alive(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    )


def test_command_that_is_told_to_end_ends_its_actors_and_goes_on_anywhere(
    nodes, notes, whole, tiny_images, tmp_path
):
    """SIGTERM, as a batch system sends it; then the same command without Ray."""
    nodes.set_number(1)
    arguments = [
        "-m", "kdcache_cli", "extract", "--teacher", NAME, "--data", tiny_images, "--out",
        tmp_path / "c", "--views", 2, "--batch-size", 8, "--dtype", "float32", "--on", "ray",
    ]  # fmt: skip
    command = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | notes.environment() | {"RAY_ADDRESS": nodes.cluster.address},
        stderr=subprocess.PIPE,
        text=True,
    )
    (actor,) = notes.await_pids(1)
    notes.go_on()
    notes.await_that(lambda: notes.count("end").total() >= 1)
    notes.hold()
    command.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = command.communicate()
    assert time.monotonic() - began < 10, errors
    assert command.returncode == 128 + signal.SIGTERM, errors
    notes.await_that(lambda: not is_alive(actor))
    kept = notes.count("end").total()
    assert make(tiny_images, tmp_path / "c").report.views == 2 * PIECE_ROWS * (NUM_PIECES - kept)
    assert tree_of(tmp_path / "c") == whole
