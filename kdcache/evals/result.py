"""A figure of merit with all that is needed to compare it: the row of tables and JSON files."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from kdcache.shapes import Float, Int64

_TOP5_FROM_CLASSES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One figure of one protocol; two scores compare only where protocol and setting are equal."""

    protocol: str
    """Its name without the preset: `knn`, `linear`, `fast-linear`, ..."""
    setting: Mapping[str, str | int | float]
    """What the figure depends on besides the network. `preset` is a paper's protocol, or `not` and
    its name where a setting was changed; the changed ones stand beside it."""
    metric: str
    """`top1`, `top5`, `mAP`, `cka`, ..."""
    value: float
    num_queries: int
    """Images that were scored; unreadable ones are not among them."""
    num_classes: int
    """Classes among which the answer was chosen; 0 where there was nothing to choose."""
    unit: Literal["percent", "one"] = "percent"
    """Percent of the queries, or a number between -1 and 1."""

    @property
    def label(self) -> str:
        """The protocol and its setting in one line, such as `knn (k=10, vote=plain)`."""
        parts = ", ".join(f"{name}={value}" for name, value in self.setting.items())
        return f"{self.protocol} ({parts})" if parts else self.protocol

    @property
    def text(self) -> str:
        """The value as tables show it."""
        return f"{self.value:.1f}" if self.unit == "percent" else f"{self.value:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON takes it."""
        return asdict(self) | {"setting": dict(self.setting)}


def top_k_percent(num_correct: float | int, num_queries: int) -> float:
    """Percent correct."""
    return 100.0 * num_correct / num_queries


def accuracy_scores(
    logits: Float[Tensor, "Q C"],
    wanted: Int64[Tensor, " Q"],
    *,
    protocol: str,
    setting: Mapping[str, str | int | float],
) -> list[Score]:
    """Top-1, and top-5 where there are enough classes for it to say something."""
    num_queries, num_classes = logits.shape
    ks = [1, 5] if num_classes >= _TOP5_FROM_CLASSES else [1]
    hits = logits.topk(ks[-1]).indices == wanted[:, None]
    return [
        Score(
            protocol=protocol,
            setting=setting,
            metric=f"top{k}",
            value=top_k_percent(int(hits[:, :k].sum()), num_queries),
            num_queries=num_queries,
            num_classes=num_classes,
        )
        for k in ks
    ]


def chance(score: Score) -> float:
    """What guessing among the classes would give, in percent; NaN where that is no one number."""
    guesses = {"top1": 1, "top5": 5}.get(score.metric, math.nan)
    return 100.0 * guesses / score.num_classes if score.num_classes else math.nan
