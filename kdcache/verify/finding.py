"""What a check of a cache finds, as data: for people a line, for scripts a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdcache.shapes import Bool

Kind = Literal[
    "missing", "size", "bytes", "disk", "group",
    "manifest", "receipt", "shape", "dtype", "index",
    "not finite", "hole", "not empty", "constant", "padding", "views alike", "images alike",
    "image missing", "image changed",
    "decode", "crop", "geometry", "colour", "teacher",
]  # fmt: skip

BROKEN_FILE: frozenset[Kind] = frozenset({"missing", "size", "bytes", "disk", "group"})
"""The file is not what was promised: another copy of it would do."""

_NUM_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    file: str
    """Path in the cache, or of an image."""
    kind: Kind
    found: str
    expected: str
    rows: tuple[int, ...] = ()
    """The first few rows of the cache that are concerned."""
    num_rows: int = 0
    """How many there are."""
    views: tuple[int, ...] = ()
    """The views that are concerned; none where it is all of them."""

    def __str__(self) -> str:
        """One line for a person."""
        where = ""
        if self.num_rows:
            named = ", ".join(str(row) for row in self.rows)
            more = ", ..." if self.num_rows > len(self.rows) else ""
            where = f" ({self.num_rows:,} rows: {named}{more})"
        return f"{self.file} {self.found}; expected {self.expected}{where} [{self.kind}]"


def in_rows(rows: Sequence[int] | np.ndarray, view: int | None = None) -> dict[str, Any]:
    """The fields of a finding that say where."""
    named = tuple(int(row) for row in rows[:_NUM_NAMED])
    return {"rows": named, "num_rows": len(rows), "views": () if view is None else (view,)}


def where(marked: Bool[np.ndarray, " R"], first: int, view: int) -> dict[str, Any]:
    """The same, of marks on consecutive rows that begin with `first`."""
    return in_rows(np.flatnonzero(marked) + first, view)


@dataclass
class Verdict:
    """What a check has looked at, and what it has found."""

    path: Path
    identity: str
    """SHA-256 of the manifest, as it lies there."""
    mode: Literal["full", "quick"]
    num_files: int = 0
    """Files that were compared with their digests."""
    num_bytes: int = 0
    """Bytes that were read for it."""
    num_rows: int = 0
    """Rows whose values were looked at, each view and array counted."""
    problems: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no problem, and may be good to know."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What the checks with images and teacher measured."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def broken_files(self) -> list[str]:
        """Files that are missing, or not what the manifest promises; sorted."""
        return sorted({p.file for p in self.problems if p.kind in BROKEN_FILE})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "cache": str(self.path),
            "identity": self.identity,
            "whole": self.whole,
            "checked": {
                "mode": self.mode,
                "files": self.num_files,
                "bytes": self.num_bytes,
                "rows": self.num_rows,
            },
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
            **self.measured,
        }
