"""What the store costs at scale: a cache of many rows and views, written, sealed, verified, read.

The teacher is a hash of row, view and dimension, so that nothing but the store is timed, and every
number that is read can be told right from wrong. Each step runs in a process of its own, whose peak
of memory is its own, too; that of an empty step is what Python and the libraries take.

    python benchmarks/writer_scale.py FOLDER                              # 10^5 rows, 10 views
    python benchmarks/writer_scale.py FOLDER --rows 1000000 --views 50 --json result.json

*Source:* the mixing function is splitmix64's (Steele, Lea and Flood, OOPSLA 2014).
"""

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record import describe_machine, processor

from kdcache.store import (
    ArraySpec,
    CacheWriter,
    RowIndex,
    cache_size,
    create_cache,
    open_cache,
)

GATHERED = 100_000
"""Rows that are read at random, each of a random view."""

_VERSIONS = {"numpy": np.__version__}
_VERIFY = "kdcache.verify"  # brings torch, whose memory the other steps do without


def hashed(rows: np.ndarray, views: np.ndarray, dim: int) -> np.ndarray:
    """What the teacher says of each row in the view beside it: [B, D] float16 in [-1, 1)."""
    with np.errstate(over="ignore"):
        place = rows.astype(np.uint64) * np.uint64(1 << 32) + views.astype(np.uint64) * np.uint64(
            1 << 16
        )
        word = (place[:, None] + np.arange(dim, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((word >> np.uint64(53)).astype(np.float32) / 1024 - 1).astype(np.float16)


def foretold(num_rows: int, num_views: int, dim: int) -> dict[str, int]:
    """The cache's files and bytes by the arithmetic of `kdcache plan`."""
    num_classes = (num_rows - 1) // max(1, num_rows // 1000) + 1
    size = cache_size(
        recipe=_recipe(dim),
        arrays=[ArraySpec("feature", dim)],
        num_rows=num_rows,
        num_views=num_views,
        classes=[f"n{number:08}" for number in range(num_classes)],
        path_bytes=num_rows * len("n00000000/000000000.JPEG"),
        head=None,
        witness={},
        made_with=_VERSIONS,
    )
    return {"files": size.whole.num_files, "bytes": size.whole.num_bytes}


def _recipe(dim: int) -> dict[str, Any]:
    return {"arrays": {"feature": {"dim": dim, "dtype": "float16"}}}


def begin(path: Path, num_rows: int, num_views: int, dim: int) -> CacheWriter:
    """The cache, begun or gone on with; ids and paths are as long as those of ImageNet."""
    ids = np.random.default_rng(0).integers(0, 256, (num_rows, 16), np.uint8)
    per_class = max(1, num_rows // 1000)
    labels = (np.arange(num_rows) // per_class).astype(np.int32)
    index = RowIndex(
        image_ids=ids,
        labels=labels,
        classes=[f"n{number:08}" for number in range(labels[-1] + 1)],
        paths=[f"n{row // per_class:08}/{row:09}.JPEG" for row in range(num_rows)],
    )
    return create_cache(
        path,
        recipe=_recipe(dim),
        arrays=[ArraySpec("feature", dim)],
        num_views=num_views,
        index=index,
        made_with=_VERSIONS,
    )


def write(path: Path, num_rows: int, num_views: int, dim: int) -> dict[str, float]:
    """Every piece, and the shards that they fill; a part of the time is the teacher's."""
    started = time.perf_counter()
    writer = begin(path, num_rows, num_views, dim)
    begin_s, hash_s = time.perf_counter() - started, 0.0
    for piece in writer.missing():
        rows = np.array(writer.piece_rows(piece))
        started = time.perf_counter()
        said = hashed(np.repeat(rows, num_views), np.tile(np.arange(num_views), len(rows)), dim)
        hash_s += time.perf_counter() - started
        values = said.astype(np.float32).reshape(len(rows), num_views, dim)
        writer.put_piece(piece, {"feature": values}, {}, {})
    return {"begin_s": begin_s, "teacher_s": hash_s}


def seal(path: Path, num_rows: int, num_views: int, dim: int) -> dict[str, float]:
    """Statistics, manifest."""
    begin(path, num_rows, num_views, dim).seal()
    return {}


def verify(path: Path, *_: int) -> dict[str, float]:
    """Every byte against its digest, every row looked at."""
    verify_cache = importlib.import_module(_VERIFY).verify_cache
    assert verify_cache(path).whole
    return {}


def read_slabs(path: Path, num_rows: int, num_views: int, dim: int) -> dict[str, float]:
    """Every view in bulk, as training takes it; those compared are the first and the last."""
    cache = open_cache(path)
    for view in range(num_views):
        slab = cache.slab("feature", view)
        if view in (0, num_views - 1):
            expected = hashed(np.arange(num_rows), np.full(num_rows, view), dim)
            assert np.array_equal(slab, expected)
    return {}


def read_rows(path: Path, num_rows: int, num_views: int, dim: int) -> dict[str, float]:
    """Rows at random, each of a view of its own."""
    random = np.random.default_rng(1)
    rows = random.integers(0, num_rows, GATHERED)
    views = random.integers(0, num_views, GATHERED)
    found = open_cache(path).rows("feature", rows, views)
    assert np.array_equal(found, hashed(rows, views, dim))
    return {}


def nothing(*_: Any) -> dict[str, float]:
    """What a process takes before it does anything."""
    return {}


STEPS: dict[str, Callable[..., dict[str, float]]] = {
    "nothing": nothing,
    "write": write,
    "seal": seal,
    "verify": verify,
    "read all views": read_slabs,
    "read random rows": read_rows,
}


def peak_bytes() -> int:
    """The peak of this process alone; what getrusage tells begins with that of its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux tells VmHWM")


def measured(name: str, path: Path, *size: int) -> dict[str, float]:
    """Seconds and peak memory of a step, and what else it tells."""
    if name == "verify":
        importlib.import_module(_VERIFY)  # is not what is timed
    started, cpu = time.perf_counter(), time.process_time()
    more = STEPS[name](path, *size)
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": peak_bytes(),
        **more,
    }


def measure(path: Path, *size: int) -> dict[str, Any]:
    """All steps, one after the other, and what lies on the disk in the end."""
    context = multiprocessing.get_context("spawn")
    steps = {}
    for name in STEPS:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            steps[name] = process.submit(measured, name, path, *size).result()
    files = [file for file in path.rglob("*") if file.is_file()]
    num_rows, num_views, dim = size
    return {
        "rows": num_rows,
        "views": num_views,
        "dim": dim,
        "steps": steps,
        "foretold": foretold(*size),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "payload_bytes": num_rows * num_views * dim * 2,
        "manifest_bytes": (path / "manifest.json").stat().st_size,
        "machine": describe_machine(processor=processor(), numpy=np.__version__),
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    payload = result["payload_bytes"]
    lines = [f"{'step':<17} {'wall s':>8} {'CPU s':>8} {'MB/s':>7} {'peak MB':>8}"]
    for name, step in result["steps"].items():
        size = {"nothing": 0, "read random rows": GATHERED * result["dim"] * 2}.get(name, payload)
        lines.append(
            f"{name:<17} {step['wall_s']:>8.1f} {step['cpu_s']:>8.1f} "
            f"{size / step['wall_s'] / 1e6:>7.0f} {step['peak_bytes'] / 1e6:>8.0f}"
        )
    machine, wrote = result["machine"], result["steps"]["write"]
    lines += [
        f"{result['rows']:,} rows x {result['views']} views x {result['dim']}: "
        f"{payload / 1e6:,.0f} MB of float16 in {result['files']:,} files of "
        f"{result['bytes'] / 1e6:,.0f} MB, manifest {result['manifest_bytes'] / 1e3:,.0f} kB",
        f"{result['bytes']:,} bytes; foretold: {result['foretold']['files']:,} files, "
        f"{result['foretold']['bytes']:,} bytes",
        f"of writing, the hash took {wrote['teacher_s']:.1f} s; {machine['processor']}, "
        f"{machine['cores']} cores, load {machine['load_average'][0]:.1f}, {machine['date']}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="on the disk in question; a cache is made there")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--dim", type=int, default=16, help="numbers in a feature")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    path = args.folder / f"benchmark-scale-{os.getpid()}"
    try:
        result = measure(path, args.rows, args.views, args.dim)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
