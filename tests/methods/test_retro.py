"""Retro against its formula in loops over two steps, and that the teacher's head stands still."""

import pytest
import torch
from methods.plain import (
    WIDTH,
    Student,
    assert_golden,
    batch_norm,
    distance,
    infonce,
    linear,
    move_towards,
    move_weights,
    pixels,
    relu,
    rows,
    twin,
    units,
)

from kdcache.heads import ProjectionHead
from kdcache.methods import Batch, Needs, TeacherSide, get_method

Retro = get_method("retro")
FEATURE, HIDDEN, EMBEDDING = 9, 7, 8


def make_head():
    """A SwAV-like head whose batch norm has seen something."""
    head = ProjectionHead(
        [
            {"kind": "linear", "in": FEATURE, "out": HIDDEN, "bias": True},
            {"kind": "batchnorm", "dim": HIDDEN, "affine": True, "eps": 1e-5},
            {"kind": "relu"},
            {"kind": "linear", "in": HIDDEN, "out": EMBEDDING, "bias": True},
        ]
    )
    head(torch.randn(20, FEATURE) * 2 + 1)
    return head


def build(**settings):
    config = Retro.Config(queue=12, **settings)
    teachers = [TeacherSide(EMBEDDING, make_head())]
    method = Retro(config, student_dim=WIDTH, teachers=teachers).double()
    student = Student().double()
    method.adopt(student)
    return method.train(), student


def make_batch():
    return Batch([pixels(5), pixels(5)], [rows(5, EMBEDDING), rows(5, EMBEDDING)])


def plain_head(feature, state):
    """By the running statistics of the head's batch norm, whatever the mode."""
    hidden = linear(feature, state["0.weight"], state["0.bias"])
    hidden = (hidden - state["1.running_mean"]) / (state["1.running_var"] + 1e-5).sqrt()
    hidden = relu(hidden * state["1.weight"] + state["1.bias"])
    return linear(hidden, state["3.weight"], state["3.bias"])


def plain_embedding(feature, adapter, head):
    """Through the adapter, with batch norm and ReLU where it has weights for them."""
    weights = list(adapter.parameters())
    feature = linear(feature, *weights[:2])
    if len(weights) > 2:
        feature = relu(batch_norm(feature, *weights[2:]))
    return units(plain_head(feature, head))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("adapter", ["linear", "linear_bn_relu"])
def test_loss_and_gradient_equal_the_formula_in_loops_over_two_steps(adapter, symmetric):
    method, student = build(adapter=adapter, symmetric=symmetric, momentum=0.7)
    head = {name: t.clone() for name, t in method.teacher_head.state_dict().items()}
    slow, slow_adapter = twin(student), twin(method.adapter)
    first, second = make_batch(), make_batch()

    method(student, first)
    negatives = plain_embedding(slow(first.images[1]), slow_adapter, head)
    move_weights(student, method.adapter)
    method.finish_step(student)
    move_towards(slow, student, 0.7)
    move_towards(slow_adapter, method.adapter, 0.7)

    ours = [plain_embedding(student(view), method.adapter, head) for view in second.images]
    keys = [plain_embedding(slow(view), slow_adapter, head) for view in second.images]
    contrast = infonce(ours[0], keys[1], negatives, 0.2)
    if symmetric:
        contrast = (contrast + infonce(ours[1], keys[0], negatives, 0.2)) / 2
    pairs = zip(ours, second.targets, strict=True)
    distances = sum(distance(mine, units(target)) for mine, target in pairs)
    assert_golden(method, student, second, contrast + 32 * distances)


def test_teachers_head_stands_still_while_gradients_pass_through_it():
    method, student = build()
    before = {name: t.clone() for name, t in method.teacher_head.state_dict().items()}
    assert not any(p.requires_grad for p in method.teacher_head.parameters())
    trained = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        method.train()(student, make_batch()).value.backward()
        optimizer.step()
        method.finish_step(student)
    assert method.adapter[0].weight.grad.abs().sum() > 0
    assert student.layer.weight.grad.abs().sum() > 0
    for name, tensor in method.teacher_head.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_teachers_head_keeps_its_statistics_in_either_mode():
    method, _ = build()
    assert method.training
    assert method.adapter.training
    assert not any(module.training for module in method.teacher_head.modules())
    assert not method.eval().adapter.training


def test_needs_are_the_teachers_head_and_room_for_its_own_keys():
    assert Retro.needs(Retro.Config(queue=8)) == Needs("embedding", views=2, head=True, own_keys=8)


def test_adapter_has_the_size_that_is_told_of():
    layers = [{"kind": "linear", "in": 2048, "out": 128, "bias": True}]
    teacher = TeacherSide(128, ProjectionHead(layers))
    config = Retro.Config(adapter="linear", queue=8)
    method = Retro(config, student_dim=512, teachers=[teacher])
    size = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert round(size / 1e6, 2) == 1.05  # R18 to R50: methods.md 6


def test_reconstruction_is_called_so_and_its_constants_are_discos():
    import sys

    assert "reconstruction" in sys.modules[Retro.__module__].__doc__
    disco, retro = get_method("disco"), Retro
    assert retro.optimisation == disco.optimisation
    shared = ("queue", "temperature", "momentum", "distill_weight")
    assert all(getattr(retro.Config(), k) == getattr(disco.Config(), k) for k in shared)
