"""MoCo v2 against its formula in loops over two steps, and how its slow copy moves."""

import torch
from methods.plain import (
    WIDTH,
    Student,
    assert_golden,
    infonce,
    move_towards,
    move_weights,
    pixels,
    rows,
    twin,
    two_layers,
    units,
)

from kdcache.methods import Batch, Needs, get_method
from kdcache.methods._infonce import infonce as infonce_of_rows

MoCo = get_method("moco")


def build(**settings):
    method = MoCo(MoCo.Config(queue=8, embedding_dim=4, **settings), student_dim=WIDTH).double()
    student = Student().double()
    method.adopt(student)
    return method, student


def plain_embedding(student, head, images):
    return units(two_layers(student(images), list(head.parameters())))


def test_loss_and_gradient_equal_the_formula_in_loops_over_two_steps():
    method, student = build(momentum=0.7, temperature=0.3)
    slow, slow_head = twin(student), twin(method.head)
    first, second = (Batch([pixels(5), pixels(5)]) for _ in range(2))

    method(student, first)
    negatives = plain_embedding(slow, slow_head, first.images[1])
    move_weights(student, method.head)
    method.finish_step(student)
    move_towards(slow, student, 0.7)
    move_towards(slow_head, method.head, 0.7)

    query = plain_embedding(student, method.head, second.images[0])
    key = plain_embedding(slow, slow_head, second.images[1])
    assert_golden(method, student, second, infonce(query, key, negatives, 0.3))


def test_nothing_is_told_apart_in_the_first_step():
    method, student = build()
    assert float(method(student, Batch([pixels(5), pixels(5)])).value.detach()) == 0.0


def test_autocast_does_not_reach_the_loss():
    query, key, negatives = (units(rows(n, 16)).float() for n in (6, 6, 300))
    expected = infonce_of_rows(query, key, negatives, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        found = infonce_of_rows(query, key, negatives, 0.2)
    assert torch.equal(found, expected)


def test_needs_are_two_views_and_room_for_its_own_keys():
    assert MoCo.needs(MoCo.Config(queue=8)) == Needs(None, views=2, own_keys=8)


def test_slow_copy_follows_at_its_pace():
    method, student = build(momentum=0.9)
    before = method.slow_student.layer.weight.clone()
    with torch.no_grad():
        student.layer.weight.add_(1.0)
    method(student, Batch([pixels(5), pixels(5)]))
    method.finish_step(student)
    torch.testing.assert_close(method.slow_student.layer.weight, before + 0.1)
