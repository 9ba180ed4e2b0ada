"""`kdcache report`: what runs were, how they went and what they are worth."""

from pathlib import Path
from typing import Annotated

import typer

from kdcache.errors import ConfigError

from ._options import DeviceOption, OfflineOption, WorkersOption, num_workers, open_device


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs, finished or not.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write.", show_default="report.html; standard output for text"
        ),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The tables as Markdown instead of a page.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="A row for each score, as CSV, instead of a page.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Held-out images, a folder for each class: adds maps and nearest neighbours.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="With --data: ask this teacher beside the students.", show_default=False),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="With --teacher: its checkpoint.", show_default="downloaded"),
    ] = None,
    teacher_size: Annotated[
        int | None,
        typer.Option(
            min=8, help="With --teacher: side in pixels.", show_default="what runs recorded"
        ),
    ] = None,
    offline: OfflineOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
) -> None:
    """One page that needs no network: runs, curves, scores beside published figures, costs, time.

    Scores are those that `kdcache eval RUN` has kept in the run's folder.
    """
    _check_options(as_markdown, as_csv, data, teacher, weights, teacher_size)

    from kdcache.progress import progress_bar
    from kdcache.report import Form, HeldOut, make_report, save_report

    form: Form = "markdown" if as_markdown else "csv" if as_csv else "html"
    held_out = None
    if data is not None:
        run_on, processes = open_device(device), num_workers(workers)
        held_out = HeldOut(data, teacher, weights, teacher_size, run_on, processes)
    text = make_report(runs, form, held_out=held_out, bar=progress_bar)
    if out is None and form != "html":
        typer.echo(text, nl=False)
        return
    file = out or Path("report.html")
    save_report(file, text)
    typer.echo(f"{file}: {len(text.encode()) / 1e6:.2f} MB", err=True)


def _check_options(as_markdown: bool, as_csv: bool, data: Path | None, teacher: str | None,
                   weights: Path | None, teacher_size: int | None) -> None:  # fmt: skip
    """An option that would be ignored is an error."""
    if as_markdown and as_csv:
        raise ConfigError("--markdown and --csv are two forms", hint="leave one of them out")
    if data is not None and (as_markdown or as_csv):
        raise ConfigError(
            "--data adds pictures, which text cannot hold", hint="leave --markdown or --csv out"
        )
    for option, value, needs, there in (
        ("--teacher", teacher, "--data", data),
        ("--weights", weights, "--teacher", teacher),
        ("--teacher-size", teacher_size, "--teacher", teacher),
    ):
        if value is not None and there is None:
            raise ConfigError(
                f"{option} `{value}` is given without {needs}", hint=f"add {needs}, or leave it out"
            )
