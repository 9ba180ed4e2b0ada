"""`kdcache extract`: run the teacher once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._options import (
    DataOption,
    DeviceOption,
    OfflineOption,
    WorkersOption,
    num_workers,
    open_device,
)


def extract(
    teacher: Annotated[
        str,
        typer.Option(
            help="A name of `kdcache teachers`, timm:MODEL, or module:function of your own.",
            show_default=False,
        ),
    ],
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option(help="The cache: a folder to make, or to go on with.", show_default=False),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint: .safetensors, .pth, .pt, .pth.tar.", show_default="downloaded"
        ),
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Views of each image.")] = 10,
    policy: Annotated[str, typer.Option(help="How views are drawn: `kdcache policies`.")] = "weak",
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of the views.")] = 0,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the views in pixels.", show_default="the teacher's"),
    ] = None,
    arrays: Annotated[
        str | None,
        typer.Option(
            help="feature, embedding or both by a comma.", show_default="all the teacher gives"
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32", "uint8"],
        typer.Option(help="Of what is kept; uint8 is half of float16, with a scale for each row."),
    ] = "float16",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="Of the teacher; auto is bf16 on a GPU that has it, else fp32."),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Views the teacher sees at once.")] = 64,
    skip_unreadable: Annotated[
        bool,
        typer.Option("--skip-unreadable", help="Complete the cache without unreadable images."),
    ] = False,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Show a frozen teacher every view of every image, and keep what it says.

    Run the same command again after any interruption: it goes on where it stopped.
    """
    from kdcache.extract import run_extraction
    from kdcache.images import open_images
    from kdcache.progress import progress_bar
    from kdcache.teachers import load_teacher

    images = open_images(data)  # a mistyped folder is told before a teacher is downloaded
    outcome = run_extraction(
        images,
        load_teacher(teacher, weights=weights, image_size=image_size, bar=progress_bar),
        out,
        num_views=views,
        policy=policy,
        seed=seed,
        arrays=tuple(arrays.split(",")) if arrays else None,
        dtype=dtype,
        precision=precision,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        device=open_device(device),
        workers=num_workers(workers),
        bar=progress_bar,
    )
    for line in outcome.lines():
        typer.echo(line, err=True)
    typer.echo(outcome.identity)
