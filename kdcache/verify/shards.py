"""Shards: each is read once, for its digest and for rows that no teacher would have said."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdcache.progress import Progress
from kdcache.shapes import Bool, UInt8, UInt64
from kdcache.store import FileDigest, Grid
from kdcache.verify.content import Marks
from kdcache.verify.finding import Finding, Kind, in_rows, where
from kdcache.verify.promises import file_finding
from kdcache.verify.read import ShardScan, read_rows, scan_shard

MANY = 0.1
"""Share of rows from which on equal ones are a problem. Pictures of one colour and near-copies make
a few in any real set (below 0.1 % in ImageNet); a collapsed teacher makes nearly all."""

_COMPARED = 1024
"""Rows of a shard that are compared with each other; a collapse shows in any such number."""


class Shard(NamedTuple):
    """One shard file."""

    grid: Grid
    block: int
    view: int

    @property
    def name(self) -> str:
        """Its path in the cache."""
        return self.grid.shard_file(self.block, self.view)

    @property
    def rows(self) -> range:
        """Its rows in the cache."""
        return self.grid.block_rows(self.block)


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of a cache; None where the file that says it is broken."""

    readable: Bool[np.ndarray, " N"] | None
    ids: UInt8[np.ndarray, "N 16"] | None


@dataclass
class Alike:
    """Which rows of one array have been the same in all views so far."""

    grid: Grid
    first: dict[int, UInt64[np.ndarray, " _"]] = field(default_factory=dict)
    """By block, of the view that came first."""
    same: dict[int, Bool[np.ndarray, " _"]] = field(default_factory=dict)

    def add(self, block: int, prints: UInt64[np.ndarray, " _"]) -> None:
        """Compare the rows of one more view of a block."""
        if block not in self.first:
            self.first[block] = prints
        else:
            equal = self.first[block] == prints
            self.same[block] = equal & self.same.get(block, True)

    def rows(self, readable: Bool[np.ndarray, " N"]) -> list[int]:
        """The readable rows that are the same in all views seen, where more than one was."""
        return [
            row
            for block, same in sorted(self.same.items())
            for row in (np.flatnonzero(same) + self.grid.block_rows(block).start).tolist()
            if readable[row]
        ]


def scan_shards(
    root: Path,
    shards: Iterable[Shard],
    files: Mapping[str, FileDigest],
    threads: int,
    progress: Progress,
) -> Iterator[tuple[Shard, ShardScan | Finding]]:
    """Each shard with what one pass over it told, in the order given.

    Args:
        progress: counts bytes.
    """

    def scan(shard: Shard) -> tuple[Shard, ShardScan | Finding]:
        try:
            found = scan_shard(root / shard.name, shard.grid, shard.block)
        except OSError as error:
            return shard, file_finding(shard.name, files[shard.name], error)
        progress(found.digest.num_bytes)
        return shard, found

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(scan, shards)


def shard_findings(
    shard: Shard, scan: ShardScan, promised: FileDigest, rows: Rows
) -> list[Finding]:
    """What is wrong with a shard that was read whole."""
    findings = []
    if scan.digest != promised:
        findings.append(digest_finding(shard.name, scan.digest, promised))
    findings += _index_findings(shard, scan.tail)
    if scan.marks is not None:
        findings += _row_findings(shard, scan.marks, rows)
        findings += _alike_findings(shard, scan.marks, rows)
        padding = ~scan.marks.zero[len(shard.rows) :]
        if padding.any():
            found = f"{int(padding.sum())} rows behind the last one hold something"
            findings.append(Finding(shard.name, "padding", found, "zeros"))
    return findings


def sample_findings(
    root: Path, shard: Shard, promised: FileDigest, offsets: list[int], rows: Rows
) -> list[Finding]:
    """What is wrong with the index and some rows of a shard, counted from its first row."""
    try:
        tail, marks = read_rows(root / shard.name, shard.grid, shard.block, offsets)
    except OSError as error:
        return [file_finding(shard.name, promised, error)]
    except EOFError:
        return [Finding(shard.name, "size", "ends before its rows do", "whole rows")]
    findings = _index_findings(shard, tail)
    chosen = np.array(offsets) + shard.rows.start
    for kind, marked, found, expected in _kinds(shard.grid, marks, _readable(rows, chosen)):
        if marked.any():
            place = in_rows(chosen[marked], shard.view)
            findings.append(Finding(shard.name, kind, found, expected, **place))
    return findings


