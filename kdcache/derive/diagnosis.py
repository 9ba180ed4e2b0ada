"""What a teacher's ranking of a queue looks like before a student is asked to copy it.

SEED's target is p = softmax over [own target, queue] / tau. Whether anything can be learned from it
depends on the teacher more than on the method: where all of p lies on the image's own target, no
relation between images is left in it; where p is nearly flat, the images cannot be told apart. Both
are seen in a second, from a few images and the queue.

Source: the figures and their thresholds, `queue.md` sections 2 and 3.1 (measured there on synthetic
and on a few real teachers; rules of thumb, not of any paper).

Shapes: Q queries, K negatives, D target, E slots of a row to leave out.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.shapes import Float, Int64

_LOGITS_AT_ONCE = 1 << 22

_SEED_KNOBS = ("center", "teacher_temperature")

_ALIKE_COSINE = 0.3
_ONE_HOT_MASS = 0.999
_FLAT_SHARE = 0.25
_SAMPLING_ERROR = 1e-2


@dataclass(frozen=True)
class Diagnosis:
    """A teacher's ranking in figures, over some queries."""

    num_negatives: int
    """Length of the queue."""
    num_columns: int
    """Of the ranking: one more, where the own target has a column."""
    teacher_temperature: float
    student_temperature: float
    self_mass: float
    """Mean share of the ranking that lies on the image's own target; 1 is one-hot."""
    perplexity: float
    """Median of exp(entropy): how many columns the ranking spreads over, 1 to K + 1."""
    mean_cosine: float
    """Between different images; 0 is a teacher that uses all directions."""
    cv2: float
    """Mean squared coefficient of variation of exp(cosine / student temperature) over the queue,
    of a student that says what the teacher says. A denominator over m negatives drawn at random
    has a relative variance of cv2 / m."""

    def __str__(self) -> str:
        return (
            f"own target {self.self_mass:.2%} of the ranking, perplexity {self.perplexity:,.1f} of "
            f"{self.num_columns:,}, mean cosine {self.mean_cosine:.3f}"
        )

    def advice(
        self, knobs: Collection[str] = _SEED_KNOBS, *, sampled: int = 0, nearest: int = 0
    ) -> list[str]:
        """What is degenerate and what to set instead, a sentence each; none if all is well.

        Args:
            knobs: the settings that the method has; no other is advised. SEED's unless given.
            sampled: negatives drawn at random for the student's denominator; 0 is all of them.
            nearest: hard negatives that are kept beside those.
        """
        center = "`--set method.center=true`" if "center" in knobs else ""
        found = []
        if self.mean_cosine > _ALIKE_COSINE:
            ways = " or ".join(filter(None, [center, "a projection head (`kdcache head CACHE`)"]))
            found.append(
                f"the teacher finds all images alike (mean cosine {self.mean_cosine:.2f}): {ways} "
                "tells them apart"
            )
        cooler, warmer = self._temperatures(knobs)
        if self.self_mass > _ONE_HOT_MASS:
            found.append(
                f"the ranking is one-hot ({self.self_mass:.2%} on the image's own target): this "
                f"is InfoNCE with the teacher's keys; {warmer} lets relations between images in"
            )
        if self.perplexity > _FLAT_SHARE * self.num_negatives:
            ways = " or ".join(filter(None, [cooler, center]))
            found.append(
                f"the ranking is nearly flat (perplexity {self.perplexity:,.0f} of "
                f"{self.num_columns:,}): {ways} sharpens it"
            )
        if sampled and not nearest and self.cv2 / sampled > _SAMPLING_ERROR:
            found.append(
                f"{sampled:,} random negatives cannot stand for the queue at a student temperature "
                f"of {self.student_temperature:g} (cv2 / m = {self.cv2 / sampled:.2g}, above "
                f"{_SAMPLING_ERROR:g}): `--set method.sampled=0` is exact, `--set "
                "method.nearest=64` keeps the hardest"
            )
        return found

    def _temperatures(self, knobs: Collection[str]) -> tuple[str, str]:
        """How to lower the teacher's temperature, and how to raise it."""
        name = "teacher_temperature" if "teacher_temperature" in knobs else "temperature"
        lower, higher = self.teacher_temperature / 2, max(4 * self.teacher_temperature, 0.04)
        return f"`--set method.{name}={lower:g}`", f"`--set method.{name}={higher:g}`"


@torch.no_grad()
def diagnose(
    queries: Float[Tensor, "Q D"],
    negatives: Float[Tensor, "K D"],
    *,
    teacher_temperature: float,
    student_temperature: float,
    own: Int64[Tensor, "Q E"] | None = None,
    own_column: bool = True,
) -> Diagnosis:
    """The figures of the ranking of [own target, negatives] by `queries`; all rows unit length.

    Exact for these queries; a few hundred are enough. Takes a [1, K] row of logits at a time, or
    as many as fit into 32 MB.

    Args:
        queries: the teacher's targets of some images.
        own: slots of `negatives` that show the query's image, padded with -1: left out.
        own_column: whether the own target is ranked; it is not in CompRess.
    """
    at_once = max(1, _LOGITS_AT_ONCE // len(negatives))
    columns = []
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        cosine = (queries[part] @ negatives.T).double()
        seen = _seen(cosine, own[part] if own is not None else None)
        columns.append(_figures(cosine, seen, teacher_temperature, student_temperature, own_column))
    self_mass, entropy, mean_cosine, cv2 = torch.cat(columns, dim=1)
    return Diagnosis(
        num_negatives=len(negatives),
        num_columns=len(negatives) + own_column,
        teacher_temperature=teacher_temperature,
        student_temperature=student_temperature,
        self_mass=float(self_mass.mean()),
        perplexity=float(entropy.exp().median()),
        mean_cosine=float(mean_cosine.mean()),
        cv2=float(cv2.mean()),
    )


def _seen(cosine: Tensor, own: Tensor | None) -> Tensor:
    seen = torch.ones_like(cosine, dtype=torch.bool)
    if own is not None:
        row, column = torch.nonzero(own >= 0, as_tuple=True)
        seen[row, own[row, column]] = False
    return seen


def _figures(
    cosine: Float[Tensor, "Q K"],
    seen: Tensor,
    teacher_temperature: float,
    student_temperature: float,
    own_column: bool,
) -> Float[Tensor, "4 Q"]:
    """Self mass, entropy in nats, mean cosine and cv2 of each query."""
    hidden = cosine.masked_fill(~seen, -torch.inf)
    own_target = torch.full_like(cosine[:, :1], 1.0 if own_column else -torch.inf)
    logits = torch.cat([own_target, hidden], dim=1) / teacher_temperature
    log_share = logits.log_softmax(dim=1)
    share = log_share.exp()
    entropy = -torch.where(share > 0, share * log_share, 0.0).sum(dim=1)
    num_seen = seen.double().sum(dim=1)
    mean_cosine = cosine.masked_fill(~seen, 0.0).sum(dim=1) / num_seen
    weight = hidden / student_temperature
    spread = (2 * weight).logsumexp(dim=1) - 2 * weight.logsumexp(dim=1)
    cv2 = (spread + num_seen.log()).exp() - 1.0
    return torch.stack([share[:, 0], entropy, mean_cosine, cv2])
