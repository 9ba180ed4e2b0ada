"""Many teachers on a Ray cluster: one to a GPU, or one to some cores, each an actor.

Ray finds room for the actors as nodes come and go, and tells when one is lost. Here is only who
computes which piece: an actor has one at a time, and a piece whose actor was lost goes to whoever
is free next. Another actor takes the place of the lost one. (Ray would start it again itself, but
takes the time until there is room for as many failures, and reports each of them.) Pixels and
values never travel: an actor reads images and writes pieces itself.

*Source:* Ray's documentation, "Actor fault tolerance" (what is lost, and when one is told).
"""

import importlib
import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from kdcache.errors import ConfigError, KdcacheError, MissingExtra, WorkerKilled
from kdcache.extract.actor import PROBE, Actor, Description
from kdcache.extract.claims import Compute
from kdcache.extract.job import Job
from kdcache.extract.report import Report
from kdcache.precision import Precision, Wanted, settle
from kdcache.progress import Progress
from kdcache.store import CacheWriter, overwrite

_TRIES = 4
"""How often a piece, or the loading of a teacher, may lose its actor until that is to blame."""
_LOOK_EVERY_S = 1.0
_MOST_WORKERS = 16


@dataclass(frozen=True)
class Share:
    """What one actor has of its node."""

    num_gpus: int
    num_cpus: int
    workers: int
    """Processes that render views; 0: the actor renders itself."""

    def fit(self, nodes: Iterable[dict[str, float]]) -> int:
        """How many actors there is room for, of the resources that nodes have."""
        return sum(
            min(
                int(node.get("CPU", 0)) // self.num_cpus,
                int(node.get("GPU", 0)) // self.num_gpus if self.num_gpus else sys.maxsize,
            )
            for node in nodes
        )


