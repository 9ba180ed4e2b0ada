"""Readers that are not ours: FORMAT.md and the standard library, TensorStore, zarrita.js."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from store import making
from store.format_reader import apply_head

from kdcache.heads import ProjectionHead
from kdcache.store import grow_cache, head_files, open_cache

HERE = Path(__file__).parent
PLACES = [("embedding", 0, 0), ("embedding", 511, 2), ("feature", 256, 1), ("feature", 1099, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache that another process has made, with small shards."""
    path = tmp_path_factory.mktemp("foreign") / "cache"
    _, errors = (process := making.child("make", path)).communicate()
    assert process.returncode == 0, errors
    return path


@pytest.fixture(scope="module")
def read(made, tmp_path_factory):
    """What the reader of the standard library finds in it, and in its child with a graph."""
    grown = shutil.copytree(made, tmp_path_factory.mktemp("foreign") / "grown")
    cache = grow_cache(open_cache(grown), making.graph())
    done = run(sys.executable, "-I", HERE / "format_reader.py", grown)
    return cache, json.loads(done.stdout)


def run(*command, **environment) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def expected_row(array: str, row: int, view: int) -> np.ndarray:
    """What the teacher of these tests says, as the cache must hold it; zeros if unreadable."""
    spec = next(spec for spec in making.SPECS if spec.name == array)
    value = making.values_of(spec)[row, view].astype(spec.numpy_dtype)
    return np.zeros_like(value) if row in making.UNREADABLE else value


def test_the_reader_of_the_page_alone_imports_nothing_of_ours(read):
    modules = {name.partition(".")[0] for name in read[1]["modules"]}
    assert not modules & {"kdcache", "numpy", "zarr", "torch"}
    assert "struct" in modules


def test_the_page_alone_gives_every_target(read):
    count = 0
    for array, rows in read[1]["targets"].items():
        for row, view, values in rows:
            value = expected_row(array, row, view)
            assert np.array_equal(np.array(values, value.dtype), value), (array, row, view)
            count += 1
    assert count == 2 * 7 * making.NUM_VIEWS


def test_the_page_alone_gives_what_a_row_is(read):
    index = making.index_of()
    for row, found in read[1]["index"]:
        label = int(index.labels[row])
        assert found == {
            "id": index.image_ids[row].tobytes().hex(),
            "path": index.paths[row],
            "label": index.classes[label] if label >= 0 else None,
            "readable": row not in making.UNREADABLE,
            "reason": making.UNREADABLE.get(row),
        }


def test_the_page_alone_gives_head_statistics_and_graph(read):
    cache, found = read
    layers, arrays = making.head()
    first = float(arrays["0.weight"].flat[0])
    assert found["head"] == {"layers": layers, "kind": "teacher", "first": first}
    for array in cache.arrays:
        assert found["mean"][array] == cache.statistics(array)["mean"].tolist()
    assert found["neighbours"] == cache.neighbours().index.ravel()[:2].tolist()


def test_the_page_alone_gives_identity_and_lineage(read):
    cache, found = read
    assert found["lineage"] == cache.lineage
    assert len(found["lineage"]) == 2


def test_the_reader_of_the_page_alone_notices_a_flipped_bit(made, tmp_path):
    broken = shutil.copytree(made, tmp_path / "broken")
    shard = broken / "feature/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(data)
    command = [sys.executable, "-I", str(HERE / "format_reader.py"), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "AssertionError: feature/c/0/0/0" in done.stderr


def test_the_page_alone_gives_what_a_head_computes(tmp_path):
    layers = [
        {"kind": "linear", "in": 6, "out": 5, "bias": True},
        {"kind": "batchnorm", "dim": 5, "affine": True, "eps": 1e-3},
        {"kind": "relu"},
        {"kind": "linear", "in": 5, "out": 4, "bias": False},
        {"kind": "gelu"},
        {"kind": "batchnorm", "dim": 4, "affine": False, "eps": 1e-5},
    ]
    head = ProjectionHead(layers).eval()
    for name, tensor in head.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(torch.rand_like(tensor) + 0.1 * name.endswith("var") - 0.4)
            tensor.abs_() if name.endswith("var") else None
    for name, data in head_files(head.layers, head.to_arrays()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    feature = torch.randn(6)
    with torch.no_grad():
        expected = head(feature[None])[0].tolist()
    assert apply_head(tmp_path, feature.tolist()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


TENSORSTORE = """
import sys
import tensorstore
cache, array, row, view = sys.argv[1:]
spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{cache}/{array}/"}}
opened = tensorstore.open(spec, read=True).result()
print(opened[int(row), int(view)].read().result().tobytes().hex())
"""


@pytest.mark.parametrize(("array", "row", "view"), PLACES)
def test_tensorstore_reads_a_row_bit_for_bit(made, array, row, view):
    if importlib.util.find_spec("tensorstore") is None:
        pytest.skip("tensorstore is not installed")
    # A process of its own: once it has been used, a process that forks is aborted.
    done = run(sys.executable, "-c", TENSORSTORE, made, array, row, view)
    assert done.stdout.strip() == expected_row(array, row, view).tobytes().hex()


@pytest.fixture
def zarrita(tmp_path) -> Path:
    """A folder with the script that reads, beside zarrita.js."""
    modules = Path(os.environ.get("KDCACHE_ZARRITA", "")) / "node_modules"
    if shutil.which("node") is None:
        pytest.skip("there is no node here")
    if not (modules / "zarrita").is_dir():
        pytest.skip("KDCACHE_ZARRITA names no folder with node_modules/zarrita (npm i zarrita)")
    (tmp_path / "node_modules").symlink_to(modules.resolve())
    shutil.copy(HERE / "read_row.mjs", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("array", "row", "view"), PLACES)
def test_zarrita_under_node_reads_a_row_bit_for_bit(made, zarrita, array, row, view):
    done = run("node", zarrita / "read_row.mjs", made, array, row, view)
    assert done.stdout.strip() == expected_row(array, row, view).tobytes().hex()
