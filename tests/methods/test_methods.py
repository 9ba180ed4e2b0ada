"""What every method on the shelf must do; what is special to one is in its own test.

Methods are found by file, and what they are given follows from their `Needs`: a new file is tested
here without a change.
"""

import io
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import kdcache.methods
from kdcache.errors import ConfigError
from kdcache.heads import ProjectionHead
from kdcache.methods import Batch, TeacherSide, available_methods, get_method
from kdcache.settings import parse

SIZE, BATCH, WIDTH = 8, 6, 12
TARGET = {"feature": 24, "embedding": 20}


class TinyStudent(nn.Module):
    """Pixels to 12 numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(SIZE * SIZE * 3, WIDTH)

    def forward(self, images):
        return self.layer(images.flatten(1).to(self.layer.weight.dtype) / 255 - 0.5)


def config_of(cls):
    """The method's own settings, with a queue that is soon full where it has one."""
    return cls.Config(**({"queue": 20} if "queue" in cls.Config.model_fields else {}))


def make_head():
    """From the width of a feature to that of an embedding, with statistics to disturb."""
    layers = [
        {"kind": "linear", "in": TARGET["feature"], "out": 16, "bias": True},
        {"kind": "batchnorm", "dim": 16, "affine": True, "eps": 1e-5},
        {"kind": "relu"},
        {"kind": "linear", "in": 16, "out": TARGET["embedding"], "bias": True},
    ]
    return ProjectionHead(layers)


def teachers_for(needs) -> list[TeacherSide]:
    if needs.target is None:
        return []
    width = TARGET[needs.target]
    first = TeacherSide(width, make_head() if needs.head else None)
    return [first, TeacherSide(width + 4)] if needs.several else [first]


def make_batch(needs, teachers) -> Batch:
    """What a run would give: every list in the order of teachers, then images, then views."""
    shown = needs.views if needs.rendered is None else needs.rendered
    group = 1 + needs.neighbours
    num_keys = 32 if needs.negatives == "all" else needs.negatives
    dim = teachers[0].dim if teachers else 0
    queues = [normalize(torch.randn(num_keys, dim), dim=1) for _ in range(2)] if num_keys else []
    own = torch.tensor([[4, -1], [-1, -1], [0, 19], [7, 8], [2, -1], [11, 3]])
    return Batch(
        images=[
            torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
            for _ in range(group * shown)
        ],
        targets=[
            torch.randn(BATCH, t.dim) * 3 for t in teachers for _ in range(group * needs.views)
        ],
        negatives=queues[0] if queues else None,
        own_slots=own if queues and needs.mask_own else None,
        more_negatives=queues[1] if queues and needs.second_queue_view is not None else None,
        progress=20.0,
    )


def flipped(batch: Batch) -> Batch:
    """The same batch from its last image to its first."""
    return Batch(
        images=[view.flip(0) for view in batch.images],
        targets=[target.flip(0) for target in batch.targets],
        negatives=batch.negatives,
        own_slots=None if batch.own_slots is None else batch.own_slots.flip(0),
        more_negatives=batch.more_negatives,
        progress=batch.progress,
    )


def in_float64(batch: Batch) -> Batch:
    """The same batch with targets and queues in float64."""
    return Batch(
        images=batch.images,
        targets=[target.double() for target in batch.targets],
        negatives=None if batch.negatives is None else batch.negatives.double(),
        own_slots=batch.own_slots,
        more_negatives=None if batch.more_negatives is None else batch.more_negatives.double(),
        progress=batch.progress,
    )


def loss_of(method, student, batch):
    """The loss; whatever a method draws, it draws the same each time."""
    torch.manual_seed(3)
    return method(student, batch)


def prepare(name):
    """A method after its first step, with its student and a batch that fits."""
    cls = get_method(name)
    config = config_of(cls)
    needs = cls.needs(config)
    teachers, student = teachers_for(needs), TinyStudent()
    method = cls(config, student_dim=WIDTH, teachers=teachers)
    method.adopt(student)
    method.train()
    batch = make_batch(needs, teachers)
    loss_of(method, student, batch)
    method.finish_step(student)  # a method with a queue of its own has something in it
    return method, student, batch


def loss_is_finite_and_reaches_student_and_head(method, student, batch):
    loss = loss_of(method, student, batch)
    assert loss.value.shape == ()
    assert torch.isfinite(loss.value)
    loss.value.backward()
    trained = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    assert any(p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)
    for value in loss.parts.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert torch.isfinite(value)


def what_stands_still_is_not_moved_by_a_step(method, student, batch):
    """Frozen weights change in `finish_step` alone, and the batch that is shown not at all."""
    before = {n: p.clone() for n, p in method.named_parameters() if not p.requires_grad}
    shown = [t.clone() for t in (*batch.images, *batch.targets)]
    loss_of(method, student, batch).value.backward()
    for name, parameter in before.items():
        assert torch.equal(method.get_parameter(name), parameter), name
    for now, then in zip((*batch.images, *batch.targets), shown, strict=True):
        assert torch.equal(now, then)


