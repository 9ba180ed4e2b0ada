"""Members: whether manifest, recipe, receipts and the small arrays of a cache say the same."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.store import Grid, Manifest, plain
from kdcache.store.group import GROUP, array_names, group_is_right
from kdcache.store.manifest import MANIFEST, MANIFESTS, RECIPE, kept_manifest
from kdcache.verify.finding import Finding
from kdcache.verify.promises import read_recipe, read_whole
from kdcache.verify.shards import Rows


def group_findings(root: Path, files: Collection[str], broken: Collection[str]) -> list[Finding]:
    """What is wrong with the group's `zarr.json`, which nobody promises, but its members make."""
    if GROUP in files or any(name.endswith("/zarr.json") for name in broken):
        return []  # promised like any other file, or not known what it should be
    expected = "what the `zarr.json` of the members make it"
    if not (root / GROUP).is_file():
        return [Finding(GROUP, "group", "is missing", expected)]
    if not group_is_right(root, files):
        return [Finding(GROUP, "group", "says something else", expected)]
    return []


def recipe_findings(manifest: Manifest) -> list[Finding]:
    """Whether the manifest names the recipe that it promises."""
    promised = manifest.files.get(RECIPE)
    if promised is not None and promised.sha256 == manifest.recipe:
        return []
    found = f"names the recipe {manifest.recipe}"
    expected = "none promised" if promised is None else promised.sha256
    return [Finding(MANIFEST, "manifest", found, expected)]


def array_findings(root: Path, manifest: Manifest, grids: Mapping[str, Grid]) -> list[Finding]:
    """Whether arrays have the shape and number type that manifest and recipe say, in all shards."""
    findings = []
    recipe = read_recipe(root, manifest)
    said = recipe.get("arrays", {})
    if lost := sorted(set(said) - set(array_names(manifest.files))):
        found = f"promises no `{lost[0]}/zarr.json`"
        findings.append(Finding(MANIFEST, "manifest", found, "the arrays of the recipe"))
    for name, grid in grids.items():
        file = f"{name}/zarr.json"
        shape, wanted = (grid.num_rows, grid.num_views), (manifest.num_rows, manifest.num_views)
        if shape != wanted:
            rows, views = (f"{pair[0]} rows in {pair[1]} views" for pair in (shape, wanted))
            findings.append(Finding(file, "shape", rows, f"{views}, as in the manifest"))
        about = said.get(name, {})
        for kind, key, value in (
            ("shape", "dim", grid.spec.dim),
            ("dtype", "dtype", grid.spec.dtype),
        ):
            if about.get(key, value) != value:
                found, expected = f"{key} {value}", f"{about[key]}, as in the recipe"
                findings.append(Finding(file, kind, found, expected))  # type: ignore[arg-type]
        findings += _promise_findings(manifest, grid)
    return findings


def _promise_findings(manifest: Manifest, grid: Grid) -> list[Finding]:
    """Shards and receipts that the manifest should promise, and does not; sizes that cannot be."""
    findings = []
    for block in range(grid.num_blocks):
        for view in range(grid.num_views):
            for name in (grid.shard_file(block, view), grid.receipt_file(block, view)):
                if name not in manifest.files:
                    found = f"promises no `{name}`"
                    findings.append(Finding(MANIFEST, "manifest", found, "all shards and receipts"))
            shard = manifest.files.get(grid.shard_file(block, view))
            if shard is not None and shard.num_bytes != grid.shard_bytes(block):
                found = f"promises {shard.num_bytes} bytes for `{grid.shard_file(block, view)}`"
                expected = f"{grid.shard_bytes(block)}"
                findings.append(Finding(MANIFEST, "manifest", found, expected))
    return findings


def receipt_findings(
    root: Path, manifest: Manifest, grid: Grid, block: int, view: int
) -> tuple[list[Finding], str | None]:
    """Whether receipt and manifest say the same of a shard; and the versions it was made with.

    A receipt that is not what was promised is another finding, and says nothing here.
    """
    name, shard = grid.receipt_file(block, view), grid.shard_file(block, view)
    data, promised = read_whole(root, manifest, name), manifest.files.get(shard)
    if data is None or promised is None:
        return [], None
    rows = grid.block_rows(block)
    about = {
        "array": grid.spec.name,
        "block": block,
        "view": view,
        "rows": [rows.start, rows.stop],
        "bytes": promised.num_bytes,
        "sha256": promised.sha256,
    }
    said = json.loads(data)
    findings = [
        Finding(
            MANIFEST, "receipt", f"says {key} {value} of `{shard}`", f"{said.get(key)}: `{name}`"
        )
        for key, value in about.items()
        if said.get(key) != value
    ]
    return findings, json.dumps(said.get("versions"), sort_keys=True)


