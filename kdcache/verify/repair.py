"""Repair: each broken file is worked out of the others, fetched from a copy, or made again.

Whatever way a file came, it takes its place only when it is what the manifest promises to the last
bit, and takes it at once. So nothing can become worse, and whoever was killed begins again.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.errors import CacheCorrupt, CacheMismatch
from kdcache.extract import made_with
from kdcache.files import exclusive, sync_file, sync_folder
from kdcache.progress import Bar, silent_bar
from kdcache.store import Grid, Manifest, RowIndex, plain
from kdcache.store.group import GROUP, make_group
from kdcache.store.index import load_paths
from kdcache.store.manifest import MANIFEST, MANIFESTS, RECIPE, kept_manifest
from kdcache.store.publish import WORK, digest_of, overwrite, tidy
from kdcache.verify.again import (
    Means,
    head_again,
    index_again,
    match_again,
    shards_again,
    unreadable_again,
    views_again,
    witness_again,
)
from kdcache.verify.check import verify_cache
from kdcache.verify.derive import derived_files
from kdcache.verify.fetch import Copy
from kdcache.verify.finding import Verdict
from kdcache.verify.images import Matched
from kdcache.verify.promises import (
    files_to_check,
    load_manifest,
    read_grids,
    read_recipe,
    read_whole,
)
from kdcache.verify.read import scan_file

AGAIN = "made again"


@dataclass
class Repair:
    """What became of the broken files of a cache."""

    mended: dict[str, str] = field(default_factory=dict)
    """How each was brought back: `worked out`, `fetched` or `made again`."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """Why a way did not serve for the others."""

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        mended = [f"{name}: {how}" for name, how in sorted(self.mended.items())]
        return mended + [
            f"{name}: not mended: {'; '.join(why)}" for name, why in sorted(self.refused.items())
        ]


@dataclass(frozen=True, eq=False)
class _Bench:
    """A cache under repair."""

    root: Path
    manifest: Manifest
    broken: set[str]
    """What is still to be mended."""
    report: Repair

    def put(self, name: str, made: Path, how: str) -> None:
        """Put a file in its place, if it is what is promised."""
        if not made.is_file():  # taken away by a repair that was killed
            self.refuse(name, f"{how}, it has gone: run the same command again")
            return
        found, promised = scan_file(made), self.manifest.files[name]
        if found != promised:
            self.refuse(name, f"{how}, it has the SHA-256 {found.sha256}, not {promised.sha256}")
            return
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_file(made)
        made.replace(target)
        sync_folder(target.parent)
        self.broken.discard(name)
        self.report.refused.pop(name, None)
        self.report.mended[name] = how

    def put_all(self, files: Mapping[str, bytes], how: str) -> None:
        """Put those of the files in their places that are broken, and promised like this."""
        for name in sorted(files.keys() & self.broken):
            if digest_of(files[name]) == self.manifest.files.get(name):
                overwrite(self.root, name, files[name])
                self.broken.discard(name)
                self.report.refused.pop(name, None)
                self.report.mended[name] = how
            else:
                self.refuse(name, f"{how}, it has the SHA-256 {digest_of(files[name]).sha256}")

    def refuse(self, name: str, why: str) -> None:
        """Remember why a way did not serve."""
        reasons = self.report.refused.setdefault(name, [])
        if why not in reasons:
            reasons.append(why)


def repair_cache(
    path: str | Path,
    *,
    copy: Copy | None = None,
    means: Means | None = None,
    bar: Bar = silent_bar,
) -> tuple[Verdict, Repair]:
    """Bring back every broken file that can be had, and check the cache once more.

    Args:
        copy: another copy of the cache.
        means: images and teacher, to make again what no copy has.

    Raises:
        CacheMismatch: the copy is of another cache.
        CacheCorrupt: the manifest is broken, and there is no copy to take it from.
        CacheError: there is no finished cache, or one of a newer format.
        ConfigError: another process is repairing or growing it.
    """
    root, report = Path(path), Repair()
    verdict = verify_cache(root, bar=bar)
    if verdict.whole:
        return verdict, report
    with _alone(root):
        if _mend_manifest(root, verdict, copy):
            report.mended[MANIFEST] = "fetched"
            verdict = verify_cache(root, bar=bar)
        manifest = Manifest.from_bytes((root / MANIFEST).read_bytes())
        broken = set(verdict.broken_files) & files_to_check(root, manifest).keys()
        bench = _Bench(root, manifest, broken, report)
        _work_out(bench)
        if copy is not None:
            _fetch(bench, copy, bar)
            _work_out(bench)
        if means is not None and bench.broken:
            _make_again(bench, means)
            _work_out(bench)
        for name in sorted(bench.broken):
            bench.refuse(name, _what_else(name, copy, means))
        if not any(name.endswith("/zarr.json") for name in bench.broken):
            _mend_group(bench)
        tidy(root)
    return verify_cache(root, bar=bar), report


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep out whoever would grow or repair the cache at the same time."""
    (root / MANIFESTS).mkdir(exist_ok=True)
    with exclusive(root / MANIFESTS):
        yield


