"""`kdcache train`: distil a student, or several from one pass over the images."""

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.errors import ConfigError

from ._options import (
    DataOption,
    DeviceOption,
    OfflineOption,
    WorkersOption,
    any_cache,
    import_beside,
    num_workers,
    open_device,
    parse_bytes,
    say,
)

if TYPE_CHECKING:
    from kdcache.progress import Bar
    from kdcache.recipe import Recipe
    from kdcache.store import Cache
    from kdcache.train import Job, Outcome

_EVAL_EVERY = 10

_STOPPED = {signal.SIGINT: 130, signal.SIGTERM: os.EX_TEMPFAIL}
"""Exit codes of a run that a signal stopped: the shell's for Ctrl-C, and "try again" (75)."""


def train(
    data: DataOption,
    out: Annotated[
        Path,
        typer.Option(
            help="The run: a folder to make, or to go on with. With several recipes, one folder a "
            "recipe in it, named as its file.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str | None, typer.Option(help="What is asked of the student: `kdcache methods`.")
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="What the teacher said: made by `kdcache extract`, or the URL of a pushed cache; "
            "several teachers by repeating it, for a method that takes them. With several recipes, "
            "`NAME=CACHE` is for the one of that file name alone."
        ),
    ] = None,
    student: Annotated[str | None, typer.Option(help="A timm model, such as resnet18.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="A recipe: see configs/. Repeat it to train several students side by side on the "
            "same views, which are rendered once."
        ),
    ] = None,
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
    SIGTERM ends it after the step, with a checkpoint and exit code 75; Ctrl-C does, with 130.
    """
    import_beside(workers, "kdcache.train.data")
    from kdcache import distributed
    from kdcache.evals import watch
    from kdcache.images import open_images
    from kdcache.progress import progress_bar, silent_bar
    from kdcache.recipe import load_recipe
    from kdcache.share import is_url
    from kdcache.train import Online, run_together

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
    files: list[Path | None] = [*config] if config else [None]
    names = _names(config or [])
    recipes = [
        load_recipe(file, method=method, student=student, overrides=override or ())
        for file in files
    ]
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
        outcomes = run_together(
            _jobs(recipes, names, out, cache or [], stack, limit, bar),
            open_images(data),
            online=Online(weights) if online else None,
            watch=watching,
            device=place,
            workers=num_workers(workers),
            bar=progress_bar,
            tell=say,
        )
        _report(outcomes, aloud=distributed.is_first())


def _names(config: Sequence[Path]) -> list[str]:
    """What several recipes are called; empty where there is but one.

    Raises:
        ConfigError: two have one name.
    """
    names = [path.stem for path in config] if len(config) > 1 else []
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two recipes are called `{name}`, and each names its run",
                hint="give one of the files another name",
            )
    return names


def _jobs(
    recipes: "Sequence[Recipe]",
    names: Sequence[str],
    out: Path,
    caches: Sequence[str],
    stack: ExitStack,
    limit_bytes: int,
    bar: "Bar",
) -> "list[Job]":
    """A run for each recipe, with its caches open until the stack is left."""
    from kdcache.train import Job

    opened: dict[str, Cache] = {}

    def cache_at(place: str) -> "Cache":
        if place not in opened:
            opened[place] = stack.enter_context(any_cache(place, limit_bytes=limit_bytes, bar=bar))
        return opened[place]

    if not names:
        return [Job(recipes[0], out, [cache_at(place) for place in caches])]
    jobs = []
    for name, recipe in zip(names, recipes, strict=True):
        own = []
        for text in caches:
            whose, equals, place = text.partition("=")
            if not equals or whose not in names:
                whose, place = name, text  # for all
            if whose == name and recipe.needs.target is not None:
                own.append(cache_at(place))
        jobs.append(Job(recipe, out / name, own))
    return jobs


def _report(outcomes: "Sequence[Outcome]", *, aloud: bool) -> None:
    """Say how the runs ended, and leave with the exit code for it in every process.

    Args:
        aloud: whether this is the process that talks.
    """
    for outcome in outcomes:
        step = outcome.last.get("step", 0)
        if outcome.student is None:
            if aloud:
                typer.echo(f"stopped at step {step}; the same command goes on", err=True)
        elif aloud:
            typer.echo(f"loss {outcome.last['loss']:.4f} after {step} steps", err=True)
            typer.echo(str(outcome.student))
    stopped_by = outcomes[0].stopped_by
    if stopped_by:
        raise typer.Exit(_STOPPED[signal.Signals(stopped_by)])