def alike_findings(alike: Alike, rows: Rows) -> tuple[list[Finding], list[str]]:
    """What is wrong, and what is to be noted, where images have one row for all of their views."""
    name = alike.grid.spec.name
    if rows.readable is None or not (same := alike.rows(rows.readable)):
        return [], []
    if len(same) > MANY * rows.readable.sum():
        found = "rows are the same in all views"
        expected = "a teacher that looks at what it is shown"
        return [Finding(name, "views alike", found, expected, **in_rows(same))], []
    more = ", ..." if len(same) > 1 else ""
    return [], [f"{name}: {len(same):,} images have one row for all views: {same[0]}{more}"]


def digest_finding(name: str, found: FileDigest, promised: FileDigest) -> Finding:
    """A file with other bytes than promised."""
    if found.num_bytes != promised.num_bytes:
        sizes = f"has {found.num_bytes} bytes", f"{promised.num_bytes}"
        return Finding(name, "size", *sizes)
    return Finding(name, "bytes", f"has SHA-256 {found.sha256}", promised.sha256)


def _index_findings(shard: Shard, tail: bytes) -> list[Finding]:
    if tail == shard.grid.tail(shard.block):
        return []
    found = "the shard index does not say where the rows are"
    return [Finding(shard.name, "index", found, "rows in order, and their checksum")]


def _row_findings(shard: Shard, marks: Marks, rows: Rows) -> list[Finding]:
    count = len(shard.rows)
    mine = Marks(*(column[:count] for column in vars(marks).values()))
    readable = _readable(rows, slice(shard.rows.start, shard.rows.stop))
    return [
        Finding(shard.name, kind, found, expected, **where(marked, shard.rows.start, shard.view))
        for kind, marked, found, expected in _kinds(shard.grid, mine, readable)
        if marked.any()
    ]


def _kinds(
    grid: Grid, marks: Marks, readable: Bool[np.ndarray, " R"] | None
) -> list[tuple[Kind, Bool[np.ndarray, " R"], str, str]]:
    """Each kind of bad row: which rows are, what was found, what was expected."""
    constant = "rows hold one number in all dimensions", "a target"
    kinds: list[tuple[Kind, Bool[np.ndarray, " R"], str, str]] = [
        ("not finite", marks.not_finite, "rows hold NaN or infinity", "finite numbers"),
    ]
    if not grid.is_side:
        kinds.append(("constant", marks.constant, *constant))
    if readable is None:
        return kinds
    rest = "rows of unreadable images hold something", "zeros"
    kinds.append(("not empty", ~marks.zero & ~readable, *rest))
    if grid.spec.is_quantised:  # whole numbers are zero where all values of a row are equal
        kinds.append(("constant", marks.zero & readable, *constant))
    elif not grid.is_side:  # and a scale or a minimum may well be zero
        kinds.append(("hole", marks.zero & readable, "rows of readable images are zero", "targets"))
    return kinds


def _readable(rows: Rows, chosen: np.ndarray | slice) -> Bool[np.ndarray, " R"] | None:
    return None if rows.readable is None else rows.readable[chosen]


def _alike_findings(shard: Shard, marks: Marks, rows: Rows) -> list[Finding]:
    """Different images of which the teacher said the very same."""
    if rows.readable is None or rows.ids is None or shard.grid.is_side:
        return []
    count = len(shard.rows)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _COMPARED)).round().astype(int))
    chosen = chosen[rows.readable[chosen + shard.rows.start] & ~marks.zero[chosen]]
    if not len(chosen):
        return []
    order = chosen[np.argsort(marks.prints[chosen], kind="stable")]
    prints, ids = marks.prints[order], rows.ids[order + shard.rows.start]
    pairs = (prints[1:] == prints[:-1]) & (ids[1:] != ids[:-1]).any(axis=1)
    found = np.zeros(len(order), np.bool_)
    found[1:] |= pairs
    found[:-1] |= pairs
    if found.sum() <= max(MANY * len(order), 2):
        return []
    text = f"{int(found.sum())} of {len(order)} rows that were compared are the same as another's"
    place = in_rows(np.sort(order[found]) + shard.rows.start, shard.view)
    expected = "a teacher that tells images apart"
    return [Finding(shard.name, "images alike", text, expected, **place)]
