"""The chunked ranking loss against the plain formula, forward and gradient."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from kdcache.methods import _soft_ranking
from kdcache.methods._soft_ranking import attend, attend_to, log_sum_exp, soft_ranking_loss

TEMPERATURES = [(0.2, 0.01), (0.2, 1e-4), (0.04, 0.04), (0.07, 0.2)]


def unit(*shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def plain_loss(student, teacher, negatives, tau_s, tau_t, own=None):
    """SEED's loss in loops over rows and columns, as its paper writes it."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(student)):
        hidden = set(own[row].tolist()) if own is not None else set()
        columns = [teacher[row]]
        columns += [q for slot, q in enumerate(negatives) if slot not in hidden]
        student_logits = torch.stack([student[row] @ column / tau_s for column in columns])
        teacher_logits = torch.stack([teacher[row] @ column / tau_t for column in columns])
        target = torch.exp(teacher_logits - torch.logsumexp(teacher_logits, 0))
        log_share = student_logits - torch.logsumexp(student_logits, 0)
        total = total - (target * log_share).sum()
    return total / len(student)


def both(loss, student, *args, **kwargs):
    student = student.clone().requires_grad_()
    value = loss(student, *args, **kwargs)
    value.backward()
    return value.detach(), student.grad


@pytest.mark.parametrize(("tau_s", "tau_t"), TEMPERATURES)
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_equal_the_plain_formula(monkeypatch, tau_s, tau_t, masked):
    monkeypatch.setattr(_soft_ranking, "_CHUNK", 7)  # chunks of uneven length
    teacher, negatives = unit(5, 12), unit(23, 12)
    negatives[3] = normalize(teacher[0] + 0.05 * unit(12), dim=0)  # a near neighbour
    student = unit(5, 12)
    own = torch.tensor([[3, -1], [-1, -1], [0, 22], [6, 7], [13, -1]]) if masked else None
    expected = both(plain_loss, student, teacher, negatives, tau_s, tau_t, own)
    found = both(
        soft_ranking_loss,
        student,
        teacher,
        negatives,
        student_temperature=tau_s,
        teacher_temperature=tau_t,
        own=own,
    )
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-10)


def test_chunk_size_does_not_matter(monkeypatch):
    query, negatives = unit(4, 8), unit(100, 8)
    results = []
    for chunk in (1, 9, 100, 8192):
        monkeypatch.setattr(_soft_ranking, "_CHUNK", chunk)
        results.append(attend(query, query, negatives, 0.1))
    for mean, log_sum in results[1:]:
        torch.testing.assert_close(mean, results[0][0], rtol=0, atol=1e-13)
        torch.testing.assert_close(log_sum, results[0][1], rtol=0, atol=1e-13)


def test_gradient_passes_the_numeric_check():
    teacher, negatives = unit(3, 5), unit(9, 5)
    student = unit(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: soft_ranking_loss(
            z, teacher, negatives, student_temperature=0.2, teacher_temperature=0.05
        ),
        (student,),
    )


def test_perfect_student_at_equal_temperatures_pays_the_entropy_of_the_ranking():
    teacher, negatives = unit(4, 6), unit(30, 6)
    logits = torch.cat([torch.ones(4, 1, dtype=torch.float64), teacher @ negatives.T], 1) / 0.1
    share = torch.softmax(logits, 1)
    entropy = -(share * share.log()).sum(1).mean()
    loss = soft_ranking_loss(
        teacher, teacher, negatives, student_temperature=0.1, teacher_temperature=0.1
    )
    assert math.isclose(float(loss), float(entropy), rel_tol=1e-12)


def test_no_tensor_of_batch_by_queue_is_kept(monkeypatch):
    monkeypatch.setattr(_soft_ranking, "_CHUNK", 64)
    teacher, negatives = unit(8, 4), unit(4096, 4)
    student = unit(8, 4).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        soft_ranking_loss(
            student, teacher, negatives, student_temperature=0.2, teacher_temperature=0.01
        )
    assert max(saved) <= 8 * 4


def test_seed_equals_the_official_form(shared):
    """The form of the released code, as `shared/reference/seed_loss.py` restates it."""
    import importlib.util

    path = shared / "reference" / "seed_loss.py"
    spec = importlib.util.spec_from_file_location("seed_loss", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    teacher, negatives, student = unit(6, 16), unit(512, 16), unit(6, 16)
    expected = both(lambda z: reference.official(z, teacher, negatives.T.contiguous()), student)
    found = both(
        lambda z: soft_ranking_loss(
            z, teacher, negatives, student_temperature=0.2, teacher_temperature=0.01
        ),
        student,
    )
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-10)


def test_autocast_does_not_reach_the_loss():
    """In bfloat16 similarities near one are wrong by more than the teacher's temperature."""
    teacher, negatives, student = unit(6, 16).float(), unit(300, 16).float(), unit(6, 16).float()
    temperatures = {"student_temperature": 0.2, "teacher_temperature": 0.01}
    expected = soft_ranking_loss(student, teacher, negatives, **temperatures)
    with torch.autocast("cpu", torch.bfloat16):
        found = soft_ranking_loss(student, teacher, negatives, **temperatures)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_without_a_positive_attend_to_the_negatives_alone(monkeypatch, masked):
    monkeypatch.setattr(_soft_ranking, "_CHUNK", 7)
    query, keys, others = unit(3, 12), unit(23, 12), unit(23, 4)
    hidden = [[*range(7), 9], [-1] * 8, [22] * 8] if masked else [[-1] * 8] * 3
    own = torch.tensor(hidden) if masked else None
    (mean, other_mean), log_sum = attend_to(query, keys, [keys, others], 0.05, own)
    for row, left_out in enumerate(hidden):
        seen = [k for k in range(23) if k not in left_out]
        weights = torch.stack([torch.exp(query[row] @ keys[k] / 0.05) for k in seen])
        expected = sum(w * keys[k] for w, k in zip(weights, seen, strict=True)) / weights.sum()
        other = sum(w * others[k] for w, k in zip(weights, seen, strict=True)) / weights.sum()
        torch.testing.assert_close(mean[row], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(other_mean[row], other, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_sum[row], weights.sum().log(), rtol=0, atol=1e-12)
    alone, same = attend(query, None, keys, 0.05, own)
    assert torch.equal(alone, mean)
    assert torch.equal(same, log_sum)


@pytest.mark.parametrize("num_keys", [0, 5])
def test_row_that_sees_no_key_has_an_empty_sum(num_keys):
    query, keys = unit(2, 6).float(), unit(num_keys, 6).float()
    mean, log_sum = attend(query, None, keys, 0.1, torch.arange(num_keys).expand(2, -1))
    assert not mean.any()
    assert log_sum.tolist() == [-math.inf, -math.inf]


def test_log_sum_passes_the_numeric_check(monkeypatch):
    monkeypatch.setattr(_soft_ranking, "_CHUNK", 4)
    keys, own = unit(9, 5), torch.tensor([[0, 5], [-1, -1], [8, -1]])
    query = unit(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: log_sum_exp(z, keys, 0.1, own), (query,))