def share_of(nodes: list[dict[str, float]], device: str | None, workers: int | None) -> Share:
    """What an actor shall have: a GPU and its part of the cores, or cores where there is no GPU.

    Args:
        nodes: the resources of each.
        device: `cuda` or `cpu`; None is a GPU where there are any.

    Raises:
        ConfigError: there is nothing of that kind.
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"`--device {device}` names one device, and a cluster gives each teacher its own",
            hint="--device cuda, --device cpu, or leave it out",
        )
    if device == "cuda" and not with_gpu:
        raise ConfigError("no node of the cluster has a GPU", hint="--device cpu")
    if device == "cpu" or not with_gpu:
        share = Share(0, max(1, workers or 0), workers or 0)
    else:
        cores = min(int(node.get("CPU", 0) / node["GPU"]) for node in with_gpu)
        wanted = min(cores, _MOST_WORKERS) if workers is None else workers
        share = Share(1, max(1, wanted), wanted)
    if not share.fit(nodes):
        raise ConfigError(
            f"an actor is to have {share.num_cpus} cores and {share.num_gpus} GPUs, and no node of "
            "the cluster has as many",
            hint="give fewer --workers: each of them has a core",
        )
    return share


@contextmanager
def join_ray(
    address: str | None, *, weights: Path | None, device: str | None, workers: int | None
) -> Iterator["Cluster"]:
    """A cluster to extract on.

    Args:
        address: `ray://...`; None is the cluster that this machine belongs to or RAY_ADDRESS
            names, or else one of this machine alone, which ends with this.
        weights: the teacher's, where they were given.
        device: `cuda` or `cpu`; None is a GPU where there are any.
        workers: processes that render for each teacher; None is one to a core beside a GPU, and
            none on a CPU, where each core has a teacher.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: there is no cluster at the address, or it has not what is asked for.
    """
    ray = _ray()
    was_there = ray.is_initialized()  # then it is the caller's
    if not was_there:
        _connect(ray, address)
    try:
        with _ended_by_sigterm():
            cluster = Cluster(ray, share_of(_nodes(ray), device, workers), weights)
            try:
                yield cluster
            finally:
                cluster.close()
    finally:
        if not was_there:
            ray.shutdown()


@dataclass(frozen=True)
class _Call:
    """What an actor was asked for."""

    number: int
    piece: int | None
    """None: to make itself ready."""


class Cluster:
    """The actors of one extraction; made by `join_ray`."""

    def __init__(self, ray: ModuleType, share: Share, weights: Path | None) -> None:
        self._ray = ray
        self._share = share
        self._weights = weights
        self._actors: dict[int, Any] = {}
        self._gone: set[int] = set()
        """The numbers of actors that were lost, for others to take."""
        self._idle: list[int] = []
        self._under_way: dict[Any, _Call] = {}
        self._lost: Counter[_Call] = Counter()
        """How often an actor was lost at this."""
        self._looked_at = -math.inf
        self.device = torch.device("cuda" if share.num_gpus else "cpu")
        """Of every teacher."""

    def settle(self, precision: Wanted) -> Precision:
        """What `auto` means on the devices of the cluster."""
        if precision != "auto" or self.device.type == "cpu":
            return settle(precision, self.device)
        there = self._ray.remote(num_gpus=self._share.num_gpus)(settle)
        settled: Precision = self._ray.get(there.remote(precision, self.device))
        return settled

    def compute_for(self, job: Job, writer: CacheWriter) -> Compute:
        """Computes pieces of a cache that was begun, on all actors that there is room for."""
        if writer.done:
            return lambda pieces, progress: Report()
        probe = secrets.token_hex(16)
        overwrite(writer.path, PROBE, probe.encode())
        description = Description(
            out=writer.path.resolve(),
            probe=probe,
            source=os.path.abspath(job.images.source),
            weights=None if self._weights is None else self._weights.resolve(),
            num_views=job.num_views,
            device=self.device.type,
            workers=self._share.workers,
            num_threads=self._share.num_cpus,
        )

        def compute(pieces: Iterable[int], progress: Progress) -> Report:
            def tell(piece: int) -> None:
                progress(len(writer.piece_rows(piece)))

            return self._compute(description, iter(pieces), tell)

        return compute

    def close(self) -> None:
        """End the actors; what is under way is lost."""
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _compute(
        self, description: Description, pieces: Iterator[int], tell: Callable[[int], None]
    ) -> Report:
        """Hand out pieces until all are computed."""
        report, lost = Report(), deque[int]()
        worked: set[int] = set()
        while True:
            self._start_actors(description)
            while self._idle and (piece := _next(lost, pieces)) is not None:
                self._ask(self._idle.pop(), piece)
            if self._idle and all(call.piece is None for call in self._under_way.values()):
                report.teachers = len(worked)
                return report
            for call, done in self._answers():
                if done is not None:
                    report.add(done)
                    worked.add(call.number)
                    assert call.piece is not None
                    tell(call.piece)
                elif call.piece is not None:
                    lost.append(call.piece)

    def _start_actors(self, description: Description) -> None:
        """As many more as there is room for by now. One always waits for room, so that a cluster
        which grows on demand knows of it."""
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        room = max(1, self._share.fit(_nodes(self._ray)))
        kind = self._ray.remote(Actor).options(
            num_cpus=self._share.num_cpus, num_gpus=self._share.num_gpus
        )
        new = [*self._gone, *range(len(self._actors), room)]
        self._gone.clear()
        for number in new:
            self._actors[number] = kind.remote(description)
            self._ask(number, None)

    def _ask(self, number: int, piece: int | None) -> None:
        actor = self._actors[number]
        ref = actor.prepare.remote() if piece is None else actor.compute.remote(piece)
        self._under_way[ref] = _Call(number, piece)

    def _answers(self) -> Iterator[tuple[_Call, Report | None]]:
        """What was answered within a second: reports of pieces, None for all else."""
        errors = self._ray.exceptions
        if not self._under_way:
            time.sleep(_LOOK_EVERY_S)  # until there is another actor
            return
        ready, _ = self._ray.wait(list(self._under_way), timeout=_LOOK_EVERY_S)
        for ref in ready:
            call = self._under_way.pop(ref)
            try:
                done = self._ray.get(ref)
            except errors.RayTaskError as error:
                raise _located(error) from error
            except errors.RayError as error:
                self._give_up(call, error)
                yield call, None
            else:
                self._lost.pop(call, None)
                self._idle.append(call.number)
                yield call, done

    def _give_up(self, call: _Call, error: Exception) -> None:
        """Free the place of an actor that was lost while it did something.

        Raises:
            WorkerKilled: what it did may be what kills it.
        """
        self._ray.kill(self._actors[call.number])  # it may only be out of sight
        self._gone.add(call.number)
        # A piece counts whoever had it.
        at = call if call.piece is None else _Call(-1, call.piece)
        self._lost[at] += 1
        if self._lost[at] == _TRIES:
            what = "loading the teacher" if call.piece is None else f"piece {call.piece}"
            raise WorkerKilled(
                f"{_TRIES} processes of the cluster died of {what}; the last one: {error}",
                hint="see that they have memory enough: a smaller --batch-size, or fewer --workers",
            ) from error


def _next(lost: deque[int], pieces: Iterator[int]) -> int | None:
    return lost.popleft() if lost else next(pieces, None)


def _located(error: Any) -> Exception:
    """What an actor raised; the user's errors say where."""
    cause: Exception = error.cause
    if isinstance(cause, KdcacheError):
        return type(cause)(f"{cause} (on the node `{error.ip}`)", hint=cause.hint)
    return cause


def _nodes(ray: ModuleType) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"a cluster needs `{error.name}`, which is not installed",
            hint="pip install 'kdcache[ray]'",
        ) from error


def _connect(ray: ModuleType, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"there is no Ray at `{address or os.environ.get('RAY_ADDRESS')}`: {error}",
            hint="`ray status` tells on the head node; --on ray, there, needs no address",
        ) from error


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as it would without Ray, which has a handler of its own; but the
    actors are ended first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    code = 128 + signal.SIGTERM
    told = threading.Event()

    def end(*_: object) -> None:
        told.set()
        sys.exit(code)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:
        # Out of Ray's own code it comes with another code, 1.
        if told.is_set():
            sys.exit(code)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
