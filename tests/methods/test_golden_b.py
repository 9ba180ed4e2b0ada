"""CompRess, BINGO, CoSS, V_kD and LightlyTrain's loss against loops in float64.

The loops are written from the papers' formulas, one row and one column at a time, and share no code
with the methods but the student and the heads.
"""

import math

import numpy as np
import pytest
import torch
from ranks import in_ranks
from torch import nn
from torch.nn.functional import normalize

from kdcache.distributed import mean_gradients, mean_scalars, rank, world_size
from kdcache.errors import ConfigError
from kdcache.methods import Batch, Needs, TeacherSide, _soft_ranking, get_method
from kdcache.methods._ranking_kl import ranking_kl
from kdcache.methods.bingo import cutmix

B, S, E, D, K = 5, 6, 7, 11, 23
EXACT = {"rtol": 0, "atol": 1e-10}
OWN = [[3, -1], [-1, -1], [0, 22], [6, 7], [13, -1]]


class Student(nn.Module):
    """Pixels to E numbers, in float64."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(S * S * 3, E).double()

    def forward(self, images):
        return self.layer(images.flatten(1).double() / 255 - 0.5)


def pictures(count=1):
    return [torch.randint(0, 256, (B, S, S, 3), dtype=torch.uint8) for _ in range(count)]


def rows(count, dim=D, scale=3.0):
    return torch.randn(count, dim, dtype=torch.float64) * scale


def build(name, *, teacher_dim=D, **settings):
    """A method in float64 with a student that it has adopted."""
    cls = get_method(name)
    method = cls(cls.Config(**settings), student_dim=E, teachers=[TeacherSide(teacher_dim)])
    student = Student()
    method.adopt(student)
    return method.double(), student


@pytest.fixture(autouse=True)
def _uneven_chunks(monkeypatch):
    monkeypatch.setattr(_soft_ranking, "_CHUNK", 7)


def same(method, student, found, expected):
    """Value and the gradient of everything trained are those of the plain form."""
    trained = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    torch.testing.assert_close(found.detach(), expected.detach(), **EXACT)
    ours = torch.autograd.grad(found, trained)
    theirs = torch.autograd.grad(expected, trained)
    assert any(g.abs().max() > 1e-6 for g in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **EXACT)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (a.norm() * b.norm())


def divergence(s, t, student_bank, teacher_bank, tau, hidden=()):
    """KL(teacher || student) of one row: sum of p log(p / q) over the slots that it sees."""
    seen = [k for k in range(len(teacher_bank)) if k not in hidden]
    p = torch.stack([torch.exp(cosine(t, teacher_bank[k]) / tau) for k in seen])
    q = torch.stack([torch.exp(cosine(s, student_bank[k]) / tau) for k in seen])
    p, q = p / p.sum(), q / q.sum()
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def entropy(t, bank, tau, hidden=()):
    p = torch.stack(
        [torch.exp(cosine(t, bank[k]) / tau) for k in range(len(bank)) if k not in hidden]
    )
    p = p / p.sum()
    return -sum(a * torch.log(a) for a in p)


@pytest.mark.parametrize("masked", [False, True])
def test_compress_1q_equals_the_divergence_row_by_row(masked):
    method, student = build("compress_1q")
    images, target, bank = pictures(), rows(B), normalize(rows(K), dim=1)
    own = torch.tensor(OWN) if masked else None
    loss = method(student, Batch(images, [target], bank, own))
    prediction = student(images[0]) @ method.head.weight.T + method.head.bias
    hidden = OWN if masked else [()] * B
    terms = zip(prediction, target, hidden, strict=True)
    expected = sum(divergence(s, t, bank, bank, 0.04, h) for s, t, h in terms) / B
    same(method, student, loss.value, expected)
    terms = zip(target, hidden, strict=True)
    wanted = sum(entropy(t, bank, 0.04, h) for t, h in terms) / B
    torch.testing.assert_close(loss.parts["entropy"], wanted, **EXACT)


def test_divergence_of_a_perfect_student_is_zero():
    bank, target = normalize(rows(K), dim=1), normalize(rows(B), dim=1)
    student = target.clone().requires_grad_()
    value, _ = ranking_kl(student, target, bank, bank, 0.04)
    value.backward()
    assert abs(float(value.detach())) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_lightly_ranks_the_batchs_own_targets_as_well():
    method, student = build("lightly")
    images, target, bank = pictures(), rows(B), normalize(rows(K), dim=1)
    loss = method(student, Batch(images, [target], bank, torch.tensor(OWN)))
    prediction = student(images[0]) @ method.head.weight.T + method.head.bias
    whole = [*bank, *target]
    terms = zip(prediction, target, OWN, strict=True)
    expected = sum(divergence(s, t, whole, whole, 0.07, h) for s, t, h in terms) / B
    same(method, student, loss.value, expected)


def test_lightly_counts_each_row_once_where_the_bank_is_of_all_images():
    """That bank is of this epoch's views: the batch's own targets stand in it already."""
    method, student = build("lightly", queue="all")
    images, bank = pictures(), normalize(rows(K), dim=1)
    shown = torch.tensor([[4], [0], [22], [9], [17]])
    target = bank[shown[:, 0]] * 3
    loss = method(student, Batch(images, [target], bank, shown))
    prediction = student(images[0]) @ method.head.weight.T + method.head.bias
    terms = zip(prediction, target, strict=True)
    expected = sum(divergence(s, t, bank, bank, 0.07) for s, t in terms) / B
    same(method, student, loss.value, expected)


def test_autocast_does_not_reach_the_divergence():
    target, keys, student = (normalize(rows(n), dim=1).float() for n in (B, 300, B))
    expected = ranking_kl(student, target, keys, keys, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        found = ranking_kl(student, target, keys, keys, 0.04)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("momentum_student", [True, False])
def test_compress_2q_equals_the_divergence_over_two_aligned_queues(momentum_student):
    method, student = build("compress", queue=12, momentum_student=momentum_student, momentum=0.5)
    keys, said = [], []
    slow = Student()
    slow.load_state_dict(student.state_dict())
    for _ in range(3):  # 15 samples go through 12 slots
        images, target = pictures(), rows(B)
        method(student, Batch(images, [target]))
        said += list(target)
        keys += list((slow if momentum_student else student)(images[0]).detach())
        with torch.no_grad():  # an optimiser's step
            for p in student.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        method.finish_step(student)
        with torch.no_grad():
            for p, q in zip(slow.parameters(), student.parameters(), strict=True):
                p.copy_(0.5 * p + 0.5 * q)
    images, target = pictures(), rows(B)
    loss = method(student, Batch(images, [target])).value
    kept = slice(3, 15)  # the last 12, in whichever slots
    terms = zip(student(images[0]), target, strict=True)
    expected = sum(divergence(s, t, keys[kept], said[kept], 0.04) for s, t in terms) / B
    trained = list(student.parameters())
    torch.testing.assert_close(loss.detach(), expected.detach(), **EXACT)
    ours, theirs = torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **EXACT)
    assert max(float(g.abs().max()) for g in theirs) > 1e-6


def test_compress_2q_asks_for_nothing_before_its_queues_hold_anything():
    method, student = build("compress", queue=12)
    loss = method(student, Batch(pictures(), [rows(B)])).value
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())
    assert not method.student_queue.rows.any()
    method.finish_step(student)
    assert len(method.student_queue.filled) == len(method.teacher_queue.filled) == B


def test_compress_2q_slow_copy_is_in_evaluation_save_for_its_batch_norms():
    cls = get_method("compress")
    method = cls(cls.Config(queue=4), student_dim=E, teachers=[TeacherSide(D)])
    method.adopt(nn.Sequential(nn.Linear(3, E), nn.BatchNorm1d(E), nn.Dropout(0.5)))
    for _ in range(2):
        linear, norm, dropout = method.train().slow_student
        assert (linear.training, norm.training, dropout.training) == (False, True, False)
        assert not any(m.training for m in method.eval().slow_student.modules())
    without = cls(
        cls.Config(queue=4, momentum_student=False), student_dim=E, teachers=[TeacherSide(D)]
    )
    without.adopt(Student())
    assert without.slow_student is None


@pytest.mark.parametrize("name", ["compress", "compress_1q", "lightly"])
def test_divergence_keeps_no_tensor_of_batch_by_bank(monkeypatch, name):
    monkeypatch.setattr(_soft_ranking, "_CHUNK", 64)
    num_keys = 2048
    method, student = build(name, queue=num_keys)
    bank = normalize(rows(num_keys), dim=1)
    batch = Batch(pictures(), [rows(B)], bank)
    if name == "compress":
        for queue in (method.student_queue, method.teacher_queue):
            queue.hold(normalize(rows(num_keys, queue.rows.shape[1]), dim=1))
            queue.advance()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(tuple(t.shape)) or t, lambda t: t
    ):
        method(student, batch)
    assert saved
    assert not any(num_keys <= max(shape, default=0) for shape in saved)


def infonce(u, key, negatives, tau, hidden):
    logits = [cosine(u, key) / tau]
    logits += [cosine(u, q) / tau for k, q in enumerate(negatives) if k not in hidden]
    return -torch.log(torch.exp(logits[0]) / sum(torch.exp(x) for x in logits))


@pytest.mark.parametrize(
    ("progress", "weights"), [(0.0, (1, 0)), (10.99, (1, 0)), (11.0, (0.5, 0.5))]
)
def test_bingo_equals_six_infonce_losses(progress, weights):
    method, student = build("bingo", hidden_dim=9)
    q, q_plus = pictures(2)
    unseen, k, unseen_plus, k_plus = (rows(B) for _ in range(4))
    bank = normalize(rows(K), dim=1)
    batch = Batch(
        [q, q_plus], [unseen, k, unseen_plus, k_plus], bank, torch.tensor(OWN), progress=progress
    )
    before = torch.get_rng_state()
    loss = method(student, batch).value
    torch.set_rng_state(before)
    mixed, share = cutmix(q, q_plus)
    first, second = weights
    plan = [(q, first, second), (q_plus, second, first), (mixed, share, 1 - share)]
    expected = 0.0
    for images, of_own, of_other in plan:
        for i, u in enumerate(method.head(student(images))):
            expected += of_own * infonce(u, k[i], bank, 0.2, OWN[i]) / (3 * B)
            expected += of_other * infonce(u, k_plus[i], bank, 0.2, OWN[i]) / (3 * B)
    assert 0 < share < 1
    same(method, student, loss, expected)


def test_bingo_learns_from_the_views_it_does_not_see():
    """View 0 is the student's; what the teacher said of it is no part of the loss."""
    method, student = build("bingo", hidden_dim=9, bag_from_epoch=0)
    images, bank = pictures(2), normalize(rows(K), dim=1)
    targets = [rows(B) for _ in range(4)]

    def value(said):
        torch.manual_seed(3)  # the same box
        return float(method(student, Batch(images, said, bank)).value.detach())

    start = value(targets)
    for place, counts in enumerate([False, True, False, True]):
        other = [t.flip(1) if i == place else t for i, t in enumerate(targets)]
        assert (value(other) != start) == counts
    needs = get_method("bingo").needs(method.config)
    assert (needs.views, needs.rendered, needs.neighbours, needs.queue_view) == (2, 1, 1, 1)


