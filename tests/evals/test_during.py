"""A watch changes nothing of the training that it watches."""

import json

import numpy as np
import pytest
import torch
from conftest import make_folder
from ranks import in_ranks
from small import CPU, make_cache, recipe_for, run

from kdcache.errors import ConfigError, DataError
from kdcache.evals import examine, open_splits, open_subject, watch
from kdcache.progress import silent_bar
from kdcache.train import loop, read_metrics


@pytest.fixture(scope="module")
def cache(tiny_images, tiny_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "tiny.zarr"
    make_cache(tiny_images, tiny_weights, out)
    return out


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    root = tmp_path_factory.mktemp("held")
    make_folder(root / "train", per_class=5, seed=3)
    make_folder(root / "val", per_class=4, seed=4)
    return root


def watching(data, every=1, tell=print):
    return watch(data, every, device=CPU, workers=0, tell=tell)


RECIPE = {"train": {"epochs": 3}, "run": {"checkpoint_every_s": 0.0}}


def parted(folder):
    """The records of the loss, and those of the watch."""
    records = read_metrics(folder)
    clocked = [{k: v for k, v in r.items() if k != "images_per_s"} for r in records]
    return ([r for r in clocked if "loss" in r], [r for r in clocked if "loss" not in r])


@pytest.mark.parametrize("method", ["simreg", "disco"])
def test_training_is_the_same_with_and_without(method, tiny_images, cache, held_out, tmp_path):
    recipe = recipe_for(method, **RECIPE)
    plain = run(recipe, tiny_images, tmp_path / "plain", cache)
    told = []
    watched = run(
        recipe, tiny_images, tmp_path / "watched", cache, watch=watching(held_out, tell=told.append)
    )
    assert watched.student.read_bytes() == plain.student.read_bytes()
    losses, seen = parted(tmp_path / "watched")
    assert losses == parted(tmp_path / "plain")[0]
    assert [(r["step"], r["epoch"]) for r in seen] == [(6, 1), (12, 2), (18, 3)]
    assert watched.last["step"] == 18
    assert "loss" in watched.last
    assert [line.split(":")[0] for line in told] == [f"after epoch {e}" for e in (1, 2, 3)]


def test_last_figures_are_those_of_the_evaluation_afterwards(
    tiny_images, cache, held_out, tmp_path
):
    run(recipe_for(), tiny_images, tmp_path / "run", cache, watch=watching(held_out, every=2))
    scores = examine(
        open_subject(str(tmp_path / "run")), open_splits(held_out), ["knn", "fast-linear"],
        ks=[10], device=CPU, workers=0, bar=silent_bar,
    )  # fmt: skip
    _, (record,) = parted(tmp_path / "run")
    assert record == {
        "step": 12,
        "epoch": 2,
        "eval/knn10": scores[0].value,
        "eval/fast_linear": scores[1].value,
    }


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3]), (2, [2, 3]), (5, [3])])
def test_epochs_are_those_chosen_and_the_last(
    every, epochs, tiny_images, cache, held_out, tmp_path
):
    recipe = recipe_for(**RECIPE)
    run(recipe, tiny_images, tmp_path / "run", cache, watch=watching(held_out, every))
    assert [r["epoch"] for r in parted(tmp_path / "run")[1]] == epochs


class Broken(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("breaks_in", ["the watch", "a step"])
def test_broken_run_owes_no_figure(breaks_in, tiny_images, cache, held_out, tmp_path, monkeypatch):
    recipe, eye = recipe_for(**RECIPE), watching(held_out)
    run(recipe, tiny_images, tmp_path / "whole", cache, watch=eye)
    left = iter(range(1 if breaks_in == "the watch" else 7))

    def breaking(inner):
        def call(*arguments):
            if next(left, None) is None:
                raise Broken
            return inner(*arguments)

        return call

    with monkeypatch.context() as patch:
        if breaks_in == "the watch":
            patch.setattr(type(eye), "__call__", breaking(type(eye).__call__))
        else:
            patch.setattr(loop, "_step", breaking(loop._step))
        with pytest.raises(Broken):
            run(recipe, tiny_images, tmp_path / "broken", cache, watch=eye)
    ended = run(recipe, tiny_images, tmp_path / "broken", cache, watch=eye)
    assert parted(tmp_path / "broken") == parted(tmp_path / "whole")
    assert ended.student.read_bytes() == (tmp_path / "whole" / "student.safetensors").read_bytes()


def test_watch_may_come_later_and_go(tiny_images, cache, held_out, tmp_path):
    """It is no part of the experiment; of a finished run it owes the last epoch."""
    recipe = recipe_for()
    run(recipe, tiny_images, tmp_path / "run", cache)
    run(recipe, tiny_images, tmp_path / "run", cache, watch=watching(held_out))
    assert [r["epoch"] for r in parted(tmp_path / "run")[1]] == [2]
    run(recipe, tiny_images, tmp_path / "run", cache, watch=watching(held_out))
    assert len(parted(tmp_path / "run")[1]) == 1
    assert "watch" not in json.dumps(json.loads((tmp_path / "run" / "recipe.json").read_text()))


def test_student_trains_on_in_the_modes_it_had(held_out):
    student = open_subject("untrained:test_resnet", image_size=32).network.train()
    student.model.layer1.eval()
    before = {n: b.clone() for n, b in student.named_buffers()}
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    watching(held_out)(student, 1)
    assert torch.equal(torch.rand(2), expected)
    assert student.training
    assert not student.model.layer1.training
    assert all(torch.equal(b, before[n]) for n, b in student.named_buffers())


def test_folder_of_classes_is_parted_evenly(tmp_path):
    eye = watching(make_folder(tmp_path / "set", per_class=7))
    assert (len(eye.splits.train), len(eye.splits.test)) == (16, 12)
    assert not set(eye.splits.train.paths) & set(eye.splits.test.paths)
    assert np.bincount(eye.splits.test.labels).tolist() == [3] * 4


def watched(data, cache, held, out):
    """A run with a watch in whatever processes call this."""
    run(recipe_for(train={"lr": 1e-4}), data, out, cache, watch=watching(held))
    return parted(out)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_see_what_one_sees(tiny_images, cache, tmp_path):
    held = make_folder(tmp_path / "held", per_class=7, seed=3)  # odd numbers, an unreadable image
    (held / "class1" / "003.png").write_bytes(b"no image")
    (tmp_path / "said").mkdir()
    together, _ = in_ranks(
        2, watched, tiny_images, cache, held, tmp_path / "together", out=tmp_path / "said"
    )
    alone = watched(tiny_images, cache, held, tmp_path / "alone")
    assert len(together[1]) == 2
    for here, there in zip(alone[1], together[1], strict=True):
        assert here == pytest.approx(there, abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "per_class", "message"),
    [(1, 30, "gives 15 images of 1 classes"), (2, 4, "gives 4 images of 2 classes")],
)
def test_folder_that_tells_nothing_is_refused(classes, per_class, message, tmp_path):
    folder = make_folder(tmp_path / "set", per_class=per_class, classes=classes)
    with pytest.raises(DataError, match=message):
        watching(folder)


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder") as caught:
        watching(tmp_path / "none")
    assert "--eval-data" in caught.value.hint
