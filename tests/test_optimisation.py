"""The learning rate is the papers' function of the step."""

import itertools
import math

import pytest

from kdcache.optimisation import Optimisation, learning_rate


def test_cosine_moves_once_an_epoch_and_ends_near_zero():
    settings = Optimisation(epochs=10, lr=0.1)
    rates = [learning_rate(settings, step, 4) for step in range(40)]
    assert rates[0] == rates[3] == 0.1
    assert rates[4] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi / 10)))
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 9 / 10)))


def test_simreg_counts_epochs_from_one_so_the_last_idles():
    settings = Optimisation(epochs=10, lr=0.1, first_epoch=1)
    assert learning_rate(settings, 0, 4) == pytest.approx(0.05 * (1 + math.cos(math.pi / 10)))
    assert learning_rate(settings, 39, 4) == pytest.approx(0.0)


def test_steps_of_compress():
    settings = Optimisation(epochs=130, lr=0.01, schedule="step", milestones=[90, 120], decay=0.2)
    rates = {e: learning_rate(settings, e * 5, 5) for e in (0, 89, 90, 119, 120)}
    assert rates == pytest.approx({0: 0.01, 89: 0.01, 90: 0.002, 119: 0.002, 120: 0.0004})


def test_rate_scales_with_the_batch_only_where_asked():
    assert learning_rate(Optimisation(batch_size=512, lr=0.03), 0, 10) == 0.03
    assert learning_rate(Optimisation(batch_size=512, lr=0.03, lr_per_256=True), 0, 10) == 0.06


def test_warmup_rises_to_the_peak_step_by_step():
    settings = Optimisation(epochs=10, lr=0.1, warmup_epochs=2)
    rates = [learning_rate(settings, step, 5) for step in range(10)]
    assert rates == pytest.approx([0.01 * (i + 1) for i in range(10)])


def test_per_step_cosine_is_smooth():
    settings = Optimisation(epochs=4, lr=1.0, per_step=True)
    rates = [learning_rate(settings, step, 8) for step in range(32)]
    assert all(a > b for a, b in itertools.pairwise(rates))
