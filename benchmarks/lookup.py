"""Rows and whole views of a cache beside `.npy` files of the same bytes.

The cache is a standard Zarr store on disk, opened as a user opens one. `slab` is what a student's
epoch asks for, all rows of a view: beside `numpy.load` of the same bytes, warm and cold.
`gather` is 256 random rows: beside `numpy.memmap`, warm, and cold, where the kernel is told to
forget the files before each gather (a device may have a cache of its own). The two take turns in
one process; what is compared is the ratio within a turn.

    python benchmarks/lookup.py FOLDER --json lookup.json      # makes files there, and removes them
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import describe_machine, forget, in_words, processor, random_cache, seconds, spread

from kdcache.store import Cache, open_cache

DIM = 128
BATCH = 256


def copy_as_npy(cache: Cache, path: Path) -> None:
    """View 0 as a file that numpy can map."""
    np.save(path, cache.slab("embedding", 0))


def by_turns(
    ours: Callable[[], float], theirs: Callable[[], float], turns: int
) -> dict[str, dict[str, float]]:
    """Seconds of both, and how many times the baseline's speed ours has."""
    pairs = []
    for turn in range(turns + 1):
        first, second = (ours, theirs) if turn % 2 else (theirs, ours)
        took = {first: first()}
        took[second] = second()
        if turn:  # the first one warms up
            pairs.append((took[ours], took[theirs]))
    return {
        "ours_s": spread([a for a, _ in pairs]),
        "baseline_s": spread([b for _, b in pairs]),
        "speed_ratio": spread([b / a for a, b in pairs]),
    }


def measure(path: Path, npy: Path, turns: int) -> dict[str, Any]:
    """All rows of the table; the cold ones first, for what is mapped is not forgotten."""
    files = [npy, *(path / name for name in open_cache(path).manifest.files)]
    num_rows = open_cache(path).num_rows
    rng = np.random.default_rng(0)
    view = np.zeros(BATCH, np.int64)

    def cold_ours() -> float:
        rows, cache = rng.integers(0, num_rows, BATCH), open_cache(path)
        cache.rows("embedding", rows[:1], view[:1])  # maps the shards
        forget(files)
        return seconds(lambda: cache.rows("embedding", rows, view))

    def cold_theirs() -> float:
        rows, mapped = rng.integers(0, num_rows, BATCH), np.load(npy, mmap_mode="r")
        forget(files)
        return seconds(lambda: np.array(mapped[rows]))

    def cold(work: Callable[[], object]) -> float:
        forget(files)
        return seconds(work)

    results = {
        f"{BATCH} random rows over numpy.memmap, cold": by_turns(cold_ours, cold_theirs, turns),
        "a view (slab) over numpy.load, cold": by_turns(
            lambda: cold(lambda: open_cache(path).slab("embedding", 0)),
            lambda: cold(lambda: np.load(npy)),
            turns,
        ),
    }
    cache, mapped = open_cache(path), np.load(npy, mmap_mode="r")  # nothing of it is in place yet
    batches = rng.integers(0, num_rows, (200, BATCH))
    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "a view (slab) over numpy.load, warm": (
            lambda: cache.slab("embedding", 0),
            lambda: np.load(npy),
        ),
        f"{BATCH} random rows over numpy.memmap, warm, 200 times": (
            lambda: [cache.rows("embedding", rows, view) for rows in batches],
            lambda: [np.array(mapped[rows]) for rows in batches],
        ),
        "opening and 1 row over numpy.load and 1 row, warm": (
            lambda: open_cache(path).rows("embedding", view[:1], view[:1]),
            lambda: np.array(np.load(npy, mmap_mode="r")[:1]),
        ),
    }
    forget(files)  # so that both lie in memory as they were read, not as they were written
    for what, (ours, theirs) in works.items():
        results[what] = by_turns(
            lambda work=ours: seconds(work), lambda work=theirs: seconds(work), turns
        )
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="on the disk in question")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    path, npy = args.folder / "benchmark-lookup", args.folder / "benchmark-lookup.npy"
    try:
        random_cache(path, num_rows=args.rows, num_views=1, dim=DIM)
        copy_as_npy(open_cache(path), npy)
        results = measure(path, npy, args.turns)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        npy.unlink(missing_ok=True)
    print("| what | kdcache, ms | baseline, ms | speed / baseline |\n|---|---:|---:|---:|")
    for what, found in results.items():
        ratio = found["speed_ratio"]
        print(
            f"| {what} | {1e3 * found['ours_s']['median']:.2f} "
            f"| {1e3 * found['baseline_s']['median']:.2f} "
            f"| {in_words(ratio)} |"
        )
    if args.json:
        machine = describe_machine(processor=processor(), numpy=np.__version__)
        figures = {"rows": args.rows, "dim": DIM, "results": results, "machine": machine}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
