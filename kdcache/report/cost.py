"""What a student costs whoever uses it: parameters and multiply-accumulates of one image.

MACs are half of what torch's `FlopCounterMode` counts, which looks at the operators that run:
convolutions, matrix products and attention. Normalisation, activations and pooling are not counted,
as in the tables of timm and of the papers.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdcache.students import build_student


@dataclass(frozen=True)
class Cost:
    """Of one image."""

    num_parameters: int
    num_macs: int


@cache
def count_cost(student: str, image_size: int) -> Cost:
    """The cost of a student that sees images of this side in pixels.

    Raises:
        ConfigError: timm has no such model, or it cannot take images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_student(student, image_size=image_size).eval()
    image = torch.zeros((1, image_size, image_size, 3), dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    num_parameters = sum(weight.numel() for weight in network.parameters())
    return Cost(num_parameters, counter.get_total_flops() // 2)
