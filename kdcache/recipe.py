"""A recipe: everything about a training run that is part of the experiment, as one frozen record.

A recipe is a TOML file with the tables `method`, `student`, `train` and `run`. It says only what
differs from the method's own values, which are its paper's.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from kdcache.errors import ConfigError
from kdcache.methods import Method, Needs, get_method
from kdcache.optimisation import Optimisation
from kdcache.precision import Wanted, settle
from kdcache.settings import Settings, override, parse


class StudentSettings(Settings):
    """The network that learns."""

    name: str
    """A model of timm."""
    image_size: int = Field(default=224, ge=8)
    """Side of the square views that it is shown, in pixels; it may differ from the teacher's."""


class TrainSettings(Optimisation):
    """The method's schedule, and how a step is made up."""

    repeats: int = Field(default=1, ge=1)
    """Times that each image of a step is shown in it, in as many epochs' views, decoded once: a
    step has batch_size / repeats images. The run shows the same views of the same images as ever,
    in another order. It divides `epochs`."""
    accumulate: int = Field(default=1, ge=1)
    """Equal parts of a step's batch that go forward and backward one after the other, to need less
    memory. The gradient is the mean of theirs; batch norm sees one part at a time."""


class RunSettings(Settings):
    """How the run is done."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the student's first weights and of the sample order."""
    policy: str | None = None
    """The policy of the views that the student sees, where it is not the method's own."""
    views: int = Field(default=0, ge=0)
    """Use only the first so many views of the cache; 0 uses all. Views that are not used change
    nothing: a run on 10 of 50 views equals one on a cache of 10."""
    precision: Wanted = "auto"
    """Of the student's forward and backward pass; losses and weights are float32. `auto` becomes
    bf16 on a GPU that has it and fp32 elsewhere before the run is written down."""
    clip_gradient: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the gradient; 0 leaves it as it is."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every_s: float = Field(default=600.0, ge=0)
    """Seconds between two checkpoints; there is always one at the end."""
    compile: bool = False
    """Whether torch.compile makes kernels for the student. Faster on a GPU, after minutes of
    compiling; the last bits of the results differ."""


@dataclass(frozen=True)
class Recipe:
    """One experiment: a method, a student, a schedule."""

    method: str
    method_config: Settings
    student: StudentSettings
    train: TrainSettings
    run: RunSettings

    @property
    def method_class(self) -> type[Method]:
        """The class that `method` names."""
        return get_method(self.method)

    @property
    def needs(self) -> Needs:
        """What the method asks of its surroundings."""
        return self.method_class.needs(self.method_config)

    def to_dict(self) -> dict[str, Any]:
        """All settings, defaults written out, as the tables of a recipe file."""
        return {
            "method": {"name": self.method, **self.method_config.model_dump()},
            "student": self.student.model_dump(),
            "train": self.train.model_dump(),
            "run": self.run.model_dump(),
        }


def load_recipe(
    path: Path | None = None,
    *,
    method: str | None = None,
    student: str | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Read a recipe file and lay the given values over it.

    Args:
        overrides: `table.key=value` with the value in TOML's notation, or a bare string.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value of the wrong kind.
    """
    tables = _read(path) if path is not None else {}
    for text in overrides:
        override(tables, text)
    if method is not None:
        tables.setdefault("method", {})["name"] = method
    if student is not None:
        tables.setdefault("student", {})["name"] = student
    return build_recipe(tables)


def build_recipe(tables: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Make a recipe of its tables; the method's class supplies what is not said."""
    unknown = set(tables) - {"method", "student", "train", "run"}
    if unknown:
        raise ConfigError(
            f"unknown table `{min(unknown)}`", hint="a recipe has: method, student, train, run"
        )
    method_table = dict(tables.get("method", {}))
    name = method_table.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("no method is given", hint="add `--method simreg`, or `method.name`")
    method = get_method(name)
    if "name" not in tables.get("student", {}):
        raise ConfigError("no student is given", hint="add `--student resnet18`, or `student.name`")
    train = {**method.optimisation.model_dump(), **tables.get("train", {})}
    return Recipe(
        method=name,
        method_config=parse(method.Config, method_table, "method"),
        student=parse(StudentSettings, tables["student"], "student"),
        train=parse(TrainSettings, train, "train"),
        run=parse(RunSettings, tables.get("run", {}), "run"),
    )


def settle_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The same recipe with the precision `auto` replaced by what it means on this device."""
    precision = settle(recipe.run.precision, device)
    return replace(recipe, run=recipe.run.model_copy(update={"precision": precision}))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"no recipe at `{path}`", hint="`ls configs/*` shows those that ship")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not TOML: {error}", hint="see configs/README.md") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"`{name}` stands outside of a table in `{path}`",
                hint="a recipe has the tables [method], [student], [train] and [run]",
            )
    return tables
