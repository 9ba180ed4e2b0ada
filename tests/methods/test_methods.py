"""What every method on the shelf must do, and what the papers' numbers pin of three of them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from kdcache.errors import ConfigError
from kdcache.methods import Batch, TeacherSide, available_methods, get_method
from kdcache.methods._heads import simreg_head, two_layer_head
from kdcache.settings import parse

SIZE, BATCH, WIDTH, TARGET = 8, 6, 12, 20


class TinyStudent(nn.Module):
    """Pixels to 12 numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE * SIZE * 3, WIDTH)

    def forward(self, images):
        return self.layer(images.flatten(1).float() / 255 - 0.5)


def teachers_for(needs) -> list[TeacherSide]:
    return [TeacherSide(TARGET)] if needs.target else []


def make_batch(needs) -> Batch:
    images = [
        torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8) for _ in range(needs.views)
    ]
    targets = [torch.randn(BATCH, TARGET) * 3 for _ in images] if needs.target else []
    negatives = normalize(torch.randn(32, TARGET), dim=1) if needs.negatives else None
    own = torch.full((BATCH, 1), -1) if needs.negatives else None
    return Batch(images, targets, negatives, own)


@pytest.fixture(params=available_methods())
def ready(request):
    """A method with its student and a batch that fits."""
    cls = get_method(request.param)
    config = cls.Config()
    needs = cls.needs(config)
    student = TinyStudent()
    method = cls(config, student_dim=WIDTH, teachers=teachers_for(needs))
    method.adopt(student)
    return method, student, make_batch(needs)


def test_loss_is_finite_and_reaches_student_and_head(ready):
    method, student, batch = ready
    method(student, batch)
    method.finish_step(student)  # a method with a queue of its own needs something in it
    loss = method(student, batch)
    assert loss.value.shape == ()
    assert torch.isfinite(loss.value)
    loss.value.backward()
    trained = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert any(p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)


def test_order_within_the_batch_does_not_matter(ready):
    method, student, batch = ready
    turned = Batch(
        [view.flip(0) for view in batch.images],
        [target.flip(0) for target in batch.targets],
        batch.negatives,
        batch.own_slots,
    )
    method(student, batch)
    method.finish_step(student)  # a method with a queue of its own has something in it
    torch.testing.assert_close(method(student, turned).value, method(student, batch).value)


def test_state_goes_through_a_checkpoint(ready, tmp_path):
    method, student, batch = ready
    method(student, batch)
    method.finish_step(student)
    torch.save(method.state_dict(), tmp_path / "method.pt")
    kept = torch.load(tmp_path / "method.pt", weights_only=True)
    other = type(method)(
        type(method).Config(),
        student_dim=WIDTH,
        teachers=teachers_for(type(method).needs(method.config)),
    )
    other.adopt(TinyStudent())
    other.load_state_dict(kept)
    torch.testing.assert_close(other(student, batch).value, method(student, batch).value)


def test_settings_refuse_what_they_do_not_know(ready):
    method, _, _ = ready
    with pytest.raises(ConfigError, match=r"unknown key `method\.nonsense`"):
        parse(type(method).Config, {"nonsense": 1}, "method")


def test_source_is_cited(ready):
    import sys

    method, _, _ = ready
    text = sys.modules[type(method).__module__].__doc__
    assert "Source:" in text
    assert "arXiv:" in text


def test_simreg_equals_two_minus_two_cosines_row_by_row():
    method = get_method("simreg")(
        get_method("simreg").Config(), student_dim=WIDTH, teachers=[TeacherSide(TARGET)]
    )
    method = method.double()
    student, target = TinyStudent().double(), torch.randn(BATCH, TARGET, dtype=torch.float64) * 5
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)

    class Float64(nn.Module):
        def forward(self, x):
            return student.layer(x.flatten(1).double() / 255 - 0.5)

    prediction = method.head(Float64()(images))
    expected = 0.0
    for p, y in zip(prediction, target, strict=True):
        # Squared distance of the two unit vectors, written out.
        expected += sum((a / p.norm() - b / y.norm()) ** 2 for a, b in zip(p, y, strict=True))
    found = method(Float64(), Batch([images], [target])).value
    # The method works in float32; the formula above in float64.
    torch.testing.assert_close(found.double(), expected / BATCH, rtol=0, atol=2e-6)


def test_simreg_head_has_its_linear_junction_and_the_papers_size():
    head = simreg_head(512, 2048)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    count = sum(p.numel() for p in head.parameters())
    assert round(count / 1e6, 1) == 3.7  # R18 -> 2048: methods.md 4.2
    assert round(sum(p.numel() for p in simreg_head(1280, 2048).parameters()) / 1e6, 1) == 15.1


def test_seed_head_is_as_wide_as_the_students_feature():
    method = get_method("seed")(
        get_method("seed").Config(), student_dim=512, teachers=[TeacherSide(128)]
    )
    shapes = [tuple(p.shape) for p in method.head.parameters()]
    assert shapes == [(512, 512), (512,), (128, 512), (128,)]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in two_layer_head(4, 4, 4))


def test_paper_settings():
    simreg, seed = get_method("simreg").optimisation, get_method("seed").optimisation
    assert (simreg.lr, simreg.epochs, simreg.batch_size, simreg.weight_decay) == (
        0.05,
        130,
        256,
        1e-4,
    )
    assert (seed.lr, seed.epochs, seed.batch_size, seed.lr_per_256) == (0.03, 200, 256, True)
    config = get_method("seed").Config()
    assert (config.queue, config.student_temperature, config.teacher_temperature) == (
        65536,
        0.2,
        0.01,
    )


def test_moco_enqueues_after_the_loss_and_goes_round():
    cls = get_method("moco")
    method = cls(cls.Config(queue=8, embedding_dim=4), student_dim=WIDTH)
    student = TinyStudent()
    method.adopt(student)
    batch = make_batch(cls.needs(method.config))
    first = method(student, batch).value.detach()
    assert float(first) == 0.0  # nothing to tell apart yet: no random vectors stand in
    assert method.queue.abs().sum() == 0
    method.finish_step(student)
    keys = method.queue.clone()
    assert keys[:6].norm(dim=1).min() > 0.99
    assert keys[6:].abs().sum() == 0
    method(student, batch)
    method.finish_step(student)
    torch.testing.assert_close(method.queue[6:8], keys[:2])  # the same images again ...
    torch.testing.assert_close(method.queue[:4], keys[2:6])  # ... and round to the start


def test_moco_slow_copy_follows_at_its_pace():
    cls = get_method("moco")
    method = cls(cls.Config(queue=8, embedding_dim=4, momentum=0.9), student_dim=WIDTH)
    student = TinyStudent()
    method.adopt(student)
    before = method.slow_student.layer.weight.clone()
    with torch.no_grad():
        student.layer.weight.add_(1.0)
    method(student, make_batch(cls.needs(method.config)))
    method.finish_step(student)
    torch.testing.assert_close(method.slow_student.layer.weight, before + 0.1)


def test_unknown_method_names_a_near_one():
    with pytest.raises(ConfigError) as caught:
        get_method("simregg")
    assert caught.value.hint == "did you mean `simreg`?"
