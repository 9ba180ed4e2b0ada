"""Small caches that are damaged in every way the tests of `verify` can think of."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
from store import making

from kdcache.files import canonical_json, sha256_of
from kdcache.store import ArraySpec, create_cache

RECIPE = {**making.RECIPE, "arrays": {"embedding": {"dim": 8, "dtype": "float16"}}}
SMALL = {
    "recipe": RECIPE,
    "specs": (ArraySpec("embedding", 8),),
    "num_rows": 300,
    "num_views": 2,
    "unreadable": {5: "truncated JPEG", 290: "not an image"},
    "head": None,
}


def make_small(path: Path, **changes) -> Path:
    """A cache of 300 rows in 2 views and of 5 blocks, of which 2 rows are unreadable."""
    making.make(path, **{**SMALL, **changes})
    return path


def files_of(root: Path) -> list[str]:
    """Every file of a cache but the lock, sorted."""
    there = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(name for name in there if name != "manifests/.lock")


def shards_of(root: Path) -> list[str]:
    return [name for name in files_of(root) if name.startswith("embedding/c/")]


def flip_bit(root: Path, rng: random.Random, name: str | None = None) -> str:
    """Turn one bit of one file over."""
    filled = [name for name in files_of(root) if (root / name).stat().st_size]
    name = name or rng.choice(filled)
    data = bytearray((root / name).read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    replace(root, name, bytes(data))
    return name


def truncate(root: Path, rng: random.Random) -> str:
    name = rng.choice(shards_of(root))
    data = (root / name).read_bytes()
    replace(root, name, data[: rng.randrange(len(data))])
    return name


def remove(root: Path, rng: random.Random) -> str:
    name = rng.choice([name for name in files_of(root) if name != "manifest.json"])
    (root / name).unlink()
    return name


def swap(root: Path, rng: random.Random) -> str:
    one, other = rng.sample(shards_of(root), 2)
    first, second = (root / one).read_bytes(), (root / other).read_bytes()
    replace(root, one, second)
    replace(root, other, first)
    return one


def overwrite_with_noise(root: Path, rng: random.Random) -> str:
    """Some sectors of one file hold something else, its size is kept."""
    name = rng.choice([name for name in files_of(root) if (root / name).stat().st_size])
    data = bytearray((root / name).read_bytes())
    start = rng.randrange(len(data))
    stop = min(len(data), start + 1 + rng.randrange(512))
    noise = bytes(byte ^ rng.randrange(1, 256) for byte in data[start:stop])
    data[start:stop] = noise
    replace(root, name, bytes(data))
    return name


def replace(root: Path, name: str, data: bytes) -> None:
    """Put other bytes at a name, without touching what is linked to the old ones."""
    (root / name).unlink(missing_ok=True)
    (root / name).write_bytes(data)


def linked_copy(source: Path, target: Path) -> Path:
    """A copy that shares the files, which is quick."""
    return shutil.copytree(source, target, copy_function=os.link)


def set_rows(root: Path, block: int, view: int, change) -> str:
    """Change the rows of a shard in place, and let receipt and manifest promise the new bytes."""
    name = f"embedding/c/{block}/{view}/0"
    data = bytearray((root / name).read_bytes())
    rows = np.frombuffer(data, "<f2", count=64 * 8 if block < 4 else 44 * 8).reshape(-1, 8)
    change(rows)
    replace(root, name, bytes(data))
    reseal(root)
    return name


def reseal(root: Path, **changes) -> None:
    """Let the manifest promise what lies there, as if it had been made like this."""
    manifest = json.loads((root / "manifest.json").read_bytes())
    for name in sorted(manifest["files"], key=lambda name: name.startswith("receipts/")):
        if name.startswith("receipts/"):
            receipt = json.loads((root / name).read_bytes())
            about = manifest["files"][
                f"{receipt['array']}/c/{receipt['block']}/{receipt['view']}/0"
            ]
            replace(root, name, canonical_json({**receipt, **about}))
        path = root / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest["recipe"] = manifest["files"]["recipe.json"]["sha256"]
    replace(root, "manifest.json", canonical_json({**manifest, **changes}))


def begin_small(path: Path):
    """A cache that was begun and not finished."""
    return create_cache(
        path,
        recipe=RECIPE,
        arrays=SMALL["specs"],
        num_views=2,
        index=making.index_of(300),
        made_with={"numpy": "2.0"},
    )
