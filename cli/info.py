"""`kdcache info`: what a cache holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import JsonOption

if TYPE_CHECKING:
    from kdcache.store import Cache


def info(
    cache: Annotated[
        str,
        typer.Argument(help="A cache: its path, or the URL of a pushed one.", show_default=False),
    ],
    history: Annotated[
        bool, typer.Option("--history", help="The caches that a place has held and still keeps.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What a cache holds, from whom, and how it was made."""
    import json
    from tempfile import TemporaryDirectory

    from kdcache.share import history_lines, is_url, lineage, look_at, open_place, split_identity
    from kdcache.store import open_cache

    url, identity = split_identity(cache)
    if history:
        typer.echo("\n".join(history_lines(lineage(open_place(url)))))
        return
    with TemporaryDirectory() as folder:
        is_far = is_url(url) or identity is not None
        opened = look_at(open_place(url), identity, Path(folder)) if is_far else open_cache(url)
        about, recipe = _about(opened), opened.recipe
        if as_json and "fidelity" in about:
            about["fidelity"] = opened.fidelity()
    if as_json:
        typer.echo(json.dumps({**about, "recipe": recipe}, indent=2))
        return
    for name, value in about.items():
        typer.echo(f"{name:12} {value}")


def _about(cache: "Cache") -> dict[str, Any]:
    from kdcache.share import describe
    from kdcache.store import describe_fidelity, describe_graph, describe_head

    recipe, origin, graph = cache.recipe, cache.head_origin(), cache.graph_attributes()
    teacher, views = recipe["teacher"], recipe["views"]
    arrays = [f"{s.name} {s.dtype}[{cache.num_rows}, {cache.num_views}, {s.dim}]"
              for s in cache.arrays.values()]  # fmt: skip
    kept = [f"{name} {describe_fidelity(figures)}" for name, figures in cache.fidelity().items()]
    return {
        "identity": cache.identity,
        "grown from": ", ".join(cache.lineage[1:]) or "nothing",
        "teacher": f"{teacher['name']} at {teacher['image_size']} px, {recipe['precision']}",
        "weights": f"{teacher['weights']['source']}, sha256 {teacher['weights']['sha256']}",
        "licence": teacher.get("licence") or "not known",
        "images": f"{cache.num_rows:,} in {len(cache.classes)} classes, "
        f"{cache.manifest.num_readable:,} readable",
        "fingerprint": recipe["images"]["fingerprint"],
        "views": f"{cache.num_views} of `{views['policy']['name']}` version "
        f"{views['policy']['version']}, seed {views['seed']}, renderer {views['renderer']['id']}",
        "arrays": "; ".join(arrays),
        **({"fidelity": "; ".join(kept)} if kept else {}),
        "head": "none" if origin is None else describe_head(origin),
        "neighbours": "none" if graph is None else describe_graph(graph),
        "here": "all of it"
        if cache.copy is None
        else describe(cache.copy.selection, cache.manifest),
        "size": f"{sum(f.num_bytes for f in cache.manifest.files.values()) / 1e6:,.1f} MB",
    }
