"""`kdcache extract`: run the teacher once."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdcache.errors import ConfigError

from ._options import (
    ArraysOption,
    BatchSizeOption,
    DataOption,
    DeviceOption,
    ImageSizeOption,
    OfflineOption,
    SkipOption,
    ViewsOption,
    WorkersOption,
    array_names,
    import_beside,
    num_workers,
    open_device,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kdcache.extract import Cluster


def extract(
    teacher: Annotated[
        list[str],
        typer.Option(
            help="A name of `kdcache teachers`, timm:MODEL, or module:function of your own. "
            "Repeated: as many caches, of one pass over the images.",
            show_default=False,
        ),
    ],
    data: DataOption,
    out: Annotated[
        list[Path],
        typer.Option(
            help="The cache: a folder to make, or to go on with; one for each --teacher.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="Checkpoint: .safetensors, .pth, .pt, .pth.tar; for all teachers or for none.",
            show_default="downloaded",
        ),
    ] = None,
    views: ViewsOption = 10,
    policy: Annotated[str, typer.Option(help="How views are drawn: `kdcache policies`.")] = "weak",
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of the views.")] = 0,
    image_size: ImageSizeOption = None,
    arrays: ArraysOption = None,
    dtype: Annotated[
        Literal["float16", "float32", "uint8"],
        typer.Option(help="Of what is kept; uint8 is half of float16, with a scale for each row."),
    ] = "float16",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="Of the teacher; auto is bf16 on a GPU that has it, else fp32."),
    ] = "auto",
    batch_size: BatchSizeOption = 64,
    skip_unreadable: SkipOption = False,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    on: Annotated[
        str,
        typer.Option(
            help="local; ray: the cluster that this machine is part of, or else all of its GPUs or "
            "cores; ray://HOST:10001."
        ),
    ] = "local",
) -> None:
    """Show a frozen teacher every view of every image, and keep what it says.

    Run the same command again after any interruption: it goes on where it stopped. Several of them
    at once, under torchrun, in a SLURM array or by hand, share the work out.
    """
    if on == "local":  # elsewhere others render
        import_beside(workers, "kdcache.extract.engine")
    from kdcache import distributed
    from kdcache.extract import Extraction, run_extraction, run_extractions
    from kdcache.images import open_images
    from kdcache.progress import progress_bar, silent_bar
    from kdcache.teachers import load_teacher

    files: list[Path | None] = [*weights] if weights else [None] * len(teacher)
    _require_pairs(teacher, files, out, on)
    tells = os.environ.get("RANK", "0") == "0"  # torchrun shows the words of all on one terminal
    bar = progress_bar if tells else silent_bar
    # A mistyped folder or policy is told before a teacher is downloaded.
    images = open_images(data)
    settings = Extraction(
        num_views=views,
        policy=policy,
        seed=seed,
        arrays=array_names(arrays),
        dtype=dtype,
        precision=precision,
        batch_size=batch_size,
    )
    with _cluster(on, files[0], device, workers) as cluster:
        place = open_device(device) if cluster is None else cluster.device
        teachers = [
            load_teacher(name, weights=file, image_size=image_size, bar=bar)
            for name, file in zip(teacher, files, strict=True)
        ]
        means: dict[str, Any] = {
            "skip_unreadable": skip_unreadable,
            "device": distributed.local_device(place) if cluster is None else place,
            "workers": _num_workers(workers),
            "bar": bar,
        }
        if len(teachers) == 1:
            one = run_extraction(images, teachers[0], out[0], settings, cluster=cluster, **means)
            outcomes = [one]
        else:
            outcomes = run_extractions(images, teachers, out, settings, **means)
    for outcome in outcomes:
        for line in outcome.lines():
            typer.echo(line, err=True)
        if tells:
            typer.echo(outcome.identity)


def _require_pairs(
    teachers: list[str], weights: list[Path | None], outs: list[Path], on: str
) -> None:
    for option, given in (("--weights", weights), ("--out", outs)):
        if len(given) != len(teachers):
            raise ConfigError(
                f"{len(teachers)} teachers are given, and {len(given)} {option}",
                hint=f"repeat {option} once for each --teacher, in the same order"
                + (", or leave it out" if option == "--weights" else ""),
            )
    if len(teachers) > 1 and (on != "local" or "RANK" in os.environ):
        raise ConfigError(
            "several teachers in one pass are one process's work",
            hint="leave out --on and torchrun, or give each teacher a command of its own",
        )


def _cluster(
    on: str, weights: Path | None, device: str | None, workers: int | None
) -> "AbstractContextManager[Cluster | None]":
    from kdcache.extract import join_ray

    if on == "local":
        return nullcontext()
    if on != "ray" and not on.startswith("ray://"):
        raise ConfigError(f"`--on {on}` is unknown", hint="local, ray or ray://HOST:10001")
    if "RANK" in os.environ:
        raise ConfigError(
            f"`--on {on}` is given to a process of torchrun, and Ray starts its own processes",
            hint="start it once, without torchrun",
        )
    address = None if on == "ray" else on
    return join_ray(address, weights=weights, device=device, workers=workers)


def _num_workers(wanted: int | None) -> int:
    """Rendering processes of this process: those that torchrun started here share the cores."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return num_workers(wanted) if wanted is not None else max(1, num_workers(None) // here)
