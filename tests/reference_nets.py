"""The teachers' networks written anew, from torch and torchvision alone, with random weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Wide(ResNet):
    """torchvision's ResNet with every width multiplied, without classifier."""

    def __init__(self, depth: int = 50, width: int = 1) -> None:
        self.times = width
        super().__init__(BasicBlock if depth < 50 else Bottleneck, list(LAYERS[depth]))
        self.conv1 = nn.Conv2d(3, 64 * width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, *rest, **options):
        if planes == 64:
            self.inplanes = 64 * self.times
        return super()._make_layer(block, planes * self.times, *rest, **options)


class Padded(Wide):
    """As SwAV and VICReg write it: a frame of one pixel, then a convolution that pads two."""

    def __init__(self, width: int = 1) -> None:
        super().__init__(50, width)
        self.conv1.padding = (2, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(functional.pad(pixels, (1, 1, 1, 1)))


def pad_same(module: nn.Module) -> None:
    """TensorFlow's "SAME": as much padding as the output's size wants, the odd pixel behind."""
    kernel, stride = (
        value if isinstance(value, int) else value[0]
        for value in (module.kernel_size, module.stride)
    )
    module.padding = 0 if isinstance(module, nn.MaxPool2d) else (0, 0)

    def pad(_, inputs):
        total = max((math.ceil(inputs[0].shape[-1] / stride) - 1) * stride + kernel, 0)
        total = max(total - inputs[0].shape[-1], 0)
        before = total // 2
        return (functional.pad(inputs[0], (before, total - before) * 2),)

    module.register_forward_pre_hook(pad)


def same_everywhere(model: nn.Module) -> nn.Module:
    """BYOL's network."""
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d) or (
            isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        ):
            pad_same(module)
    return model


def same_pool(model: nn.Module) -> nn.Module:
    """SimCLR's network: its convolutions pad evenly, its pooling does not."""
    pad_same(model.maxpool)
    return model


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, scaled: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        if scaled:
            self.ls1, self.ls2 = nn.Module(), nn.Module()
            self.ls1.gamma = nn.Parameter(torch.rand(dim))
            self.ls2.gamma = nn.Parameter(torch.rand(dim))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.ls1.gamma, self.ls2.gamma) if hasattr(self, "ls1") else (1.0, 1.0)
        x = x + first * self._attend(self.norm1(x))
        return x + second * self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        query, key, value = (
            part.reshape(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.attn.qkv(x).chunk(3, dim=-1)
        )
        weights = (query @ key.transpose(2, 3) / math.sqrt(dim // self.heads)).softmax(dim=-1)
        return self.attn.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, dim))


class Vit(nn.Module):
    """DINO's ViT-S; DINOv2's with layer scale, a mask token and, if wanted, registers."""

    def __init__(self, patch: int, grid: int, *, v2: bool = False, registers: int = 0) -> None:
        super().__init__()
        dim = 384
        self.grid, self.registers, self.v2 = grid, registers, v2
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, grid * grid + 1, dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.randn(1, registers, dim))
        if v2:
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.blocks = nn.ModuleList(_Block(dim, 6, v2) for _ in range(12))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def _positions(self, side: int) -> Tensor:
        if side == self.grid:
            return self.pos_embed
        old = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).movedim(3, 1)
        if self.registers:
            new = functional.interpolate(old, size=(side, side), mode="bicubic", antialias=True)
        else:
            factor = (side + 0.1) / self.grid
            new = functional.interpolate(old, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], new.flatten(2).mT], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed.proj(pixels)
        side = patches.shape[-1]
        tokens = patches.flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(side)
        if self.registers:
            extra = self.register_tokens.expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, :1], extra, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with normalisations that do something: every statistic and scale is drawn."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
        if (
            isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)
            and part.weight is not None
        ):
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.1, generator=generator)
    return module.eval()