def order_within_the_batch_does_not_matter(method, student, batch):
    expected = loss_of(method, student, batch).value
    torch.testing.assert_close(loss_of(method, student, flipped(batch)).value, expected)


def loss_is_at_least_float32_and_float64_stays(method, student, batch):
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss_of(method, student, batch).value
    assert rough.dtype == torch.float32
    single = loss_of(method, student, batch).value
    torch.testing.assert_close(rough, single, rtol=0.1, atol=0.1)
    exact = loss_of(method.double(), student.double(), in_float64(batch)).value
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), single, rtol=1e-4, atol=1e-5)


def state_goes_through_a_checkpoint(method, student, batch):
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    other = type(method)(
        method.config,
        student_dim=WIDTH,
        teachers=teachers_for(type(method).needs(method.config)),
    )
    other.adopt(TinyStudent())
    other.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):  # and the step after it, in which queues have advanced
        mine, others = (loss_of(m, student, batch).value for m in (method, other.train()))
        assert torch.equal(mine, others)
        method.finish_step(student)
        other.finish_step(student)


def settings_refuse_what_they_do_not_know(method, student, batch):
    with pytest.raises(ConfigError, match=r"unknown key `method\.nonsense`"):
        parse(type(method).Config, {"nonsense": 1}, "method")


def source_is_cited(method, student, batch):
    text = sys.modules[type(method).__module__].__doc__
    assert "Source:" in text
    assert "arXiv:" in text


CONTRACT = [
    loss_is_finite_and_reaches_student_and_head,
    what_stands_still_is_not_moved_by_a_step,
    order_within_the_batch_does_not_matter,
    loss_is_at_least_float32_and_float64_stays,
    state_goes_through_a_checkpoint,
    settings_refuse_what_they_do_not_know,
    source_is_cited,
]


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", available_methods())
def test_every_method_keeps_the_contract(name, rule):
    rule(*prepare(name))


NEWCOMER = '''"""A regression that nobody has published.

Source: none, arXiv:0000.00000.
"""

from torch import nn
from torch.nn import functional

from kdcache.methods import Loss, Method, Needs
from kdcache.optimisation import Optimisation
from kdcache.settings import Settings


class Newcomer(Method):
    class Config(Settings):
        """No knobs."""

    optimisation = Optimisation()
    views = "weak"

    def __init__(self, config, *, student_dim, teachers):
        super().__init__(config, student_dim=student_dim, teachers=teachers)
        self.head = nn.Linear(student_dim, teachers[0].dim)

    @classmethod
    def needs(cls, config):
        return Needs(target="feature")

    def forward(self, student, batch):
        found = self.head(student(batch.images[0]))
        return Loss(functional.mse_loss(found.to(batch.targets[0].dtype), batch.targets[0]))
'''


@pytest.fixture
def shelve(tmp_path, monkeypatch):
    """A function that puts a file with the given text on the shelf, for the time of a test."""
    monkeypatch.setattr(kdcache.methods, "__path__", [*kdcache.methods.__path__, str(tmp_path)])

    def put(text):
        (tmp_path / "newcomer.py").write_text(text)

    yield put
    sys.modules.pop("kdcache.methods.newcomer", None)
    vars(kdcache.methods).pop("newcomer", None)


def test_file_alone_makes_a_method(shelve):
    before = available_methods()
    shelve(NEWCOMER)
    assert available_methods() == sorted([*before, "newcomer"])
    for rule in CONTRACT:
        rule(*prepare("newcomer"))


BROKEN = {
    "a weight that no gradient reaches": (
        "self.head = ",
        "self.unused = nn.Linear(2, 2)\n        self.head = ",
        loss_is_finite_and_reaches_student_and_head,
    ),
    "a loss of the first image only": (
        "found.to(batch.targets[0].dtype), batch.targets[0])",
        "found[0].to(batch.targets[0].dtype), batch.targets[0][0])",
        order_within_the_batch_does_not_matter,
    ),
    "targets that are normalised in place": (
        "        return Loss",
        "        batch.targets[0].div_(2)\n        return Loss",
        what_stands_still_is_not_moved_by_a_step,
    ),
    "a loss in half precision": (
        "found.to(batch.targets[0].dtype), batch.targets[0])",
        "found, batch.targets[0].to(found.dtype)).to(found.dtype)",
        loss_is_at_least_float32_and_float64_stays,
    ),
    "state outside of the checkpoint": (
        "        found = ",
        "        self.seen = getattr(self, 'seen', 0) + 1\n        found = self.seen * ",
        state_goes_through_a_checkpoint,
    ),
    "settings that take anything": (
        '"""No knobs."""',
        'model_config = {"extra": "allow"}',
        settings_refuse_what_they_do_not_know,
    ),
    "no source": ("arXiv", "arxive", source_is_cited),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_contract_finds_what_is_broken(shelve, fault):
    text, broken, rule = BROKEN[fault]
    assert text in NEWCOMER
    shelve(NEWCOMER.replace(text, broken))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        rule(*prepare("newcomer"))


def test_unknown_method_names_a_near_one():
    with pytest.raises(ConfigError) as caught:
        get_method("simregg")
    assert caught.value.hint == "did you mean `simreg`?"
