"""Pieces: 256 rows with all their views, kept in `.work/` until the shards around them are whole.

When its shards are sealed, a piece shrinks to a note: its digest, its unreadable rows, its
witness and its originals, which the seal of the cache still needs.
"""

import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import CacheMismatch
from kdcache.files import sha256_of
from kdcache.store.publish import WORK, digest_of, publish

BEGUN = f"{WORK}/begun.json"
"""Where a cache under way says how many rows it will have, and how many make a piece."""

ALARM = (
    "workers of one cache must compute the same bytes: same code, libraries, precision and kind"
    " of device; make them equal and start anew with another --out"
)


@dataclass(frozen=True)
class Note:
    """What a piece said besides its values."""

    unreadable: Mapping[int, str]
    witness: Mapping[str, np.ndarray]
    originals: Mapping[str, np.ndarray]
    """By array, some rows as they were before they were quantised: see `fidelity`."""


class Pieces:
    """The pieces of one cache under way."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, piece: int) -> bool:
        return (self._root / _piece(piece)).exists() or (self._root / _note(piece)).exists()

    def finished(self) -> set[int]:
        """The numbers of all pieces that need not be computed again."""
        folders = (self._root / WORK / "pieces", self._root / WORK / "notes")
        return {int(path.stem) for folder in folders for path in folder.glob("*.npz")}

    def put(
        self,
        piece: int,
        values: Mapping[str, np.ndarray],
        note: Note,
        without: Collection[tuple[str, int]] = (),
    ) -> None:
        """Keep a piece.

        Args:
            values: arrays `[P, V, ...]`; each view becomes a member of its own, so that a shard
                is gathered without reading the other views.
            without: arrays and views that are not kept.

        Raises:
            CacheMismatch: the piece is there with other values.
        """
        views = {
            f"{name}/{view}": array[:, view]
            for name, array in values.items()
            for view in range(array.shape[1])
            if (name, view) not in without
        }
        data = _npz(views | _note_members(note))
        if (self._root / _note(piece)).exists():
            self._compare_with_note(piece, data)
            return
        try:
            publish(self._root, _piece(piece), data, hint=ALARM)
        except CacheMismatch as alarm:
            where = _first_difference(self._root / _piece(piece), data)
            raise CacheMismatch(f"{alarm}; {where}", hint=ALARM) from None

    def gather(self, piece: int, name: str, views: list[int]) -> Iterator[np.ndarray]:
        """The values `[P, ...]` of one array, view by view."""
        with np.load(self._root / _piece(piece)) as members:
            for view in views:
                yield members[f"{name}/{view}"]

    def shrink(self, piece: int) -> None:
        """Replace a piece, whose values are in sealed shards now, by its note; once is enough."""
        path = self._root / _piece(piece)
        if not path.exists():
            return
        with np.load(path) as members:
            kept = {
                name: members[name]
                for name in members.files
                if name == "unreadable" or name.startswith(("witness/", "original/"))
            }
        digest = np.frombuffer(bytes.fromhex(sha256_of(path)), np.uint8)
        publish(self._root, _note(piece), _npz(kept | {"sha256": digest}), hint=ALARM)
        path.unlink(missing_ok=True)

    def note(self, piece: int) -> Note:
        """What a piece said besides its values, shrunken or not."""
        path = self._root / _note(piece)
        with np.load(path if path.exists() else self._root / _piece(piece)) as members:
            unreadable = json.loads(members["unreadable"].tobytes())
            witness, originals = (
                {
                    name.removeprefix(kind): members[name]
                    for name in members.files
                    if name.startswith(kind)
                }
                for kind in ("witness/", "original/")
            )
        return Note({int(row): reason for row, reason in unreadable.items()}, witness, originals)

    def _compare_with_note(self, piece: int, data: memoryview) -> None:
        path = self._root / _note(piece)
        with np.load(path) as members:
            sealed = members["sha256"].tobytes().hex()
        if (digest := digest_of(data).sha256) != sealed:
            raise CacheMismatch(
                f"piece {piece} was sealed with the SHA-256 `{sealed}` (`{path}`), and what was"
                f" made now has `{digest}`",
                hint=ALARM,
            )


def _piece(piece: int) -> str:
    return f"{WORK}/pieces/{piece}.npz"


def _note(piece: int) -> str:
    return f"{WORK}/notes/{piece}.npz"


def _note_members(note: Note) -> dict[str, np.ndarray]:
    reasons = json.dumps({str(row): note.unreadable[row] for row in sorted(note.unreadable)})
    return {
        "unreadable": np.frombuffer(reasons.encode(), np.uint8),
        **{f"witness/{name}": array for name, array in sorted(note.witness.items())},
        **{f"original/{name}": array for name, array in sorted(note.originals.items())},
    }


def _npz(members: Mapping[str, np.ndarray]) -> memoryview:
    file = io.BytesIO()
    arrays: dict[str, Any] = dict(members)  # its stub takes the names for options
    np.savez(file, **arrays)
    return file.getbuffer()


def _first_difference(path: Path, data: memoryview) -> str:
    """Where two files of one piece differ first, and in what."""
    with np.load(path) as there, np.load(io.BytesIO(data)) as now:
        for name in now.files:
            if name not in there.files or there[name].shape != now[name].shape:
                return f"`{name}` has another shape"
            if unequal := np.argwhere(there[name] != now[name]).tolist():
                place = tuple(unequal[0])
                values = f"{there[name][place]} there, {now[name][place]} now"
                return f"first difference in `{name}` at {place}: {values}"
    return "the values are equal, their files are not: another version of numpy wrote one of them"
