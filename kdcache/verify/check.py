"""The check of a cache: every byte against the manifest, or in seconds a sample of them.

Whatever is wrong becomes a finding, and the check goes on; an error means that it could not check.
"""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.progress import Bar, Progress, silent_bar
from kdcache.store import FileDigest, Grid, Manifest, read_manifest
from kdcache.store.manifest import MANIFEST
from kdcache.store.publish import digest_of
from kdcache.verify.finding import BROKEN_FILE, Finding, Verdict
from kdcache.verify.members import (
    array_findings,
    group_findings,
    lineage_findings,
    read_rows_index,
    receipt_findings,
    recipe_findings,
    version_findings,
)
from kdcache.verify.promises import (
    file_finding,
    files_to_check,
    load_manifest,
    read_grids,
    read_recipe,
    strangers,
)
from kdcache.verify.read import scan_file
from kdcache.verify.shards import (
    Alike,
    Rows,
    Shard,
    alike_findings,
    digest_finding,
    sample_findings,
    scan_shards,
    shard_findings,
)

THREADS = 8
"""Files that are read at once: several, for a disk far away answers slowly; hashing uses as many
cores as there are."""

QUICK_BYTES = 256 << 20
"""What `quick` reads of whole shards; at least one of them."""
QUICK_SHARDS = 256
"""Of so many others it reads the index and a few rows."""
_QUICK_ROWS = 4
_SMALL_BYTES = 16 << 20
"""Larger files other than shards are left out by `quick`."""


@dataclass(frozen=True)
class _Plan:
    """What is read of a cache."""

    small: list[str]
    """Compared with their digests."""
    whole: list[Shard]
    """Read from front to back."""
    sampled: list[tuple[Shard, list[int]]]
    """Of which some rows are read."""


def verify_cache(
    path: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    threads: int = THREADS,
    bar: Bar = silent_bar,
) -> Verdict:
    """Compare a finished cache with what its manifest promises, and look at what it holds.

    Args:
        quick: read a sample, for which seconds are enough at any size.
        seed: of the sample.

    Raises:
        CacheNotFound, CacheUnfinished: there is no finished cache.
        CacheError: its format is newer than this code.
    """
    root = Path(path)
    if not (root / MANIFEST).is_file():
        read_manifest(root)  # says why
    data = (root / MANIFEST).read_bytes()
    manifest, findings = load_manifest(data)
    verdict = Verdict(root, digest_of(data).sha256, "quick" if quick else "full")
    verdict.problems += findings
    if manifest is None:
        return verdict
    files = files_to_check(root, manifest)
    verdict.problems += _size_findings(root, files)
    verdict.problems += recipe_findings(manifest)
    broken = {finding.file for finding in verdict.problems}
    grids = read_grids(root, manifest)
    there = {name: file for name, file in files.items() if name not in broken}
    plan = _plan(there, grids, np.random.default_rng(seed) if quick else None)
    sizes = [there[shard.name].num_bytes for shard in plan.whole]
    total = sum(there[name].num_bytes for name in plan.small) + sum(sizes)
    with bar("verify", total=total, unit="B") as progress:
        verdict.problems += _small_findings(root, there, plan.small, threads, progress)
        rows, found = read_rows_index(root, manifest)
        verdict.problems += found
        alike = _check_shards(root, files, plan, rows, verdict, threads, progress)
    if _views_differ(read_recipe(root, manifest)):
        _add_alike(alike, rows, verdict)
    verdict.problems += array_findings(root, manifest, grids)
    verdict.problems += lineage_findings(root, manifest)
    verdict.problems += _receipt_findings(root, manifest, grids, plan, quick=quick)
    broken = {finding.file for finding in verdict.problems if finding.kind in BROKEN_FILE}
    verdict.problems += group_findings(root, files, broken)
    verdict.num_files = len(plan.small) + len(plan.whole)
    verdict.num_bytes = total
    _note(root, manifest, verdict)
    verdict.problems.sort(key=lambda finding: (finding.file, finding.kind, finding.views))
    return verdict


def _size_findings(root: Path, files: Mapping[str, FileDigest]) -> list[Finding]:
    """Files that are missing or have another size than promised; opens none of them."""
    findings = []
    for name, promised in files.items():
        path, expected = root / name, f"{promised.num_bytes} bytes"
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            findings.append(file_finding(name, promised, error))
            continue
        if size is None:
            findings.append(Finding(name, "missing", "is missing", expected))
        elif size != promised.num_bytes:
            findings.append(Finding(name, "size", f"has {size} bytes", expected))
    return findings


