"""A figure of merit with all that is needed to compare it: the row of tables and JSON files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One figure of one protocol; two scores compare only where protocol and setting are equal."""

    protocol: str
    """`knn` or `linear`."""
    setting: Mapping[str, str | int | float]
    """What the figure depends on besides the network: k and vote, or preset and features."""
    metric: str
    """`top1` or `top5`."""
    value: float
    """Percent of the queries."""
    num_queries: int
    """Images that were scored; unreadable ones are not among them."""
    num_classes: int
    """Classes among which the answer was chosen."""

    @property
    def label(self) -> str:
        """The protocol and its setting in one line, such as `knn (k=10, vote=plain)`."""
        parts = ", ".join(f"{name}={value}" for name, value in self.setting.items())
        return f"{self.protocol} ({parts})"

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON takes it."""
        return asdict(self) | {"setting": dict(self.setting)}


def top_k_percent(num_correct: int, num_queries: int) -> float:
    """Percent correct."""
    return 100.0 * num_correct / num_queries


def chance(score: Score) -> float:
    """What guessing among the classes would give, in percent."""
    guesses = 5 if score.metric == "top5" else 1
    return 100.0 * guesses / score.num_classes
