"""A report from end to end: read the runs, look at held-out images, write one text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kdcache.errors import ConfigError, MissingExtra
from kdcache.files import write_atomic
from kdcache.progress import Bar
from kdcache.report.read import read_runs
from kdcache.report.space import HeldOut, look
from kdcache.report.tables import comma_separated, markdown

Form = Literal["html", "markdown", "csv"]


def make_report(
    paths: Sequence[Path], form: Form, *, held_out: HeldOut | None = None, bar: Bar
) -> str:
    """The report of these runs.

    Args:
        held_out: images for the maps and neighbours of a page; without them there are none.

    Raises:
        ConfigError: a folder is no run, or its files are damaged.
        DataError: scores, students or images are damaged.
        TeacherError: the teacher is not the one that the runs learned from, or cannot be had.
        MissingExtra: a page is asked for, and what draws it is not installed.
    """
    runs = read_runs(paths)
    if form == "markdown":
        return markdown(runs)
    if form == "csv":
        return comma_separated(runs)
    try:
        from kdcache.report.page import render_page
    except ImportError as error:
        raise MissingExtra(
            f"a page needs `{error.name}`, which is not installed",
            hint="pip install 'kdcache[report]', or ask for --markdown or --csv",
        ) from error
    space = look(runs, held_out, bar) if held_out is not None else None
    return render_page(runs, space, bar)


def save_report(out: Path, text: str) -> None:
    """Write a report, in place of an older one.

    Raises:
        ConfigError: something else is there.
    """
    data = text.encode()
    first_line = data[: data.index(b"\n") + 1]
    if out.is_dir() or (out.exists() and not out.read_bytes().startswith(first_line)):
        raise ConfigError(
            f"`{out}` is there, and no report of this form", hint="give --out another name"
        )
    write_atomic(out, data)
