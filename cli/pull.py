"""`kdcache pull`: a cache, or a part of it, comes from where it was pushed to."""

from pathlib import Path
from typing import Annotated

import typer

from kdcache.errors import ConfigError

from ._options import array_names


def pull(
    url: Annotated[
        str,
        typer.Argument(
            help="Where it is: as for `kdcache push`, or http(s)://; URL@IDENTITY for one that the "
            "place held before.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="CACHE", help="A folder to make.", show_default=False)
    ],
    views: Annotated[
        int | None, typer.Option(min=1, help="The first views.", show_default="all")
    ] = None,
    arrays: Annotated[
        str | None, typer.Option(help="feature, embedding; by commas.", show_default="all")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="FIRST:END, END not included; may be repeated.", show_default="all"),
    ] = None,
) -> None:
    """Fetch a cache; only the bytes of what is asked for, and only those that are not here yet.

    After an interruption the same command goes on. A part has the identity of the whole; a wider
    pull adds to it. Prints the identity.
    """
    from kdcache.progress import progress_bar
    from kdcache.share import describe, pull_cache
    from kdcache.store import read_manifest

    done = pull_cache(
        url,
        out,
        arrays=array_names(arrays),
        num_views=views,
        rows=tuple(map(_rows, rows)) if rows else None,
        bar=progress_bar,
    )
    typer.echo(f"{done.num_files} files fetched, {done.num_bytes / 1e6:,.1f} MB", err=True)
    if done.copy is not None:
        manifest, _ = read_manifest(out)
        typer.echo(f"a part: {describe(done.copy.selection, manifest)}", err=True)
    typer.echo(done.identity)


def _rows(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal()):
        raise ConfigError(f"`--rows {text}` are no rows", hint="--rows 0:100000")
    return int(start), int(stop)
