"""Small caches for the tests of `store`, made and grown in processes that may be killed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from kdcache.store import (
    ArraySpec,
    CacheWriter,
    Neighbours,
    RowIndex,
    create_cache,
    grow_cache,
    layout,
    neighbour_files,
    open_cache,
    plain,
)

SPECS = (ArraySpec("embedding", 8), ArraySpec("feature", 64, "float32"))
NUM_ROWS = 1100
NUM_VIEWS = 3
UNREADABLE = {5: "truncated JPEG", 700: "not an image"}
RECIPE = {"teacher": {"name": "r50", "weights": "abc"}, "views": NUM_VIEWS, "seed": 1}


def shrink_shards() -> None:
    """Shards of 512 rows for D=8 and of 256 for D=64; chunks of 256 and 32 rows; pieces of 64."""
    layout.PIECE_ROWS = 64
    layout.SHARD_BYTES = 32 << 10
    layout.MIN_SHARD_ROWS = 64
    layout.MAX_SHARD_ROWS = 512
    layout.CHUNK_BYTES = 4 << 10


def values_of(spec: ArraySpec, num_rows: int = NUM_ROWS, num_views: int = NUM_VIEWS):
    """What the teacher of these tests says: [N, V, D] float32, without a zero."""
    random = np.random.default_rng(spec.dim)
    return random.normal(size=(num_rows, num_views, spec.dim)).astype(np.float32) + 0.001


def index_of(num_rows: int = NUM_ROWS) -> RowIndex:
    random = np.random.default_rng(0)
    return RowIndex(
        image_ids=random.integers(0, 256, (num_rows, 16), np.uint8),
        labels=(np.arange(num_rows) % 3 - 1).astype(np.int32),
        classes=("cat", "dog"),
        paths=[f"dog/\u00e4{row}.jpg" for row in range(num_rows)],
    )


def head():
    random = np.random.default_rng(7)
    layers = [{"kind": "linear", "in": 8, "out": 4}]
    return layers, {"0.weight": random.normal(size=(4, 8)).astype(np.float32)}


def begin(path, *, specs=SPECS, num_rows=NUM_ROWS, num_views=NUM_VIEWS, **changes) -> CacheWriter:
    arguments = {"recipe": RECIPE, "index": index_of(num_rows), "head": head()}
    arguments |= {"made_with": {"numpy": "2.0"}} | changes
    return create_cache(path, arrays=specs, num_views=num_views, **arguments)


def compute(writer: CacheWriter, piece: int, specs=SPECS, unreadable=UNREADABLE) -> None:
    rows = writer.piece_rows(piece)
    part = slice(rows.start, rows.stop)
    values = {s.name: values_of(s, writer.num_rows, writer.num_views)[part] for s in specs}
    writer.put_piece(
        piece,
        values,
        {row: why for row, why in unreadable.items() if row in rows},
        {"row": np.array([rows.start]), "thumb": np.full((1, 4, 4, 3), piece, np.uint8)},
    )


def make(path, *, specs=SPECS, unreadable=UNREADABLE, order=lambda pieces: pieces, **arguments):
    """Begin or continue a cache, and finish it."""
    writer = begin(path, specs=specs, **arguments)
    for piece in order(writer.missing()):
        compute(writer, piece, specs, unreadable)
    writer.seal()
    return writer


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def graph(k: int = 2, num_rows: int = NUM_ROWS) -> dict[str, bytes]:
    """The files of a made-up kNN graph."""
    random = np.random.default_rng(k)
    index = random.integers(0, num_rows, (num_rows, k)).astype(np.int32)
    similarity = random.random((num_rows, k)).astype(np.float32)
    return neighbour_files(Neighbours(index, similarity, {"k": k, "array": "feature"}))


def fitted_head(seed: int = 0, bias: bool = False) -> dict[str, bytes]:
    """The files of a made-up head that somebody fitted."""
    random = np.random.default_rng(seed)
    layers = [{"kind": "linear", "in": 64, "out": 4, "bias": bias}]
    origin = {"kind": "fitted", "method": "whiten", "seed": seed}
    files = {"head/zarr.json": plain.group_file({"layers": layers, "origin": origin})}
    for name, shape in (("weight", (4, 64)), ("bias", (4,)))[: 1 + bias]:
        values = random.normal(size=shape).astype(np.float32)
        files |= plain.array_files(f"head/0.{name}", values)
    return files


def promises(path: Path) -> dict[str, bytes]:
    """Every file of a cache but the lock of those who grow it, which holds nothing."""
    files = tree(path)
    files.pop("manifests/.lock", None)
    return files


def child(*arguments: object) -> subprocess.Popen:
    """A process that runs one of the commands below."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _part(path: str, start: str, step: str) -> None:
    """Compute every `step`-th missing piece, and seal when none is missing."""
    writer = begin(path)
    for piece in writer.missing():
        if piece % int(step) == int(start):
            compute(writer, piece)
    if not writer.missing():
        writer.seal()


def _sweep(folder: str, stride: str, dtype: str = "float16") -> None:
    """Make small caches that die at every `stride`-th step on disk; finish and compare them."""
    os.fsync = lambda handle: None  # for speed: what a process leaves, not what a machine keeps
    size = {"num_rows": 150, "num_views": 2, "unreadable": {5: "truncated JPEG", 140: "empty"}}
    size["specs"] = (ArraySpec("embedding", 8, dtype), SPECS[1])
    make(Path(folder) / "whole", **size)
    expected = tree(Path(folder) / "whole")
    deaths = 0
    while True:
        path = Path(folder) / str(deaths)
        process = os.fork()
        if process == 0:
            _die_at(deaths * int(stride))
            make(path, **size)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        make(path, **size)
        assert tree(path) == expected, f"died at step {deaths * int(stride)}"
        deaths += 1
    print(deaths)


def _sweep_growth(folder: str) -> None:
    """Grow caches that die at each step on disk; look at what they left, and complete them."""
    os.fsync = lambda handle: None
    old, whole = Path(folder) / "old", Path(folder) / "whole"
    make(old, num_rows=150, num_views=2, unreadable={}, head=None)
    shutil.copytree(old, whole)
    files = graph(num_rows=150)
    before = open_cache(old)
    after = grow_cache(open_cache(whole), files)
    deaths, seen = 0, set()
    while True:
        path = Path(folder) / str(deaths)
        shutil.copytree(old, path)
        process = os.fork()
        if process == 0:
            _die_at(deaths)
            grow_cache(open_cache(path), files)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        left = open_cache(path)
        assert left.identity in (before.identity, after.identity)
        assert (left.neighbours() is None) == (left.identity == before.identity)
        assert np.array_equal(left.slab("feature", 1), before.slab("feature", 1))
        seen.add(left.identity)
        grow_cache(left, files)
        assert promises(path) == promises(whole), f"died at step {deaths}"
        deaths += 1
    assert len(seen) == 2
    print(deaths)


def _die_at(step: int) -> None:
    """Send SIGKILL to this process instead of its `step`-th change on disk."""
    left = [step]

    def mortal(change):
        def call(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return change(*arguments, **options)

        return call

    for name in ("link", "replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, mortal(getattr(os, name)))


if __name__ == "__main__":
    shrink_shards()
    commands = {"part": _part, "sweep": _sweep, "sweep-growth": _sweep_growth, "make": make}
    commands[sys.argv[1]](*sys.argv[2:])
