"""What a run learns from: several teachers, neighbours, some of the views, a live teacher."""

import shutil

import numpy as np
import pytest
import torch
from small import CPU, add_graph, make_cache, recipe_for, run

from kdcache.errors import CacheMismatch, ConfigError, TeacherError
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.store import open_cache
from kdcache.targets import pick_neighbours
from kdcache.train import Online, read_metrics
from kdcache.train.batches import batches, build_queues
from kdcache.train.lesson import lesson_from


def losses(folder):
    return [record["loss"] for record in read_metrics(folder)]


def lesson_of(recipe, data, *caches, **options):
    opened = [open_cache(cache) for cache in caches]
    images = open_images(data)
    return lesson_from(opened, recipe, images, device=CPU, tell=print, bar=silent_bar, **options)


def first_batch(recipe, lesson):
    queues = build_queues(recipe, lesson, 0)
    (batch,) = batches(recipe, lesson, queues, None, lesson.images[0], 0, CPU)
    return batch


@pytest.fixture(scope="module")
def cache(tiny_images, tiny_weights, tmp_path_factory):
    """Four weak views, float32, with a graph."""
    out = tmp_path_factory.mktemp("lesson") / "four.zarr"
    make_cache(tiny_images, tiny_weights, out, num_views=4)
    add_graph(out)
    return out


@pytest.fixture(scope="module")
def other_teacher(tiny_images, tmp_path_factory):
    """What another network said of the same views of all images but three."""
    import timm

    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(3)
    weights = folder / "other.pth"
    torch.save(timm.create_model("test_efficientnet", num_classes=0).state_dict(), weights)
    data = folder / "train"
    shutil.copytree(tiny_images, data)
    for name in ("class0/000.jpg", "class1/001.png", "class3/011.png"):
        (data / name).unlink()
    out = folder / "other.zarr"
    make_cache(data, weights, out, model="test_efficientnet", num_views=4)
    return out


def test_several_teachers_are_joined_by_image_id(tiny_images, cache, other_teacher):
    recipe = recipe_for("simreg")
    lesson = lesson_of(recipe, tiny_images, cache, other_teacher)
    assert lesson.stream.num_samples == 45
    first, second = open_cache(cache), open_cache(other_teacher)
    ids = [c.image_ids[rows] for c, rows in zip((first, second), lesson.rows, strict=True)]
    assert np.array_equal(*ids)
    batch = first_batch(recipe, lesson)
    samples = lesson.plan.samples(0)[0]
    for targets, opened, rows in zip(batch.targets, (first, second), lesson.rows, strict=True):
        expected = opened.rows("feature", rows[samples], np.zeros(8, np.int64))
        assert np.array_equal(targets.numpy(), expected)


def test_student_of_several_teachers_trains_and_another_method_refuses(
    tiny_images, cache, other_teacher, tmp_path
):
    run(recipe_for("simreg"), tiny_images, tmp_path / "run", cache, other_teacher)
    assert len(losses(tmp_path / "run")) == 10
    with pytest.raises(ConfigError, match="2 caches are given") as caught:
        run(recipe_for("seed"), tiny_images, tmp_path / "no", cache, other_teacher)
    assert "simreg" in caught.value.hint


def test_teachers_that_saw_other_views_are_refused(tiny_images, tiny_weights, cache, tmp_path):
    make_cache(tiny_images, tiny_weights, tmp_path / "c", seed=1)
    with pytest.raises(CacheMismatch, match="their `seed` is 1 and 0"):
        run(recipe_for("simreg"), tiny_images, tmp_path / "run", cache, tmp_path / "c")


def test_neighbours_come_from_the_graph_and_bring_their_targets(tiny_images, cache):
    recipe = recipe_for("bingo")
    lesson = lesson_of(recipe, tiny_images, cache)
    batch, opened = first_batch(recipe, lesson), open_cache(cache)
    mine, near = lesson.plan.samples(0)
    graph = opened.neighbours().index
    assert all(n in graph[m] for m, n in zip(mine, near, strict=True))
    assert len(batch.images) == 2  # one view each of image and neighbour is looked at
    maker = lesson.images.maker
    assert np.array_equal(batch.images[1].numpy(), maker.make(near, np.array([0])).pixels[0])
    for target, (samples, view) in zip(
        batch.targets, [(mine, 0), (mine, 1), (near, 0), (near, 1)], strict=True
    ):
        expected = opened.rows("embedding", samples, np.full(8, view))
        assert np.array_equal(target.numpy(), expected)


