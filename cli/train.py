"""`kdcache train`: distil a student."""

from pathlib import Path
from typing import Annotated

import typer

from ._options import DataOption, DeviceOption, WorkersOption, num_workers, open_device


def train(
    data: DataOption,
    out: Annotated[
        Path, typer.Option(help="The run: a folder to make, or to go on with.", show_default=False)
    ],
    method: Annotated[
        str | None, typer.Option(help="What is asked of the student: `kdcache methods`.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="What the teacher said: made by `kdcache extract`.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="A timm model, such as resnet18.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe: see configs/.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="table.key=value, such as train.epochs=20; may be repeated."),
    ] = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Train a student from a cache; the method's own settings are its paper's.

    Run the same command again after any interruption: it goes on where it stopped.
    """
    from kdcache.images import open_images
    from kdcache.progress import progress_bar
    from kdcache.recipe import load_recipe
    from kdcache.store import open_cache
    from kdcache.train import run_training

    recipe = load_recipe(config, method=method, student=student, overrides=override or ())
    outcome = run_training(
        recipe,
        open_images(data),
        out,
        cache=open_cache(cache) if cache is not None else None,
        device=open_device(device),
        workers=num_workers(workers),
        bar=progress_bar,
    )
    for note in outcome.notes:
        typer.echo(f"note: {note}", err=True)
    if outcome.student is None:
        typer.echo(
            f"stopped at step {outcome.last.get('step', 0)}; the same command goes on", err=True
        )
        raise typer.Exit(130)
    typer.echo(f"loss {outcome.last['loss']:.4f} after {outcome.last['step']} steps", err=True)
    typer.echo(str(outcome.student))
