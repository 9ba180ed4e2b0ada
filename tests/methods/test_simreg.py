"""SimReg against its formula in loops, and the size of its head."""

import pytest
import torch
from methods.plain import (
    WIDTH,
    Student,
    assert_golden,
    batch_norm,
    distance,
    linear,
    pixels,
    relu,
    rows,
    units,
)

from kdcache.methods import Batch, TeacherSide, get_method
from kdcache.methods._heads import simreg_head

SimReg = get_method("simreg")


def plain_head(feature, w):
    """Two two-layer heads in a row, from the head's parameters in order."""
    middle = linear(relu(batch_norm(linear(feature, *w[:2]), *w[2:4])), *w[4:6])
    return linear(relu(batch_norm(linear(middle, *w[6:8]), *w[8:10])), *w[10:])


@pytest.mark.parametrize("widths", [[8], [8, 5, 8]], ids=["one teacher", "three teachers"])
def test_loss_and_gradient_equal_the_formula_in_loops(widths):
    teachers = [TeacherSide(width) for width in widths]
    method = SimReg(SimReg.Config(), student_dim=WIDTH, teachers=teachers).double()
    student, images = Student().double(), pixels(5)
    targets = [rows(5, width) for width in widths]
    feature = student(images)
    distances = [
        distance(units(plain_head(feature, list(head.parameters()))), units(target))
        for head, target in zip(method.heads, targets, strict=True)
    ]
    expected = sum(distances) / len(distances)
    assert_golden(method, student, Batch([images], targets), expected)


def test_each_teacher_has_a_head_of_its_own_width():
    method = SimReg(SimReg.Config(), student_dim=WIDTH, teachers=[TeacherSide(8), TeacherSide(5)])
    assert [head[-1].out_features for head in method.heads] == [8, 5]
    assert {name.rpartition(".")[0] for name in method.state_dict()} == {
        f"heads.{teacher}.{layer}" for teacher in (0, 1) for layer in (0, 1, 3, 4, 5, 7)
    }


def test_length_of_a_target_does_not_matter_and_the_cosine_is_told():
    method = SimReg(SimReg.Config(), student_dim=WIDTH, teachers=[TeacherSide(8)])
    student, images, target = Student(), pixels(5), torch.randn(5, 8)
    one, other = (method(student, Batch([images], [target * by])) for by in (1.0, 7.0))
    torch.testing.assert_close(one.value, other.value)
    torch.testing.assert_close(one.value, 2 - 2 * one.parts["cosine"])


def test_head_has_its_linear_junction_and_the_papers_size():
    kinds = [type(layer).__name__ for layer in simreg_head(512, 2048)]
    one = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds == one + one
    sizes = [sum(p.numel() for p in simreg_head(dim, 2048).parameters()) for dim in (512, 1280)]
    assert [round(size / 1e6, 1) for size in sizes] == [3.7, 15.1]  # R18, MobileNetV2: 4.2


def test_centring_is_asked_of_the_run():
    assert not SimReg.needs(SimReg.Config()).center
    assert SimReg.needs(SimReg.Config(center=True)).center
