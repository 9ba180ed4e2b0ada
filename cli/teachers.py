"""`kdcache teachers`: those that have a name, one whole, and a check of any."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from ._options import (
    DataOption,
    DeviceOption,
    OfflineOption,
    WorkersOption,
    num_workers,
    open_device,
)


class _NameOrCommand(TyperGroup):
    """`teachers NAME` is `teachers show NAME`."""

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]
        if args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_NameOrCommand)


@app.callback(invoke_without_command=True)
def teachers(context: typer.Context) -> None:
    """The teachers that have a name, with published ImageNet accuracy (linear, kNN) and licence.

    `kdcache teachers NAME` shows one whole. The figures are its authors', none was measured here.
    """
    if context.invoked_subcommand is not None:
        return
    from kdcache.teachers import registered_teachers

    typer.echo(f"{'name':22} linear    kNN  {'licence':13} what it is")
    for name, entry in registered_teachers().items():
        figures = f"{_percent(entry.linear):>6} {_percent(entry.knn):>6}"
        typer.echo(f"{name:22} {figures}  {entry.licence:13} {entry.about}")
    typer.echo("\nalso: timm:MODEL, timm:hf-hub:ORG/MODEL, and module:function of your own")


@app.command(hidden=True)
def show(name: Annotated[str, typer.Argument(show_default=False)]) -> None:
    """One teacher whole."""
    from kdcache.teachers import get_entry

    for key, value in get_entry(name).lines().items():
        typer.echo(f"{key:13} {value}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="As for `extract --teacher`.", show_default=False)],
    data: DataOption,
    weights: Annotated[
        Path | None, typer.Option(help="Its file.", show_default="downloaded")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Side in pixels.", show_default="the teacher's")
    ] = None,
    images: Annotated[int, typer.Option(min=20, help="Images to look at.")] = 2000,
    policy: Annotated[
        str, typer.Option(help="center (7/8 of the image), or full for small images.")
    ] = "center",
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Whether a teacher sees anything: kNN on a folder with a folder of images for each class.

    Exit code 1 if its features look degenerate.
    """
    from kdcache.evals import check_teacher
    from kdcache.images import open_images
    from kdcache.progress import progress_bar
    from kdcache.teachers import load_teacher

    found = check_teacher(
        load_teacher(name, weights=weights, image_size=image_size, bar=progress_bar),
        open_images(data),
        num_images=images,
        policy=policy,
        device=open_device(device),
        workers=num_workers(workers),
        bar=progress_bar,
    )
    for line in found.lines():
        typer.echo(line)
    for problem in found.problems():
        typer.echo(f"wrong: {problem}", err=True)
    if found.problems():
        raise typer.Exit(1)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
