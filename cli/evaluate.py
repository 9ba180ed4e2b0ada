"""`kdcache eval`: what a network is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.errors import ConfigError

from ._options import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    WorkersOption,
    num_workers,
    open_device,
)

if TYPE_CHECKING:
    from kdcache.evals import Score


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a student's file, teacher:NAME, timm:MODEL or untrained:MODEL.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Holds train/ and val/ or test/, each with a folder of images a class.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        str, typer.Option(help="knn, knn-weighted, linear, linear-augmented; by commas.")
    ] = "knn,linear",
    k: Annotated[str, typer.Option("--k", help="Neighbours for kNN, by commas.")] = "1,10,20",
    policy: Annotated[
        str, typer.Option(help="The view to judge by: center (7/8 of the image), or full.")
    ] = "center",
    weights: Annotated[Path | None, typer.Option(help="Of a teacher.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Side in pixels.", show_default="the network's own")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="val or test.", show_default="val if there is one")
    ] = None,
    references: Annotated[
        bool, typer.Option("--references", help="Chance, pixels, an untrained network beside it.")
    ] = False,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """kNN and linear accuracy of a network's frozen features, in percent."""
    import json

    from kdcache.evals import (
        Score,
        Subject,
        chance,
        check_protocols,
        examine,
        examine_pixels,
        open_splits,
        open_subject,
        untrained_like,
    )
    from kdcache.progress import progress_bar
    from kdcache.table import format_table

    protocols = protocol.split(",")
    check_protocols(protocols)
    ks = _numbers(k)
    splits = open_splits(data, split, bar=progress_bar)
    subject = open_subject(target, weights=weights, image_size=image_size, bar=progress_bar)
    run_on, processes = open_device(device), num_workers(workers)

    def scores_of(subject: Subject) -> list[Score]:
        return examine(
            subject,
            splits,
            protocols,
            ks=ks,
            policy=policy,
            device=run_on,
            workers=processes,
            bar=progress_bar,
        )

    results: dict[str, list[Score]] = {}
    if references:
        results["pixels 16x16"] = examine_pixels(
            splits, protocols, ks=ks, workers=processes, bar=progress_bar
        )
        other = untrained_like(subject)
        results[other.name] = scores_of(other)
    own = scores_of(subject)
    results[subject.name] = own

    num_out = len(splits.test) - own[0].num_queries
    if num_out:
        typer.echo(f"note: {num_out} images of {splits.test_name} cannot be read", err=True)
    if as_json:
        typer.echo(
            json.dumps({name: [s.to_dict() for s in scores] for name, scores in results.items()})
        )
        return
    columns = {name: {_row(s): s.value for s in scores} for name, scores in results.items()}
    if references:
        columns = {"chance": {_row(s): chance(s) for s in own}, **columns}
    rows = [
        [_row(s), *(f"{v[_row(s)]:.1f}" if _row(s) in v else "-" for v in columns.values())]
        for s in own
    ]
    head = f"{own[0].num_queries:,} images of {splits.test_name}, percent"
    typer.echo(format_table([head, *columns], rows))


def _row(score: "Score") -> str:
    return f"{score.label} {score.metric}"


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"`--k {text}` are no numbers", hint="--k 1,10,20") from None
