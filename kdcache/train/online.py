"""The teacher live on the views of the step, through the same code as the cache's words.

This is the control for a cache: the same rows, views and order, with nothing looked up. It costs
what the cache saves.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdcache.distributed import gather_rows
from kdcache.heads import ProjectionHead
from kdcache.precision import Precision, autocast, without_tf32
from kdcache.shapes import Float, Int64, UInt8
from kdcache.targets import centered
from kdcache.teachers import Teacher
from kdcache.train.data import render
from kdcache.views import ViewMaker

_ROWS_AT_ONCE = 64


class _Said(NamedTuple):
    """What the teacher said of some samples in one view; the samples ascend."""

    samples: Int64[np.ndarray, " B"]
    targets: Float[Tensor, "B D"]


@dataclass(eq=False)
class LiveTargets:
    """A teacher that is asked again; keeps what it said of the step at hand."""

    teacher: Teacher
    array: str
    """`feature` or `embedding`."""
    head: ProjectionHead | None
    """Makes the embedding, where the teacher has no head of its own."""
    mean: Float[Tensor, " D"] | None
    """Of the cache's unit targets, if they are centred."""
    maker: ViewMaker
    """Renders what is asked for and was not shown, at the teacher's size."""
    rows: Int64[np.ndarray, " N"]
    precision: Precision
    batch_size: int
    """Images that the teacher sees at once."""
    device: torch.device
    dim: int
    _said: dict[int, _Said] = field(default_factory=dict)

    def look(
        self,
        samples: list[Int64[np.ndarray, " B"]],
        views: list[int],
        pixels: list[UInt8[Tensor, "B _ _ 3"]],
    ) -> None:
        """Hear the teacher on the views of a step; what it said of the step before is dropped.

        Args:
            pixels: for each group of samples in turn, one tensor a view.
        """
        self._said = {}
        for at, view in enumerate(views):
            said = [self._see(p) for p in pixels[at :: len(views)]]
            shown = torch.from_numpy(np.concatenate(samples)).to(self.device)
            everyones = gather_rows(shown[:, None])[:, 0].cpu().numpy()
            ascending, first = np.unique(everyones, return_index=True)
            index = torch.from_numpy(first).to(self.device)
            self._said[view] = _Said(ascending, gather_rows(torch.cat(said))[index])

    def take(self, samples: Int64[np.ndarray, " B"], view: int) -> Float[Tensor, "B D"]:
        """Targets of `samples` for one view; those that were not shown are rendered here."""
        said = self._said.get(view)
        if said is not None and np.isin(samples, said.samples).all():
            place = torch.from_numpy(np.searchsorted(said.samples, samples)).to(self.device)
            return said.targets[place]
        parts = [
            self._see(render(self.maker, self.rows[part], np.array([view]))[0])
            for part in np.split(samples, range(_ROWS_AT_ONCE, len(samples), _ROWS_AT_ONCE))
        ]
        return torch.cat(parts)

    def _see(self, pixels: UInt8[Tensor, "B _ _ 3"]) -> Float[Tensor, "B D"]:
        if self.precision == "fp32":
            without_tf32()
        with torch.no_grad(), autocast(self.precision, self.device):
            parts = torch.split(pixels.to(self.device, non_blocking=True), self.batch_size)
            said = torch.cat([self._say(part) for part in parts])
        return centered(said.float(), self.mean)

    def _say(self, pixels: UInt8[Tensor, "B _ _ 3"]) -> Float[Tensor, "B D"]:
        # As many at once as in the extraction: another number may run other kernels, and a
        # difference in the last bit grows with the steps of a training run.
        lacking = self.batch_size - len(pixels)
        images = functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, lacking))
        feature, embedding = self.teacher(images)
        if self.array == "embedding" and embedding is None:
            assert self.head is not None
            embedding = self.head(feature)
        said: Tensor = feature if self.array == "feature" else embedding
        return said[: len(pixels)]
