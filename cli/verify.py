"""`kdcache verify`: is a cache what its manifest promises?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from kdcache.teachers import Teacher
    from kdcache.verify import Repair, Verdict


def verify(
    cache: Annotated[Path, typer.Argument(help="A cache.", show_default=False)],
    quick: Annotated[
        bool, typer.Option("--quick", help="Read a sample of the shards: seconds at any size.")
    ] = False,
    teacher: Annotated[
        bool,
        typer.Option("--teacher", help="Show the teacher a sample of the views again (--data)."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="The images, matched by the hash of their bytes.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="The teacher's checkpoint.", show_default="downloaded"),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring broken files back, bit for bit.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="With --repair: another copy; a folder, s3://, https://, hf:// ...",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    as_json: JsonOption = False,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """Compare every file of a cache with the manifest, and look at every row.

    With --data, images that are missing or have changed are found too; with --teacher, what it
    says of 64 views and of the witness is compared with the cache, after their pixels. --repair
    works broken files out of the others, fetches them from a copy, or makes them again from --data.

    Exit codes: 0 the cache is whole (with --repair: now); 1 something is wrong, a line each on
    standard output; 2 wrong usage; 3 it could not be checked: no cache, an unfinished one, one of a
    newer format, or a teacher or images that cannot be had.
    """
    import json

    from kdcache.images import open_images
    from kdcache.progress import progress_bar
    from kdcache.verify import Means, copy_at, repair_cache, verify_cache

    _refuse_combinations(quick, teacher, data, weights, repair, source)
    images = None if data is None else open_images(data)

    def ask() -> "Teacher":
        return _teacher(cache, weights)

    report = None
    if repair:
        means = None
        if images is not None:
            means = Means(images, ask, open_device(device), num_workers(workers), progress_bar)
        copy = None if source is None else copy_at(source)
        verdict, report = repair_cache(cache, copy=copy, means=means, bar=progress_bar)
    else:
        verdict = verify_cache(cache, quick=quick, seed=seed, bar=progress_bar)
    if images is not None:
        _look_at_images(verdict, images, ask if teacher else None, seed, device)
    if as_json:
        about: dict[str, Any] = verdict.to_dict()
        if report is not None:
            about["repair"] = {"mended": report.mended, "refused": report.refused}
        typer.echo(json.dumps(about, indent=2))
    else:
        _tell(verdict, report)
    raise typer.Exit(0 if verdict.whole else 1)


def _look_at_images(
    verdict: "Verdict", images: Any, ask: Any, seed: int, device: str | None
) -> None:
    from kdcache.progress import progress_bar
    from kdcache.store import open_cache
    from kdcache.verify import check_images, check_teacher

    if verdict.broken_files:
        verdict.notes.append("images were not looked at, for files of the cache are broken")
        return
    opened = open_cache(verdict.path)
    thorough = verdict.mode == "full"
    matched = check_images(verdict, opened, images, thorough=thorough, bar=progress_bar)
    if ask is not None:
        check_teacher(
            verdict, opened, images, matched, ask(),
            seed=seed, device=open_device(device), bar=progress_bar,
        )  # fmt: skip


def _teacher(cache: Path, weights: Path | None) -> "Teacher":
    """The teacher that the cache names; asked for once its recipe is known to be whole."""
    import json

    from kdcache.extract import teacher_of

    return teacher_of(json.loads((cache / "recipe.json").read_bytes()), weights, cache)


def _tell(verdict: "Verdict", report: "Repair | None") -> None:
    for line in report.lines() if report is not None else ():
        typer.echo(line, err=True)
    for note in verdict.notes:
        say(note)
    for problem in verdict.problems:
        typer.echo(str(problem))
    checked = f"{verdict.num_files:,} files, {verdict.num_rows:,} rows"
    if verdict.whole and verdict.mode == "full":
        typer.echo(f"{checked}: all as promised", err=True)
    elif verdict.whole:
        typer.echo(f"{checked}: the sample is as promised", err=True)


def _refuse_combinations(
    quick: bool,
    teacher: bool,
    data: Path | None,
    weights: Path | None,
    repair: bool,
    source: str | None,
) -> None:
    if teacher and data is None:
        raise typer.BadParameter("--teacher needs the images: --data DIR")
    if weights is not None and not teacher and not (repair and data is not None):
        raise typer.BadParameter("--weights is for --teacher, or for --repair with --data")
    if source is not None and not repair:
        raise typer.BadParameter("--from is for --repair")
    if quick and repair:
        raise typer.BadParameter("--repair reads all of the cache: leave --quick out")