def test_neighbours_are_drawn_anew_each_epoch_and_never_twice_in_a_step():
    graph = np.array([[1, 2, 3, 4], [0, 2, -1, -1], [-1, -1, -1, -1], [0, 1, 2, 4], [3, 2, 1, 0]])
    everyone = np.arange(5)
    drawn = [pick_neighbours(graph, everyone, count=2, seed=0, epoch=epoch) for epoch in range(400)]
    for picked in drawn:
        assert (picked[[0, 3, 4], 0] != picked[[0, 3, 4], 1]).all()
        assert picked[2].tolist() == [2, 2]  # alone: its own neighbour
        assert set(picked[1]) == {0, 2}
    counts = np.bincount([picked[0, 0] for picked in drawn], minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 70).all()  # 100 each are expected, with a deviation of 9
    again = pick_neighbours(graph, everyone[3:], count=2, seed=0, epoch=7)
    assert np.array_equal(again, drawn[7][3:])  # whoever else is in the batch


def test_graph_too_small_or_missing_is_refused_with_the_command(
    tiny_images, tiny_weights, cache, tmp_path
):
    make_cache(tiny_images, tiny_weights, tmp_path / "c")
    with pytest.raises(CacheMismatch, match="holds no graph") as caught:
        run(recipe_for("bingo"), tiny_images, tmp_path / "run", tmp_path / "c")
    assert caught.value.hint == f"kdcache neighbours {tmp_path / 'c'}"
    recipe = recipe_for("coss", method={"neighbours": 5})
    with pytest.raises(CacheMismatch, match=r"shows 5 neighbours.* holds 3"):
        run(recipe, tiny_images, tmp_path / "run", cache)


def test_run_on_some_views_equals_one_on_a_cache_of_so_many(
    tiny_images, tiny_weights, cache, tmp_path
):
    make_cache(tiny_images, tiny_weights, tmp_path / "two", num_views=2)
    train = {"train": {"epochs": 3}}
    run(recipe_for("simreg", **train), tiny_images, tmp_path / "a", tmp_path / "two")
    run(recipe_for("simreg", run={"views": 2}, **train), tiny_images, tmp_path / "b", cache)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    run(recipe_for("simreg", **train), tiny_images, tmp_path / "c", cache)
    assert losses(tmp_path / "a")[:12] == losses(tmp_path / "c")[:12]
    assert losses(tmp_path / "a")[12:] != losses(tmp_path / "c")[12:]


def test_more_views_than_the_cache_has_are_refused(tiny_images, cache, tmp_path):
    with pytest.raises(CacheMismatch, match=r"`run.views` is 9, but .* holds 4"):
        run(recipe_for("simreg", run={"views": 9}), tiny_images, tmp_path / "run", cache)
    with pytest.raises(ConfigError, match=r"shows 2 views of an image in a step, but `run.views`"):
        run(recipe_for("disco", run={"views": 1}), tiny_images, tmp_path / "run", cache)


def test_queue_of_all_samples_holds_the_view_of_the_epoch(tiny_images, cache):
    recipe = recipe_for("seed", method={"queue": "all"})
    lesson = lesson_of(recipe, tiny_images, cache)
    (queue,) = build_queues(recipe, lesson, 0)
    for epoch in range(5):
        slab = torch.from_numpy(open_cache(cache).slab("embedding", epoch % 4))
        expected = torch.nn.functional.normalize(slab, dim=1)
        torch.testing.assert_close(queue.negatives, expected)
        queue.push(lesson.stream.epoch_length)
    assert queue.own_slots(np.array([5, 3])).tolist() == [[5], [3]]


def test_unmasked_queue_of_all_samples_is_refused(tiny_images, cache, tmp_path):
    recipe = recipe_for("seed", method={"queue": "all", "mask_own": False})
    with pytest.raises(ConfigError, match="holds the very images"):
        run(recipe, tiny_images, tmp_path / "run", cache)


def test_centred_targets_have_no_mean_and_unit_length(tiny_images, cache):
    recipe = recipe_for("simreg", method={"center": True})
    lesson = lesson_of(recipe, tiny_images, cache)
    everyone = lesson.targets[0].take(np.arange(48), 0)
    torch.testing.assert_close(everyone.norm(dim=1), torch.ones(48))
    slab = torch.from_numpy(open_cache(cache).slab("feature", 0))
    rows = torch.nn.functional.normalize(slab, dim=1)
    expected = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(everyone, expected, atol=1e-5, rtol=1e-4)


def test_teachers_ranking_is_told_before_the_first_step(tiny_images, cache, tmp_path):
    told = []
    recipe = recipe_for("seed", method={"teacher_temperature": 1e-7})
    run(recipe, tiny_images, tmp_path / "run", cache, tell=told.append)
    assert told[0].startswith("the teacher's ranking: own target 100.00%")
    assert any("one-hot" in line for line in told)


@pytest.mark.parametrize("method", ["simreg", "seed", "disco", "retro", "bingo"])
def test_live_teacher_gives_the_losses_of_its_cache(
    method, tiny_images, tiny_weights, cache, tmp_path
):
    recipe = recipe_for(method, train={"epochs": 5})
    run(recipe, tiny_images, tmp_path / "cached", cache)
    run(recipe, tiny_images, tmp_path / "live", cache, online=Online(tiny_weights))
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), rel=1e-5)


