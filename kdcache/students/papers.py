"""The students of the papers, and which of their tensors is "the feature".

Any timm model can be a student; widths and sizes are found by building it, never tabled. What the
feature is has to be said, because libraries cut networks at different places: torchvision keeps
MobileNetV3's layer of 1280 inside its classifier, and gives 960 numbers before it.

Source: the students in the tables of SEED, DisCo, SimReg and CompRess, and SSLight's ViT-Tiny.
"""

from collections.abc import Mapping
from types import MappingProxyType

_RESNET = "the last stage, after its ReLU, averaged over positions"
_HEAD_THEN_POOL = "conv_head, batch norm and {}, averaged over positions"

PAPER_STUDENTS: Mapping[str, str] = MappingProxyType(
    {
        "resnet18": _RESNET,
        "resnet34": _RESNET,
        "efficientnet_b0": _HEAD_THEN_POOL.format("SiLU"),
        "efficientnet_b1": _HEAD_THEN_POOL.format("SiLU"),
        "mobilenetv3_large_100": "the last stage averaged over positions, conv_head and Hardswish",
        "mobilenetv2_100": _HEAD_THEN_POOL.format("ReLU6"),
        "vit_tiny_patch16_224": "the class token after the last LayerNorm",
    }
)
"""timm's names, each with what its feature is. The first five are those of SEED and DisCo."""
