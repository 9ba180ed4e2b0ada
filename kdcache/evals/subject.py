"""Subjects: whatever can be examined, opened by one name."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.networks import Backbone, parameter_digest
from kdcache.progress import Bar, silent_bar
from kdcache.students import STUDENT_FILE, build_student, load_student
from kdcache.teachers import load_teacher

_CHECKPOINT, _RECIPE = "checkpoint.pt", "recipe.json"


@dataclass(frozen=True)
class Subject:
    """A network under examination: images [B, S, S, 3] to features [B, F]."""

    name: str
    network: nn.Module
    image_size: int
    architecture: str

    def identity(self) -> dict[str, Any]:
        """What its features depend on: weights by their digest, size and normalisation."""
        pixels = (
            {"mean": list(self.network.mean), "std": list(self.network.std)}
            if isinstance(self.network, Backbone)
            else None
        )
        return {
            "architecture": self.architecture,
            "weights": parameter_digest(self.network),
            "image_size": self.image_size,
            "pixels": pixels,
        }


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
        target: a run's folder, a student's file, a run's `checkpoint.pt`, `untrained:MODEL`,
            `teacher:NAME` for a teacher of the registry, `timm:MODEL`, or `module:function`.
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
                hint="run its `kdcache train` command again: it goes on where it stopped; or "
                f"evaluate what it has come to: `kdcache eval {path / _CHECKPOINT}`",
            )
        path = path / STUDENT_FILE
    if path.is_file():
        _refuse_options(target, weights=weights, image_size=image_size)
        student = _checkpointed(path) if path.name == _CHECKPOINT else load_student(path)
        return Subject(target, student, student.image_size, student.name)
    if not colon:
        raise ConfigError(
            f"there is nothing at `{target}`",
            hint="name a run's folder, a student's file, `teacher:NAME`, `timm:MODEL` or "
            "`untrained:MODEL`",
        )
    name = model if kind == "teacher" else target
    teacher = load_teacher(name, weights=weights, image_size=image_size, bar=bar)
    # The backbone alone: nothing here looks at a teacher's head.
    return Subject(target, teacher.backbone, teacher.image_size, teacher.backbone.name)


def untrained_like(subject: Subject, seed: int = 0) -> Subject:
    """The same architecture with random weights."""
    return _untrained(subject.architecture, subject.image_size, seed)


def _checkpointed(path: Path) -> Backbone:
    """The student in the checkpoint of a run that has not ended, described by the run's recipe."""
    recipe = path.parent / _RECIPE
    if not recipe.exists():
        raise ConfigError(
            f"`{path}` has no `{_RECIPE}` beside it, which would say what network it holds",
            hint="evaluate the checkpoint where `kdcache train` left it",
        )
    settings = json.loads(recipe.read_bytes())["recipe"]["student"]
    student = build_student(settings["name"], image_size=settings["image_size"])
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        student.load_state_dict(kept["student"])
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"`{path}` holds no `{settings['name']}`, which `{recipe}` says it does: "
            f"{str(error).splitlines()[0]}",
            hint="evaluate the checkpoint where `kdcache train` left it: its recipe lies beside it",
        ) from error
    return student


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