def _plan(
    files: Mapping[str, FileDigest], grids: Mapping[str, Grid], rng: np.random.Generator | None
) -> _Plan:
    """Everything, or with a generator a sample."""
    shards = [shard for shard in _shards(grids) if shard.name in files]
    others = sorted(files.keys() - {shard.name for shard in shards})
    if rng is None:
        return _Plan(others, shards, [])
    mixed = [shards[i] for i in rng.permutation(len(shards))]
    sizes = np.cumsum([files[shard.name].num_bytes for shard in mixed])
    count = max(1, int((sizes <= QUICK_BYTES).sum()))
    whole, rest = mixed[:count], mixed[count : count + QUICK_SHARDS]
    receipts = {shard.grid.receipt_file(shard.block, shard.view) for shard in (*whole, *rest)}
    small = [
        name
        for name in others
        if files[name].num_bytes <= _SMALL_BYTES
        and (not name.startswith("receipts/") or name in receipts)
    ]
    sampled = [
        (shard, rng.choice(len(shard.rows), min(_QUICK_ROWS, len(shard.rows)), False).tolist())
        for shard in rest
    ]
    return _Plan(small, whole, sampled)


def _shards(grids: Mapping[str, Grid]) -> Iterator[Shard]:
    for _, grid in sorted(grids.items()):
        for block in range(grid.num_blocks):
            for view in range(grid.num_views):
                yield Shard(grid, block, view)


def _small_findings(
    root: Path,
    files: Mapping[str, FileDigest],
    names: Collection[str],
    threads: int,
    progress: Progress,
) -> list[Finding]:
    def check(name: str) -> list[Finding]:
        try:
            found = scan_file(root / name)
        except OSError as error:
            return [file_finding(name, files[name], error)]
        progress(found.num_bytes)
        return [] if found == files[name] else [digest_finding(name, found, files[name])]

    with ThreadPoolExecutor(threads) as pool:
        return [finding for findings in pool.map(check, names) for finding in findings]


def _check_shards(
    root: Path,
    files: Mapping[str, FileDigest],
    plan: _Plan,
    rows: Rows,
    verdict: Verdict,
    threads: int,
    progress: Progress,
) -> list[Alike]:
    alike: dict[str, Alike] = {}
    for shard, scan in scan_shards(root, plan.whole, files, threads, progress):
        if isinstance(scan, Finding):
            verdict.problems.append(scan)
            continue
        verdict.problems += shard_findings(shard, scan, files[shard.name], rows)
        verdict.num_rows += len(shard.rows)
        if scan.marks is not None and not shard.grid.is_side:
            views = alike.setdefault(shard.grid.spec.name, Alike(shard.grid))
            views.add(shard.block, scan.marks.prints[: len(shard.rows)])
    for shard, offsets in plan.sampled:
        verdict.problems += sample_findings(root, shard, files[shard.name], offsets, rows)
        verdict.num_rows += len(offsets)
    return list(alike.values())


def _add_alike(alike: list[Alike], rows: Rows, verdict: Verdict) -> None:
    for views in alike:
        findings, notes = alike_findings(views, rows)
        verdict.problems += findings
        verdict.notes += notes


def _receipt_findings(
    root: Path, manifest: Manifest, grids: Mapping[str, Grid], plan: _Plan, *, quick: bool
) -> list[Finding]:
    read = [*plan.whole, *(shard for shard, _ in plan.sampled)] if quick else _shards(grids)
    findings, versions = [], set[str]()
    for shard in read:
        found, made_with = receipt_findings(root, manifest, *shard)
        findings += found
        if made_with is not None:
            versions.add(made_with)
    return findings if quick else findings + version_findings(manifest, versions)


def _note(root: Path, manifest: Manifest, verdict: Verdict) -> None:
    """Say what is no problem after all, or may explain one."""
    if others := strangers(root, manifest):
        verdict.notes.append(
            f"{len(others):,} files are not promised by the manifest, the first is `{others[0]}`"
        )
    owners = {file.sha256: name for name, file in manifest.files.items()}
    for finding in verdict.problems:
        found = finding.found.rpartition(" ")[2]
        if finding.kind == "bytes" and found in owners:
            verdict.notes.append(f"`{finding.file}` holds what `{owners[found]}` should")


def _views_differ(recipe: Mapping[str, Any]) -> bool:
    """Whether the policy draws anything: `center` and `full` show one view for ever."""
    views = recipe.get("views")
    policy = views.get("policy", {}) if isinstance(views, dict) else {}
    events = ("flip", "jitter", "grey", "blur")
    return policy.get("crop") != "center" or any(policy.get(event) for event in events)
