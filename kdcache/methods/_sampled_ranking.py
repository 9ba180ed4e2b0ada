"""The student's side of a soft ranking from a part of the queue: its nearest rows, and some others.

This can stand in for `log_sum_exp` of `_soft_ranking.py`, which is about half of the loss's work;
the other half, the teacher's side, still attends to the whole queue.

The sum over the queue is that over the N rows nearest to the student's, exactly, plus K / M times
that over M rows drawn at random, those that were counted already left out. Each row of the queue is
drawn with probability M / K, so the sum is right on average, whatever the N rows are: a search that
misses some costs precision and nothing else. Which part does the work depends on the temperature:
at SEED's 0.2 the drawn rows alone are enough, at CompRess's 0.04 they are useless alone.

Source: the estimator (`top-k + uniform with logQ`) and its errors, `queue.md` section 3.1; it is of
no paper that is reproduced here.

Shapes: B batch, D target, K negatives, E slots of a row to leave out, N nearest, M drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from kdcache.errors import ConfigError
from kdcache.methods._soft_ranking import LogSumExp, log_sum_exp
from kdcache.nearest import search
from kdcache.settings import Settings
from kdcache.shapes import Float, Int64

Search = Callable[[Tensor, int], Tensor]
"""From rows [B, D] and N: the slots [B, N] of the nearest keys; -1 pads."""

_KEYS_AT_ONCE = 1 << 17


class SamplingSettings(Settings):
    """Knobs of a method whose student may rank a part of the queue."""

    sampled: int = Field(default=0, ge=0)
    """Negatives, drawn anew each step, from which the student's denominator is estimated; 0 is
    exact. The teacher's side still attends to the whole queue, so this saves at most about half of
    the loss's time: 0.17 instead of 0.33 CPU seconds for 64 rows and 262,144 negatives. The paper
    does not."""
    nearest: int = Field(default=64, ge=0)
    """Negatives nearest to the student's row that count exactly beside the sampled ones."""
    nprobe: int = Field(default=0, ge=0)
    """Lists of an IVF index that the search for the nearest opens; 0 is an exact search."""

    def model_post_init(self, _: Any) -> None:
        """Refuse a search that nothing would be searched by.

        Raises:
            ConfigError: `nearest` is changed, or `nprobe` is set, where nothing is sampled; or
                `nprobe` is set where no nearest are wanted.
        """
        usual = type(self).model_fields["nearest"].default  # a recipe that was saved names it
        if not self.sampled and self.nearest not in (0, usual):
            raise ConfigError(
                f"`method.nearest` is {self.nearest}, but `method.sampled` is 0: every negative "
                "counts exactly",
                hint="--set method.sampled=4096, or leave `nearest` out",
            )
        for name, example in (("sampled", 4096), ("nearest", usual)):
            if self.nprobe and not getattr(self, name):
                raise ConfigError(
                    f"`method.nprobe` is {self.nprobe}, but `method.{name}` is 0: nothing is "
                    "searched for",
                    hint=f"--set method.{name}={example}, or leave `nprobe` out",
                )


def nearest_slots(
    query: Float[Tensor, "B D"], keys: Float[Tensor, "K D"], count: int
) -> Int64[Tensor, "B N"]:
    """The slots of the `count` keys most alike to each row, exact: FAISS on a CPU, torch on a GPU.

    Raises:
        DataError: a row or a key is not finite (on a CPU).
    """
    if query.device.type == "cpu":
        _, slots = search(query.detach().float().numpy(), keys.float().numpy(), count)
        return torch.from_numpy(slots)
    return _nearest_by_torch(query.detach(), keys, count)


def _nearest_by_torch(query: Tensor, keys: Tensor, count: int) -> Tensor:
    # On a GPU this is faster than FAISS, and the queue stays where it is (`queue.md` 0.3).
    best = query.new_empty(len(query), 0)
    slots = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        alike = query @ keys[start : start + _KEYS_AT_ONCE].T
        value, slot = alike.topk(min(count, alike.shape[1]), dim=1)
        best = torch.cat([best, value], dim=1)
        slots = torch.cat([slots, slot + start], dim=1)
        best, kept = best.topk(min(count, best.shape[1]), dim=1)
        slots = slots.gather(1, kept)
    return slots


