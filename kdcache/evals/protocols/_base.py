"""What a protocol is: a way to judge, with its settings under the names that papers give it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kdcache.evals.exam import Exam
from kdcache.evals.result import Score
from kdcache.settings import Settings

Need = Literal["transfer", "ood", "teacher", "labelled_list"]
"""What stands beside the data set: fields of `Beside`."""


@dataclass(frozen=True)
class Preset:
    """One setting of a protocol, and who measures so."""

    config: Settings
    source: str
    view: str = "center"
    """The policy of the one view by which an image is judged."""
    paper: bool = True
    """Whether it bears the name of a paper's protocol, which a changed setting takes away."""


@dataclass(frozen=True)
class Asked:
    """A protocol that was asked for, settings and all."""

    family: str
    preset: str
    """Empty for a family's own default."""
    config: Settings
    view: str
    paper: bool
    """Whether the preset is a paper's."""
    changed: Mapping[str, Any]
    """Settings that are not the preset's: with one of them it is the preset no more."""

    @property
    def name(self) -> str:
        """As it is asked for: `linear:moco`, `retrieval`."""
        return f"{self.family}:{self.preset}" if self.preset else self.family

    def setting(self) -> dict[str, str | int | float]:
        """What a score says of how it came about."""
        preset = {"preset": f"not {self.preset}" if self.changed else self.preset}
        plain = (str, int, float)
        changed = {k: v if isinstance(v, plain) else str(v) for k, v in self.changed.items()}
        return {**(preset if self.paper else {}), **changed}


def _nothing(_: Exam, __: Sequence[Asked]) -> None:
    """The check of a protocol that any exam can serve."""


@dataclass(frozen=True)
class Protocol:
    """A family of presets that share their code; a file's `PROTOCOL`."""

    presets: Mapping[str, Preset]
    run: Callable[[Exam, Sequence[Asked]], list[Score]]
    """The scores of all that was asked of this family, so that work can be shared."""
    check: Callable[[Exam, Sequence[Asked]], None] = field(default=_nothing)
    """Refuses what cannot be, before anything is computed."""
    requires: frozenset[Need] = frozenset()
    accepts: frozenset[Need] = frozenset()
    """What it uses if it is given; that which it requires is not named again."""
    of_features: bool = False
    """It looks at features of one view only, so that anything with features can be judged."""
