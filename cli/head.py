"""`kdcache head`: a projection head for a teacher that has none."""

from typing import Annotated, Literal

import typer

from ._options import cache_to_grow


def head(
    cache: Annotated[str, typer.Argument(help="A cache of features, to which it is added.")],
    method: Annotated[
        Literal["infonce", "whiten"],
        typer.Option(
            help="infonce: two layers for which two views of an image are alike; whiten: its "
            "principal components at equal strength, which one view is enough for."
        ),
    ] = "infonce",
    dim: Annotated[int, typer.Option(min=1, help="Width of the embedding.")] = 128,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Batches of infonce; 300 unless given, but at most 50 epochs."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of first weights, batches and samples.")] = 0,
) -> None:
    """Fit a projection head on the cached features alone, and keep it in the cache.

    With it, methods that distil an embedding (SEED, DisCo, Retro) can learn from a teacher that
    comes without a head. Prints what it does to kNN and to SEED's target.
    """
    from kdcache.derive import run_head
    from kdcache.progress import progress_bar

    report = run_head(
        cache_to_grow(cache), method=method, dim=dim, steps=steps, seed=seed, bar=progress_bar
    )
    for line in report.lines():
        typer.echo(line, err=True)
    typer.echo(report.cache.identity)
