"""`kdcache train`: distil a student."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from kdcache.errors import ConfigError

from ._options import (
    DataOption,
    DeviceOption,
    OfflineOption,
    WorkersOption,
    any_cache,
    num_workers,
    open_device,
    parse_bytes,
    say,
)

_EVAL_EVERY = 10


def train(
    data: DataOption,
    out: Annotated[
        Path, typer.Option(help="The run: a folder to make, or to go on with.", show_default=False)
    ],
    method: Annotated[
        str | None, typer.Option(help="What is asked of the student: `kdcache methods`.")
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="What the teacher said: made by `kdcache extract`, or the URL of a pushed cache; "
            "several teachers by repeating it, for a method that takes them."
        ),
    ] = None,
    student: Annotated[str | None, typer.Option(help="A timm model, such as resnet18.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe: see configs/.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="table.key=value, such as train.epochs=20; may be repeated."),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online", help="Ask the teacher of the cache anew on the same views: the control."
        ),
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(help="With --online: the teacher's checkpoint.", show_default="downloaded"),
    ] = None,
    local_size: Annotated[
        str | None,
        typer.Option(
            help="With the URL of a cache: disk that views of far caches may take up here. The "
            "next epoch's views are fetched ahead where those of two epochs fit.",
            show_default="50GB",
        ),
    ] = None,
    eval_data: Annotated[
        Path | None,
        typer.Option(
            "--eval-data",
            help="Labelled images kept out of the training: kNN and fast linear of the student on "
            "them go into metrics.jsonl and TensorBoard. Holds train/ and val/ or test/, or a "
            "folder a class.",
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option("--eval-every", min=1, help="Epochs between.", show_default="10"),
    ] = None,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Train a student from a cache; the method's own settings are its paper's.

    Run the same command again after any interruption: it goes on where it stopped. For several
    processes: `torchrun --nproc-per-node N -m kdcache_cli train ...`, with the same results.
    """
    from kdcache import distributed
    from kdcache.evals import watch
    from kdcache.images import open_images
    from kdcache.progress import progress_bar, silent_bar
    from kdcache.recipe import load_recipe
    from kdcache.share import is_url
    from kdcache.train import Online, run_training

    if weights is not None and not online:
        raise ConfigError(
            f"--weights `{weights}` is given, but the teacher is not asked again",
            hint="add --online, or leave --weights out: the cache holds what the teacher said",
        )
    if local_size is not None and not any(is_url(name) for name in cache or ()):
        raise ConfigError(
            f"--local-size `{local_size}` is given, but no cache is far away",
            hint="leave --local-size out, or give the URL of a pushed cache",
        )
    if eval_every is not None and eval_data is None:
        raise ConfigError(
            f"--eval-every `{eval_every}` is given, but nothing to evaluate on",
            hint="add --eval-data DIR, or leave --eval-every out",
        )
    limit = parse_bytes("--local-size", local_size or "50GB")
    recipe = load_recipe(config, method=method, student=student, overrides=override or ())
    place = distributed.local_device(open_device(device))
    with distributed.process_group(place), ExitStack() as stack:
        bar = progress_bar if distributed.is_first() else silent_bar
        watching = None
        if eval_data is not None:
            watching = watch(
                eval_data,
                eval_every or _EVAL_EVERY,
                device=place,
                workers=num_workers(workers),
                tell=say,
                bar=bar,
            )
        outcome = run_training(
            recipe,
            open_images(data),
            out,
            caches=[
                stack.enter_context(any_cache(c, limit_bytes=limit, bar=bar)) for c in cache or ()
            ],
            online=Online(weights) if online else None,
            watch=watching,
            device=place,
            workers=num_workers(workers),
            bar=progress_bar,
            tell=say,
        )
        if not distributed.is_first():
            return
    if outcome.student is None:
        typer.echo(
            f"stopped at step {outcome.last.get('step', 0)}; the same command goes on", err=True
        )
        raise typer.Exit(130)
    typer.echo(f"loss {outcome.last['loss']:.4f} after {outcome.last['step']} steps", err=True)
    typer.echo(str(outcome.student))