class Told(nn.Module):
    """Says the same rows of whatever it is shown."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def forward(self, images):
        return self.said


def test_autocast_does_not_reach_the_losses_of_bingo():
    method, _ = build("bingo")
    method.head = nn.Identity()
    student, bank = Told(rows(B).float()), normalize(rows(300), dim=1).float()
    batch = Batch(pictures(2), [rows(B).float() for _ in range(4)], bank, progress=11.0)
    before = torch.get_rng_state()
    expected = method(student, batch).value
    torch.set_rng_state(before)
    with torch.autocast("cpu", torch.bfloat16):
        found = method(student, batch).value
    assert torch.equal(found, expected)


def test_cutmix_replaces_one_box_and_counts_its_pixels():
    shares, reached = [], torch.zeros(10, 10, dtype=torch.bool)
    for _ in range(300):
        first = torch.zeros(2, 10, 10, 3, dtype=torch.uint8)
        mixed, share = cutmix(first, torch.full_like(first, 255))
        assert not first.any()
        assert torch.equal(mixed[0], mixed[1])
        inside = mixed[0, :, :, 0] > 0
        assert torch.equal(mixed[0] > 0, inside[..., None].expand(-1, -1, 3))
        assert math.isclose(share, 1 - float(inside.float().mean()), abs_tol=1e-6)
        down, across = inside.any(1), inside.any(0)
        assert torch.equal(inside, down[:, None] & across[None])  # one rectangle
        shares.append(share)
        reached |= inside
    assert min(shares) < 0.4 < 0.9 < max(shares)
    assert reached.all()  # the corners too


def test_cutmix_draws_its_share_from_beta_2_2():
    """By the largest gap between two distribution functions; that of Beta(1, 1) is 0.09 off."""
    side, rng = 200, np.random.default_rng(0)
    half = np.sqrt(1.0 - rng.beta(2, 2, 100_000)) * side / 2
    centre = rng.uniform(0, side, (2, 100_000))
    sides = np.minimum(centre + half, side) - np.maximum(centre - half, 0)
    expected = np.sort(1.0 - sides.prod(axis=0) / side**2)
    first = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    found = np.sort([cutmix(first, first)[1] for _ in range(3000)])
    below = np.searchsorted(expected, found) / len(expected)
    assert np.abs(below - (np.arange(3000) + 0.5) / 3000).max() < 0.04


@pytest.mark.parametrize(("teacher_dim", "neighbours"), [(D, 1), (E, 2), (D, 0)])
def test_coss_equals_cosines_of_rows_and_of_columns(teacher_dim, neighbours):
    method, student = build(
        "coss", teacher_dim=teacher_dim, neighbours=neighbours, space_weight=0.7
    )
    images = pictures(1 + neighbours)
    targets = [rows(B, teacher_dim) for _ in images]
    found = method(student, Batch(images, targets)).value
    if teacher_dim == E:
        assert not list(method.head.parameters())
    ours = [row for picture in images for row in method.head(student(picture))]
    theirs = [row for target in targets for row in target]
    by_row = sum(cosine(s, t) for s, t in zip(ours, theirs, strict=True)) / len(ours)
    by_column = 0.0
    for d in range(teacher_dim):
        by_column = by_column + cosine(
            torch.stack([s[d] for s in ours]), torch.stack([t[d] for t in theirs])
        )
    same(method, student, found, -by_row - 0.7 * by_column / teacher_dim)


def test_coss_sees_magnitudes_that_unit_vectors_lose():
    method, student = build("coss", teacher_dim=E, neighbours=0)
    images, target = pictures(), rows(B, E)
    before = method(student, Batch(images, [target])).parts
    longer = target * torch.tensor([1, 5, 1, 9, 1.0], dtype=torch.float64)[:, None]
    after = method(student, Batch(images, [longer])).parts
    torch.testing.assert_close(after["cosine"], before["cosine"], **EXACT)
    assert abs(float(after["space"] - before["space"])) > 1e-3


def test_vkd_equals_smooth_l1_number_by_number():
    method, student = build("vkd")
    images, target = pictures(), rows(B)
    found = method(student, Batch(images, [target])).value
    prediction = student(images[0]) @ method.projector.weight.T
    total = 0.0
    for p, t in zip(prediction, target, strict=True):
        mean = sum(t) / D
        deviation = (sum((x - mean) ** 2 for x in t) / D + 1e-5).sqrt()
        for x, y in zip(p, t, strict=True):
            gap = (x - (y - mean) / deviation).abs()
            total = total + (gap**2 / 2 if gap < 1 else gap - 0.5)
    same(method, student, found, total / (B * D))


def test_vkd_columns_stay_orthonormal_through_steps_and_a_checkpoint(tmp_path):
    method, student = build("vkd")
    batch = Batch(pictures(), [rows(B)])
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0, momentum=0.9)
    start = method.projector.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        method(student, batch).value.backward()
        optimizer.step()
    weight = method.projector.weight.detach()
    assert (weight - start).abs().max() > 1e-3
    # The matrix that it was begun with is a float32 one.
    torch.testing.assert_close(weight.T @ weight, torch.eye(E).double(), rtol=0, atol=1e-6)
    torch.save(method.state_dict(), tmp_path / "method.pt")
    other, _ = build("vkd")
    other.load_state_dict(torch.load(tmp_path / "method.pt", weights_only=True))
    torch.testing.assert_close(other.projector.weight, weight, **EXACT)


@pytest.mark.parametrize("teacher_dim", [D, E])
def test_vkd_columns_stay_orthonormal_under_the_weight_decay_of_a_run(teacher_dim, tmp_path):
    method, student = build("vkd", teacher_dim=teacher_dim)
    batch = Batch(pictures(), [rows(B, teacher_dim)])
    settings = method.optimisation
    assert settings.weight_decay > 0

    def steps(method):
        trained = [*student.parameters(), *method.parameters()]
        optimizer = torch.optim.SGD(
            trained,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        for _ in range(20):
            optimizer.zero_grad()
            method(student, batch).value.backward()
            assert student.layer.weight.grad.abs().max() > 0
            optimizer.step()
            method.finish_step(student)
            weight = method.projector.weight.detach()
            near = {"rtol": 0, "atol": 1e-6}  # what it was begun with is a float32 matrix
            torch.testing.assert_close(weight.T @ weight, torch.eye(E).double(), **near)
        return weight

    weight = steps(method)
    torch.save(method.state_dict(), tmp_path / "method.pt")
    other, _ = build("vkd", teacher_dim=teacher_dim)
    other.load_state_dict(torch.load(tmp_path / "method.pt", weights_only=True))
    torch.testing.assert_close(other.projector.weight, weight, **EXACT)
    assert (steps(other) - weight).abs().max() > 1e-4  # and it goes on


def test_vkd_projects_in_full_precision_under_autocast():
    method, student = build("vkd")
    method, student = method.float(), student.float()
    student.forward = lambda images: student.layer(images.flatten(1).float() / 255 - 0.5)
    seen = []
    method.projector.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    with torch.autocast("cpu", torch.bfloat16):
        assert student(pictures()[0]).dtype == torch.bfloat16
        method(student, Batch(pictures(), [rows(B).float()]))
    feature, prediction = seen[0]
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction.norm(dim=1), feature.norm(dim=1), rtol=1e-5, atol=0)


def test_vkd_refuses_a_student_wider_than_its_teacher():
    cls = get_method("vkd")
    with pytest.raises(ConfigError, match="12 numbers of the student to 8") as caught:
        cls(cls.Config(), student_dim=12, teachers=[TeacherSide(8)])
    assert "--method simreg" in caught.value.hint


def head_size(name, teacher_dim):
    cls = get_method(name)
    settings = {"queue": 8} if name == "compress" else {}
    method = cls(cls.Config(**settings), student_dim=512, teachers=[TeacherSide(teacher_dim)])
    return sum(p.numel() for p in method.parameters())


def test_heads_are_of_the_papers_size_for_a_resnet18():
    assert head_size("compress", 2048) == 0  # the backbone's feature itself
    assert head_size("compress_1q", 2048) == 512 * 2048 + 2048
    assert head_size("bingo", 128) == 512 * 2048 + 2048 + 2048 * 128 + 128  # without batch norm
    assert head_size("vkd", 2048) == 512 * 2048  # without bias


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        (
            "bingo",
            {"queue": 9, "target": "feature", "mask_own": False},
            Needs(
                "feature",
                views=2,
                rendered=1,
                neighbours=1,
                negatives=9,
                queue_view=1,
                mask_own=False,
            ),
        ),
        (
            "bingo",
            {},
            Needs("embedding", views=2, rendered=1, neighbours=1, negatives=65536, queue_view=1),
        ),
        (
            "compress_1q",
            {"queue": "all", "temperature": 0.1, "sampled": 5, "nprobe": 3, "mask_own": False},
            Needs(
                "feature",
                negatives="all",
                mask_own=False,
                temperatures=(0.1, 0.1),
                nprobe=3,
                own_column=False,
            ),
        ),
        (
            "compress_1q",
            {},
            Needs("feature", negatives=128000, temperatures=(0.04, 0.04), own_column=False),
        ),
        (
            "lightly",
            {"queue": 9, "temperature": 0.1, "mask_own": False},
            Needs(
                "feature",
                negatives=9,
                mask_own=False,
                temperatures=(0.1, 0.1),
                couples_batch=True,
            ),
        ),
        (
            "lightly",
            {"queue": "all"},
            Needs("feature", negatives="all", temperatures=(0.07, 0.07), couples_batch=True),
        ),
        ("compress", {"queue": 9}, Needs("feature", own_keys=9)),
        ("coss", {"neighbours": 2}, Needs("feature", neighbours=2, couples_batch=True)),
        ("vkd", {}, Needs("feature")),
    ],
)
def test_needs_follow_the_settings(name, settings, expected):
    cls = get_method(name)
    assert cls.needs(cls.Config(**settings)) == expected


SPREAD = ("bingo", "compress", "compress_1q", "coss", "lightly", "vkd")


def mine(tensors):
    """This process's rows of each; all of them in a single process."""
    return [tensor.chunk(world_size())[rank()] for tensor in tensors]


