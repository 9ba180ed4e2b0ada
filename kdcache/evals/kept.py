"""Kept features: what a network said of a set of images, on disk, so that it is asked only once.

*Format:* a folder a key. `<first row>.npy` holds float32 [R, F], the features of the readable ones
of 4,096 rows; `<first row>.json` is its receipt; `manifest.json`, written last, holds what the key
stands for and all receipts. The key is the SHA-256 of network (weights included), images,
preprocessing and view: another of these has another folder, and nothing is ever replaced.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from kdcache.errors import DataError
from kdcache.evals.batches import build_maker
from kdcache.evals.dataset import LabelledSet
from kdcache.evals.features import Features, Seen, check_finite, see
from kdcache.evals.subject import Subject
from kdcache.files import canonical_json, in_turn, sha256_of, write_atomic
from kdcache.images import decoder_description
from kdcache.progress import Bar
from kdcache.versions import library_versions
from kdcache.views import Policy, ViewMaker, get_renderer

MANIFEST = "manifest.json"
FORMAT = 1
ROWS_A_PART = 4096
"""A kill loses at most so many images' work."""

_BATCH = 256  # divides ROWS_A_PART, so that a batch is the same whether or not a run was broken
_CHECKED = 4
_TOLERANCE = 0.02  # relative; TF32, another batch or another library moves features by 0.001


def keep_features(
    root: Path,
    subject: Subject,
    part: LabelledSet,
    policy: Policy,
    *,
    device: torch.device,
    workers: int,
    bar: Bar,
) -> Features:
    """What the subject says of view 0 of these images: read from `root`, or computed into it.

    Of kept features a few are computed again, and must be what was kept: the key knows a network by
    its weights, and not by its code.

    Raises:
        DataError: what was kept is damaged, or not what the network says now; not one image could
            be read, or the network gave NaN or infinity.
    """
    identity = _identity(subject, part, policy)
    folder = root / hashlib.sha256(canonical_json(identity)).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    maker = build_maker(part.images, policy, subject.image_size, ids=part.ids)
    with in_turn(folder):
        was_whole = (folder / MANIFEST).exists()
        if not was_whole:
            _complete(folder, identity, subject, maker, device=device, workers=workers, bar=bar)
        values, rows, unreadable = _open(folder)
    if was_whole:
        _check(folder, subject, maker, values, rows, device)
    return Features(
        values=values,
        labels=part.images.labels[rows].astype(np.int64),
        classes=part.images.classes,
        source=part.images.source,
        view=policy.name,
        unreadable=unreadable,
    )


def _identity(subject: Subject, part: LabelledSet, policy: Policy) -> dict[str, Any]:
    """All that the features depend on."""
    return {
        "format": FORMAT,
        "network": subject.identity(),
        "images": part.fingerprint,
        "view": {"policy": policy.to_dict(), "seed": 0, "index": 0, "renderer": get_renderer().id},
        "decoder": decoder_description(),
        "precision": "fp32",
    }


def _complete(
    folder: Path,
    identity: dict[str, Any],
    subject: Subject,
    maker: ViewMaker,
    *,
    device: torch.device,
    workers: int,
    bar: Bar,
) -> None:
    """Compute the parts that have no receipt, then write the manifest."""
    num_rows = len(maker.images)
    starts = range(0, num_rows, ROWS_A_PART)
    missing = [start for start in starts if not _receipt(folder, start).exists()]
    rows = [np.arange(start, min(start + ROWS_A_PART, num_rows)) for start in missing]
    order = np.concatenate(rows) if rows else np.empty(0, np.int64)
    pending: list[Seen] = []
    done = num_rows - len(order)
    title = f"features of {subject.name}"
    with bar(title, total=num_rows, unit="images", done=done) as progress:
        for seen in see(
            subject.network,
            maker,
            order,
            device=device,
            batch_size=_BATCH,
            workers=workers,
            progress=progress,
        ):
            pending.append(seen)
            num_pending = sum(len(s.rows) + len(s.unreadable) for s in pending)
            if num_pending == len(rows[0]):
                _commit(folder, int(rows.pop(0)[0]), pending, maker.images.source)
                pending = []
    parts = [json.loads(_receipt(folder, start).read_bytes()) for start in starts]
    manifest = {"identity": identity, "parts": parts, "versions": library_versions()}
    write_atomic(folder / MANIFEST, canonical_json(manifest))


def _commit(folder: Path, start: int, seen: list[Seen], source: str) -> None:
    """Write the features of one part, then its receipt."""
    readable = [s for s in seen if len(s.rows)]
    values = np.concatenate([s.values for s in readable]) if readable else np.empty((0, 0), "<f4")
    check_finite(values, source)
    path = folder / f"{start:010}.npy"
    write_atomic(path, _npy(values))
    receipt = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "first_row": start,
        "num_rows": sum(len(s.rows) + len(s.unreadable) for s in seen),
        "unreadable": {str(row): why for s in seen for row, why in s.unreadable.items()},
    }
    write_atomic(_receipt(folder, start), canonical_json(receipt))


def _open(
    folder: Path,
) -> tuple[Float32[np.ndarray, "N F"], np.ndarray, dict[int, str]]:
    """Features, their rows, and why other rows have none; every digest is checked."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    values, rows = [], []
    unreadable: dict[int, str] = {}
    for receipt in manifest["parts"]:
        path = folder / receipt["file"]
        if not path.exists() or sha256_of(path) != receipt["sha256"]:
            raise DataError(
                f"`{path}` is not the file that its manifest describes",
                hint=f"rm -r {folder}; the same command computes these features again",
            )
        why = {int(row): reason for row, reason in receipt["unreadable"].items()}
        part = np.arange(receipt["first_row"], receipt["first_row"] + receipt["num_rows"])
        readable = part[~np.isin(part, list(why))]
        if len(readable):
            values.append(np.load(path))
            rows.append(readable)
        unreadable |= why
    if not values:
        return np.empty((0, 0), np.float32), np.empty(0, np.int64), unreadable
    return np.concatenate(values), np.concatenate(rows), unreadable


def _check(
    folder: Path,
    subject: Subject,
    maker: ViewMaker,
    values: Float32[np.ndarray, "N F"],
    rows: np.ndarray,
    device: torch.device,
) -> None:
    """Compare a few features with what the network says now."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(_CHECKED, len(rows))).astype(np.int64))
    for seen in see(subject.network, maker, rows[places], device=device, workers=0):
        kept = values[places[np.isin(rows[places], seen.rows)]]
        off = np.linalg.norm(seen.values - kept, axis=1)
        if seen.unreadable or (off > _TOLERANCE * np.linalg.norm(kept, axis=1) + 1e-6).any():
            raise DataError(
                f"the features in `{folder}` are not what `{subject.name}` says of these images "
                "now, though weights, images and preprocessing are the same: its code has changed",
                hint=f"rm -r {folder}, or give another --features folder",
            )


def _receipt(folder: Path, start: int) -> Path:
    return folder / f"{start:010}.json"


def _npy(values: Float32[np.ndarray, "N F"]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype("<f4"), allow_pickle=False)
    return buffer.getvalue()
