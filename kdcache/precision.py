"""The precision of a forward pass: plain float32, or autocast to a shorter type."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
Wanted = Literal["auto", "fp32", "bf16", "fp16"]
"""What may be asked for: `auto` is settled before anything is computed or written."""

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Wanted, device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run at `precision` on `device`."""
    assert precision != "auto", "settle the precision first"
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])


def settle(precision: Wanted, device: torch.device) -> Precision:
    """What `auto` means on this device: bf16 on a GPU that has it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def without_tf32() -> None:
    """Let float32 mean float32 on a GPU as well, in this process: TF32 keeps 10 bits of 23."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