def two_steps():
    """Mean loss and gradient of the second step of each method, which meets the first's rows."""
    found = {}
    for name in SPREAD:
        torch.manual_seed(5)
        settings = {"queue": 13} if name == "compress" else {}
        method, student = build(name, **settings)
        needs = type(method).needs(method.config)
        bank = normalize(rows(K), dim=1)
        own = torch.cat([torch.tensor(OWN), torch.tensor([[2, 4]])])
        group = 1 + needs.neighbours
        for _ in range(2):
            images = [torch.randint(0, 256, (6, S, S, 3), dtype=torch.uint8) for _ in range(group)]
            targets = [rows(6) for _ in range(group * needs.views)]
            batch = Batch(mine(images), mine(targets), bank, *mine([own]), progress=20.0)
            method.zero_grad()
            student.zero_grad()
            loss = method(student, batch).value
            loss.backward()
            method.finish_step(student)
        trained = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
        mean_gradients(trained)
        found[name] = [mean_scalars(loss.detach()), *(p.grad for p in trained)]
    return found


@pytest.mark.dist
def test_losses_and_gradients_of_two_processes_are_those_of_one(tmp_path):
    expected = two_steps()
    for found in in_ranks(2, two_steps, out=tmp_path):
        for name in SPREAD:
            assert any(tensor.abs().max() > 1e-6 for tensor in expected[name][1:])
            for theirs, ours in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(theirs, ours, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
