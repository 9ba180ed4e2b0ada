"""ResNets that timm has no name for: wider ones, and those that pad as TensorFlow does.

Their tensors have the names of torchvision's ResNets. Given the wrong one of these, weights often
load without a word and give other features.
Source: He et al. 2016; SwAV's wide networks (facebookresearch/swav: src/resnet50.py), SimCLR's
(google-research/simclr: resnet.py) and BYOL's conversion (methods.md 11).
"""

import re
from typing import Any

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

_NAME = re.compile(r"resnet50(?:w(?P<width>[2-9]))?(?P<same>_same|_same_pool)?")


def is_resnet(architecture: str) -> bool:
    """Whether `build_resnet` knows the name and timm does not."""
    match = _NAME.fullmatch(architecture)
    return match is not None and architecture != "resnet50"


def build_resnet(architecture: str) -> nn.Module:
    """A ResNet-50 without classifier, by its name.

    `resnet50w4` is 4 times as wide everywhere, its first convolution too (torchvision's
    `wide_resnet50_2` is so inside its blocks only); `resnet50_same` pads by TensorFlow's rule
    "SAME", `resnet50w4_same_pool` in its pooling only.
    """
    match = _NAME.fullmatch(architecture)
    assert match is not None
    model: nn.Module = _wide(int(match["width"] or 1))
    if match["same"]:
        model.maxpool = MaxPool2dSame(kernel_size=3, stride=2)
    if match["same"] == "_same":
        _pad_convolutions(model)
    return model


def _wide(width: int) -> Any:
    channels = tuple(width * planes for planes in (64, 128, 256, 512))
    block: Any = Bottleneck
    model: Any = ResNet(block, (3, 4, 6, 3), num_classes=0, channels=channels)
    if width > 1:  # timm's stem is 64 wide, whatever follows
        stem, first = channels[0], model.layer1[0]
        model.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        model.bn1 = nn.BatchNorm2d(stem)
        first.conv1 = nn.Conv2d(stem, stem, 1, bias=False)
        first.downsample[0] = nn.Conv2d(stem, 4 * stem, 1, bias=False)
    return model


def _pad_convolutions(model: nn.Module) -> None:
    """Pad after an image rather than before it, where the stride leaves a choice."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                kernel, stride = module.kernel_size[0], module.stride[0]
                widths = module.in_channels, module.out_channels
                same = Conv2dSame(*widths, kernel, stride=stride, bias=False)
                setattr(parent, name, same)