def test_live_teacher_sees_its_own_size_when_the_student_does_not(
    tiny_images, tiny_weights, cache, tmp_path
):
    recipe = recipe_for("seed", student={"image_size": 48})
    run(recipe, tiny_images, tmp_path / "cached", cache)
    run(recipe, tiny_images, tmp_path / "live", cache, online=Online(tiny_weights))
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), rel=1e-5)


def test_live_teacher_is_not_looked_up(tiny_images, tiny_weights, cache, tmp_path, monkeypatch):
    """The control would prove nothing if it read the cache."""
    from kdcache.store import Cache

    monkeypatch.setattr(Cache, "slab", lambda *_: pytest.fail("the cache was read"))
    run(recipe_for("seed"), tiny_images, tmp_path / "live", cache,
        online=Online(tiny_weights))  # fmt: skip


def test_live_teacher_of_other_weights_is_refused(tiny_images, headless_weights, cache, tmp_path):
    with pytest.raises(TeacherError, match="those at hand are") as caught:
        run(recipe_for("simreg"), tiny_images, tmp_path / "run", cache,
            online=Online(headless_weights))  # fmt: skip
    assert "--weights" in caught.value.hint


def test_run_goes_on_when_its_cache_has_grown(tiny_images, tiny_weights, tmp_path):
    make_cache(tiny_images, tiny_weights, tmp_path / "c")
    run(recipe_for("simreg"), tiny_images, tmp_path / "run", tmp_path / "c")
    add_graph(tmp_path / "c")
    assert run(recipe_for("simreg"), tiny_images, tmp_path / "run", tmp_path / "c").finished


def test_neighbours_own_slots_are_hidden_too(tiny_images, cache):
    recipe = recipe_for("bingo")
    lesson = lesson_of(recipe, tiny_images, cache)
    own = first_batch(recipe, lesson).own_slots
    (queue,) = build_queues(recipe, lesson, 0)
    mine, near = (torch.from_numpy(queue.own_slots(group)) for group in lesson.plan.samples(0))
    assert torch.equal(own, torch.cat([mine, near], dim=1))
    assert (near >= 0).any()


@pytest.mark.parametrize("method", ["moco", "disco", "retro", "compress"])
def test_queue_of_own_keys_longer_than_half_of_the_images_is_refused(
    method, tiny_images, cache, tmp_path
):
    caches = () if method == "moco" else (cache,)
    with pytest.raises(ConfigError, match="a queue of 25 keys of the student's own") as caught:
        run(recipe_for(method, method={"queue": 25}), tiny_images, tmp_path / "run", *caches)
    assert caught.value.hint == "--set method.queue=16"


@pytest.fixture(scope="module")
def crops(tiny_images, tiny_weights, tmp_path_factory):
    """Two sets of a large crop and six small ones."""
    out = tmp_path_factory.mktemp("crops") / "crops.zarr"
    make_cache(tiny_images, tiny_weights, out, policy="multicrop", num_views=14)
    return out


def test_small_patches_train_from_whole_sets(tiny_images, crops, tmp_path):
    tables = {"method": {"small_patches": 6}, "run": {"policy": "multicrop"}}
    recipe = recipe_for("seed", **tables)
    batch = first_batch(recipe, lesson_of(recipe, tiny_images, crops))
    assert [view.shape[1] for view in batch.images] == [32] + [14] * 6
    assert batch.more_negatives.shape == batch.negatives.shape
    run(recipe, tiny_images, tmp_path / "run", crops)
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.parametrize(
    ("method", "settings", "views", "message"),
    [
        ("seed", {"small_patches": 6}, 10, "come in sets of 7, but `run.views` is 10"),
        ("seed", {"small_patches": 13}, 14, "come in sets of 7, but `seed` shows 14"),
        ("simreg", {}, 7, "come in sets of 7, but `simreg` shows 1"),
    ],
)
def test_sets_of_views_are_not_broken_up(
    method, settings, views, message, tiny_images, crops, tmp_path
):
    recipe = recipe_for(method, method=settings, run={"policy": "multicrop", "views": views})
    with pytest.raises((CacheMismatch, ConfigError), match=message):
        run(recipe, tiny_images, tmp_path / "run", crops)


def test_large_views_are_not_taken_for_small_patches(tiny_images, cache, tmp_path):
    recipe = recipe_for("seed", method={"small_patches": 3})
    with pytest.raises(CacheMismatch, match="come in sets of 1, but `seed` shows 4") as caught:
        run(recipe, tiny_images, tmp_path / "run", cache)
    assert "multicrop" in caught.value.hint
