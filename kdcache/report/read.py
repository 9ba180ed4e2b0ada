"""What a run's folder says of it: the facts that every form of the report is made of.

A run that is under way, or has not begun, is a run; a folder that is none is an error.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError
from kdcache.evals.ledger import KeptScore, read_scores
from kdcache.methods import available_methods, get_method
from kdcache.students import STUDENT_FILE
from kdcache.train import RECIPE

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Taught:
    """One teacher's part in a run; `None` is what the run did not record."""

    identity: str
    """Of the cache."""
    name: str | None = None
    image_size: int | None = None
    weights_sha256: str | None = None
    weights_source: str | None = None
    licence: str | None = None
    policy: str | None = None
    views: int | None = None
    images: int | None = None


@dataclass(frozen=True)
class RunFacts:
    """A run, as its folder is now."""

    name: str
    """Of the folder, with as much of the path as tells it from the other runs."""
    path: Path
    record: dict[str, Any]
    """The whole of `recipe.json`."""
    taught_by: tuple[Taught, ...]
    records: tuple[dict[str, float], ...]
    """What `metrics.jsonl` holds, oldest first; NaN where a value was not finite."""
    finished: bool
    scores: tuple[KeptScore, ...]
    """Of each protocol on each data set the newest; those of an older student are marked."""
    notes: tuple[str, ...]
    """What a reader must know of these files."""

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.record["recipe"]["method"]["name"])

    @property
    def student(self) -> str:
        """timm's name."""
        return str(self.record["recipe"]["student"]["name"])

    @property
    def image_size(self) -> int:
        """Side of what the student sees, in pixels."""
        return int(self.record["recipe"]["student"].get("image_size", 224))

    @property
    def epochs(self) -> int:
        """Those that the recipe asks for."""
        return int(self.record["recipe"]["train"]["epochs"])

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return int(self.record["recipe"]["train"]["batch_size"])

    @property
    def seed(self) -> int:
        """Of the first weights and of the sample order."""
        return int(self.record["recipe"]["run"].get("seed", 0))

    @property
    def policy(self) -> str:
        """Which views the student saw."""
        told = [t.policy for t in self.taught_by if t.policy]
        for policy in (self.record["recipe"]["run"].get("policy"), *told):
            if policy:
                return str(policy)
        return get_method(self.method).views if self.method in available_methods() else "not known"

    @property
    def views(self) -> int | None:
        """Cached views that it learned from: those of the cache, or as many as the recipe takes."""
        if not self.taught_by:
            return None
        return self.record["recipe"]["run"].get("views") or self.taught_by[0].views

    @property
    def images(self) -> str:
        """What tells one training set from another: caches, or the images' own fingerprint."""
        return "+".join(t.identity for t in self.taught_by) or str(self.record.get("images", ""))

    @property
    def steps_per_epoch(self) -> int | None:
        """None before the first line of the log."""
        done = [(r["step"], r["epoch"]) for r in self.records if r.get("epoch", 0) > 0]
        return round(done[-1][0] / done[-1][1]) if done else None

    @property
    def num_images(self) -> int | None:
        """Images that an epoch shows; before the first line of the log, those of the cache."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch * self.batch_size
        return self.taught_by[0].images if self.taught_by else None

    @property
    def state(self) -> str:
        """How far it is."""
        if not self.records:
            return "finished, no metrics" if self.finished else "not begun: no metrics"
        last = self.records[-1]
        if self.finished:
            return f"finished: {self.epochs} epochs, {last['step']:,.0f} steps"
        total = f" of {self.steps_per_epoch * self.epochs:,}" if self.steps_per_epoch else ""
        at = f"epoch {last.get('epoch', math.nan):.1f} of {self.epochs}"
        return f"not finished: step {last['step']:,.0f}{total}, {at}"


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """All runs, in the order given.

    An identity names one cache for good: what one run recorded of it is filled in for those that
    did not.

    Raises:
        ConfigError: a folder is no run or its files are damaged, or a run is named twice.
    """
    places: dict[Path, Path] = {}
    for path in paths:
        known = places.setdefault(path.resolve(), path)
        if known is not path:
            raise ConfigError(
                f"`{path}` and `{known}` are the same run", hint="name every run once"
            )
    runs = [
        read_run(path, name) for path, name in zip(paths, _short_names(list(places)), strict=True)
    ]
    told = {t.identity: t for run in runs for t in run.taught_by if t.name is not None}
    return [
        replace(run, taught_by=tuple(told.get(t.identity, t) for t in run.taught_by))
        for run in runs
    ]


def read_run(path: Path, name: str | None = None) -> RunFacts:
    """One run.

    Raises:
        ConfigError: the folder is no run, or its recipe or its metrics are damaged.
        DataError: its scores or its student are damaged.
    """
    record = _read_recipe(path)
    records, notes = _read_metrics(path)
    scores = _newest(read_scores(path))
    if any(score.stale for score in scores):
        notes.append("some scores are of an older student than the one that is there now")
    if record.get("caches") and "taught_by" not in record:
        notes.append("its record is of before runs named their teachers")
    return RunFacts(
        name=name or path.resolve().name,
        path=path,
        record=record,
        taught_by=_taught(record),
        records=tuple(records),
        finished=(path / STUDENT_FILE).exists(),
        scores=tuple(scores),
        notes=tuple(notes),
    )


def _read_recipe(run: Path) -> dict[str, Any]:
    path = run / RECIPE
    if not path.is_file():
        what = "holds no `recipe.json`" if run.is_dir() else "is no folder"
        raise ConfigError(
            f"`{run}` is no run: it {what}",
            hint="name folders that `kdcache train --out` made, and leave this one out",
        )
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        recipe = record["recipe"]
        for table, key in (
            ("method", "name"),
            ("student", "name"),
            ("train", "epochs"),
            ("train", "batch_size"),
        ):
            recipe[table][key]
        recipe["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"`{path}` is no record of a run: {type(error).__name__} {error}",
            hint="leave this folder out, or restore the file",
        ) from error
    return record


def _taught(record: dict[str, Any]) -> tuple[Taught, ...]:
    caches, told = record.get("caches", []), record.get("taught_by", [])
    taught = []
    for i, identity in enumerate(caches):
        about = told[i] if i < len(told) else {}
        weights = about.get("weights") or {}
        taught.append(
            Taught(
                identity,
                **{
                    key: about.get(key)
                    for key in ("name", "image_size", "licence", "policy", "views", "images")
                },
                weights_sha256=weights.get("sha256"),
                weights_source=weights.get("source"),
            )
        )
    return tuple(taught)


def _read_metrics(run: Path) -> tuple[list[dict[str, float]], list[str]]:
    """The records, and what was odd about the file."""
    path = run / METRICS
    if not path.exists():
        return [], []
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    notes = []
    if rest:
        notes.append("the last line of its metrics is not complete yet, and left out")
    records = []
    for number, line in enumerate(whole.split("\n") if whole else [], start=1):
        try:
            record = json.loads(line)
            records.append({key: _number(value) for key, value in record.items()})
            records[-1]["step"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"line {number} of `{path}` is no record of a step: {error}",
                hint="leave this run out, or restore the file",
            ) from error
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record[key] for record in records if key in record]
        num_bad = sum(not math.isfinite(value) for value in values)
        if num_bad:
            notes.append(f"`{key}` is not finite in {num_bad} of {len(values)} records")
    return records, notes


def _number(value: Any) -> float:
    """The log writes null for what is not finite."""
    return math.nan if value is None else float(value)


def _newest(scores: Sequence[KeptScore]) -> list[KeptScore]:
    """The last of each kind; one of the present student comes before any older one."""
    newest: dict[tuple[str, str, str], KeptScore] = {}
    for score in scores:
        key = (score.data_fingerprint, score.label, score.metric)
        if key not in newest or newest[key].stale or not score.stale:
            newest[key] = score
    return list(newest.values())


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")
