"""The registry: teachers that have a name, where their weights are and what they must look like.

Its data is `registry.toml` beside this file; published figures are the authors', none was measured
here.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from kdcache.errors import TeacherError
from kdcache.heads import Layer
from kdcache.networks import Rgb
from kdcache.teachers.download import Digest
from kdcache.teachers.layout import layers_text


@dataclass(frozen=True)
class Entry:
    """One teacher."""

    name: str
    about: str
    family: str
    """Whose layout its checkpoint has: `families.py`."""
    architecture: str
    """timm's name, or one of `resnet.py`."""
    method: str
    paper: str
    epochs: int | None
    data: str
    """What it was trained on."""
    licence: str
    """Of the weights; an SPDX identifier where there is one."""
    image_size: int
    mean: Rgb
    std: Rgb
    interpolation: str
    head: tuple[Layer, ...]
    """The projection head that lies in the file; empty if none does."""
    urls: tuple[str, ...]
    """The first is the authors'; empty if there is no lasting public one."""
    kept: str
    """Where the file is to be had if there is no URL."""
    digest: Digest | None
    """Of the file, as far as it was published."""
    linear: float | None
    """Published ImageNet top-1 of a linear classifier, in %."""
    knn: float | None
    """Published ImageNet top-1 by nearest neighbours, in %."""
    source: str
    """Where all this was read."""
    verified: bool
    """Whether it was read there, or recalled only."""

    def lines(self) -> dict[str, str]:
        """All of it in words, by what it is."""
        accuracy = [
            f"{kind} {value:.1f} %"
            for kind, value in (("linear", self.linear), ("kNN", self.knn))
            if value is not None
        ]
        return {
            "name": self.name,
            "what it is": self.about,
            "paper": f"{self.method}, {self.paper}",
            "trained on": f"{self.data}, {self.epochs or 'unstated'} epochs",
            "published": ", ".join(accuracy) or "no accuracy",
            "licence": self.licence,
            "architecture": self.architecture,
            "head": layers_text(self.head),
            "image size": f"{self.image_size}, {self.interpolation}",
            "mean": ", ".join(map(str, self.mean)),
            "std": ", ".join(map(str, self.std)),
            "weights": "\n              ".join(self.urls) or f"no lasting address: {self.kept}",
            "digest": str(self.digest or "not published"),
            "layout": self.family,
            "read in": self.source + ("" if self.verified else " (UNVERIFIED: recalled)"),
        }


def registered_teachers() -> Mapping[str, Entry]:
    """All entries by their names, in the registry's order."""
    return _registry()


def get_entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
        TeacherError: there is none; a close name is given.
    """
    if name in _registry():
        return _registry()[name]
    near = difflib.get_close_matches(name, _registry(), n=1)
    raise TeacherError(
        f"the registry has no teacher `{name}`",
        hint=f"did you mean `{near[0]}`?" if near else "`kdcache teachers` lists it",
    )


@cache
def _registry() -> dict[str, Entry]:
    text = resources.files("kdcache.teachers").joinpath("registry.toml").read_text(encoding="utf-8")
    return {name: _entry(name, table) for name, table in tomllib.loads(text).items()}


def _entry(name: str, table: dict[str, Any]) -> Entry:
    optional: dict[str, Any] = dict.fromkeys(("epochs", "linear", "knn"))
    kind, _, digits = table.pop("digest", "").partition(":")
    given = {
        "digest": Digest(kind, digits) if digits else None,
        "urls": tuple(table.pop("urls", ())),
        "head": tuple(map(_layer, table.pop("head", ()))),
        "mean": tuple(table.pop("mean")),
        "std": tuple(table.pop("std")),
    }
    return Entry(**{"name": name, "kept": "", **optional, **table, **given})


def _layer(text: str) -> Layer:
    """A layer as the registry writes it: `linear 2048 128`, `linear 2048 128 nobias`, ..."""
    match text.split():
        case ["linear", inputs, outputs, *bias] if bias in ([], ["nobias"]):
            return {"kind": "linear", "in": int(inputs), "out": int(outputs), "bias": not bias}
        case ["batchnorm", dim, *affine] if affine in ([], ["plain"]):
            return {"kind": "batchnorm", "dim": int(dim), "affine": not affine, "eps": 1e-5}
        case ["relu" | "gelu" as kind]:
            return {"kind": kind}
    raise TeacherError(f"`{text}` is no layer of a head", hint="mend registry.toml")
