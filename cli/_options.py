"""Options that several commands take, and what they mean."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cores import available_cores
from kdcache.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from kdcache.progress import Bar
    from kdcache.store import Cache

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="Images: a folder (ImageFolder layout or plain), a CSV/TSV list with a column `path`, "
        "or WebDataset tar shards, also s3://BUCKET/train-{000..099}.tar.",
        show_default=False,
    ),
]
ViewsOption = Annotated[int, typer.Option("--views", min=1, help="Views of each image.")]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size", min=8, help="Side of the views in pixels.", show_default="the teacher's"
    ),
]
ArraysOption = Annotated[
    str | None,
    typer.Option(
        "--arrays",
        help="feature, embedding or both by a comma.",
        show_default="all the teacher gives",
    ),
]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Views the teacher sees at once.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-unreadable", help="Complete the cache without unreadable images.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cuda, cuda:1, cpu ...", show_default="a GPU if there is one"),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that render views.",
        show_default="one a core, at most 16",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def _go_offline(wanted: bool) -> bool:
    """Set before torch's and the hub's libraries are imported, which read it only once."""
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return wanted


OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Use weights that were downloaded before, and no network.",
        callback=_go_offline,
    ),
]


def array_names(arrays: str | None) -> tuple[str, ...] | None:
    """What `--arrays` names; None if it is not given."""
    return tuple(arrays.split(",")) if arrays is not None else None


def open_device(name: str | None) -> "torch.device":
    """The device of this name, or the best there is."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"no device `{name}`", hint="--device cpu, --device cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count() > 0:
        raise ConfigError(
            f"`{name}` is asked for, but there are {torch.cuda.device_count()} GPUs",
            hint="count from cuda:0",
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"`{name}` is asked for, but torch sees no GPU",
            hint="`nvidia-smi` shows the driver; --device cpu runs without one",
        )
    return device


def num_workers(wanted: int | None) -> int:
    """How many rendering processes to start."""
    return wanted if wanted is not None else min(available_cores(), 16)


def import_beside(wanted: int | None, module: str) -> None:
    """Have the server of the rendering processes import what they need, now.

    This process is about to import the same, which takes as long; on two cores that is once.
    """
    import multiprocessing
    import signal
    from multiprocessing import forkserver

    if not num_workers(wanted) or "forkserver" not in multiprocessing.get_all_start_methods():
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload([module])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is not the server's to answer
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def parse_bytes(option: str, text: str) -> int:
    """A size such as 50GB or 800MB, in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"`{option} {text}` is no size", hint=f"{option} 50GB")
    return int(float(match[1]) * 1000 ** " KMGT".index((match[2] or " ").upper()))


@contextmanager
def any_cache(name: str, *, limit_bytes: int, bar: "Bar") -> "Iterator[Cache]":
    """The cache at a path, or at a URL, of which views are brought as they are asked for."""
    from kdcache.share import is_url, remote_cache
    from kdcache.store import open_cache

    if not is_url(name):
        yield open_cache(name)
        return
    with remote_cache(name, limit_bytes=limit_bytes, bar=bar) as cache:
        yield cache


def cache_to_grow(name: str) -> "Cache":
    """A cache that something is to be added to, which is a whole one on a disk."""
    from kdcache.share import is_url
    from kdcache.store import open_cache, require_whole

    if is_url(name):
        raise ConfigError(
            f"`{name}` is not on a disk, and a cache grows there only",
            hint=f"kdcache pull {name} CACHE; then this with CACHE; then kdcache push CACHE {name}",
        )
    cache = open_cache(name)
    require_whole(cache)
    return cache


def say(text: str) -> None:
    """Tell the user something that is no result."""
    typer.echo(f"note: {text}", err=True)
