"""The cache card: a README.md for people, made from a cache and from nothing else.

On the Hub it is the dataset card, so it begins with the Hub's YAML. What is not known is said to
be unknown. It ends with its own digest, by which a later push tells a card that somebody has
edited from one that it may replace.

*Source:* the keys of the YAML: `DatasetCardData` of huggingface_hub and the Hub's documentation of
dataset cards.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from kdcache.derive import HEADINGS, how_measured, measure
from kdcache.share.citation import cite_kdcache, cite_paper
from kdcache.store import Cache, describe_graph, describe_head
from kdcache.table import format_table
from kdcache.teachers import registered_teachers

NOT_STATED = "not stated"

_PULLED_VIEWS = 2  # in the example
_HUB_LICENCES = (
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0",
    "cc0-1.0", "mit",
)  # fmt: skip
_SIZES = (("<1K", 3), ("1K<n<10K", 4), ("10K<n<100K", 5), ("100K<n<1M", 6), ("1M<n<10M", 7),
          ("10M<n<100M", 8))  # fmt: skip
_SEAL = re.compile(r"<!-- made by kdcache, sha256 of the above: ([0-9a-f]{64}) -->\n\Z")


def make_card(cache: Cache, *, url: str = "URL", data_licence: str | None = None) -> str:
    """The card of a cache, in Markdown; measures the cache's arrays, which may take a minute.

    Args:
        url: where the cache is to be had.
        data_licence: of the images, in the words of whoever knows it.
    """
    licences = {
        "weights": _known(cache.recipe["teacher"].get("licence")),
        "data": _known(data_licence),
    }
    parts = [
        _front_matter(cache, licences),
        *_title(cache),
        *_teacher(cache.recipe),
        *_images(cache),
        *_licences(licences),
        *_views(cache),
        *_contents(cache),
        *_quality(cache),
        *_use(cache, url),
        *_provenance(cache),
        *_citation(cache.recipe),
    ]
    return seal("\n\n".join(parts) + "\n\n")


def seal(text: str) -> str:
    """A card with its own digest at the end."""
    return f"{text}<!-- made by kdcache, sha256 of the above: {_digest(text)} -->\n"


def is_unedited(card: str) -> bool:
    """Whether a card is as `seal` left it."""
    found = _SEAL.search(card)
    return found is not None and _digest(card[: found.start()]) == found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known(licence: str | None) -> str:
    text = " ".join((licence or "").split())
    return text if text and text != "unstated" else NOT_STATED


def _front_matter(cache: Cache, licences: Mapping[str, str]) -> str:
    name = cache.recipe["teacher"]["name"]
    word = _hub_licence(licences)
    keys: dict[str, Any] = {
        "license": word,
        "pretty_name": f"{name}: {cache.num_views} views of {cache.num_rows:,} images",
        "task_categories": ["image-feature-extraction"],
        "tags": ["kdcache", "knowledge-distillation", "self-supervised-learning", "zarr"],
        "size_categories": [_size_category(cache.num_rows)],
        "viewer": False,  # the rows are arrays, which the Hub's viewer does not read
    }
    if word == "other":
        keys["license_name"] = "see-the-section-licences"
    return f"---\n{DatasetCardData(**keys).to_yaml()}\n---"


def _hub_licence(licences: Mapping[str, str]) -> str:
    """One word for the Hub: a cache comes from two works, so it is seldom a plain licence."""
    both = {licence.lower() for licence in licences.values()}
    if NOT_STATED in both:
        return "unknown"
    word = both.pop()
    return word if not both and word in _HUB_LICENCES else "other"


def _size_category(num_rows: int) -> str:
    for name, digits in _SIZES:
        if num_rows < 10**digits:
            return f"n{name}" if name.startswith("<") else name
    return "100M<n<1B"


def _title(cache: Cache) -> list[str]:
    teacher = cache.recipe["teacher"]
    return [
        f"# What `{teacher['name']}` says of {cache.num_rows:,} images,"
        f" {cache.num_views} views each",
        "A kdcache cache: a frozen teacher has looked once at deterministic augmented views of"
        " every image, and this is what it said. Any number of small students can be distilled"
        " from it without running the teacher again. The images are not in it.",
        f"Identity: `{cache.identity}`",
    ]


def _teacher(recipe: Mapping[str, Any]) -> list[str]:
    teacher = recipe["teacher"]
    entry = registered_teachers().get(teacher["name"])
    weights = teacher["weights"]
    facts = {
        "name": f"`{teacher['name']}`" + (f": {entry.about}" if entry else ""),
        "paper": f"{entry.method}, {entry.paper}" if entry else "not known to kdcache",
        "trained on": entry.data if entry else "not known to kdcache",
        "architecture": f"`{teacher['architecture']}`",
        "weights": f"`{weights['source']}`, SHA-256 `{weights['sha256']}`",
        "published at": (", ".join(entry.urls) or entry.kept) if entry else "not known to kdcache",
        "input": f"{teacher['image_size']} x {teacher['image_size']} pixels, mean"
        f" {_numbers(teacher['mean'])}, standard deviation {_numbers(teacher['std'])}",
        "precision": f"{recipe['precision']}",
    }
    return ["## Teacher", _bullets(facts)]


def _images(cache: Cache) -> list[str]:
    labelled = int((cache.labels >= 0).sum())
    facts = {
        "images": f"{cache.num_rows:,}, of which {int(cache.readable.sum()):,} could be read",
        "classes": f"{len(cache.classes):,}; {labelled:,} images have a label",
        "fingerprint": f"`{cache.recipe['images']['fingerprint']}`",
    }
    witnesses = len(cache.witness().get("row", ()))
    return [
        "## Images",
        _bullets(facts),
        "Of the images the cache holds the relative paths, the labels, the first 16 bytes of the"
        f" SHA-256 of each file, and thumbnails of {witnesses:,} views, by which a training run"
        " checks that it draws the views that the teacher saw.",
    ]


def _licences(licences: Mapping[str, str]) -> list[str]:
    facts = {"the teacher's weights": licences["weights"], "the images": licences["data"]}
    return [
        "## Licences",
        _bullets(facts),
        "A cache is derived from both. What is not stated here is not known to kdcache, and nothing"
        " was guessed; whether the two allow your use is for you to find out.",
    ]


def _views(cache: Cache) -> list[str]:
    views = cache.recipe["views"]
    policy = dict(views["policy"])
    name, version = policy.pop("name"), policy.pop("version")
    renderer = views["renderer"]
    facts = {
        "number": f"{cache.num_views} of each image",
        "policy": f"`{name}`, version {version}",
        **{f"`{key}`": _value(value) for key, value in policy.items()},
        "seed": f"{views['seed']}",
        "renderer": f"`{renderer['id']}`, version {renderer['version']}",
    }
    return ["## Views", _bullets(facts)]


def _contents(cache: Cache) -> list[str]:
    rows = []
    for name, spec in cache.arrays.items():
        num_bytes = _bytes_below(cache, f"{name}/")
        shape = f"{cache.num_rows:,} x {cache.num_views} x {spec.dim:,}"
        per_view = num_bytes // cache.num_views
        rows.append([f"`{name}`", shape, spec.dtype, _megabytes(num_bytes), _megabytes(per_view)])
    table = format_table(["array", "images x views x dimensions", "type", "size", "a view"], rows)
    origin, graph = cache.head_origin(), cache.neighbours()
    facts = {
        "projection head": "none" if origin is None else describe_head(origin),
        "kNN graph": "none" if graph is None else describe_graph(graph.attributes),
        "all files": f"{len(cache.manifest.files):,}, {_megabytes(_bytes_below(cache, ''))}",
    }
    return [
        "## What is in it",
        table,
        _bullets(facts),
        "A Zarr v3 group, not compressed: any Zarr v3 reader opens it. One shard holds rows of one"
        " view, so some of the views are so much of the bytes.",
    ]


def _quality(cache: Cache) -> list[str]:
    if cache.manifest.num_readable < 2:
        return ["## How good the targets are", "There are too few images to measure anything."]
    arrays = list(cache.arrays)
    if cache.head_origin() is not None and "embedding" not in arrays:
        arrays.append("embedding")  # worked out by the head as it is read
    rows = [[f"`{name}`", *measure(cache, name).cells()] for name in arrays]
    return [
        "## How good the targets are",
        "Measured on the cache itself, before any student has seen it:",
        format_table(["array", *HEADINGS], rows),
        how_measured(cache),
    ]


def _use(cache: Cache, url: str) -> list[str]:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in cache.recipe["teacher"]["name"])
    has_embedding = "embedding" in cache.arrays or cache.head_origin() is not None
    method = "seed" if has_embedding else "simreg"
    some = min(_PULLED_VIEWS, cache.num_views)
    share = some * sum(_bytes_below(cache, f"{array}/") for array in cache.arrays)
    commands = [
        "pip install kdcache",
        f"kdcache pull {url} {name} --views {some}    # {_megabytes(share // cache.num_views)}"
        f" of targets; all {cache.num_views} views without --views",
        f"kdcache verify {name}",
        f"kdcache train --method {method} --cache {name} --data IMAGES --student resnet18"
        " --out run",
    ]
    return [
        "## How to use it",
        "```sh\n" + "\n".join(commands) + "\n```",
        "IMAGES is your own copy of the images: rows are found by the hash of a file's bytes, so it"
        " may lie anywhere and in any order. Other methods: `kdcache methods`.",
    ]


def _provenance(cache: Cache) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in cache.manifest.versions.items())
    facts = {
        "identity": f"`{cache.identity}` (SHA-256 of `manifest.json`)",
        "grown from": ", ".join(f"`{name}`" for name in cache.lineage[1:]) or "nothing",
        "recipe": f"`{cache.manifest.recipe}` (SHA-256 of `recipe.json`)",
        "made with": versions,
    }
    return ["## Where it is from", _bullets(facts)]


def _citation(recipe: Mapping[str, Any]) -> list[str]:
    entry = registered_teachers().get(recipe["teacher"]["name"])
    entries = [*([cite_paper(entry.paper)] if entry else []), cite_kdcache()]
    missing = [] if entry else ["kdcache does not know the teacher's paper: cite it as well."]
    return ["## Citation", "```bibtex\n" + "\n\n".join(entries) + "\n```", *missing]


def _bytes_below(cache: Cache, prefix: str) -> int:
    files = cache.manifest.files.items()
    return sum(file.num_bytes for name, file in files if name.startswith(prefix))


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _bullets(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _numbers(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _value(value: Any) -> str:
    """A setting of a policy: a number, a range or a table of such."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " to ".join(f"{end:.4g}" for end in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
