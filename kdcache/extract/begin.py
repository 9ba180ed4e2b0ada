"""The beginning of a cache, by the first process and by all that join it."""

from pathlib import Path

import numpy as np
import torch

from kdcache.errors import DataError
from kdcache.extract.job import Job, describe
from kdcache.extract.known import Known
from kdcache.images import ImageIndex, ImageSet
from kdcache.store import CacheWriter, RowIndex, create_cache, load_image_ids
from kdcache.versions import library_versions


def made_with(device: torch.device) -> dict[str, str]:
    """What may decide the last bits of what a teacher says, besides the recipe."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {**library_versions(), "cpu_capability": capability, "device": device.type}


def open_writer(
    job: Job, out: Path, device: torch.device, known: Known | None = None
) -> CacheWriter:
    """The cache of a job, begun or gone on with."""
    head = job.teacher.head
    versions = made_with(device)
    return create_cache(
        out,
        recipe=describe(job),
        arrays=job.array_specs(),
        num_views=job.num_views,
        index=RowIndex(
            image_ids=job.index.ids,
            labels=job.images.labels,
            classes=job.images.classes,
            paths=job.images.paths,
        ),
        head=(head.layers, head.to_arrays()) if head is not None else None,
        made_with=versions if known is None else known.versions_with(versions),
    )


def index_of(images: ImageSet, out: Path) -> ImageIndex:
    """The index that another process has just made of the images, which all are read by one alone.

    Whoever renders an image sees whether it is the one that was indexed.

    Raises:
        DataError: there are other images here.
    """
    ids = load_image_ids(out)
    if len(ids) != len(images):
        raise DataError(
            f"`{images.source}` holds {len(images):,} images here, and `{out}` was begun with "
            f"{len(ids):,}",
            hint="give --data the same images wherever the command runs",
        )
    return ImageIndex(ids, np.zeros(len(ids), np.int64), {})
