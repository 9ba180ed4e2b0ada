"""`kdcache push`: a cache goes to where others find it."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    cache: Annotated[Path, typer.Argument(help="A cache.", show_default=False)],
    url: Annotated[
        str,
        typer.Argument(
            help="s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, hf://datasets/ORG/NAME, "
            "or a folder.",
            show_default=False,
        ),
    ],
    public: Annotated[
        bool,
        typer.Option("--public", help="A repository of the Hub that is made is for everyone."),
    ] = False,
    data_licence: Annotated[
        str | None,
        typer.Option(
            help="Of the images, for the card that the Hub shows.", show_default="not stated"
        ),
    ] = None,
) -> None:
    """Put a cache at a place; after an interruption the same command goes on.

    What is there with the right digest is not sent again. The place becomes a cache all at once, at
    the end. One that holds what this cache has grown from, or the same views and fewer, keeps that
    too: `kdcache pull URL@IDENTITY`. Prints what the cache is called there.
    """
    from kdcache.progress import progress_bar
    from kdcache.share import push_cache
    from kdcache.store import open_cache

    done = push_cache(
        open_cache(cache), url, bar=progress_bar, data_licence=data_licence, public=public
    )
    typer.echo(f"{done.num_sent} files sent, {done.sent_bytes / 1e6:,.1f} MB", err=True)
    if done.replaced is not None:
        typer.echo(f"follows {done.replaced}, which is kept", err=True)
    typer.echo(done.name)
