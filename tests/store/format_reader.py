"""A reader of caches written from FORMAT.md alone: Python's standard library and nothing else.

Each line follows a sentence of that page. How to run: python -I format_reader.py CACHE, which
prints what it has read as JSON. `test_foreign.py` runs it and compares.
"""

import hashlib
import json
import math
import struct
import sys
from pathlib import Path


def read_target(root: Path, array: str, row: int, view: int) -> list[float]:
    """One row of one view; the shard's index and its checksum are looked at first."""
    about = json.loads((root / array / "zarr.json").read_bytes())
    num_rows, num_views, dim = about["shape"]
    assert 0 <= row < num_rows
    assert 0 <= view < num_views
    shard_rows = about["chunk_grid"]["configuration"]["chunk_shape"][0]
    chunk_rows = about["codecs"][0]["configuration"]["chunk_shape"][0]
    letter, size = {"float16": ("e", 2), "float32": ("f", 4)}[about["data_type"]]
    width = dim * size
    block = row // shard_rows
    shard = (root / array / "c" / str(block) / str(view) / "0").read_bytes()
    check_index(
        shard, min(num_rows - block * shard_rows, shard_rows), chunk_rows, shard_rows, width
    )
    start = row % shard_rows * width
    return list(struct.unpack(f"<{dim}{letter}", shard[start : start + width]))


def check_index(shard: bytes, rows: int, chunk_rows: int, shard_rows: int, width: int) -> None:
    """The inner chunks must lie in order, else the rows are not where the page says."""
    num_chunks = -(-rows // chunk_rows)
    end_of_rows = num_chunks * chunk_rows * width
    pairs = [
        (k * chunk_rows * width, chunk_rows * width) if k < num_chunks else (2**64 - 1, 2**64 - 1)
        for k in range(shard_rows // chunk_rows)
    ]
    index = b"".join(struct.pack("<QQ", *pair) for pair in pairs)
    assert shard[end_of_rows:-4] == index
    assert struct.unpack("<I", shard[-4:])[0] == crc32c(index)


def crc32c(data: bytes) -> int:
    """Castagnoli: reflected polynomial 0x82F63B78, all ones before and after."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def read_small(root: Path, name: str) -> tuple:
    """A small array as a flat tuple."""
    about = json.loads((root / name / "zarr.json").read_bytes())
    letter = {
        "uint8": "B", "bool": "?", "int32": "i", "int64": "q", "float32": "f", "float64": "d"
    }[about["data_type"]]  # fmt: skip
    count = 1
    for side in about["shape"]:
        count *= side
    if count == 0:
        return ()
    data = root.joinpath(name, "c", *("0" for _ in about["shape"])).read_bytes()
    return struct.unpack(f"<{count}{letter}", data)


def read_index(root: Path, row: int) -> dict:
    """What a row is."""
    offsets = read_small(root, "index/path_offsets")
    path = bytes(read_small(root, "index/path_bytes"))[offsets[row] : offsets[row + 1]]
    label = read_small(root, "index/label")[row]
    classes = json.loads((root / "index/zarr.json").read_bytes())["attributes"]["classes"]
    unreadable = json.loads((root / "index/unreadable.json").read_bytes())
    return {
        "id": bytes(read_small(root, "index/image_id")[16 * row : 16 * row + 16]).hex(),
        "path": path.decode(),
        "label": classes[label] if label >= 0 else None,
        "readable": read_small(root, "index/readable")[row],
        "reason": next((bad["reason"] for bad in unreadable if bad["row"] == row), None),
    }


def read_head(root: Path) -> dict:
    """The layers of the head, where it is from, and the first number of its first weight."""
    about = json.loads((root / "head/zarr.json").read_bytes())["attributes"]
    linear = next(i for i, layer in enumerate(about["layers"]) if layer["kind"] == "linear")
    return {
        "layers": about["layers"],
        "kind": about.get("origin", {"kind": "teacher"})["kind"],
        "first": read_small(root, f"head/{linear}.weight")[0],
    }


def apply_head(root: Path, feature: list[float]) -> list[float]:
    """The embedding that the head makes of a feature."""
    values = feature
    layers = json.loads((root / "head/zarr.json").read_bytes())["attributes"]["layers"]
    for i, layer in enumerate(layers):
        if layer["kind"] == "linear":
            weight, width = read_small(root, f"head/{i}.weight"), layer["in"]
            bias = read_small(root, f"head/{i}.bias") if layer["bias"] else [0.0] * layer["out"]
            values = [
                sum(w * x for w, x in zip(weight[o * width : (o + 1) * width], values, strict=True))
                + bias[o]
                for o in range(layer["out"])
            ]
        elif layer["kind"] == "batchnorm":
            mean, variance = (read_small(root, f"head/{i}.running_{n}") for n in ("mean", "var"))
            values = [
                (x - m) / math.sqrt(v + layer["eps"])
                for x, m, v in zip(values, mean, variance, strict=True)
            ]
            if layer["affine"]:
                weight, bias = (read_small(root, f"head/{i}.{n}") for n in ("weight", "bias"))
                values = [x * w + b for x, w, b in zip(values, weight, bias, strict=True)]
        elif layer["kind"] == "relu":
            values = [max(x, 0.0) for x in values]
        else:
            assert layer["kind"] == "gelu"
            values = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in values]
    return values


def check_manifest(root: Path) -> dict:
    """Compare every file with the manifest, the lineage with its names; the identity comes out."""
    data = (root / "manifest.json").read_bytes()
    manifest = json.loads(data)
    assert manifest["format"] <= 1
    for name, promised in manifest["files"].items():
        found = (root / name).read_bytes()
        assert len(found) == promised["bytes"], name
        assert hashlib.sha256(found).hexdigest() == promised["sha256"], name
    recipe = (root / "recipe.json").read_bytes()
    assert hashlib.sha256(recipe).hexdigest() == manifest["recipe"]
    lineage, parent = [hashlib.sha256(data).hexdigest()], manifest["parent"]
    while parent is not None:
        kept = (root / "manifests" / f"{parent}.json").read_bytes()
        assert hashlib.sha256(kept).hexdigest() == parent
        lineage.append(parent)
        parent = json.loads(kept)["parent"]
    arrays = [a for a in ("embedding", "feature") if f"{a}/zarr.json" in manifest["files"]]
    return {"lineage": lineage, "arrays": arrays, "rows": manifest["rows"]}


def main(root: Path) -> dict:
    """All of it, for the rows at the borders of blocks and chunks."""
    about = check_manifest(root)
    rows = [0, 5, 255, 256, 511, 512, about["rows"] - 1]
    num_views = json.loads((root / "manifest.json").read_bytes())["views"]
    return {
        **about,
        "targets": {
            array: [
                [row, view, read_target(root, array, row, view)]
                for row in rows
                for view in range(num_views)
            ]
            for array in about["arrays"]
        },
        "index": [[row, read_index(root, row)] for row in rows],
        "head": read_head(root),
        "mean": {array: read_small(root, f"statistics/{array}/mean") for array in about["arrays"]},
        "neighbours": read_small(root, "neighbours/index")[:2],
        "modules": sorted(sys.modules),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
