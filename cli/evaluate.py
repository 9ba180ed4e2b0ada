"""`kdcache eval`: what a network is worth."""

import os
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
    say,
)

if TYPE_CHECKING:
    from kdcache.evals import Score, Subject
    from kdcache.store import Cache


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a student's file, a run's checkpoint.pt, teacher:NAME, "
            "timm:MODEL or untrained:MODEL.",
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
        str, typer.Option(help="By commas, such as knn:dino,linear:moco: `kdcache protocols`.")
    ] = "knn,fast-linear",
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="protocol.key=value, such as linear.epochs=10, for all presets of the protocol; "
            "the result says that it is not the preset. May be repeated.",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            "--k", help="Neighbours for knn and knn:weighted, by commas.", show_default="1,10,20"
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="The view to judge by: center (7/8 of the image), or full.",
            show_default="the protocol's own, mostly center",
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Of a teacher.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Side in pixels.", show_default="the network's own")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="val or test.", show_default="val if there is one")
    ] = None,
    labelled_list: Annotated[
        Path | None,
        typer.Option(
            "--labelled-list",
            help="For semi-...: the images whose labels may be used, a name a line.",
            show_default="a share of each class by a seed",
        ),
    ] = None,
    transfer: Annotated[
        Path | None, typer.Option(help="For transfer-...: another data set, laid out like --data.")
    ] = None,
    ood: Annotated[
        Path | None,
        typer.Option(help="For ood: a folder of other images a class, named as in --data."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="For fidelity: what the teacher said of --data's train/.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="For fidelity: the teacher, if there is no cache.")
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="Of that teacher.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Keeps features for the next command.", show_default="features/ in a run's folder"
        ),
    ] = None,
    references: Annotated[
        bool, typer.Option("--references", help="Chance, pixels, an untrained network beside it.")
    ] = False,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a network's features are worth, by the protocols of the papers.

    Features are computed once for all protocols, and kept for the next command where there is a
    folder for them. The scores of a run are kept in its folder, for `kdcache report`.
    """
    import json

    from kdcache.evals import (
        Beside,
        Score,
        Subject,
        ask,
        chance,
        examine,
        examine_pixels,
        keep_scores,
        open_labelled,
        open_splits,
        open_subject,
        untrained_like,
    )
    from kdcache.progress import progress_bar
    from kdcache.students import STUDENT_FILE
    from kdcache.table import format_table

    protocols, ks = protocol.split(","), _numbers(k)
    ask(protocols, overrides=override or (), ks=ks, policy=policy)  # before anything is opened
    if teacher_weights is not None and teacher is None:
        raise ConfigError(
            f"--teacher-weights `{teacher_weights}` is given, but no --teacher",
            hint="add --teacher NAME, or leave --teacher-weights out",
        )
    splits = open_splits(data, split, bar=progress_bar)
    subject = open_subject(target, weights=weights, image_size=image_size, bar=progress_bar)
    run_on, processes = open_device(device), num_workers(workers)
    beside = Beside(
        transfer=open_splits(transfer, bar=progress_bar) if transfer else None,
        ood=open_labelled(ood, bar=progress_bar) if ood else None,
        labelled_list=labelled_list,
        teacher=_open_teacher(cache, teacher, teacher_weights),
    )
    keep = features or _folder_of(target)

    def scores_of(subject: Subject) -> list[Score]:
        return examine(
            subject,
            splits,
            protocols,
            overrides=override or (),
            ks=ks,
            policy=policy,
            beside=beside,
            keep=keep,
            device=run_on,
            workers=processes,
            bar=progress_bar,
            tell=say,
        )

    own = scores_of(subject)
    results: dict[str, list[Score]] = {}
    if references:
        pixels = examine_pixels(
            splits,
            protocols,
            overrides=override or (),
            ks=ks,
            beside=beside,
            workers=processes,
            bar=progress_bar,
        )
        results[_PIXELS] = pixels
        other = untrained_like(subject)
        results[other.name] = scores_of(other)
    results[subject.name] = own
    if (Path(target) / STUDENT_FILE).is_file() and os.access(target, os.W_OK):
        keep_scores(Path(target), own, splits, beside)

    if as_json:
        typer.echo(
            json.dumps({name: [s.to_dict() for s in scores] for name, scores in results.items()})
        )
        return
    cells = {name: _cells(own, scores) for name, scores in results.items()}
    if references:
        cells = {"chance": [_percent(chance(s)) for s in own], **cells}
    rows = [
        [f"{score.label} {score.metric}", *line]
        for score, *line in zip(own, *cells.values(), strict=True)
    ]
    head = f"{splits.test_name}, percent or 0.000 to 1.000"
    typer.echo(format_table([head, *cells], rows))


_PIXELS = "pixels 16x16"


def _cells(own: "list[Score]", scores: "list[Score]") -> list[str]:
    """The values beside our own rows; pixels have some of them only, in the same order."""
    from kdcache.evals import get_protocol

    if len(scores) == len(own):
        return [score.text for score in scores]
    left = iter(scores)
    return [next(left).text if get_protocol(s.protocol).of_features else "-" for s in own]


def _percent(value: float) -> str:
    return f"{value:.1f}" if value == value else "-"


def _open_teacher(
    cache: Path | None, name: str | None, weights: Path | None
) -> "Cache | Subject | None":
    """What fidelity is measured against."""
    from kdcache.evals import open_subject
    from kdcache.progress import progress_bar
    from kdcache.store import open_cache

    if cache is not None and name is not None:
        raise ConfigError(
            f"--cache `{cache}` and --teacher `{name}` are both given",
            hint="leave one of them out: the cache is what the teacher said",
        )
    if cache is not None:
        return open_cache(cache)
    if name is None:
        return None
    target = name if ":" in name else f"teacher:{name}"
    return open_subject(target, weights=weights, bar=progress_bar)


def _folder_of(target: str) -> Path | None:
    """Where features of a run are kept, unless its folder may not be written to."""
    run = Path(target)
    if not run.is_dir():
        return None
    if not os.access(run, os.W_OK):
        say(f"`{run}` may not be written to: nothing is kept there; --features DIR keeps features")
        return None
    return run / "features"


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"`--k {text}` are no numbers", hint="--k 1,10,20") from None
