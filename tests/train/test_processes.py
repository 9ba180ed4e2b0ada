"""Several processes of one run do what one does with the same global batch, whatever befalls them.

Everything that two processes show is done in one start of them, and then by three.
"""

import os
import signal

import pytest
import torch
from ranks import in_ranks
from small import add_graph, make_cache, recipe_for, run

from kdcache import distributed
from kdcache.errors import DataError, KdcacheError
from kdcache.methods import available_methods
from kdcache.train import loop, read_metrics

BROKEN_AT = 5
CASES = {method: (method, {}) for method in available_methods()}
CASES |= {
    "disco accumulated": ("disco", {"accumulate": 2}),
    "simreg accumulated": ("simreg", {"accumulate": 2}),
    "seed repeated": ("seed", {"repeats": 2}),
    "moco repeated": ("moco", {"repeats": 2}),
    "bingo repeated": ("bingo", {"repeats": 2}),
}


def gentle(case):
    """Small steps: differences in the last bit do not grow within a few of them."""
    method, train = CASES[case]
    settings = {"lr": 1e-5, "epochs": 2, **train}
    return recipe_for(method, train=settings)


def losses(folder):
    return [record["loss"] for record in read_metrics(folder)]


def train_all(data, cache, out):
    """A run of every case, in whatever processes call this; its losses."""
    for case in CASES:
        run(gentle(case), data, out / case, cache)
    return {case: losses(out / case) for case in CASES}


def cut_off_at(step, ranks):
    """The renderer of views, which fails in some of the processes before a step."""
    render_ahead = loop.render_ahead

    def cut_off(*args, **kwargs):
        rendered = render_ahead(*args, **kwargs)
        for _ in range(step):
            yield next(rendered)
        if distributed.rank() in ranks:
            raise DataError("`x.jpg` cannot be read", hint="put it back")
        yield from rendered

    return cut_off


def broken(case, data, cache, out, *, step, ranks):
    """What this process says when some cannot render the views of a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "render_ahead", cut_off_at(step, ranks))
        with pytest.raises(KdcacheError) as caught:
            run(gentle(case), data, out, cache)
    return str(caught.value)


def broken_all(data, cache, out):
    """Every case until it breaks at a step, then what else can befall processes."""
    for case in CASES:
        broken(case, data, cache, out / case, step=BROKEN_AT, ranks=(0, 1))
    found = {case: losses(out / case) for case in CASES}
    return found | {
        "stopped": signalled(data, cache, out.parent / "stopped"),
        "failed": broken("disco", data, cache, out.parent / "failed", step=2, ranks=(1,)),
        "refused": elsewhere(data, cache, out.parent),
    }


def signalled(data, cache, out):
    """A run of which only the second process gets the signal, in its fourth step."""
    step, calls = loop._step, []

    def stepping(*arguments):
        calls.append(1)
        if len(calls) == 4 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", stepping)
        outcome = run(gentle("disco"), data, out, cache)
    return outcome.stopped_by, outcome.last["step"]


def elsewhere(data, cache, out):
    """A run of which the processes do not see the same folder."""
    mine = out / "stopped" if distributed.is_first() else out / "not there"
    with pytest.raises(KdcacheError) as caught:
        run(gentle("disco"), data, mine, cache)
    return str(caught.value)


@pytest.fixture(scope="module")
def found(tiny_images, tiny_weights, tmp_path_factory):
    """What one process found, what each of two did until they broke, and how three went on."""
    folder = tmp_path_factory.mktemp("processes")
    cache = folder / "cache.zarr"
    make_cache(tiny_images, tiny_weights, cache, num_views=4)
    add_graph(cache)
    for name in ("two", "three"):
        (folder / name).mkdir()
    together = folder / "together"
    two = in_ranks(2, broken_all, tiny_images, cache, together, out=folder / "two")
    three = in_ranks(3, train_all, tiny_images, cache, together, out=folder / "three")
    return {
        "folder": folder,
        "one": train_all(tiny_images, cache, folder / "alone"),
        "two": two,
        "three": three,
    }


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("case", CASES)
def test_run_broken_at_two_processes_and_ended_by_three_is_that_of_one(case, found):
    alone = found["one"][case]
    assert len(alone) == 12
    for begun in found["two"]:
        assert begun[case] == pytest.approx(alone[:BROKEN_AT], rel=1e-5)
    for ended in found["three"]:  # eight images, of which one has two and the others three
        assert ended[case] == pytest.approx(alone, rel=1e-5)
        assert ended[case][:BROKEN_AT] == found["two"][0][case]


@pytest.mark.slow
@pytest.mark.dist
def test_signal_to_one_process_stops_all_at_one_step_with_a_checkpoint(found):
    for mine in found["two"]:
        assert mine["stopped"] == (signal.SIGTERM, 4)
    assert step_kept(found["folder"] / "stopped") == 4


@pytest.mark.slow
@pytest.mark.dist
def test_process_that_fails_says_why_and_the_others_stop_with_a_checkpoint(found):
    assert [mine["failed"] for mine in found["two"]] == [
        "another process of this run has failed",
        "`x.jpg` cannot be read",
    ]
    assert step_kept(found["folder"] / "failed") == 2


def step_kept(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["step"]


@pytest.mark.slow
@pytest.mark.dist
def test_processes_that_do_not_share_the_runs_folder_are_told(found):
    for mine in found["two"]:
        assert "at different steps: [4, 0]" in mine["refused"]
