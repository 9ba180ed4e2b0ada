"""Policies: how views are drawn, as data that a cache carries and a recipe names.

A policy's numbers and the slots of `draw.py` are its meaning. Whoever changes either raises the
version of every policy concerned; a test holds the drawn parameters of each (name, version).

*Source:* crop scales, jitter and blur from the official code of SimReg, CompRess and SEED/MoCo-v2.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from kdcache.errors import ConfigError
from kdcache.settings import Settings, parse

Probability = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[tuple[float, float], Field(strict=False)]  # a list in JSON and TOML


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
    """Range of the blur's standard deviation, in pixels of a view of 224."""

    def model_post_init(self, _: Any) -> None:
        """Refuse spans that no view can be drawn from."""
        for name, (low, high) in (
            ("scale", self.scale),
            ("ratio", self.ratio),
            ("sigma", self.sigma),
        ):
            if not 0 < low <= high:
                raise ConfigError(
                    f"`policy.{name}` is `{low}` to `{high}`",
                    hint="it takes two positive numbers, the smaller one first",
                )

    def to_dict(self) -> dict[str, Any]:
        """The policy as a table for JSON."""
        return self.model_dump(mode="json")

    @staticmethod
    def from_dict(table: Mapping[str, Any]) -> "Policy":
        """The policy that `to_dict` made a table of.

        Raises:
            ConfigError: a key is unknown, missing or of the wrong kind.
        """
        return parse(Policy, table, where="policy")


_POLICIES = (
    # Resize(S / 0.875) + CenterCrop(S), as a box in the source image.
    Policy(name="center", version=1, crop="center"),
    # The largest centred square: images of 32 or 64 px have no margin to give away.
    Policy(name="full", version=1, crop="center", center_fraction=1.0),
    # SimReg, dataloader.py and run.sh (--weak_weak).
    Policy(name="weak", version=1, crop="random", scale=(0.2, 1.0), flip=0.5),
    # CompRess: torchvision's default scale.
    Policy(name="compress", version=1, crop="random", scale=(0.08, 1.0), flip=0.5),
    # SEED, tools/utils.py; the same in MoCo-v2 and DisCo.
    Policy(
        name="moco_v2",
        version=1,
        crop="random",
        scale=(0.2, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grey=0.2,
        blur=0.5,
        sigma=(0.1, 2.0),
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
