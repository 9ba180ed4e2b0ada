"""A diagnosis is what loops over the queue find, and advice comes when it should and only then."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from kdcache.derive import diagnosis as diagnosis_module
from kdcache.derive.diagnosis import Diagnosis, diagnose

HEALTHY = Diagnosis(
    num_negatives=1000,
    num_columns=1001,
    teacher_temperature=0.04,
    student_temperature=0.2,
    self_mass=0.6,
    perplexity=5.0,
    mean_cosine=0.05,
    cv2=1.0,
)


def unit(*shape):
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def altered(**changes):
    return Diagnosis(**{**HEALTHY.__dict__, **changes})


def slow_diagnosis(queries, negatives, tau_t, tau_s, own):
    """Row by row and column by column, in Python floats."""
    masses, perplexities, cosines, spreads = [], [], [], []
    for row, query in enumerate(queries):
        columns = [q for slot, q in enumerate(negatives) if slot not in own[row].tolist()]
        alike = [float(query @ column) for column in columns]
        weights = [math.exp((c - 1) / tau_t) for c in [1.0, *alike]]
        shares = [w / sum(weights) for w in weights]
        masses.append(shares[0])
        perplexities.append(math.exp(-sum(p * math.log(p) for p in shares if p > 0)))
        cosines.append(sum(alike) / len(alike))
        late = [math.exp(c / tau_s) for c in alike]
        mean = sum(late) / len(late)
        spreads.append(sum((w - mean) ** 2 for w in late) / len(late) / mean**2)
    middle = sorted(perplexities)[(len(perplexities) - 1) // 2]
    return [
        sum(masses) / len(masses),
        middle,
        sum(cosines) / len(cosines),
        sum(spreads) / len(spreads),
    ]


@pytest.mark.parametrize("tau_t", [0.01, 0.2])
@pytest.mark.parametrize("logits_at_once", [1, 150, 1 << 22])
def test_figures_are_those_of_loops_over_the_queue(monkeypatch, tau_t, logits_at_once):
    monkeypatch.setattr(diagnosis_module, "_LOGITS_AT_ONCE", logits_at_once)
    queries, negatives = unit(7, 6), unit(40, 6)
    negatives[3] = queries[0]  # hidden from its own row only
    own = torch.tensor([[3, -1], [-1, -1], [0, 39], [6, 7], [13, -1], [-1, -1], [2, 2]])
    found = diagnose(
        queries, negatives, teacher_temperature=tau_t, student_temperature=0.1, own=own
    )
    figures = [found.self_mass, found.perplexity, found.mean_cosine, found.cv2]
    expected = slow_diagnosis(queries, negatives, tau_t, 0.1, own)
    assert figures == pytest.approx(expected, rel=1e-10)
    assert found.num_negatives == 40


def test_own_views_in_the_queue_would_have_changed_the_figures():
    queries = unit(4, 6)
    negatives = torch.cat([queries, unit(30, 6)])
    own = torch.arange(4)[:, None]
    how = {"teacher_temperature": 0.05, "student_temperature": 0.2}
    hidden = diagnose(queries, negatives, own=own, **how)
    assert hidden.self_mass > 1.5 * diagnose(queries, negatives, **how).self_mass
    without = [
        diagnose(queries[i : i + 1], torch.cat([negatives[:i], negatives[i + 1 :]]), **how)
        for i in range(4)
    ]
    assert hidden.self_mass == pytest.approx(sum(d.self_mass for d in without) / 4)


def test_temperature_of_the_released_code_is_one_hot_for_any_teacher():
    found = diagnose(
        unit(16, 8).float(), unit(500, 8).float(), teacher_temperature=1e-4, student_temperature=0.2
    )
    assert found.self_mass == pytest.approx(1.0)
    assert found.perplexity == pytest.approx(1.0)
    (advice,) = found.advice()
    assert "one-hot" in advice
    assert "method.teacher_temperature=0.04" in advice


def test_uncentred_teacher_is_told_to_centre_and_a_centred_one_is_not():
    cone = normalize(unit(600, 32) + 1.2 * unit(1, 32), dim=1)
    how = {"teacher_temperature": 0.07, "student_temperature": 0.2}
    raw = diagnose(cone[:50], cone[50:], **how)
    assert raw.mean_cosine > 0.3
    assert "method.center=true" in raw.advice()[0]
    assert "kdcache head" in raw.advice()[0]
    straight = normalize(cone - cone.mean(0), dim=1)
    centred = diagnose(straight[:50], straight[50:], **how)
    assert abs(centred.mean_cosine) < 0.05
    assert not any("alike" in advice for advice in centred.advice())


def test_flat_ranking_is_told_to_sharpen():
    found = diagnose(unit(20, 16), unit(400, 16), teacher_temperature=2.0, student_temperature=0.2)
    (advice,) = found.advice()
    assert "nearly flat" in advice
    assert "method.teacher_temperature=1`" in advice


def test_spread_of_gaussian_cosines_is_the_textbook_one():
    """Weights exp(s / tau) of normal s are log-normal: cv2 = exp(sigma^2 / tau^2) - 1."""
    dim, tau = 64, 0.2
    found = diagnose(
        unit(64, dim), unit(20_000, dim), teacher_temperature=0.1, student_temperature=tau
    )
    assert found.cv2 == pytest.approx(math.exp(1 / dim / tau**2) - 1, rel=0.05)


@pytest.mark.parametrize(
    ("cv2", "sampled", "nearest", "warned"),
    [
        (1.0, 4096, 0, False),
        (6000.0, 4096, 0, True),
        (6000.0, 4096, 64, False),
        (6000.0, 0, 0, False),
    ],
)
def test_random_negatives_alone_are_advised_against_where_they_cannot_do(
    cv2, sampled, nearest, warned
):
    advice = altered(cv2=cv2).advice(sampled=sampled, nearest=nearest)
    assert any("cannot stand for the queue" in text for text in advice) == warned


def test_healthy_teacher_gets_no_advice():
    assert HEALTHY.advice() == []


@pytest.mark.parametrize(
    "change", [{"mean_cosine": 0.31}, {"self_mass": 0.9995}, {"perplexity": 251.0}]
)
def test_each_threshold_speaks_for_itself(change):
    assert len(altered(**change).advice()) == 1


def test_one_line_says_it():
    assert str(HEALTHY) == (
        "own target 60.00% of the ranking, perplexity 5.0 of 1,001, mean cosine 0.050"
    )


def test_only_what_the_method_has_is_advised():
    """CompRess has one temperature, and does not centre."""
    bad = altered(mean_cosine=0.6, perplexity=900.0)
    text = " ".join(bad.advice(["queue", "temperature"]))
    assert "method.center" not in text
    assert "method.teacher_temperature" not in text
    assert "kdcache head" in text
    assert "method.temperature=" in text


def test_ranking_without_an_own_column_has_no_self_mass():
    """As a softmax over the queue alone, written out."""
    rows = normalize(torch.randn(30, 6, dtype=torch.float64), dim=1)
    found = diagnose(
        rows[:5], rows[5:], teacher_temperature=0.1, student_temperature=0.1, own_column=False
    )
    share = (rows[:5] @ rows[5:].T / 0.1).softmax(dim=1)
    assert found.self_mass == 0.0
    assert found.num_columns == 25
    expected = (-(share * share.log()).sum(1)).exp().median()
    assert found.perplexity == pytest.approx(float(expected))
