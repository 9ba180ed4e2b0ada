"""What the golden tests of the methods share: losses in slow loops, and a comparison with them.

Nothing of `kdcache.methods` is used in here but the shapes of a batch and a teacher's side: layers
are written out from their weights, rows are looked at one by one, and softmaxes are exponentials.
"""

import copy
import math

import torch
from torch import Tensor, nn

from kdcache.methods import Batch

WIDTH = 6
"""Of the student's feature."""


class Student(nn.Module):
    """Pixels of square images of any size to 6 numbers: a linear map of their four quarters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[1] // 2
        quarters = images.to(self.layer.weight.dtype).unflatten(2, (2, half))
        quarters = quarters.unflatten(1, (2, half)).mean((2, 4))
        return self.layer(quarters.flatten(1) / 32 - 4)


def pixels(batch: int, size: int = 4) -> Tensor:
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)


def rows(*shape: int) -> Tensor:
    """Rows of some length, in float64."""
    return torch.randn(*shape, dtype=torch.float64) * 3


def unit(vector: Tensor) -> Tensor:
    return vector / (vector * vector).sum().sqrt()


def units(batch: Tensor) -> Tensor:
    return torch.stack([unit(row) for row in batch])


def linear(batch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([(weight * row).sum(1) + bias for row in batch])


def relu(batch: Tensor) -> Tensor:
    return torch.where(batch > 0, batch, torch.zeros_like(batch))


def batch_norm(batch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of train mode: by the mean and the biased variance of the batch itself."""
    mean = sum(batch) / len(batch)
    variance = sum((row - mean) ** 2 for row in batch) / len(batch)
    return torch.stack([(row - mean) / (variance + 1e-5).sqrt() * weight + bias for row in batch])


def two_layers(batch: Tensor, head: list[Tensor]) -> Tensor:
    """Linear, ReLU, linear, from weight, bias, weight, bias."""
    return linear(relu(linear(batch, *head[:2])), *head[2:])


def infonce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for query, key in zip(queries, keys, strict=True):
        positive = ((query * key).sum() / temperature).exp()
        others = [((query * other).sum() / temperature).exp() for other in negatives]
        total = total - (positive / (positive + sum(others))).log()
    return total / len(queries)


def distance(ours: Tensor, theirs: Tensor) -> Tensor:
    pairs = zip(ours, theirs, strict=True)
    return sum(((mine - other) ** 2).sum() for mine, other in pairs) / len(ours)


def ranking(
    ours: Tensor,
    theirs: Tensor,
    negatives: Tensor,
    temperatures: tuple[float, float],
    hidden: list[set[int]] | None = None,
) -> Tensor:
    """Mean cross-entropy of the teacher's and the student's softmax over [own target, queue]."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (mine, target) in enumerate(zip(ours, theirs, strict=True)):
        seen = [target] + [
            other for slot, other in enumerate(negatives) if not (hidden and slot in hidden[i])
        ]
        student = [((mine * other).sum() / temperatures[0]).exp() for other in seen]
        teacher = [((target * other).sum() / temperatures[1]).exp() for other in seen]
        for s, t in zip(student, teacher, strict=True):
            total = total - t / sum(teacher) * (s / sum(student)).log()
    return total / len(ours)


def assert_golden(method: nn.Module, student: nn.Module, batch: Batch, expected: Tensor) -> None:
    """The method's loss is `expected`, and so is its gradient in every trained parameter.

    Args:
        expected: a function of the parameters of this very student and method.
    """
    trained = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    found = method(student, batch).value
    assert found.dtype == torch.float64
    assert math.isclose(float(found.detach()), float(expected.detach()), rel_tol=0, abs_tol=1e-10)
    wanted = torch.autograd.grad(expected, trained)
    for mine, other in zip(torch.autograd.grad(found, trained), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)
    assert any(gradient.abs().max() > 1e-3 for gradient in wanted)


def move_weights(*modules: nn.Module) -> None:
    """Change all trained weights, as an optimiser's step would."""
    with torch.no_grad():
        for parameter in (p for module in modules for p in module.parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def twin(module: nn.Module) -> nn.Module:
    """A copy that no gradient reaches."""
    return copy.deepcopy(module).requires_grad_(False)


def move_towards(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
        mine.data = momentum * mine.data + (1 - momentum) * other.data
