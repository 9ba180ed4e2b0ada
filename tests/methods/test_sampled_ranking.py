"""The sampled sum is right on average, exact where it sees all, and close where it is meant for."""

import itertools
import math

import pytest
import torch
from methods.plain import WIDTH, Student, pixels, rows, units
from torch.nn.functional import cosine_similarity, normalize

from kdcache.errors import ConfigError
from kdcache.methods import Batch, TeacherSide, _sampled_ranking, get_method
from kdcache.methods._sampled_ranking import (
    SampledLogSumExp,
    nearest_slots,
    sampled_log_sum_exp,
)
from kdcache.methods._soft_ranking import attend, log_sum_exp
from kdcache.settings import parse

OWN = torch.tensor([[3, -1], [-1, -1], [0, 22], [6, 7], [13, -1]])


def unit(*shape):
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def both(function, query, *args, **kwargs):
    query = query.clone().requires_grad_()
    value = function(query, *args, **kwargs)
    value.sum().backward()
    return value.detach(), query.grad


def near_and_drawn(query, keys, num_nearest, num_drawn):
    return {
        "nearest": nearest_slots(query, keys, num_nearest),
        "drawn": torch.randperm(len(keys))[:num_drawn],
    }


@pytest.mark.parametrize("own", [None, OWN])
@pytest.mark.parametrize(("num_nearest", "num_drawn"), [(23, 5), (1, 23), (7, 23), (23, 23)])
def test_sum_that_sees_every_key_is_the_exact_one(own, num_nearest, num_drawn):
    query, keys = unit(5, 12), unit(23, 12)
    slots = near_and_drawn(query, keys, num_nearest, num_drawn)
    found = both(sampled_log_sum_exp, query, keys, 0.1, own, **slots)
    expected = both(log_sum_exp, query, keys, 0.1, own)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_value_and_gradient_are_those_of_a_loop_over_the_chosen_keys():
    query, keys, tau = unit(5, 12), unit(23, 12), 0.1
    nearest = torch.tensor([[1, 2, 3], [4, 0, -1], [5, 22, 9], [1, 6, 7], [-1, -1, -1]])
    drawn = torch.tensor([3, 9, 20, 6, 13, 2, 15])

    def slow(rows):
        sums = []
        for row, near, own in zip(rows, nearest.tolist(), OWN.tolist(), strict=True):
            total = sum(torch.exp(row @ keys[s] / tau) for s in near if s >= 0 and s not in own)
            for slot in drawn.tolist():
                if slot not in near and slot not in own:
                    total = total + 23 / 7 * torch.exp(row @ keys[slot] / tau)
            sums.append(torch.log(total))
        return torch.stack(sums)

    found = both(sampled_log_sum_exp, query, keys, tau, OWN, nearest=nearest, drawn=drawn)
    torch.testing.assert_close(found, both(slow, query), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_nearest", [0, 2])
def test_sum_is_right_on_average_over_all_that_could_be_drawn(num_nearest):
    """All 35 draws of 3 out of 7 keys are equally likely: their mean is the exact sum."""
    query, keys, tau = unit(4, 5), unit(7, 5), 0.05
    own = torch.tensor([[3], [-1], [0], [-1]])
    near = nearest_slots(query, keys, num_nearest) if num_nearest else torch.empty(4, 0).long()
    sums = []
    for drawn in itertools.combinations(range(7), 3):
        sums.append(
            sampled_log_sum_exp(
                query, keys, tau, own, nearest=near, drawn=torch.tensor(drawn)
            ).exp()
        )
    expected = log_sum_exp(query, keys, tau, own).exp()
    torch.testing.assert_close(torch.stack(sums).mean(0), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("poor", [[[0, 1]], [[-1, -1]]])
def test_search_that_misses_the_nearest_stays_right_on_average(poor):
    query, keys = unit(1, 5), unit(7, 5)
    sums = [
        sampled_log_sum_exp(
            query, keys, 0.1, None, nearest=torch.tensor(poor), drawn=torch.tensor(drawn)
        ).exp()
        for drawn in itertools.combinations(range(7), 3)
    ]
    expected = log_sum_exp(query, keys, 0.1).exp()
    torch.testing.assert_close(torch.stack(sums).mean(0), expected, rtol=1e-12, atol=0)


def test_own_slots_never_contribute():
    query, keys = unit(5, 12), unit(23, 12)
    nearest = torch.tensor([[3, 1, 2], [0, 4, 5], [22, 0, 9], [7, 1, 6], [8, 13, -1]])
    slots = {"nearest": nearest, "drawn": torch.randperm(23)[:20]}
    before = both(sampled_log_sum_exp, query, keys, 0.1, OWN, **slots)
    for row in range(5):
        changed = keys.clone()
        changed[OWN[row][OWN[row] >= 0]] = query[row]  # as alike as can be
        after = both(sampled_log_sum_exp, query, changed, 0.1, OWN, **slots)
        assert torch.equal(after[0][row], before[0][row])
        assert torch.equal(after[1][row], before[1][row])


def test_row_that_sees_no_key_has_no_gradient():
    query, keys = unit(2, 4), unit(3, 4)
    own = torch.tensor([[0, 1, 2], [-1, -1, -1]])
    slots = near_and_drawn(query, keys, 2, 3)
    value, gradient = both(sampled_log_sum_exp, query, keys, 0.1, own, **slots)
    assert value[0] == -math.inf
    assert torch.equal(gradient[0], torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(value[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_search_is_a_sort_of_all_products(dtype):
    query, keys = unit(6, 8).to(dtype), unit(50, 8).to(dtype)
    expected = (query @ keys.T).argsort(dim=1, descending=True)[:, :9]
    assert torch.equal(nearest_slots(query, keys, 9), expected)


@pytest.mark.parametrize("count", [1, 9, 50])
def test_search_of_a_gpu_is_that_of_the_cpu(monkeypatch, count):
    """It is plain torch, so it runs here as well; in pieces, the last one short."""
    monkeypatch.setattr(_sampled_ranking, "_KEYS_AT_ONCE", 7)
    query, keys = unit(6, 8), unit(50, 8)
    found = _sampled_ranking._nearest_by_torch(query, keys, count)
    assert torch.equal(found, nearest_slots(query, keys, count))


# Accuracy, on clustered rows as a teacher of 1000 classes makes them, and a student that is nearly
# there: cosine 0.9 with the teacher (`queue.md` 3.1: moco-like, late).


def clustered(num, centres, noise):
    rows = centres[torch.randint(len(centres), (num,))]
    return normalize(rows + noise * torch.randn(num, centres.shape[1]) / 128**0.5, dim=1)


@pytest.fixture(scope="module")
def late():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        centres = normalize(torch.randn(1000, 128), dim=1)
        keys, teacher = clustered(16_384, centres, 0.9), clustered(256, centres, 0.9)
        side = torch.randn(256, 128)
        side = normalize(side - (side * teacher).sum(1, keepdim=True) * teacher, dim=1)
        return keys, teacher, 0.9 * teacher + math.sqrt(1 - 0.81) * side


def gradients(log_sum, late, student_temperature, teacher_temperature):
    """Each row's gradient of SEED's loss, along the sphere."""
    keys, teacher, student = late
    query = student.clone().requires_grad_()
    target, _ = attend(teacher, teacher, keys, teacher_temperature)
    total = torch.logaddexp(
        log_sum(query, keys, student_temperature), (query * teacher).sum(1) / student_temperature
    )
    (total - (query * target).sum(1) / student_temperature).sum().backward()
    return query.grad - (query.grad * student).sum(1, keepdim=True) * student


def agreement(drawn, nearest, late, *temperatures):
    torch.manual_seed(0)
    exact = gradients(log_sum_exp, late, *temperatures)
    sampled = gradients(SampledLogSumExp(drawn, nearest), late, *temperatures)
    return cosine_similarity(exact, sampled, dim=1).mean().item()


def test_drawn_keys_alone_do_at_the_temperature_of_seed(late):
    assert agreement(4096, 0, late, 0.2, 0.01) >= 0.998


def test_drawn_keys_alone_do_not_at_the_temperature_of_compress_and_the_nearest_mend_it(late):
    assert agreement(4096, 0, late, 0.04, 0.04) < 0.9
    assert agreement(4096, 64, late, 0.04, 0.04) >= 0.997


def test_draws_follow_from_the_seed(late):
    keys, _, student = late
    sums = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sums.append(SampledLogSumExp(64, 4)(student[:8], keys, 0.2))
    assert torch.equal(sums[0], sums[1])
    assert not torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("name", ["seed", "compress_1q"])
def test_methods_take_the_part_of_the_queue_that_their_settings_say(name):
    method_class, student = get_method(name), Student().double()
    images, negatives, own = pixels(4), units(rows(40, 8)), OWN[:4]
    batch = Batch([images], [rows(4, 8)], negatives, own)

    def value(**settings):
        torch.manual_seed(0)
        config = method_class.Config(queue=40, **settings)
        method = method_class(config, student_dim=WIDTH, teachers=[TeacherSide(8)]).double()
        return method(student, batch).value

    exact = value()
    torch.testing.assert_close(value(sampled=40, nearest=5), exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(value(sampled=1, nearest=40), exact, rtol=0, atol=1e-10)
    assert not torch.equal(value(sampled=10, nearest=0), exact)


@pytest.mark.parametrize("name", ["seed", "compress_1q"])
def test_methods_ask_the_index_of_the_queue_where_there_is_one(name):
    method_class, student = get_method(name), Student().double()
    config = method_class.Config(queue=40, sampled=10, nearest=3, nprobe=2)
    assert method_class.needs(config).nprobe == 2
    negatives, asked = units(rows(40, 8)), []

    def search(query, count):
        asked.append(count)
        return nearest_slots(query, negatives, count)

    method = method_class(config, student_dim=WIDTH, teachers=[TeacherSide(8)]).double()
    images, targets = [pixels(4)], [rows(4, 8)]
    values = []
    for how in (None, search):
        torch.manual_seed(0)
        values.append(method(student, Batch(images, targets, negatives, search=how)).value)
    assert asked == [3]
    assert torch.equal(values[0], values[1])


def test_small_patches_do_not_ask_the_index_of_the_large_crops():
    """The two queues differ, so slots that are near in the one are any in the other."""
    cls, student = get_method("seed"), Student().double()
    settings = {"sampled": 10, "nearest": 3, "small_patches": 2}
    large, asked = units(rows(40, 8)), []
    images = [pixels(4), *(pixels(4, size=2) for _ in range(2))]
    targets = [rows(4, 8) for _ in images]

    def search(query, count):
        asked.append(len(query))
        return nearest_slots(query, large, count)

    method = cls(cls.Config(**settings), student_dim=WIDTH, teachers=[TeacherSide(8)]).double()
    batch = {"negatives": large, "more_negatives": units(rows(40, 8))}
    values = []
    for how in (None, search):
        torch.manual_seed(0)
        values.append(method(student, Batch(images, targets, **batch, search=how)).value)
    assert asked == [4]
    assert torch.equal(values[0], values[1])


@pytest.mark.parametrize("name", ["seed", "compress_1q"])
@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"nearest": 32}, "`method.nearest` is 32, but `method.sampled` is 0"),
        ({"nprobe": 2}, "`method.nprobe` is 2, but `method.sampled` is 0"),
        ({"sampled": 9, "nearest": 0, "nprobe": 2}, "`method.nprobe` is 2, but `method.nearest`"),
    ],
)
def test_settings_of_a_search_that_is_not_made_are_refused(name, settings, found):
    with pytest.raises(ConfigError, match=found) as caught:
        parse(get_method(name).Config, settings, "method")
    assert caught.value.hint.startswith("--set method.")


@pytest.mark.parametrize("name", ["seed", "compress_1q"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"nearest": 0}, {"sampled": 9, "nearest": 0}, {"sampled": 9, "nearest": 5, "nprobe": 2}],
)
def test_settings_written_out_are_read_again(name, settings):
    config = parse(get_method(name).Config, settings, "method")
    assert parse(get_method(name).Config, config.model_dump(), "method") == config
