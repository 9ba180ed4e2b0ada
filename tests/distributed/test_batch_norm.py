"""Batch norm of several processes is that of one process with the whole batch."""

import copy

import pytest
import timm
import torch
from ranks import in_ranks
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn

from kdcache.distributed import mean_gradients, rank, whole_batch_norm, world_size

LAYERS = {
    "rows": (lambda: nn.BatchNorm1d(5), (12, 5)),
    "maps": (lambda: nn.BatchNorm2d(5, momentum=0.3), (12, 5, 3, 4)),
    "sequences": (lambda: nn.BatchNorm1d(5), (12, 5, 7)),
    "timm": (lambda: BatchNormAct2d(5), (12, 5, 3, 4)),
    "plain": (lambda: nn.BatchNorm1d(5, affine=False), (12, 5)),
    "untracked": (lambda: nn.BatchNorm1d(5, track_running_stats=False), (12, 5)),
    "cumulative": (lambda: nn.BatchNorm1d(5, momentum=None), (12, 5)),
    "weight standardised": (lambda: StdConv2d(5, 6, 3), (12, 5, 4, 4)),
}
CASES = [(name, dtype) for name in LAYERS for dtype in (torch.float32, torch.float64)]
CASES += [("maps", torch.bfloat16), ("rows", torch.bfloat16)]


def part(x):
    """This process's rows; all of them in a single process."""
    return x.chunk(world_size())[rank()]


def layer_of(name, dtype):
    """A layer that two steps have not left as it began, and a batch with means far from zero."""
    generator = torch.Generator().manual_seed(3)
    build, shape = LAYERS[name]
    layer = build().to(torch.float32 if dtype == torch.bfloat16 else dtype)
    for tensor in layer.parameters():
        tensor.data = torch.rand(tensor.shape, generator=generator).to(tensor) + 0.5
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    by_row = torch.arange(12.0).reshape(-1, *[1] * (len(shape) - 1))  # parts differ in their means
    return layer, (x * 3 + by_row + 8).to(dtype), torch.randn(shape, generator=generator)


def pass_through(name, dtype):
    """Outputs, gradients and buffers of a layer after two steps, one of them in train mode."""
    layer, x, pull = layer_of(name, dtype)
    x = part(x).clone().requires_grad_()
    with whole_batch_norm():
        out = layer(x)
        again = layer(part(layer_of(name, dtype)[1]) * 2)
        pulled = out * part(pull) if out.shape == x.shape else out.square()
        loss = pulled.sum() / len(x)
        loss.backward()
        mean_gradients(layer.parameters())
        result = {"out": out.detach(), "again": again.detach(), "dx": x.grad}
        result |= {"calm": layer.eval()(x).detach()}
    result |= {f"d {n}": p.grad for n, p in layer.named_parameters()}
    return result | {n: b.clone() for n, b in layer.named_buffers()}


def student_of(steps):
    """Losses and state of a small network after some steps of SGD, on this process's images."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(6)
    student = timm.create_model("test_resnet", num_classes=3).train()
    slow = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(steps):
        images = part(torch.randn(8, 3, 32, 32, generator=generator))
        labels = part(torch.randint(3, (8,), generator=generator))
        with whole_batch_norm():
            with torch.no_grad():
                wish = slow(images)
            logits = student(images)
            loss = nn.functional.cross_entropy(logits, labels) + (logits - wish).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mean_gradients(student.parameters())
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "student": student.state_dict(),
        "slow": slow.state_dict(),
    }


def unequal():
    """Output for parts of 5 and 7 rows."""
    layer, x, _ = layer_of("rows", torch.float64)
    with whole_batch_norm():
        out = layer(x[:5] if rank() == 0 else x[5:])
    return out.detach(), layer.running_var


def short_student_of(steps):
    """`student_of`, with convolutions in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return student_of(steps)


