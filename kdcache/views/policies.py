"""Policies: how views are drawn, as data that a cache carries and a recipe names.

A policy's numbers and the slots of `draw.py` are its meaning. Whoever changes either raises the
version of every policy concerned; a test holds the drawn parameters of each (name, version).

*Source:* crop scales, jitter, blur and small patches from the official code of SimReg, CompRess and
SEED/MoCo-v2.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Integer
from pydantic import Field

from kdcache.errors import ConfigError
from kdcache.settings import Settings, parse
from kdcache.shapes import Bool, Float

Probability = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[tuple[float, float], Field(strict=False)]  # a list in JSON and TOML

REFERENCE_SIZE = 224
"""The rendered side at which a policy's pixels are stated; they scale with the side."""


class SmallCrops(Settings):
    """Views that show little of an image in few pixels: so many follow each large one."""

    count: Annotated[int, Field(ge=1)]
    """Small crops for each large one."""
    side: Annotated[int, Field(ge=1)]
    """Their side in pixels where that of the large crop is 224."""
    scale: Span
    """Range of their area, as a share of the image's."""


class Policy(Settings):
    """How a view is drawn: crop, then jitter, grey, blur and flip, each with its probability."""

    name: str
    version: Annotated[int, Field(ge=1)]
    crop: Literal["center", "random"]
    """A centred square, or torchvision's random resized crop."""
    center_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the centred square as a share of the image's shorter side."""
    scale: Span = (0.2, 1.0)
    """Range of a random crop's area, as a share of the image's."""
    ratio: Span = (3 / 4, 4 / 3)
    """Range of a random crop's width : height, drawn uniformly in its logarithm."""
    flip: Probability = 0.0
    """Probability of a mirrored view."""
    jitter: Probability = 0.0
    """Probability that brightness, contrast, saturation and hue are changed, in a drawn order."""
    brightness: Probability = 0.0
    """Factors lie within 1 - brightness and 1 + brightness; so for the next two."""
    contrast: Probability = 0.0
    saturation: Probability = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Shifts lie within -hue and hue of a full turn."""
    grey: Probability = 0.0
    """Probability of a view without colour."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur."""
    sigma: Span = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of a view of 224, or of a small crop of its
    nominal side."""
    small: SmallCrops | None = None
    """What follows each large crop; in all else the small ones are drawn alike."""

    def model_post_init(self, _: Any) -> None:
        """Refuse what no view can be drawn from."""
        spans = {"scale": self.scale, "ratio": self.ratio, "sigma": self.sigma}
        if self.small is not None:
            spans["small.scale"] = self.small.scale
        for name, (low, high) in spans.items():
            if not 0 < low <= high:
                raise ConfigError(
                    f"`policy.{name}` is `{low}` to `{high}`",
                    hint="it takes two positive numbers, the smaller one first",
                )
        if self.small is not None and self.crop != "random":
            raise ConfigError(
                f"`policy.small` is set, but `policy.crop` is `{self.crop}`",
                hint="small crops are random ones: crop = 'random'",
            )

    @property
    def views_in_set(self) -> int:
        """How many views belong together: a large one and the small ones that follow it."""
        return 1 if self.small is None else 1 + self.small.count

    def is_small(self, views: Integer[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        """Which of these view indices are small crops: all but the first of each set."""
        return np.asarray(views % self.views_in_set != 0)

    def side(self, view: int, size: int) -> int:
        """Height and width in pixels of a view where the large crop has `size`."""
        if self.small is None or view % self.views_in_set == 0:
            return size
        return max(1, round(size * self.small.side / REFERENCE_SIZE))

    def scales(
        self, views: Integer[np.ndarray, " P"]
    ) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
        """The least and the greatest share of the image's area that each of these views shows."""
        low, high = self.scale if self.small is None else self.small.scale
        small = self.is_small(views)
        return np.where(small, low, self.scale[0]), np.where(small, high, self.scale[1])

    def pixel_sizes(self, views: Integer[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        """The width, in 224ths of a view's, of the pixels that its `sigma` counts: 1 in a large
        crop, 224 / 96 in a small one of 96."""
        stated = REFERENCE_SIZE if self.small is None else self.small.side
        return np.where(self.is_small(views), REFERENCE_SIZE / stated, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The policy as a table for JSON; without small crops it does not mention them."""
        return self.model_dump(mode="json", exclude_none=True)

    @staticmethod
    def from_dict(table: Mapping[str, Any]) -> "Policy":
        """The policy that `to_dict` made a table of.

        Raises:
            ConfigError: a key is unknown, missing or of the wrong kind.
        """
        return parse(Policy, table, where="policy")


# SEED, tools/utils.py; the same in MoCo-v2 and DisCo.
_STRONG: dict[str, Any] = {
    "crop": "random",
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grey": 0.2,
    "blur": 0.5,
    "sigma": (0.1, 2.0),
}

_POLICIES = (
    # Resize(S / 0.875) + CenterCrop(S), as a box in the source image.
    Policy(name="center", version=1, crop="center"),
    # The largest centred square: images of 32 or 64 px have no margin to give away.
    Policy(name="full", version=1, crop="center", center_fraction=1.0),
    # SimReg, dataloader.py and run.sh (--weak_weak).
    Policy(name="weak", version=1, crop="random", scale=(0.2, 1.0), flip=0.5),
    # CompRess: torchvision's default scale.
    Policy(name="compress", version=1, crop="random", scale=(0.08, 1.0), flip=0.5),
    Policy(name="moco_v2", version=1, scale=(0.2, 1.0), **_STRONG),
    # SEED with a SwAV teacher (methods.md 2.3).
    Policy(name="swav", version=1, scale=(0.14, 1.0), **_STRONG),
    # SEED, main_small-patch.py: student and teacher see all of them (methods.md 2.3).
    Policy(
        name="multicrop",
        version=1,
        scale=(0.14, 1.0),
        small=SmallCrops(count=6, side=96, scale=(0.05, 0.14)),
        **_STRONG,
    ),
)


def available_policies() -> list[str]:
    """The names of the policies that ship."""
    return sorted(policy.name for policy in _POLICIES)


def get_policy(name: str) -> Policy:
    """The policy of this name, in its newest version.

    Raises:
        ConfigError: there is none of this name.
    """
    for policy in _POLICIES:
        if policy.name == name:
            return policy
    raise ConfigError(f"no policy `{name}`", hint=f"there are: {', '.join(available_policies())}")
