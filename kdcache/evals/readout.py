"""Readout: the class tokens of a vision transformer's last blocks, where a protocol asks for them.

*Source:* DINO, `eval_linear.py`: four blocks for ViT-S; the last one beside the mean of its patch
tokens for ViT-B. Networks without a class token give their pooled feature, there as here.
"""

import torch
from torch import Tensor, nn

from kdcache.evals.subject import Subject
from kdcache.networks import Backbone
from kdcache.shapes import Float


class LastBlocks(nn.Module):
    """The normalised class tokens of the last blocks, side by side, then the mean patch token."""

    def __init__(self, model: nn.Module, num_blocks: int, patch_mean: bool) -> None:
        super().__init__()
        self.model = model
        self.num_blocks = num_blocks
        self.patch_mean = patch_mean

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        """Pixels as the model takes them, to tokens."""
        blocks = self.model.get_intermediate_layers(  # type: ignore[operator]
            pixels, n=self.num_blocks, return_prefix_tokens=True, norm=True
        )
        tokens = [prefix[:, 0] for _, prefix in blocks]
        if self.patch_mean:
            tokens.append(blocks[-1][0].mean(dim=1))
        return torch.cat(tokens, dim=1)


def read_last_blocks(subject: Subject, num_blocks: int, patch_mean: bool) -> Subject:
    """The subject, read at its class tokens if it has any."""
    network = subject.network
    if not isinstance(network, Backbone) or not has_class_token(network.model):
        return subject
    reader = LastBlocks(network.model, num_blocks, patch_mean)
    patches = " and mean patch" if patch_mean else ""
    device = next(network.model.parameters()).device
    return Subject(
        subject.name,
        Backbone(network.name, reader, network.image_size, network.mean, network.std).to(device),
        subject.image_size,
        f"{subject.architecture}, class tokens of the last {num_blocks} blocks{patches}",
    )


def has_class_token(model: nn.Module) -> bool:
    """Whether this is one of timm's vision transformers with a class token."""
    return (
        callable(getattr(model, "get_intermediate_layers", None))
        and getattr(model, "cls_token", None) is not None
    )
