"""Runs a test's function in several processes, as torchrun would start them on one machine."""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing


def in_ranks(num_ranks: int, function: Callable[..., Any], *args: Any, out: Path) -> list[Any]:
    """What `function(*args)` returns in each of `num_ranks` processes that share a group on gloo.

    Args:
        function: at the top level of a test's file, which every process loads by its path.
        out: an empty folder for what they return.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = sys.modules[function.__module__].__file__
    # Forked by a server that imports what is slow to import once, and never starts a thread.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "timm"])
    multiprocessing.start_processes(
        _process,
        (num_ranks, port, file, function.__name__, args, out),
        num_ranks,
        start_method="forkserver",
    )
    return [torch.load(out / f"{r}.pt", weights_only=False) for r in range(num_ranks)]


def _process(
    number: int, num_ranks: int, port: int, file: str, name: str, args: tuple[Any, ...], out: Path
) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    from kdcache.distributed import process_group

    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    with process_group(torch.device("cpu")):
        torch.save(getattr(module, name)(*args), out / f"{number}.pt")
