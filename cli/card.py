"""`kdcache card`: what a cache is, for those who find it."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    cache: Annotated[Path, typer.Argument(help="A cache.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="A file to write.", show_default="standard output")
    ] = None,
    data_licence: Annotated[
        str | None,
        typer.Option(help="Licence of the images, as you know it.", show_default="not stated"),
    ] = None,
    url: Annotated[str, typer.Option(help="Where the cache is to be had.")] = "URL",
) -> None:
    """A README.md: teacher, images, licences, views, sizes, quality, use and citation.

    All of it comes from the cache; the figures of quality are measured. `kdcache push` to the
    Hugging Face Hub makes it the dataset card.
    """
    from kdcache.files import write_atomic
    from kdcache.share.card import make_card
    from kdcache.store import open_cache

    text = make_card(open_cache(cache), url=url, data_licence=data_licence)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(out, text.encode())
