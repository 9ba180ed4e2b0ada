"""`kdcache extend`: a new cache of which an old one knows a part."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._options import (
    DeviceOption,
    OfflineOption,
    SkipOption,
    WorkersOption,
    array_names,
    num_workers,
    open_device,
    say,
)

_AS_IT_IS = "as in CACHE"


def extend(
    cache: Annotated[Path, typer.Argument(help="A cache; it is only read.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(help="The new cache: a folder to make, or to go on with.", show_default=False),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Images, as for `kdcache extract`: more, fewer or renamed ones. Needed where "
            "anything has to be rendered.",
            show_default="the images of CACHE",
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="Views of each image.", show_default=_AS_IT_IS)
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Another teacher.", show_default=_AS_IT_IS)
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of the teacher, also of the one that it was.",
            show_default="downloaded",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the views in pixels.", show_default=_AS_IT_IS),
    ] = None,
    arrays: Annotated[
        str | None,
        typer.Option(help="feature, embedding or both by a comma.", show_default=_AS_IT_IS),
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32", "uint8"] | None,
        typer.Option(help="Of what is kept.", show_default=_AS_IT_IS),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        typer.Option(help="Of the teacher.", show_default=_AS_IT_IS),
    ] = None,
    skip_unreadable: SkipOption = False,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Make another cache by the recipe of CACHE, with what is given changed.

    Whatever CACHE says that still holds is taken over: more views cost the new views alone, more
    images the new images alone. The result is what `kdcache extract` gives, to the byte. Run the
    same command again after any interruption: it goes on where it stopped.
    """
    from kdcache.extract import run_extension
    from kdcache.images import open_images
    from kdcache.progress import progress_bar
    from kdcache.store import open_cache
    from kdcache.teachers import load_teacher

    old = open_cache(cache)
    images = open_images(data) if data is not None else None
    made_by = old.recipe["teacher"]
    extension = run_extension(
        old,
        images,
        load_teacher(
            teacher or made_by["name"],
            weights=weights,
            image_size=image_size or made_by["image_size"],
            bar=progress_bar,
        ),
        out,
        is_same_teacher=teacher is None and weights is None and image_size is None,
        num_views=views,
        arrays=array_names(arrays),
        dtype=dtype,
        precision=precision,
        skip_unreadable=skip_unreadable,
        device=open_device(device),
        workers=num_workers(workers),
        bar=progress_bar,
        tell=say,
    )
    for line in extension.lines():
        typer.echo(line, err=True)
    typer.echo(extension.outcome.identity)
