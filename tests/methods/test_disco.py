"""DisCo against its formula in loops over two steps, and what `distill_only` leaves out."""

import torch
from methods.plain import (
    WIDTH,
    Student,
    assert_golden,
    distance,
    infonce,
    move_towards,
    move_weights,
    pixels,
    rows,
    twin,
    two_layers,
    units,
)
from torch import nn

from kdcache.methods import Batch, Needs, TeacherSide, get_method

DisCo = get_method("disco")


def build(**settings):
    config = DisCo.Config(queue=9, hidden_dim=7, **settings)
    method = DisCo(config, student_dim=WIDTH, teachers=[TeacherSide(8)]).double()
    student = Student().double()
    method.adopt(student)
    return method, student


def make_batch():
    return Batch([pixels(5), pixels(5)], [rows(5, 8), rows(5, 8)])


def plain_distances(method, student, batch):
    """Both views' embeddings, and the sum of their mean squared distances."""
    head = list(method.head.parameters())
    ours = [units(two_layers(student(view), head)) for view in batch.images]
    pairs = zip(ours, batch.targets, strict=True)
    return ours, sum(distance(mine, units(target)) for mine, target in pairs)


def test_loss_and_gradient_equal_the_formula_in_loops_over_two_steps():
    method, student = build(momentum=0.7)
    slow, slow_head = twin(student), twin(method.head)
    first, second = make_batch(), make_batch()

    method(student, first)
    negatives = units(two_layers(slow(first.images[1]), list(slow_head.parameters())))
    move_weights(student, method.head)
    method.finish_step(student)
    move_towards(slow, student, 0.7)
    move_towards(slow_head, method.head, 0.7)

    ours, distances = plain_distances(method, student, second)
    key = units(two_layers(slow(second.images[1]), list(slow_head.parameters())))
    expected = infonce(ours[0], key, negatives, 0.2) + 32 * distances
    assert_golden(method, student, second, expected)


def test_distill_only_is_the_distances_and_nothing_else():
    method, student = build(distill_only=True, distill_weight=3.0)
    batch = make_batch()
    for _ in range(2):
        assert_golden(method, student, batch, 3 * plain_distances(method, student, batch)[1])
        method.finish_step(student)
    assert all(p.requires_grad for p in method.parameters())
    assert {name.split(".")[0] for name in method.state_dict()} == {"head"}


def test_needs_follow_the_settings():
    whole = DisCo.needs(DisCo.Config(queue=9))
    assert whole == Needs("embedding", views=2, own_keys=9)
    part = DisCo.needs(DisCo.Config(queue=9, distill_only=True, target="feature"))
    assert part == Needs("feature", views=2)


def test_weight_is_what_eight_gpus_of_32_images_gave():
    """A sum over the images of each GPU, and a mean over the GPUs: methods.md 5.1."""
    ours, theirs = units(rows(256, 8)), units(rows(256, 8))
    pairs = zip(ours.chunk(8), theirs.chunk(8), strict=True)
    sums = [nn.MSELoss(reduction="sum")(mine, other) for mine, other in pairs]
    expected = sum(sums) / 8
    found = DisCo.Config().distill_weight * distance(ours, theirs)
    torch.testing.assert_close(found, expected)


def test_head_has_the_papers_size_and_no_batch_norm():
    config = DisCo.Config(queue=9)
    method = DisCo(config, student_dim=512, teachers=[TeacherSide(128)])
    size = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert round(size / 1e6, 2) == 1.31  # R18: methods.md 6
    assert [type(layer).__name__ for layer in method.head] == ["Linear", "ReLU", "Linear"]
