"""The ledger: every score of a run's student, kept beside it for reports.

`scores.jsonl` lies in the run's folder: one JSON object a line, a score with what tells whether it
may stand beside another: the images, the student's parameters, the versions. Lines are only ever
added, so nothing that was once measured is lost.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from kdcache.errors import DataError
from kdcache.evals.dataset import LabelledSet, Splits
from kdcache.evals.exam import Beside
from kdcache.evals.result import Score
from kdcache.networks import state_digest
from kdcache.students import STUDENT_FILE
from kdcache.versions import library_versions

SCORES = "scores.jsonl"


@dataclass(frozen=True, kw_only=True)
class KeptScore:
    """A score as the ledger has it; the fields of `Score`, and what they belong to."""

    protocol: str
    setting: Mapping[str, str | int | float]
    metric: str
    value: float
    """NaN where the protocol could not give a number."""
    num_queries: int
    num_classes: int
    unit: str = "percent"
    data: str
    """A name of the labelled images, for people."""
    data_fingerprint: str
    """Of the labelled images: equal for equal images, wherever they lie."""
    parameters_sha256: str
    """Of the student that was examined."""
    versions: Mapping[str, str]
    stale: bool
    """Whether the run now holds another student, or none."""

    @property
    def label(self) -> str:
        """The protocol and its setting in one line, such as `knn (k=10, vote=plain)`."""
        parts = ", ".join(f"{name}={value}" for name, value in self.setting.items())
        return f"{self.protocol} ({parts})" if parts else self.protocol

    @property
    def text(self) -> str:
        """The value as tables show it."""
        if math.isnan(self.value):
            return "no number"
        return f"{self.value:.1f}" if self.unit == "percent" else f"{self.value:.3f}"


def keep_scores(run: Path, scores: Sequence[Score], splits: Splits, beside: Beside) -> None:
    """Add the scores of one exam of a run's student, each with the images that it is of.

    Raises:
        DataError: there is no student, or its file is damaged.
    """
    for family, (train, test) in _images_of(splits, beside).items():
        mine = [s for s in scores if _family(s) == family]
        if mine:
            both = hashlib.sha256(f"{train.fingerprint} {test.fingerprint}".encode())
            append_scores(
                run,
                mine,
                data="/".join(PurePath(test.images.source).parts[-2:]),
                data_fingerprint=both.hexdigest(),
                versions=library_versions(),
            )


def _images_of(splits: Splits, beside: Beside) -> dict[str, tuple[LabelledSet, LabelledSet]]:
    """What is learned from and what is asked, by the family of the protocol."""
    found = {"": (splits.gallery, splits.queries)}
    if beside.transfer is not None:
        found["transfer"] = (beside.transfer.gallery, beside.transfer.queries)
    if beside.ood is not None:
        found["ood"] = (splits.gallery, beside.ood)
    return found


def _family(score: Score) -> str:
    first = score.protocol.partition("-")[0]
    return first if first in ("transfer", "ood") else ""


def append_scores(
    run: Path,
    scores: Iterable[Score],
    *,
    data: str,
    data_fingerprint: str,
    versions: Mapping[str, str],
) -> None:
    """Add scores of the run's present student; all of them are kept, or none.

    Several processes may do so at the same time. What a killed one has begun to write is cut off.

    Args:
        data: a name of the labelled images, for people.
        data_fingerprint: of the labelled images, gallery and queries.

    Raises:
        DataError: there is no student, or its file is damaged.
    """
    beside = {
        "data": data,
        "data_fingerprint": data_fingerprint,
        "parameters_sha256": _present_student(run),
        "versions": dict(versions),
    }
    if beside["parameters_sha256"] is None:
        raise DataError(
            f"`{run}` holds no `{STUDENT_FILE}`, so nothing can have been scored",
            hint="finish the run: the same `kdcache train` command goes on where it stopped",
        )
    records = [_with_null({**score.to_dict(), **beside}) for score in scores]
    text = "".join(json.dumps(r, sort_keys=True, allow_nan=False) + "\n" for r in records)
    handle = os.open(run / SCORES, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        try:
            _write_all(file.fileno(), text.encode())
        except OSError:
            file.truncate(whole)  # a full disk leaves no half of them
            raise


def read_scores(run: Path) -> list[KeptScore]:
    """All scores of a run, oldest first; a line that a killed process left unfinished is no score.

    Raises:
        DataError: a line is no score.
    """
    path = run / SCORES
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    present = _present_student(run)
    return [
        _score(path, number, line, present)
        for number, line in enumerate(whole.split("\n"), start=1)
        if line
    ]


def _score(path: Path, number: int, line: str, present: str | None) -> KeptScore:
    try:
        record = json.loads(line)
        names = KeptScore.__dataclass_fields__.keys() & record.keys()
        fields = {name: record[name] for name in names}
        fields["value"] = math.nan if record["value"] is None else float(record["value"])
        return KeptScore(**fields, stale=fields["parameters_sha256"] != present)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"line {number} of `{path}` is no score: {error}",
            hint=f"take that line out: sed -i {number}d '{path}'",
        ) from error


def _with_null(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return record if math.isfinite(record["value"]) else {**record, "value": None}


def _present_student(run: Path) -> str | None:
    """The digest of the student that the run holds; None where it has none."""
    path = run / STUDENT_FILE
    if not path.exists():
        return None
    try:
        return state_digest(load_file(path))
    except SafetensorError as error:
        raise DataError(
            f"`{path}` is damaged: {error}",
            hint="run the run's `kdcache train` command again, or fetch the file again",
        ) from error


def _write_all(handle: int, data: bytes) -> None:
    """Write and flush; `os.write` may take less than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)