def _mend_manifest(root: Path, verdict: Verdict, copy: Copy | None) -> bool:
    """Take the copy's manifest where the one here is broken, or is another cache's."""
    here, _ = load_manifest((root / MANIFEST).read_bytes())
    if copy is None:
        if here is None:
            raise CacheCorrupt(
                f"`{root / MANIFEST}` is broken, and nothing else says what the cache promises",
                hint="fetch it from another copy: kdcache verify CACHE --repair --from COPY",
            )
        return False
    there = Manifest.from_bytes(copy.manifest)
    if digest_of(copy.manifest).sha256 == verdict.identity:
        return False
    if _lies(root, RECIPE, there) and (here is None or _is_wrong(root, verdict, there)):
        overwrite(root, MANIFEST, copy.manifest)
        tidy(root)
        return True
    raise CacheMismatch(
        f"`{copy.place}` holds the cache `{digest_of(copy.manifest).sha256}`, and `{root}` holds "
        f"`{verdict.identity}`",
        hint="give --from a copy of this very cache",
    )


def _is_wrong(root: Path, verdict: Verdict, there: Manifest) -> bool:
    """Whether it is the manifest here that is wrong, and not the files or the copy.

    It is where it contradicts what it promises, where files are what the copy's promises instead,
    and where it is older than the group that lies beside it.
    """
    contradicted = any(finding.file == MANIFEST for finding in verdict.problems)
    older = kept_manifest(verdict.identity) in there.files and GROUP in verdict.broken_files
    return contradicted or older or any(_lies(root, name, there) for name in verdict.broken_files)


def _lies(root: Path, name: str, manifest: Manifest) -> bool:
    """Whether a file is there, and what a manifest promises."""
    path = root / name
    return path.is_file() and scan_file(path) == manifest.files.get(name)


def _work_out(bench: _Bench) -> None:
    """Make what follows from the rest, until nothing more does."""
    while True:
        before = len(bench.broken)
        grids = read_grids(bench.root, bench.manifest)
        bench.put_all(derived_files(bench.root, bench.manifest, grids, bench.broken), "worked out")
        if len(bench.broken) == before:
            return


def _fetch(bench: _Bench, copy: Copy, bar: Bar) -> None:
    staged = bench.root / WORK / "fetched"
    staged.parent.mkdir(exist_ok=True)
    names = sorted(bench.broken)
    with bar("fetch", total=len(names), unit="files") as progress:
        for name in names:
            try:
                copy.fetch(name, bench.manifest.files[name], staged)
            except FileNotFoundError as error:
                bench.refuse(name, str(error))
            else:
                bench.put(name, staged, f"fetched from `{copy.place}`")
            progress(1)


