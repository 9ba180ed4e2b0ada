"""Teachers: a frozen backbone, with its projection head if it has one, from pixels to targets.

A teacher always is in eval mode: a cache can hold its answers only because they depend on one
image alone. (DisCo's and BINGO's published runs left batch normalisation in train mode, so their
teachers differ a little from this one: methods.md 5.3.)
"""

from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import ConfigError, TeacherError
from kdcache.heads import ProjectionHead
from kdcache.networks import Backbone
from kdcache.shapes import Float, UInt8


class Teacher(nn.Module):
    """Gives feature and embedding of each image; neither its weights nor its mode ever change."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        head: ProjectionHead | None,
        *,
        weights: dict[str, Any],
        interpolation: str,
        licence: str | None,
    ) -> None:
        """
        Args:
            weights: where the weights are from and their digest, for `description`.
            interpolation: of the resizing that the weights were made with; recorded, not applied.
            licence: of the weights, None where it is not known.

        Raises:
            TeacherError: the head takes features of another width than the backbone gives.
        """
        super().__init__()
        if head is not None and head.in_dim != backbone.feature_dim:
            raise TeacherError(
                f"the projection head takes `{head.in_dim}` numbers, but `{backbone.name}` gives "
                f"`{backbone.feature_dim}`",
                hint="name the timm model that the weights were made with",
            )
        self.name = name
        self.backbone = backbone
        self.head = head
        self.image_size = backbone.image_size
        self.feature_dim = backbone.feature_dim
        self.embedding_dim = None if head is None else head.out_dim
        self._weights = weights
        self._interpolation = interpolation
        self._licence = licence
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(
        self, images: UInt8[Tensor, "B S S 3"]
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B D"] | None]:
        """Features and, with a head, embeddings: both float32 as they come, not L2-normalised."""
        feature = self.backbone(images)
        return feature, None if self.head is None else self.head(feature).float()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode, whatever a module around this one is told."""
        return super().train(False)

    def resize(self, image_size: int) -> None:
        """Take images of another side from now on.

        Raises:
            TeacherError: the network cannot.
        """
        try:
            self.backbone.measure(image_size)
        except ConfigError as error:
            raise TeacherError(str(error), hint=error.hint) from error
        self.image_size = self.backbone.image_size = image_size

    def description(self) -> dict[str, Any]:
        """Who this teacher is, for recipes: plain JSON values, no paths of this machine."""
        return {
            "name": self.name,
            "architecture": self.backbone.name,
            "weights": dict(self._weights),
            "image_size": self.image_size,
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
            "interpolation": self._interpolation,
            "feature_dim": self.feature_dim,
            "embedding_dim": self.embedding_dim,
            "head": None if self.head is None else [dict(layer) for layer in self.head.layers],
            "licence": self._licence,
        }
