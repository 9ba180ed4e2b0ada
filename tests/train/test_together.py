"""Several students side by side: each is what it would be alone, and views are rendered once."""

import pytest
import torch
from small import CPU, add_graph, make_cache, recipe_for, run

from kdcache.errors import ConfigError
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.store import open_cache
from kdcache.train import Job, Online, loop, read_metrics, run_together
from kdcache.views import ViewMaker

OTHER = {"student": {"name": "test_efficientnet"}}


@pytest.fixture(scope="module")
def cache(tiny_images, tiny_weights, tmp_path_factory):
    """Four weak views, float32, with a graph."""
    out = tmp_path_factory.mktemp("together") / "four.zarr"
    make_cache(tiny_images, tiny_weights, out, num_views=4)
    add_graph(out)
    return out


@pytest.fixture(scope="module")
def other_cache(tiny_images, headless_weights, tmp_path_factory):
    """The same views as another teacher saw them."""
    out = tmp_path_factory.mktemp("together") / "other.zarr"
    make_cache(tiny_images, headless_weights, out, num_views=4)
    return out


def together(recipes, data, out, cache, *, others=None, **options):
    """A run of each recipe, by its name, with its own cache or the given one."""
    jobs = []
    for name, recipe in recipes.items():
        path = (others or {}).get(name, cache)
        wanted = [open_cache(path)] if recipe.needs.target is not None else []
        jobs.append(Job(recipe, out / name, wanted))
    settings = {"device": CPU, "workers": 0, "bar": silent_bar, "tell": print}
    return run_together(jobs, open_images(data), **{**settings, **options})


def told(folder):
    """What a run said of itself, but for the time it took."""
    return [
        {key: value for key, value in record.items() if key != "images_per_s"}
        for record in read_metrics(folder)
    ]


def kept(folder):
    """The tensors of a checkpoint."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {"random": state["random"], **state["student"], **state["method"]}


RECIPES = {
    # Both draw numbers: BINGO its boxes, SEED its sampled negatives.
    "views": {
        "disco": recipe_for("disco"),
        "retro": recipe_for("retro", **OTHER),
    },
    "drawing": {
        "sampled": recipe_for("seed", method={"sampled": 6, "nearest": 2}),
        "simreg": recipe_for("simreg", **OTHER),
        "again": recipe_for("seed", method={"sampled": 6, "nearest": 2}, train={"lr": 0.01}),
    },
}


@pytest.mark.parametrize("case", RECIPES)
def test_students_side_by_side_are_those_of_runs_alone(
    case, tiny_images, cache, other_cache, tmp_path
):
    recipes, caches = RECIPES[case], {"simreg": other_cache}
    outcomes = together(recipes, tiny_images, tmp_path, cache, others=caches)
    for (name, recipe), outcome in zip(recipes.items(), outcomes, strict=True):
        alone = run(recipe, tiny_images, tmp_path / "alone" / name, caches.get(name, cache))
        assert outcome.student == tmp_path / name / "student.safetensors"
        assert outcome.student.read_bytes() == alone.student.read_bytes()
        assert told(tmp_path / name) == told(tmp_path / "alone" / name)
        mine, others = kept(tmp_path / name), kept(tmp_path / "alone" / name)
        for key, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, others[key]), key


def test_views_are_rendered_once_for_all(tiny_images, cache, tmp_path, monkeypatch):
    decoded, decode = [], ViewMaker._decode
    monkeypatch.setattr(
        ViewMaker, "_decode", lambda self, row, *a: decoded.append(row) or decode(self, row, *a)
    )
    counts = []
    for number in (1, 2, 3):
        recipes = {f"{number}{i}": recipe_for("simreg") for i in range(number)}
        together(recipes, tiny_images, tmp_path, cache)
        counts.append(len(decoded))
        decoded.clear()
    witnesses = counts[1] - counts[0]  # each run looks at its own first
    assert counts[0] == 2 * 48 + witnesses
    assert counts[2] == 2 * 48 + 3 * witnesses


def test_student_that_is_ahead_waits_for_the_others(tiny_images, cache, tmp_path, monkeypatch):
    """As after a kill between two checkpoints; and as when one is given to a run later."""
    recipes = {
        name: recipe_for(name, run={"checkpoint_every_s": 0.0}) for name in ("disco", "retro")
    }
    keep, kept_of = loop._keep, []

    def dying(learner):
        if learner.recipe.method == "retro" and learner.state.step == 5:
            raise ZeroDivisionError
        kept_of.append((learner.recipe.method, learner.state.step))
        keep(learner)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_keep", dying)
        with pytest.raises(ZeroDivisionError):
            together(recipes, tiny_images, tmp_path, cache)
    assert kept_of[-2:] == [("retro", 4), ("disco", 5)]
    together(recipes, tiny_images, tmp_path, cache)
    for name, recipe in recipes.items():
        alone = run(recipe, tiny_images, tmp_path / "alone" / name, cache)
        assert (tmp_path / name / "student.safetensors").read_bytes() == alone.student.read_bytes()
        assert told(tmp_path / name) == told(tmp_path / "alone" / name)
    both = together(recipes, tiny_images, tmp_path, cache)  # finished, and left alone
    assert all(outcome.finished for outcome in both)


UNLIKE = {
    "batch": ({"train": {"batch_size": 4}}, "`train.batch_size` differs: 8 and 4"),
    "epochs": ({"train": {"epochs": 4}}, "`train.epochs` differs: 2 and 4"),
    "seed": ({"run": {"seed": 1}}, "`run.seed` differs: 0 and 1"),
    "size": ({"student": {"image_size": 48}}, "`student.image_size` differs: 32 and 48"),
    "views": ({"run": {"views": 2}}, "`views shown in turn` differs: 4 and 2"),
    "repeats": ({"train": {"repeats": 2}}, "`train.repeats` differs: 1 and 2"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_runs_that_show_other_views_are_refused(case, tiny_images, cache, tmp_path):
    tables, message = UNLIKE[case]
    recipes = {"a": recipe_for("simreg"), "b": recipe_for("simreg", **tables)}
    with pytest.raises(ConfigError, match=message):
        together(recipes, tiny_images, tmp_path / "runs", cache)
    assert not (tmp_path / "runs").exists()


def test_other_views_images_and_neighbours_are_refused(tiny_images, tiny_weights, cache, tmp_path):
    make_cache(tiny_images, tiny_weights, tmp_path / "c", num_views=4, seed=1)
    both = {"a": recipe_for("simreg"), "b": recipe_for("simreg")}
    with pytest.raises(ConfigError, match="`seed of the views` differs: 0 and 1"):
        together(both, tiny_images, tmp_path / "runs", cache, others={"b": tmp_path / "c"})
    mixed = {"a": recipe_for("simreg"), "b": recipe_for("disco")}
    with pytest.raises(ConfigError, match=r"`views in a step` differs: \(1, 1\) and \(2, 2\)"):
        together(mixed, tiny_images, tmp_path / "runs", cache)
    near = {"a": recipe_for("simreg"), "b": recipe_for("coss")}
    with pytest.raises(ConfigError, match="`neighbours in a step` differs: 0 and 1"):
        together(near, tiny_images, tmp_path / "runs", cache)


def test_live_teacher_has_one_student(tiny_images, tiny_weights, cache, tmp_path):
    both = {"a": recipe_for("simreg"), "b": recipe_for("simreg")}
    with pytest.raises(ConfigError, match="--online asks the teacher of one student"):
        together(both, tiny_images, tmp_path / "runs", cache, online=Online(tiny_weights))
