"""Parameters and MACs are those that one counts by hand, layer by layer."""

import math

import pytest
import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.report.cost import count_cost
from kdcache.students import build_student


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_macs_are_those_of_every_convolution_and_matrix(name):
    side = 160 if name == "test_vit" else 64
    student = build_student(name, image_size=side).eval()
    macs = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            kernel = module.in_channels // module.groups * math.prod(module.kernel_size)
            macs.append(output.numel() * kernel)
        elif isinstance(module, nn.Linear):
            macs.append(output.numel() * module.in_features)
        elif type(module).__name__ == "Attention":  # queries by keys, and weights by values
            tokens, width = inputs[0].shape[1:]
            macs.append(2 * tokens * tokens * width)

    for module in student.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        student(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    cost = count_cost(name, side)
    assert cost.num_macs == sum(macs)
    assert cost.num_parameters == sum(p.numel() for p in student.parameters())


def test_resnet18_costs_what_its_tables_say():
    """11.69 M and 1.82 G with its classifier of 512 x 1000 + 1000 weights."""
    cost = count_cost("resnet18", 224)
    assert cost.num_parameters == 11_689_512 - 513_000
    assert cost.num_macs / 1e9 == pytest.approx(1.82 - 0.000512, abs=0.01)


def test_unknown_student_is_refused():
    with pytest.raises(ConfigError, match="no model"):
        count_cost("no_such_network", 32)
