"""Extractions and extensions that are killed at random moments, each in a process of its own.

Run as a script, for a process that has torch's libraries loaded is soon forked, and the processes
of pytest are not to be forked. Prints what was found as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small import CPU, make_cache

from kdcache.errors import CacheNotFound, CacheUnfinished
from kdcache.extract import run_extension
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.store import check_digests, layout, open_cache
from kdcache.teachers import load_teacher

KILLS = 20

Run = Callable[[Path], int]
"""Makes a cache; returns how many views the teacher saw."""


def in_child(run: Run, out: Path, kill_after_s: float | None = None) -> tuple[int | None, float]:
    """What `run` returns, None where it was killed; and how long it took, in seconds."""
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(run(out)).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    took_s = time.monotonic() - started
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return int(said) if said else None, took_s


def state(out: Path) -> str:
    """Whether there is a cache, nothing of one, or part of one; a broken one is none of these."""
    try:
        open_cache(out)
    except CacheNotFound:
        return "nothing"
    except CacheUnfinished:
        return "unfinished"
    return "broken" if check_digests(out) else "finished"


def finished_pieces(out: Path) -> list[int]:
    return sorted({int(path.stem) for path in out.glob(".work/*/*.npz") if path.stem.isdigit()})


def trials(run: Run, work: Path, seed: int) -> list[dict]:
    """Kill `run` at moments spread over its duration, look at what is left, and complete it."""
    rng, found = random.Random(seed), []
    _, whole_s = in_child(run, work / "whole")
    while len(found) < KILLS:
        out = work / f"out{len(found)}"
        moment = (len(found) + rng.random()) / KILLS
        views, took_s = in_child(run, out, kill_after_s=moment * whole_s)
        if views is not None:  # it was faster than the kill: spread over less
            whole_s = min(whole_s * 0.9, took_s)
            os.rename(out, work / f"fast{rng.random()}")
            continue
        left, pieces = state(out), finished_pieces(out)
        views, _ = in_child(run, out)
        identity = open_cache(out).identity
        found.append({
            "left": left, "pieces": pieces, "views": views, "identity": identity,
            "then": state(out), "tidy": not (out / ".work").exists(),
        })  # fmt: skip
    return found


def main(kind: str, data: str, weights: str, old: str, work: str) -> None:
    os.fsync = lambda _: None  # a killed process loses nothing that it has written
    layout.PIECE_ROWS, layout.MIN_SHARD_ROWS, layout.MAX_SHARD_ROWS = 4, 16, 16
    images = open_images(Path(data))
    teacher = load_teacher("timm:test_resnet", weights=Path(weights), image_size=32)

    def extract(out: Path) -> int:
        outcome = make_cache(Path(data), Path(weights), out, num_views=3, bar=silent_bar)
        return outcome.report.views

    def extend(out: Path) -> int:
        extension = run_extension(
            open_cache(old), images, teacher, out, is_same_teacher=True, num_views=3,
            skip_unreadable=False, device=CPU, workers=0, bar=silent_bar, tell=lambda _: None,
        )  # fmt: skip
        return extension.outcome.report.views

    if not Path(old).exists():
        make_cache(Path(data), Path(weights), Path(old), num_views=2, bar=silent_bar)
    print(json.dumps(trials({"extract": extract, "extend": extend}[kind], Path(work), seed=20)))


if __name__ == "__main__":
    main(*sys.argv[1:])
