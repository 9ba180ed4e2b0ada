"""Subjects: whatever can be examined, opened by one name."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.progress import Bar, silent_bar
from kdcache.shapes import Float, UInt8
from kdcache.students import STUDENT_FILE, build_student, load_student
from kdcache.teachers import Teacher, load_teacher


@dataclass(frozen=True)
class Subject:
    """A network under examination: images [B, S, S, 3] to features [B, F]."""

    name: str
    network: nn.Module
    image_size: int
    architecture: str


class FeatureOf(nn.Module):
    """A teacher, of which only the feature is asked."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: UInt8[Tensor, "B S S 3"]) -> Float[Tensor, "B F"]:
        feature: Tensor = self.teacher(images)[0]
        return feature


def open_subject(
    target: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
    bar: Bar = silent_bar,
) -> Subject:
    """The subject that `target` names.

    Args:
        target: a run's folder, a student's file, `untrained:MODEL`, `teacher:NAME` for a
            teacher of the registry, `timm:MODEL`, or `module:function`.
        weights: of a teacher.
        image_size: side in pixels; a run and a student's file know their own.
        seed: of an untrained network's weights.

    Raises:
        ConfigError: nothing is known under this name.
        TeacherError: the teacher's weights cannot be had, or do not fit.
    """
    kind, colon, model = target.partition(":")
    if kind == "untrained" and colon:
        _refuse_options(target, weights=weights)
        return _untrained(model, image_size or 224, seed)
    path = Path(target)
    if path.is_dir():
        if not (path / STUDENT_FILE).exists():
            raise ConfigError(
                f"`{target}` holds no `{STUDENT_FILE}`: it is no run, or one that is not finished",
                hint="run its `kdcache train` command again: it goes on where it stopped",
            )
        path = path / STUDENT_FILE
    if path.is_file():
        _refuse_options(target, weights=weights, image_size=image_size)
        student = load_student(path)
        return Subject(target, student, student.image_size, student.name)
    if not colon:
        raise ConfigError(
            f"there is nothing at `{target}`",
            hint="name a run's folder, a student's file, `teacher:NAME`, `timm:MODEL` or "
            "`untrained:MODEL`",
        )
    name = model if kind == "teacher" else target
    teacher = load_teacher(name, weights=weights, image_size=image_size, bar=bar)
    return Subject(target, FeatureOf(teacher), teacher.image_size, teacher.backbone.name)


def untrained_like(subject: Subject, seed: int = 0) -> Subject:
    """The same architecture with random weights."""
    return _untrained(subject.architecture, subject.image_size, seed)


def _refuse_options(target: str, **options: object) -> None:
    """An option that would be ignored is an error."""
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"`{target}` needs no {option}, but `{value}` is given",
                hint=f"leave {option} out",
            )


def _untrained(model: str, image_size: int, seed: int) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_student(model, image_size=image_size)
    return Subject(f"untrained {model}", network, image_size, model)