def _make_again(bench: _Bench, means: Means) -> None:
    """Make files of the images, and of what the teacher says of them."""
    root, manifest = bench.root, bench.manifest
    if _has(bench, "index"):
        bench.put_all(index_again(means), AGAIN)
        _work_out(bench)
    recipe, index = read_recipe(root, manifest), _index(bench)
    readable = _load(bench, "index/readable")
    if not recipe or index is None or readable is None:
        for name in bench.broken:
            bench.refuse(name, "recipe and index are needed to make it again, and one is broken")
        return
    matched = match_again(means, index, readable)
    maker = views_again(means, recipe, index, readable, matched, root)
    if "index/unreadable.json" in bench.broken:
        bench.put_all(unreadable_again(maker, index, readable), AGAIN)
    if _has(bench, "witness"):
        bench.put_all(witness_again(maker, readable, manifest.num_views), AGAIN)
    if _has(bench, "head"):
        bench.put_all(head_again(means.teacher()), AGAIN)
    if blocks := _blocks(bench, matched, index):
        made = shards_again(root, manifest, recipe, index, maker, means, blocks)
        _put_shards(bench, made, blocks, means.device)


def _put_shards(
    bench: _Bench, made: Path, blocks: list[tuple[Grid, int]], device: torch.device
) -> None:
    for grid, block in blocks:
        for view in range(grid.num_views):
            if (name := grid.shard_file(block, view)) not in bench.broken:
                continue
            bench.put(name, made / name, AGAIN)
            if name in bench.broken:
                bench.refuse(name, _other_versions(bench.manifest, device))


def _has(bench: _Bench, group: str) -> bool:
    """Whether something of a group is broken."""
    return any(name.startswith(f"{group}/") for name in bench.broken)


def _blocks(bench: _Bench, matched: Matched, index: RowIndex) -> list[tuple[Grid, int]]:
    """The blocks with broken shards of which all images are here."""
    blocks = []
    lost = np.array(sorted([*matched.missing, *matched.changed]), np.int64)
    for grid in read_grids(bench.root, bench.manifest).values():
        for block in range(grid.num_blocks):
            names = {grid.shard_file(block, view) for view in range(grid.num_views)}
            rows = grid.block_rows(block)
            gone = lost[(lost >= rows.start) & (lost < rows.stop)]
            if not names & bench.broken:
                continue
            if not len(gone):
                blocks.append((grid, block))
            for name in names & bench.broken if len(gone) else ():
                first = index.paths[int(gone[0])]
                bench.refuse(name, f"{len(gone)} of its images are not here, such as `{first}`")
    return blocks


def _index(bench: _Bench) -> RowIndex | None:
    arrays = [_load(bench, f"index/{name}") for name in ("image_id", "label")]
    paths = [_load(bench, f"index/{name}") for name in ("path_bytes", "path_offsets")]
    about = read_whole(bench.root, bench.manifest, "index/zarr.json")
    if about is None or any(array is None for array in (*arrays, *paths)):
        return None
    classes = json.loads(about)["attributes"]["classes"]
    return RowIndex(arrays[0], arrays[1], classes, load_paths(bench.root))


def _load(bench: _Bench, name: str) -> Any:
    """A small array, None where it is broken."""
    if any(file.startswith(f"{name}/") for file in bench.broken):
        return None
    return plain.load_array(bench.root, name)


def _mend_group(bench: _Bench) -> None:
    root, files = bench.root, files_to_check(bench.root, bench.manifest)
    if GROUP not in files:
        group = make_group(root, files)
        path = root / GROUP
        if not path.is_file() or path.read_bytes() != group:
            overwrite(root, GROUP, group)
            bench.report.mended[GROUP] = "worked out"


def _other_versions(manifest: Manifest, device: torch.device) -> str:
    here = made_with(device)
    others = [
        f"{name} {here[name]}, not {version}"
        for name, version in manifest.versions.items()
        if here.get(name, version) != version
    ]
    if others:
        return f"it was made with other releases: {', '.join(others)}"
    return "it was made with the same releases, so perhaps on another processor"


def _what_else(name: str, copy: Copy | None, means: Means | None) -> str:
    """What could still be tried."""
    ways = []
    if copy is None:
        ways.append("a copy may have it: --from COPY")
    if means is None and name.partition("/")[0] not in ("neighbours", MANIFESTS, RECIPE):
        ways.append("images and teacher may make it again: --data DIR")
    return ", or ".join(ways) or "another copy is needed: --from COPY"
