"""An export from end to end: the student of a run, in the forms asked for, beside its card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kdcache.errors import ConfigError
from kdcache.export.card import model_card
from kdcache.export.formats import FORMATS, Runs, reference
from kdcache.files import write_atomic
from kdcache.networks import Backbone, parameter_digest
from kdcache.progress import Bar
from kdcache.students import STUDENT_FILE, load_student
from kdcache.train import RECIPE

CARD = "README.md"
TOLERANCE = 1e-5
"""Largest difference of a feature that counts as the same, relative to the largest feature."""
_BATCHES = (1, 3)
"""Sizes that every form is tried with: it must not be tied to the one it was traced with."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    differences: dict[str, float]
    """For each form the largest difference of a feature, relative to the largest feature."""
    student: Backbone
    digest: str
    """SHA-256 of the student's parameters."""

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        found = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        return [
            f"{self.folder}: {self.student.name}, {self.student.image_size} px,"
            f" {self.student.feature_dim} features",
            f"largest difference from kdcache's own features, relative: {found}",
        ]


def run_export(
    target: Path, out: Path, formats: Sequence[str], *, bar: Bar, where: str = "local-dir:FOLDER"
) -> Exported:
    """Write the student of a run, or of a student's file, into the folder `out`.

    Each form is loaded again by the program that it is for, and compared with the original on
    random pixels. An export that was killed is made anew by the same call.

    Args:
        where: what timm is told to load, in the example of the card.

    Raises:
        ConfigError: there is no finished student, or no such form, or `out` holds something else;
            or a form does not give the same features.
        MissingExtra: a form needs a library that is not installed.
    """
    _check_formats(formats)
    student_file, record = _open_run(target)
    student = load_student(student_file)
    student.eval()
    digest = parameter_digest(student.model)
    _check_folder(out)
    metadata = {"student": student.name, "parameters_sha256": digest}
    differences = {}
    with bar("export", total=len(formats), unit="forms") as progress:
        for name in formats:
            runs = FORMATS[name](student, out, metadata)
            differences[name] = _difference(student, runs)
            _check_difference(name, differences[name])
            progress(1)
    about = {**_student_metadata(student_file), "parameters_sha256": digest}
    write_atomic(out / CARD, model_card(student, about, record, formats, where).encode())
    return Exported(out, differences, student, digest)


def _check_formats(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"no form `{name}`", hint=f"there are: {', '.join(FORMATS)}")
    if not formats:
        raise ConfigError("no form is given", hint=f"there are: {', '.join(FORMATS)}")


def _open_run(target: Path) -> tuple[Path, dict[str, Any] | None]:
    """The student's file, and what the run beside it recorded of itself."""
    if target.is_file():
        return target, None
    if not (target / STUDENT_FILE).is_file():
        raise ConfigError(
            f"`{target}` holds no `{STUDENT_FILE}`: it is no run, or one that is not finished",
            hint="run its `kdcache train` command again: it goes on where it stopped",
        )
    record: dict[str, Any] = json.loads((target / RECIPE).read_bytes())
    return target / STUDENT_FILE, record


def _check_folder(out: Path) -> None:
    """Never write among files that are not an export's."""
    ours = {CARD, "config.json"}
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(
        name for name in there - ours if not name.startswith(("model.", ".model.", ".config", "."))
    )
    if foreign or (out.exists() and not out.is_dir()):
        raise ConfigError(
            f"`{out}` is no folder of an export: "
            + (f"it holds `{foreign[0]}`" if foreign else "it is a file"),
            hint="give --out a new folder",
        )
    out.mkdir(parents=True, exist_ok=True)


@torch.no_grad()
def _difference(student: Backbone, runs: Runs) -> float:
    ours = reference(student)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in _BATCHES:
        shape = (size, 3, student.image_size, student.image_size)
        images = torch.randn(shape, generator=generator)
        expected, found = ours(images), runs(images)
        assert expected.shape == found.shape
        scale = float(expected.abs().max()) or 1.0
        worst = max(worst, float((expected - found).abs().max()) / scale)
    return worst


def _check_difference(name: str, difference: float) -> None:
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"the form `{name}` gives other features than the student: they differ by"
            f" {difference:.1e} of the largest, and {TOLERANCE:.0e} is tolerated",
            hint="export another form, and tell kdcache's maintainers with the versions of torch"
            " and onnxruntime",
        )


def _student_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = json.loads((file.metadata() or {})["kdcache"])
    return metadata
