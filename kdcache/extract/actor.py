"""The far end of a cluster: a teacher that makes itself ready from a description, then computes.

It knows nothing of the engine that started it, and opens the cache as any process that joins does:
so other images, weights, libraries or another folder are refused there before anything is computed.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from kdcache.errors import ConfigError, DataError
from kdcache.extract.again import job_again, maker_of, teacher_of
from kdcache.extract.begin import index_of, open_writer
from kdcache.extract.engine import extract, renderers
from kdcache.extract.job import Job
from kdcache.extract.report import Report
from kdcache.images import dataset_fingerprint, open_images
from kdcache.store import RECIPE, WORK, CacheWriter

PROBE = f"{WORK}/probe"
"""A file of the cache under way by which it is told from another folder of the same name."""


@dataclass(frozen=True)
class Description:
    """All that an actor has to be told; paths mean the same wherever it runs."""

    out: Path
    probe: str
    """What the probe holds."""
    source: str
    """Where the images are."""
    weights: Path | None
    """Of the teacher, where they were given."""
    num_views: int
    device: str
    workers: int
    """Processes that render views."""
    num_threads: int
    """Of the teacher, where it runs on the CPU."""


class Actor:
    """One teacher. It may be started again anywhere, at any moment: what it has done is kept."""

    def __init__(self, description: Description) -> None:
        self._told = description

    def prepare(self) -> None:
        """Load the teacher, once.

        Raises:
            KdcacheError: something is not here as it is where the extraction was started.
        """
        _ = self._writer

    def compute(self, piece: int) -> Report:
        """Compute a piece and keep it, unless it is there by now."""
        if self._writer.has(piece):
            return Report()
        return extract(self._job, self._writer, [piece], self._rendering, device=self._device)

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(self._told.device)

    @cached_property
    def _job(self) -> Job:
        told = self._told
        _require_same_folder(told)
        recipe = json.loads((told.out / RECIPE).read_bytes())
        images = open_images(told.source)
        index = index_of(images, told.out)
        if dataset_fingerprint(images, index) != recipe["images"]["fingerprint"]:
            raise DataError(
                f"`{told.source}` holds other images here than where the extraction was started",
                hint="give --data a folder that is the same on every node",
            )
        torch.set_num_threads(told.num_threads)
        maker = maker_of(recipe, images, index.ids, told.out)
        teacher = teacher_of(recipe, told.weights, told.out)
        return job_again(recipe, maker, teacher, told.num_views)

    @cached_property
    def _writer(self) -> CacheWriter:
        return open_writer(self._job, self._told.out, self._device)

    @cached_property
    def _rendering(self):  # type: ignore[no-untyped-def]
        return renderers(self._job, device=self._device, workers=self._told.workers, stay=True)


def _require_same_folder(told: Description) -> None:
    path = told.out / PROBE
    found = path.read_text() if path.exists() else None
    if found != told.probe:
        seen = "is another folder" if (told.out / RECIPE).exists() else "is not there"
        raise ConfigError(
            f"the cache `{told.out}` {seen} here",
            hint="give an --out on a file system that all nodes share, or extract --on local",
        )
