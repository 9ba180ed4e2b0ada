"""Published figures: what others report, where it was read and how far to trust that.

The figures stand in `published.toml` beside this file, which says what its words mean. They are
the papers', not ours: none of them says that a run of kdcache repeats it.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from kdcache.errors import ConfigError

Evidence = Literal[
    "official code or README",
    "official table image",
    "abstract",
    "third party",
    "unofficial reproduction",
    "memory",
]


@dataclass(frozen=True)
class PublishedTeacher:
    """The network that a published student learned from, as far as it was stated."""

    name: str
    network: str
    method: str
    epochs: int | None = None
    top1: float | None = None
    """Its own linear top-1 in %, as the same table gives it."""


@dataclass(frozen=True)
class Figure:
    """One number that somebody reports of a student."""

    table: str
    """Where it stands: the table's id in `published.toml`."""
    method: str
    variant: str
    """What tells it from the table's other rows of this method; empty where nothing does."""
    student: str
    """timm's name where timm has the network."""
    teacher: PublishedTeacher | None
    metric: str
    value: float
    """In %."""
    preset: str
    """The linear protocol; empty if it was not stated, or is none."""
    epochs: int | None
    """Of the student's training."""
    note: str
    source: str
    evidence: Evidence
    dataset: str = "ImageNet-1k"

    @property
    def verified(self) -> bool:
        """Whether the figure was read where `source` says; otherwise it is only recalled."""
        return self.evidence != "memory"

    @property
    def key(self) -> str:
        """The figure's own name, under which recipes cite it."""
        method = f"{self.method}-{self.variant}" if self.variant else self.method
        teacher = self.teacher.name if self.teacher else "alone"
        return f"{self.table}/{method}/{teacher}/{self.student}/{self.metric}"


def published(
    method: str | None = None, student: str | None = None, metric: str | None = None
) -> list[Figure]:
    """The figures of a method, a student, a metric, in the registry's order; all unless given."""
    return [
        figure
        for figure in _registry()
        if method in (None, figure.method)
        and student in (None, figure.student)
        and metric in (None, figure.metric)
    ]


def published_figure(key: str) -> Figure:
    """The figure of this key.

    Raises:
        ConfigError: there is none.
    """
    for figure in _registry():
        if figure.key == key:
            return figure
    raise ConfigError(f"no published figure `{key}`", hint="`kdcache published` lists them")


@cache
def _registry() -> tuple[Figure, ...]:
    text = resources.files("kdcache").joinpath("published.toml").read_text(encoding="utf-8")
    registry = tomllib.loads(text)
    return tuple(
        figure for table in registry["tables"] for figure in _figures(table, registry["teachers"])
    )


def _figures(table: dict[str, Any], teachers: dict[str, Any]) -> Iterator[Figure]:
    top1 = table.get("teacher_top1", {})
    for row in table["rows"]:
        name = row.get("teacher")
        teacher = PublishedTeacher(name, **teachers[name], top1=top1.get(name)) if name else None
        for student, values in row["values"].items():
            for metric, value in zip(table["metrics"], values, strict=True):
                yield Figure(
                    table=table["id"],
                    method=row["method"],
                    variant=row.get("variant", ""),
                    student=student,
                    teacher=teacher,
                    metric=metric,
                    value=value,
                    preset=row.get("preset", "") if metric.startswith("linear") else "",
                    epochs=row.get("epochs"),
                    note=row.get("note", ""),
                    source=table["source"],
                    evidence=table["evidence"],
                )