def sampled_log_sum_exp(
    query: Float[Tensor, "B D"],
    keys: Float[Tensor, "K D"],
    temperature: float,
    own: Int64[Tensor, "B E"] | None,
    *,
    nearest: Int64[Tensor, "B N"],
    drawn: Int64[Tensor, " M"],
) -> Float[Tensor, " B"]:
    """What `log_sum_exp` gives, estimated from some of the keys; with a gradient to `query`.

    Args:
        own: slots of `keys` that a row must not see, padded with -1.
        nearest: slots that count exactly, each once a row, padded with -1.
        drawn: slots that stand for the rest of the keys; no two alike.
    """
    log_sum: Tensor = _SampledLogSumExp.apply(query, keys, temperature, own, nearest, drawn)
    return log_sum


@dataclass(frozen=True)
class SampledLogSumExp:
    """`log_sum_exp` by `nearest` keys of each row and `drawn` ones that all rows share.

    What is drawn comes from torch's own generator of the device: the same for all processes of a
    run, and again after it is resumed.
    """

    drawn: int
    nearest: int
    search: Search | None = None
    """Finds the nearest keys; None is an exact search."""

    def __call__(
        self,
        query: Float[Tensor, "B D"],
        keys: Float[Tensor, "K D"],
        temperature: float,
        own: Int64[Tensor, "B E"] | None = None,
    ) -> Float[Tensor, " B"]:
        """The estimate, of new draws each time."""
        drawn = torch.randperm(len(keys), device=keys.device)[: self.drawn]
        nearest = torch.empty(len(query), 0, dtype=torch.int64, device=keys.device)
        if self.nearest:
            count = min(self.nearest, len(keys))
            if self.search is None:
                nearest = nearest_slots(query, keys, count)
            else:
                nearest = self.search(query, count)
        return sampled_log_sum_exp(query, keys, temperature, own, nearest=nearest, drawn=drawn)


def denominator(sampled: int, nearest: int, search: Search | None) -> LogSumExp:
    """What a method's settings ask for: the exact sum where `sampled` is 0."""
    return SampledLogSumExp(sampled, nearest, search) if sampled else log_sum_exp


class _SampledLogSumExp(torch.autograd.Function):
    """Keeps the softmax's mean of the keys [B, D], of which its gradient is made."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        temperature: float,
        own: Tensor | None,
        nearest: Tensor,
        drawn: Tensor,
    ) -> Tensor:
        near, far = keys[nearest.clamp(min=0)], keys[drawn]
        near_logits = torch.einsum("bd,bnd->bn", query, near).div_(temperature)
        far_logits = (query @ far.T).div_(temperature).add_(math.log(len(keys) / len(drawn)))
        near_logits.masked_fill_((nearest < 0) | _among(nearest, own), -torch.inf)
        counted = nearest if own is None else torch.cat([nearest, own], dim=1)
        far_logits.masked_fill_(_drawn_too(counted, drawn, len(keys)), -torch.inf)
        logits = torch.cat([near_logits, far_logits], dim=1)
        log_sum = logits.logsumexp(dim=1)
        # The clamp is for rows that see no key: their shares are zero, not NaN.
        share = logits.sub_(log_sum.clamp(min=torch.finfo(logits.dtype).min)[:, None]).exp_()
        near_share, far_share = share[:, : nearest.shape[1]], share[:, nearest.shape[1] :]
        mean = torch.einsum("bn,bnd->bd", near_share, near) + far_share @ far
        ctx.save_for_backward(mean.div_(temperature))
        return log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None], None, None, None, None, None


def _among(slots: Tensor, own: Tensor | None) -> Tensor:
    if own is None:
        return torch.zeros_like(slots, dtype=torch.bool)
    return (slots[:, :, None] == own[:, None, :]).any(dim=2)


def _drawn_too(counted: Tensor, drawn: Tensor, num_keys: int) -> Tensor:
    """A mask [B, M] of the drawn slots that are among a row's `counted` ones (-1 pads)."""
    num_drawn = len(drawn)
    # Slots that were not drawn point to a column behind the last, and so does padding.
    column = torch.full((num_keys + 1,), num_drawn, device=drawn.device)
    column[drawn] = torch.arange(num_drawn, device=drawn.device)
    mask = torch.zeros(len(counted), num_drawn + 1, dtype=torch.bool, device=drawn.device)
    return mask.scatter_(1, column[counted], True)[:, :num_drawn]