def version_findings(manifest: Manifest, receipts: Collection[str]) -> list[Finding]:
    """Whether the manifest names the libraries that at least one of the shards was made with."""
    named = json.dumps(dict(manifest.versions), sort_keys=True)
    if not receipts or named in receipts:
        return []
    found = f"names the versions {named}"
    return [Finding(MANIFEST, "receipt", found, f"those of a receipt: {min(receipts)}")]


def lineage_findings(root: Path, manifest: Manifest) -> list[Finding]:
    """Whether the manifests that a cache had before it grew are those they are named after."""
    findings = []
    for name, file in manifest.files.items():
        if name.startswith(f"{MANIFESTS}/") and name != kept_manifest(file.sha256):
            found = f"promises `{name}` with the SHA-256 {file.sha256}"
            findings.append(Finding(MANIFEST, "manifest", found, "the name of the file"))
    parent, seen = manifest.parent, set[str]()
    while parent is not None and parent not in seen:
        seen.add(parent)
        if kept_manifest(parent) not in manifest.files:
            found = f"does not promise the manifest of its ancestor {parent}"
            return [*findings, Finding(MANIFEST, "manifest", found, kept_manifest(parent))]
        data = read_whole(root, manifest, kept_manifest(parent))
        if data is None:
            return findings  # which is another finding
        ancestor = Manifest.from_bytes(data)
        changed = [
            name
            for name, file in ancestor.files.items()
            if name != GROUP and manifest.files.get(name) != file
        ]
        if changed:
            found = f"promises other bytes for `{changed[0]}` than its ancestor {parent}"
            findings.append(Finding(MANIFEST, "manifest", found, "growth alone"))
        parent = ancestor.parent
    return findings


def read_rows_index(root: Path, manifest: Manifest) -> tuple[Rows, list[Finding]]:
    """What the index says of the rows, and what is wrong with it."""
    count = manifest.num_rows
    arrays = {
        name: _load(root, manifest, f"index/{name}")
        for name in ("readable", "image_id", "label", "path_offsets", "path_bytes")
    }
    shapes: dict[str, tuple[int, ...]] = {
        "readable": (count,),
        "image_id": (count, 16),
        "label": (count,),
        "path_offsets": (count + 1,),
    }
    findings = [
        Finding(f"index/{name}/zarr.json", "shape", f"shape {array.shape}", f"{shapes[name]}")
        for name, array in arrays.items()
        if array is not None and name in shapes and array.shape != shapes[name]
    ]
    if findings:
        return Rows(None, None), findings
    readable = arrays["readable"]
    if readable is not None:
        findings += _readable_findings(root, manifest, readable)
    offsets, paths = arrays["path_offsets"], arrays["path_bytes"]
    if offsets is not None and paths is not None:
        ends = (int(offsets[0]), int(offsets[-1]))
        if ends != (0, paths.size) or (np.diff(offsets) < 0).any():
            found = f"offsets from {ends[0]} to {ends[1]}"
            expected = f"rising from 0 to {paths.size}"
            findings.append(Finding("index/path_offsets/c/0", "index", found, expected))
    return Rows(readable, arrays["image_id"]), findings


def _readable_findings(root: Path, manifest: Manifest, readable: np.ndarray) -> list[Finding]:
    findings = []
    if (count := int(readable.sum())) != manifest.num_readable:
        found = f"{manifest.num_readable} readable rows"
        findings.append(Finding(MANIFEST, "manifest", found, f"{count}, as in index/readable"))
    data = read_whole(root, manifest, "index/unreadable.json")
    if data is not None:
        listed = [row["row"] for row in json.loads(data)]
        if listed != np.flatnonzero(~readable).tolist():
            found, expected = f"lists {len(listed)} rows", "the rows that index/readable leaves out"
            findings.append(Finding("index/unreadable.json", "index", found, expected))
    return findings


def _load(root: Path, manifest: Manifest, name: str) -> Any:
    """A small array, None unless its files are what was promised."""
    mine = [file for file in manifest.files if file.startswith(f"{name}/")]
    if not mine or any(read_whole(root, manifest, file) is None for file in mine):
        return None
    return plain.load_array(root, name)