def everything():
    """All that the tests of two processes look at, in one start of the processes."""
    found = {case: pass_through(*case) for case in CASES}
    found |= {"student": student_of(5), "short student": short_student_of(3)}
    return found | {"unequal": unequal(), "alone": without_it()}


def without_it():
    """The same layer where nobody asked for the whole batch."""
    layer, x, _ = layer_of("rows", torch.float64)
    return layer(part(x)).detach()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes has after `everything`."""
    return in_ranks(2, everything, out=tmp_path_factory.mktemp("batch_norm"))


@pytest.mark.dist
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}"[:40])
def test_whole_batch_norm_equals_that_of_one_process(found, case):
    expected = pass_through(*case)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[case[1]]
    for r, f in enumerate(found):
        for name, value in expected.items():
            mine = f[case][name]
            if name in ("out", "again", "dx", "calm"):
                value = value.chunk(2)[r]
                # A process's loss is the mean over half as many rows.
                mine = mine / 2 if name == "dx" else mine
            assert mine.dtype == value.dtype
            close = {"rtol": tolerance, "atol": tolerance * value.abs().max().item()}
            torch.testing.assert_close(mine, value, **close, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.dist
def test_statistics_are_those_of_float32_under_a_shorter_type(found):
    case = ("maps", torch.bfloat16)
    expected = pass_through(*case)
    for f in found:
        assert f[case]["running_mean"].dtype == torch.float32
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(f[case][name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.dist
def test_every_process_keeps_the_same_statistics_to_the_bit(found):
    for case in CASES:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            if name in found[0][case]:
                assert torch.equal(found[0][case][name], found[1][case][name])


@pytest.mark.dist
def test_parts_may_differ_in_length(found):
    layer, x, _ = layer_of("rows", torch.float64)
    expected = layer(x).detach()
    out = torch.cat([f["unequal"][0] for f in found])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0]["unequal"][1], layer.running_var)


@pytest.mark.dist
def test_outside_the_context_a_process_is_alone(found):
    """So the tests above can fail: the parts' own statistics are far from the whole batch's."""
    layer, x, _ = layer_of("rows", torch.float64)
    out = torch.cat([f["alone"] for f in found])
    assert (out - layer(x)).abs().max() > 0.5


@pytest.mark.dist
def test_student_of_two_processes_is_that_of_one(found):
    expected = student_of(5)
    mean_loss = (found[0]["student"]["losses"] + found[1]["student"]["losses"]) / 2
    torch.testing.assert_close(mean_loss, expected["losses"], rtol=1e-5, atol=1e-5)
    for f in found:
        for network in ("student", "slow"):
            for name, value in expected[network].items():
                mine = f["student"][network][name]
                torch.testing.assert_close(mine, value, rtol=1e-5, atol=1e-5)
                assert torch.equal(mine, found[0]["student"][network][name])
    name = "conv1.0.weight"
    moved = student_of(1)["student"][name] - expected["student"][name]
    assert moved.abs().max() > 1e-3


@pytest.mark.dist
def test_student_under_autocast_is_that_of_one_but_for_rounding(found):
    expected = short_student_of(3)
    losses = torch.stack([f["short student"]["losses"] for f in found]).mean(0)
    torch.testing.assert_close(losses, expected["losses"], rtol=1e-2, atol=1e-2)
    for f in found:
        for name, value in f["short student"]["student"].items():
            assert value.dtype in (torch.float32, torch.int64)
            if name.endswith("running_var"):
                torch.testing.assert_close(value, expected["student"][name], rtol=1e-2, atol=1e-2)


def test_single_process_has_batch_norm_as_torch_does_it(monkeypatch):
    x = torch.randn(6, 5)
    seen = []
    plain = nn.functional.batch_norm
    with whole_batch_norm():
        monkeypatch.setattr(nn.functional, "batch_norm", lambda *a: seen.append(a) or plain(*a))
        nn.BatchNorm1d(5)(x)
    assert len(seen) == 1
