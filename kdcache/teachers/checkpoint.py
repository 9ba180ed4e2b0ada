"""Checkpoints: from a file of weights to one flat dict of tensors, without running its code.

Containers are opened, the prefixes of wrappers taken off, and the one network chosen that is the
teacher. What the tensors mean is `layout.py`'s question.
Source: the published checkpoints of MoCo, SEED, DisCo, SwAV, SimCLR, DINO, SimReg and CompRess
(methods.md 11).
"""

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from kdcache.errors import TeacherError

# In this order: a training checkpoint keeps its networks under the first, DINO under the last.
_CONTAINERS = ("state_dict", "model", "teacher")
# Exact prefixes: DisCo's `teacher_encoder_q.` is another network than `encoder_q.`.
_NETWORKS = ("encoder_q.", "student.", "backbone.", "encoder.")
# What lies beside the network and served its training: slow copies, the teachers of students, the
# layers behind DINO's head, Barlow Twins' normalisation.
_OTHERS = re.compile(
    r"(encoder_k|encoder_t|teacher|teacher_encoder_[qk]|bn|head\.last_layer)\..*|queue.*"
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file (`.pth`, `.pt`, `.pth.tar`, `.bin`) on the CPU.

    Half precision becomes float32. Of several networks in one file the query encoder or the
    backbone is kept, together with what lies beside it and is not known to be of no use.

    Raises:
        TeacherError: there is no such file, it holds no weights, or it holds objects other than
            tensors and plain values; those are refused before any of their code runs.
    """
    _check_file(path)
    is_safetensors = path.suffix == ".safetensors"
    content = _read(path, _read_safetensors if is_safetensors else _read_pickle)
    tensors = _tensors(path, content)
    return {name: _single(tensor) for name, tensor in _network(tensors).items()}


def _check_file(path: Path) -> None:
    if path.is_dir():
        found = "is a folder"
    elif not path.exists():
        found = "does not exist"
    elif path.stat().st_size == 0:
        found = "is empty"
    else:
        return
    raise TeacherError(
        f"the weights `{path}` cannot be read: it {found}",
        hint="give a whole file, `--weights FILE`, ending in .safetensors, .pth, .pt or .pth.tar",
    )


def _read(path: Path, reader: Any) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    try:
        return reader(path)
    except Exception as error:  # bytes of unknown origin can trip a parser in any way
        # Disk trouble is not the file's fault; but torch seeks to before a shortened zip's start.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = str(error).partition("\n")[0]
        raise TeacherError(
            f"`{path}` ({path.stat().st_size} bytes, beginning with `{start!r}`) is not a whole "
            f"file of weights that can be read safely: {type(error).__name__}: {reason}",
            hint="download it again and compare its size; if it holds more than tensors, save its "
            "state dict alone with `safetensors.torch.save_file`, where you trust the file",
        ) from error


def _read_safetensors(path: Path) -> Any:
    return safetensors.torch.load_file(path, device="cpu")


class _Ignored:
    """Stands for an object that lies beside the weights; nothing of its own is run."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# What the files of the families hold beside tensors and plain values. torch refuses all others.
_BAGGAGE = (
    "argparse.Namespace",  # the command line: DINO, SimReg, CompRess
    "pathlib.PosixPath",  # in it: DINO
    "pathlib._local.PosixPath",
    "numpy.core.multiarray.scalar",  # learning rates: DINO, SwAV
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "__main__.exclude_bias_and_norm",  # the optimiser's: VICReg
)


def _read_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals([(_Ignored, name) for name in _BAGGAGE]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of the innermost container."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    entries = content if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(f"`{key}`" for key in list(entries)[:8]) or "none"
        raise TeacherError(
            f"`{path}` holds a `{type(content).__name__}` without tensors; its keys: {keys}",
            hint="give a file whose state dict lies at the top, or under `state_dict` or `model`",
        )
    return tensors


def _network(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the teacher, under the names they have in the bare network."""
    tensors = _unwrapped(tensors)
    for prefix in _NETWORKS:
        inner = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        if inner:
            beside = {
                key: value
                for key, value in tensors.items()
                if not key.startswith(prefix) and not _OTHERS.fullmatch(key)
            }
            return {**beside, **_network(inner)}
    return tensors


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the `module.` that each layer of (Distributed)DataParallel adds."""
    while all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _single(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
