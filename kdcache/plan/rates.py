"""Rates: how long each stage takes for one of what it works on; measured here, or given in a file.

The file is TOML, so that a person can write one for machines that are still to be bought.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kdcache.errors import ConfigError
from kdcache.files import write_atomic
from kdcache.settings import Settings, parse


class Rates(Settings):
    """Seconds for one of each thing."""

    machine: str
    """Which machine, in words."""
    device: Literal["cpu", "cuda"]
    """Where the teacher and the student run."""
    cores: int = Field(ge=1)
    """Of a node."""
    threads: int = Field(ge=1)
    """Cores that a process keeps busy while its teacher or student is at work; 1 with a GPU."""
    index_s: float = Field(ge=0)
    """To read and hash an image, on one core."""
    decode_s: float = Field(ge=0)
    """To read, check and decode an image, on one core."""
    view_s: float = Field(ge=0)
    """To render a view at the teacher's size, on one core."""
    teacher_s: float = Field(ge=0)
    """For the teacher to look at a view."""
    write_s: float = Field(ge=0)
    """To keep what it said of a view, until it lies in a shard."""
    seal_s: float = Field(ge=0)
    """To read that again at the end, for the statistics."""
    student_view_s: float | None = Field(default=None, ge=0)
    """To render a view at the student's size, on one core."""
    student_s: float | None = Field(default=None, ge=0)
    """A training step's time for each of its images, targets looked up."""
    student_batch: int | None = Field(default=None, ge=1)
    """Images in the steps that this was measured on."""
    about: dict[str, str | int] = Field(default_factory=dict)
    """What they are rates of, as far as it is said: see `check_about`."""

    def require_student(self) -> tuple[float, float]:
        """The two rates that a student needs: seconds to render a view, and a step's an image.

        Raises:
            ConfigError: one is not given.
        """
        if self.student_view_s is None or self.student_s is None:
            raise ConfigError(
                "the rates say nothing of a student (`student_view_s`, `student_s`)",
                hint="add both to the file, or leave --method and --student out",
            )
        return self.student_view_s, self.student_s


def load_rates(path: Path) -> Rates:
    """Read a file of rates.

    Raises:
        ConfigError: it is not there, is not TOML, or says too little, too much or nonsense.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there are no rates at `{path}`",
            hint="--save-rates FILE writes what is measured; docs/plan.md says what is in it",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` is not TOML: {error}", hint="see docs/plan.md") from None
    return parse(Rates, table)


def save_rates(path: Path, rates: Rates) -> None:
    """Write a file that `load_rates` reads."""
    table = rates.model_dump(exclude_none=True)
    about = table.pop("about")
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    lines += ["", "[about]", *(f"{key} = {_toml(value)}" for key, value in about.items())]
    write_atomic(path, "".join(line + "\n" for line in lines).encode())


def check_about(rates: Rates, asked: dict[str, str | int]) -> None:
    """Refuse rates of something else than what is asked about.

    Raises:
        ConfigError: the first thing that differs.
    """
    for key, value in rates.about.items():
        if key not in asked:
            if key in _STUDENT:
                continue  # rates of a student do no harm where none is asked about
            raise ConfigError(
                f"the rates are about `{key}`, which is nothing that rates can be about",
                hint=f"known are: {', '.join(_KNOWN)}",
            )
        if value != asked[key]:
            raise ConfigError(
                f"the rates are those of the {key} `{value}`, and `{asked[key]}` is asked about",
                hint="measure again, without --rates; or take the line out of the file's [about]",
            )


_STUDENT = ("method", "student", "student_size")
_KNOWN = ("teacher", "image_size", "policy", "precision", "arrays", *_STUDENT)


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # The escapes of a JSON string are among those of TOML.
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
