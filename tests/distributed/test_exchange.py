"""Rows, gradients and scalars of several processes are those of one process."""

import pytest
import torch
from ranks import in_ranks
from torch import nn

from kdcache.distributed import exchange as exchange_module
from kdcache.distributed import (
    gather_rows,
    gather_rows_with_gradient,
    mean_gradients,
    mean_scalars,
    rank,
    world_size,
)

RANKS = 3
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def data():
    """A batch of six, a layer, and weights that make rows unlike each other."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return x, nn.Parameter(weight)


def part(x):
    """This process's rows; all of them in a single process."""
    return x.chunk(world_size())[rank()]


def coupled(z):
    """A loss of the whole batch in which every row meets every other."""
    return (z @ z.T).logsumexp(1).square().mean()


def whole_batch_loss(gather):
    """Gradient where every process has the loss of the whole batch."""
    x, weight = data()
    coupled(gather(part(x) @ weight.T)).backward()
    mean_gradients([weight])
    return weight.grad


def part_loss():
    """Gradient where a process has the mean over its own rows, against the rows of all."""
    x, weight = data()
    z = part(x) @ weight.T
    (z @ gather_rows_with_gradient(z).T).logsumexp(1).square().mean().backward()
    mean_gradients([weight])
    return weight.grad


def gradients(missing_on):
    """Gradients of parameters, of which the second is used by some processes, the third by none."""
    used, some, none = (nn.Parameter(torch.ones(2, 3) * i) for i in (1, 2, 3))
    frozen = nn.Parameter(torch.ones(5), requires_grad=False)
    tall = nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))
    loss = used.square().sum() * (rank() + 1) + (tall * torch.arange(4.0)).sum() * rank()
    if rank() not in missing_on:
        loss = loss + some.sum() * 10
    loss.backward()
    mean_gradients([used, some, frozen, none, tall])
    return [p.grad for p in (used, some, none, frozen, tall)]


def exchange():
    """All that the tests of several processes look at, in one start of the processes."""
    x, _ = data()
    found = {
        "rows": gather_rows(part(x)),
        "transposed": gather_rows(part(x.T.contiguous().T)),
        "numbers": gather_rows(part(torch.arange(6)[:, None])),
        "whole": whole_batch_loss(gather_rows_with_gradient),
        "without": whole_batch_loss(lambda rows: gather_rows(rows) + 0 * rows.sum()),
        "part": part_loss(),
        "gradients": gradients({0, 2}),
        "all missing": gradients({0, 1, 2})[1],
        "scalars": mean_scalars(torch.tensor([rank(), 1.0])),
        "scalar": mean_scalars(torch.tensor(float(rank()))),
    }
    exchange_module._BUCKET_BYTES = 30
    return found | {"small buckets": gradients({0, 2})}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of three processes has after `exchange`."""
    return in_ranks(RANKS, exchange, out=tmp_path_factory.mktemp("exchange"))


@pytest.mark.dist
def test_rows_come_in_the_order_of_the_whole_batch(found):
    x, _ = data()
    for f in found:
        assert torch.equal(f["rows"], x)
        assert torch.equal(f["transposed"], x)
        assert f["numbers"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.dist
def test_gradient_through_gathered_rows_is_that_of_one_process(found):
    whole, alone = whole_batch_loss(gather_rows_with_gradient), part_loss()
    torch.testing.assert_close(whole, alone, **CLOSE)  # one process: one and the same loss
    for f in found:
        torch.testing.assert_close(f["whole"], whole, **CLOSE)
        torch.testing.assert_close(f["part"], whole, **CLOSE)
        assert not f["without"].any(), "a plain gather has no gradient: it cannot pass for this"


@pytest.mark.dist
@pytest.mark.parametrize("name", ["gradients", "small buckets"])
def test_gradients_are_the_mean_over_processes(found, name):
    for f in found:
        used, some, none, frozen, tall = f[name]
        torch.testing.assert_close(used, torch.full((2, 3), 2.0 * (1 + 2 + 3) / 3))
        torch.testing.assert_close(some, torch.full((2, 3), 10 / 3))  # used by process 1 alone
        assert none is None
        assert frozen is None
        torch.testing.assert_close(tall, torch.arange(4.0).expand(2, 3, 4, 4) * (0 + 1 + 2) / 3)
    for mine, theirs in zip(found[0][name], found[1][name], strict=True):
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.dist
def test_gradient_missing_everywhere_stays_missing(found):
    """Zeros in its place would let weight decay and momentum move the parameter."""
    assert all(f["all missing"] is None for f in found)


@pytest.mark.dist
def test_scalars_are_the_mean_over_processes(found):
    for f in found:
        assert f["scalars"].tolist() == [1.0, 1.0]
        assert f["scalar"].item() == 1.0


def test_single_process_keeps_what_it_has():
    x, weight = data()
    assert gather_rows(x) is x
    assert gather_rows_with_gradient(x) is x
    assert mean_scalars(x) is x
    weight.grad = gradient = torch.ones_like(weight)
    mean_gradients([weight])
    assert weight.grad is gradient
    assert gradient.eq(1).all()
