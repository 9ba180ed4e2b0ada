"""Backbones: timm models without their classifier, which take uint8 pixels and normalise them.

Teachers and students are both one of these, so they meet the same pixels in the same way.
Source: Wightman, "PyTorch Image Models", github.com/huggingface/pytorch-image-models.
"""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, load_model_config_from_hf
from torch import Tensor, nn

from kdcache.errors import ConfigError
from kdcache.shapes import Float, UInt8

Rgb = tuple[float, float, float]

_HUB = "hf-hub:"


class Backbone(nn.Module):
    """Pixels to features, with `model` inside: timm's, built with `num_classes=0`, or one's own.

    The feature of timm's is what `forward_head(..., pre_logits=True)` gives: pooled, and past any
    layers that stand between pooling and classifier (MobileNetV3: 1024 or 1280 wide, not 576).
    """

    def __init__(self, name: str, model: nn.Module, image_size: int, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.model = model
        # Convolutions run fastest when their weights have the layout that the pixels have.
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Not part of the state: they are given by name, and the state keeps to timm's own keys.
        self.register_buffer("_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("_std", torch.tensor(std), persistent=False)
        self.feature_dim = self.measure(image_size)

    def forward(self, images: UInt8[Tensor, "B S S 3"]) -> Float[Tensor, "B F"]:
        """Features in float32, under autocast too; not L2-normalised."""
        assert isinstance(self._mean, Tensor)
        assert isinstance(self._std, Tensor)
        pixels = (images.to(self._mean.dtype) / 255 - self._mean) / self._std
        # BHWC seen as NCHW is exactly what torch calls channels_last: nothing is copied.
        feature: Tensor = self.model(pixels.permute(0, 3, 1, 2))
        return feature.float()

    @torch.no_grad()
    def measure(self, side: int) -> int:
        """The width of the feature of an image of this side, found by looking at a black one.

        Raises:
            ConfigError: the model cannot take such an image, or gives no vector.
        """
        assert isinstance(self._mean, Tensor)
        training = self.training
        self.eval()  # one image must not move the running statistics
        with _explained(self.name, side):
            black = torch.zeros((1, 3, side, side), device=self._mean.device)
            feature = self.model(black.to(memory_format=torch.channels_last))
        self.train(training)
        if not isinstance(feature, Tensor) or feature.ndim != 2:
            raise ConfigError(
                f"model `{self.name}` does not give one feature vector an image",
                hint="choose a model that pools its features, such as timm's `resnet18`",
            )
        return int(feature.shape[1])


def build_backbone(
    name: str,
    *,
    image_size: int | None = None,
    mean: Rgb | None = None,
    std: Rgb | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """A backbone with timm's own random weights, or those of `state_dict`, in train mode.

    Args:
        name: a timm model, `resnet18` or with its tag `resnet18.a1_in1k`.
        image_size: side of the images in pixels; unless given it, `mean` and `std` are timm's.
        state_dict: weights under timm's own keys, all of them and no other.

    Raises:
        ConfigError: timm has no such model, it cannot take images of this size, or the weights
            are not its own.
    """
    config = timm_config(name)
    side = _side(name, config) if image_size is None else image_size
    model = timm_model(name, side)
    if state_dict is not None:
        try:
            model.load_state_dict(state_dict)
        except RuntimeError as error:
            raise ConfigError(
                f"the weights do not fit timm model `{name}`: {error}",
                hint="name the model and the image size that they were made with",
            ) from error
    return Backbone(name, model, side, mean or _rgb(config.mean), std or _rgb(config.std))


def timm_config(name: str) -> Any:
    """What timm knows about a model's published weights: size, mean, std, classifier, licence.

    Args:
        name: timm's, with or without a tag, or `hf-hub:ORG/MODEL` of the Hugging Face Hub.

    Raises:
        ConfigError: there is no such model, or no such tag of it; close names are given.
    """
    if name.startswith(_HUB):
        return _hub_config(name)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models())
        raise ConfigError(
            f"timm {timm.__version__} has no model `{architecture}`",
            hint=f"did you mean {_either(near)}?" if near else "choose one of `timm.list_models()`",
        )
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        tagged = timm.list_pretrained(f"{architecture}.*")
        raise ConfigError(
            f"timm model `{architecture}` has no weights named `{name}`",
            hint=f"use {_either([architecture, *tagged])}",
        ) from error


def _hub_config(name: str) -> Any:
    try:
        found, architecture, _ = load_model_config_from_hf(name.removeprefix(_HUB))
    except Exception as error:  # the network, its absence and the hub's library fail in many ways
        why = "its config.json is not timm's" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"`{name}` cannot be had as a timm model from the Hugging Face Hub: {why}",
            hint="name a repository that timm can load, or give a file: timm:MODEL --weights FILE",
        ) from error
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    fields = {key: value for key, value in found.items() if key in known}
    return PretrainedCfg(**{**fields, "architecture": architecture})


def timm_model(name: str, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """A timm model without its classifier, made for images of this size.

    Raises:
        ConfigError: it cannot be made for them.
    """
    config = timm_config(name)
    # Models whose position embedding is tied to one size must be told of another.
    size: dict[str, Any] = {}
    if config.fixed_input_size and config.input_size[1:] != (image_size, image_size):
        size = {"img_size": image_size}
    if pretrained:
        # timm may fail here for many reasons (network, disk): they are the caller's to explain.
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, **size)
        return model
    with _explained(name, image_size):
        model = timm.create_model(name, num_classes=0, **size)
    return model


def parameter_digest(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the state, sorted by name."""
    return state_digest(module.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """`parameter_digest` of the module that has this state, without the module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {kind} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _explained(name: str, image_size: int) -> Iterator[None]:
    """Turn the many ways in which timm models refuse a size into one."""
    try:
        yield
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model `{name}` cannot take images of `{image_size}` x `{image_size}` pixels: "
            f"{str(error) or type(error).__name__}",
            hint="use another image size" + _own_size(name),
        ) from error


def _own_size(name: str) -> str:
    known = timm.is_model(name.partition(".")[0])
    return f", such as its own: {timm_config(name).input_size[1]}" if known else ""


def _side(name: str, config: Any) -> int:
    _, height, width = config.input_size
    if height != width:
        raise ConfigError(
            f"timm model `{name}` expects images of `{height}` x `{width}` pixels, not square ones",
            hint="give an image size",
        )
    return int(height)


def _rgb(values: Any) -> Rgb:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _either(names: list[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)
