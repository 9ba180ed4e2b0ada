"""SEED against its formula in loops, and against the released code's form."""

import pytest
import torch
from methods.plain import WIDTH, Student, assert_golden, pixels, ranking, rows, two_layers, units
from torch import nn

from kdcache.methods import Batch, TeacherSide, get_method
from kdcache.methods._heads import two_layer_head

Seed = get_method("seed")
OWN = torch.tensor([[3, -1], [-1, -1], [0, 6], [5, 2]])


def build(**settings):
    config = Seed.Config(queue=7, **settings)
    method = Seed(config, student_dim=WIDTH, teachers=[TeacherSide(8)]).double()
    return method, Student().double()


def targets_near(negatives: torch.Tensor, batch: int) -> torch.Tensor:
    """Targets close to a row of the queue each, so that a ranking has more than one entry."""
    return negatives[torch.arange(batch) % len(negatives)] * 4 + rows(batch, 8) * 0.05


@pytest.mark.parametrize("own", [None, OWN], ids=["open", "masked"])
@pytest.mark.parametrize("temperatures", [(0.2, 0.01), (0.04, 0.04)])
def test_loss_and_gradient_equal_the_formula_in_loops(temperatures, own):
    tau_s, tau_t = temperatures
    method, student = build(student_temperature=tau_s, teacher_temperature=tau_t)
    images, negatives = pixels(4), units(rows(7, 8))
    target = targets_near(negatives, 4)
    ours = units(two_layers(student(images), list(method.head.parameters())))
    hidden = [set(slots) for slots in own.tolist()] if own is not None else None
    expected = ranking(ours, units(target), negatives, temperatures, hidden)
    assert_golden(method, student, Batch([images], [target], negatives, own), expected)


@pytest.mark.parametrize("own", [None, OWN], ids=["open", "masked"])
def test_small_patches_are_ranked_against_a_queue_of_their_own(own):
    method, student = build(small_patches=3)
    images = [pixels(4), *(pixels(4, size=2) for _ in range(3))]
    queues = [units(rows(7, 8)) for _ in range(2)]
    targets = [targets_near(queues[view > 0], 4) for view in range(4)]
    head, taus = list(method.head.parameters()), (0.2, 0.01)
    hidden = [set(slots) for slots in own.tolist()] if own is not None else None
    losses = [
        ranking(units(two_layers(student(view), head)), units(target), queues[i > 0], taus, hidden)
        for i, (view, target) in enumerate(zip(images, targets, strict=True))
    ]
    expected = losses[0] + sum(losses[1:]) / 3
    assert_golden(method, student, Batch(images, targets, queues[0], own, queues[1]), expected)


def released(ours, theirs, columns, tau_s, tau_t):
    """The released code's order of work: queue as columns, the positive in front, log_softmax."""
    positives = (ours * theirs).sum(1, keepdim=True), (theirs * theirs).sum(1, keepdim=True)
    student = torch.cat((positives[0], ours @ columns), dim=1) / tau_s
    teacher = torch.cat((positives[1], theirs @ columns), dim=1) / tau_t
    share = torch.softmax(teacher, dim=1)
    return torch.sum(-share * torch.log_softmax(student, dim=1)) / len(ours)


@pytest.mark.parametrize("tau_t", [0.01, 1e-4])
def test_loss_and_gradient_equal_the_released_form(tau_t):
    method, student = build(teacher_temperature=tau_t)
    images, columns = pixels(6), units(rows(300, 8)).T.contiguous()
    target = targets_near(columns.T, 6)
    ours = nn.functional.normalize(method.head(student(images)), dim=1)
    expected = released(ours, nn.functional.normalize(target, dim=1), columns, 0.2, tau_t)
    assert_golden(method, student, Batch([images], [target], columns.T.contiguous()), expected)


def test_needs_follow_the_settings():
    plain = Seed.needs(Seed.Config())
    assert (plain.target, plain.views, plain.negatives) == ("embedding", 1, 65536)
    assert (plain.queue_view, plain.second_queue_view, plain.mask_own) == (0, None, True)
    small = Seed.needs(Seed.Config(small_patches=6, queue="all", target="feature", center=True))
    assert (small.target, small.views, small.negatives) == ("feature", 7, "all")
    assert (small.queue_view, small.second_queue_view, small.center) == (0, 1, True)


def test_head_is_as_wide_as_the_students_feature():
    method = Seed(Seed.Config(queue=7), student_dim=512, teachers=[TeacherSide(128)])
    shapes = [tuple(p.shape) for p in method.head.parameters()]
    assert shapes == [(512, 512), (512,), (128, 512), (128,)]  # R18: methods.md 2.2
    assert sum(p.numel() for p in method.parameters()) == 328_320
    assert not any(isinstance(m, nn.BatchNorm1d) for m in two_layer_head(4, 4, 4))
