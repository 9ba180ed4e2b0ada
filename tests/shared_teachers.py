"""Teachers of one's own around the weights in shared/: what timm's models are not.

By name: `shared_teachers:cifar10_resnet20`, `cifar10_resnet56`, `tinyimagenet_resnet18`.
"""

import os
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kdcache.teachers import Teacher, own_teacher

HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights(name: str) -> dict[str, Tensor]:
    shared = os.environ.get("KDCACHE_SHARED", Path(__file__).parents[2] / "shared")
    return {k: v.float() for k, v in load_file(Path(shared) / "data" / "weights" / name).items()}


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        kept = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(out + functional.pad(kept, (0, 0, 0, 0, self.extra, self.extra)))


class CifarResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for i, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = Block(inputs, outputs, 1 if i == 1 else 2)
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{i}", nn.Sequential(first, *rest))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


def _cifar(depth: int) -> Teacher:
    model = CifarResNet((depth - 2) // 6)
    tensors = weights(f"cifar10_resnet{depth}.safetensors")
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("linear.")})
    mean, std = IMAGENET
    return own_teacher(f"resnet{depth}", model, image_size=32, mean=mean, std=std)


def cifar10_resnet20() -> Teacher:
    return _cifar(20)


def cifar10_resnet56() -> Teacher:
    return _cifar(56)


def tinyimagenet_resnet18() -> Teacher:
    """timm's ResNet-18 whose first convolution has stride 1."""
    model = timm.create_model("resnet18", num_classes=200)
    model.conv1.stride = (1, 1)
    model.load_state_dict(weights("resnet18_tinyimagenet_aughost.fp16.safetensors"))
    model.reset_classifier(0)
    return own_teacher("resnet18", model, image_size=64, mean=HALF, std=HALF)
