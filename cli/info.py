"""`kdcache info`: what a cache holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import JsonOption

if TYPE_CHECKING:
    from kdcache.store import Cache


def info(
    cache: Annotated[Path, typer.Argument(help="A cache.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """What a cache holds, from whom, and how it was made."""
    import json

    from kdcache.store import open_cache

    opened = open_cache(cache)
    about = _about(opened)
    if as_json:
        if "fidelity" in about:
            about["fidelity"] = opened.fidelity()
        typer.echo(json.dumps({**about, "recipe": opened.recipe}, indent=2))
        return
    for name, value in about.items():
        typer.echo(f"{name:12} {value}")


def _about(cache: "Cache") -> dict[str, Any]:
    from kdcache.store import describe_fidelity, describe_graph, describe_head

    recipe, origin, graph = cache.recipe, cache.head_origin(), cache.neighbours()
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
        f"{int(cache.readable.sum()):,} readable",
        "fingerprint": recipe["images"]["fingerprint"],
        "views": f"{cache.num_views} of `{views['policy']['name']}` version "
        f"{views['policy']['version']}, seed {views['seed']}, renderer {views['renderer']['id']}",
        "arrays": "; ".join(arrays),
        **({"fidelity": "; ".join(kept)} if kept else {}),
        "head": "none" if origin is None else describe_head(origin),
        "neighbours": "none" if graph is None else describe_graph(graph.attributes),
        "size": f"{sum(f.num_bytes for f in cache.manifest.files.values()) / 1e6:,.1f} MB",
    }
