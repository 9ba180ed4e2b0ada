"""`kdcache neighbours`: the kNN graph of a cache."""

from typing import Annotated, Literal

import typer

from kdcache.errors import ConfigError

from ._options import cache_to_grow


def neighbours(
    cache: Annotated[str, typer.Argument(help="A cache, to which it is added.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbours of each image.")] = 5,
    array: Annotated[
        Literal["feature", "embedding"] | None,
        typer.Option(help="What is compared; the feature unless given, where the cache holds it."),
    ] = None,
    index: Annotated[
        Literal["exact", "ivf"],
        typer.Option(help="ivf is for millions of images: much faster, and it says its recall."),
    ] = "exact",
    nprobe: Annotated[
        int | None,
        typer.Option(min=1, help="Lists that ivf opens for an image; 16 unless given."),
    ] = None,
) -> None:
    """Find the images that the teacher finds most alike, by FAISS, and keep them in the cache.

    An image is the mean of its cached views. BINGO learns from the graph. A cache has one graph.
    """
    from kdcache.derive import run_neighbours
    from kdcache.progress import progress_bar

    if nprobe is not None and index == "exact":
        raise ConfigError("an exact search has no lists", hint="leave --nprobe out, or --index ivf")
    report = run_neighbours(
        cache_to_grow(cache), k=k, array=array, index=index, nprobe=nprobe or 16, bar=progress_bar
    )
    for line in report.lines():
        typer.echo(line, err=True)
    typer.echo(report.cache.identity)
