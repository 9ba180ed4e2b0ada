"""What a step is made of: several views of an image decoded once, and batches in parts."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from small import CPU, add_graph, make_cache, recipe_for, run

from kdcache.errors import CacheMismatch, ConfigError
from kdcache.images import open_images
from kdcache.methods import available_methods
from kdcache.progress import silent_bar
from kdcache.store import open_cache
from kdcache.targets import SampleStream, StreamQueue
from kdcache.train import Online, read_metrics
from kdcache.train.batches import batches, build_queues
from kdcache.train.data import ViewSchedule
from kdcache.train.lesson import lesson_alone, lesson_from
from kdcache.train.run import build_state
from kdcache.views import ViewMaker

COUPLED = [m for m in available_methods() if recipe_for(m).needs.couples_batch]
FREE = [m for m in available_methods() if m not in COUPLED]


@pytest.fixture(scope="module")
def cache(tiny_images, tiny_weights, tmp_path_factory):
    """Four weak views, float32, with a graph."""
    out = tmp_path_factory.mktemp("parts") / "four.zarr"
    make_cache(tiny_images, tiny_weights, out, num_views=4)
    add_graph(out)
    return out


def losses(folder):
    return [record["loss"] for record in read_metrics(folder)]


def lesson_of(recipe, data, cache):
    images = open_images(data)
    if recipe.needs.target is None:
        return lesson_alone(recipe, images, silent_bar)[0]
    opened = [open_cache(cache)]
    return lesson_from(opened, recipe, images, device=CPU, tell=print, bar=silent_bar)


def batches_at(recipe, lesson, step):
    queues = build_queues(recipe, lesson, step)
    return batches(recipe, lesson, queues, None, lesson.images[step], step, CPU)


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_repeats_show_the_same_views_of_as_many_images_in_another_order(repeats):
    """Epochs of 48 of 50 images; every image that a turn shows, it shows in all of its views."""
    stream, schedule = SampleStream(50, 8, seed=3, repeats=repeats), ViewSchedule(1, 4)
    shown = []
    for step in range(8 * stream.steps_per_epoch):
        views = [v for e in stream.epochs(step) for v in schedule.views(e)]
        shown += [(int(sample), view) for sample in stream.batch(step) for view in views]
    assert len(shown) == 8 * 48
    assert Counter(view for _, view in shown) == dict.fromkeys(range(4), 96)
    for turn in range(8 // repeats):
        length = 48 * repeats
        part = Counter(shown[turn * length : (turn + 1) * length])
        assert set(part.values()) == {1}
        by_image = Counter(sample for sample, _ in part)
        assert len(by_image) == 48
        assert set(by_image.values()) == {repeats}
    samples, epochs = stream.window(0, len(shown))
    views = [schedule.views(int(epoch))[0] for epoch in epochs]
    assert list(zip(samples.tolist(), views, strict=True)) == shown


@pytest.mark.parametrize("position", [0, 7, 96, 131])
def test_queue_and_own_slots_of_repeated_samples_are_those_of_the_stream(position):
    stream, length = SampleStream(21, 4, seed=2, repeats=2), 30

    def keys(samples, epochs):
        return torch.from_numpy(np.stack([samples, epochs], 1).astype(np.float32))

    queue = StreamQueue(stream, length, keys, position=position - 4)
    queue.push(4)
    samples, epochs = stream.window(position - length, position)
    held = {(int(s), int(e)) for s, e in queue.negatives.tolist()}
    assert held == set(zip(samples.tolist(), epochs.tolist(), strict=True))
    own = queue.own_slots(np.arange(21))
    for sample, slots in enumerate(own):
        found = [queue.negatives[slot, 1].item() for slot in slots if slot >= 0]
        assert sorted(found) == sorted(epochs[samples == sample].tolist())
        assert all(queue.negatives[slot, 0] == sample for slot in slots if slot >= 0)


@pytest.mark.parametrize("method", ["simreg", "seed", "disco", "bingo"])
def test_repeated_batch_has_each_image_side_by_side_with_its_own_targets(
    method, tiny_images, cache
):
    queue = {"queue": "all"} if recipe_for(method).needs.negatives else {}
    recipe = recipe_for(method, method=queue, train={"repeats": 2})
    lesson, opened = lesson_of(recipe, tiny_images, cache), open_cache(cache)
    (batch,) = batches_at(recipe, lesson, 7)
    needs, maker = recipe.needs, lesson.images.maker
    groups = [np.repeat(group, 2) for group in lesson.plan.samples(7)]
    assert len(groups[0]) == 8
    per_epoch = np.array(lesson.plan.views(7)).reshape(2, needs.views)
    views = [np.tile(per_epoch[:, place], 4) for place in range(needs.views)]
    shown = [(g, v) for g in groups for v in views[: needs.rendered]]
    for image, (group, view) in zip(batch.images, shown, strict=True):
        for i in range(8):
            alone = maker.make(group[i : i + 1], view[i : i + 1]).pixels[0][0]
            assert np.array_equal(image[i].numpy(), alone)
    told = [(g, v) for g in groups for v in views]
    for target, (group, view) in zip(batch.targets, told, strict=True):
        assert np.array_equal(target.numpy(), opened.rows(needs.target, group, view))
    if queue:  # of all samples, each in the slot of its number
        assert np.array_equal(batch.own_slots.numpy(), np.stack(groups, axis=1))


def test_image_is_decoded_once_for_all_its_views(tiny_images, cache, tmp_path, monkeypatch):
    decoded, decode = [], ViewMaker._decode
    monkeypatch.setattr(
        ViewMaker, "_decode", lambda self, row, *a: decoded.append(row) or decode(self, row, *a)
    )
    counts = []
    for repeats in (1, 4):
        recipe = recipe_for(train={"epochs": 4, "repeats": repeats})
        run(recipe, tiny_images, tmp_path / str(repeats), cache)
        counts.append(len(decoded))
        decoded.clear()
        assert len(losses(tmp_path / str(repeats))) == 24
    witnesses = counts[1] - 48
    assert counts[0] == 4 * 48 + witnesses


@pytest.mark.parametrize("method", ["moco", "seed", "bingo"])
def test_run_that_repeats_goes_on_bit_for_bit(method, tiny_images, cache, tmp_path, monkeypatch):
    from kdcache.train import loop

    recipe = recipe_for(
        method, train={"repeats": 2, "accumulate": 2}, run={"checkpoint_every_s": 0.0}
    )
    whole = run(recipe, tiny_images, tmp_path / "whole", cache)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "on_device", breaks_after(4, loop.on_device))
        with pytest.raises(ZeroDivisionError):
            run(recipe, tiny_images, tmp_path / "broken", cache)
    ended = run(recipe, tiny_images, tmp_path / "broken", cache)
    assert ended.student.read_bytes() == whole.student.read_bytes()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def breaks_after(steps, function):
    """The function, that many times."""
    left = iter(range(1, steps + 1))

    def calling(*arguments):
        1 // next(left, 0)
        return function(*arguments)

    return calling


@pytest.mark.parametrize("method", FREE)
def test_loss_of_a_batch_is_the_mean_of_its_parts(method, tiny_images, cache):
    """Where batch norm stands still and nothing is drawn; queues hold an earlier batch."""
    whole, parts = (recipe_for(method, train={"accumulate": n}) for n in (1, 4))
    lesson = lesson_of(whole, tiny_images, cache)
    cut = lesson_of(parts, tiny_images, cache)
    state = build_state(whole, lesson, CPU)
    student, algorithm = state.student, state.method
    algorithm(student, batches_at(whole, lesson, 0)[0])
    algorithm.finish_step(student)
    student.eval()
    algorithm.eval()
    found = []
    for recipe, shown in ((whole, lesson), (parts, cut)):
        values = []
        for batch in batches_at(recipe, shown, 1):
            torch.manual_seed(4)  # BINGO draws a box for each
            values.append(algorithm(student, batch).value)
        found.append(torch.stack(values).mean().item())
    assert len(values) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[0] != 0


@pytest.mark.parametrize("method", ["seed", "simreg", "disco"])
def test_student_without_batch_norm_learns_the_same_from_parts(
    method, tiny_images, cache, tmp_path
):
    """SimReg's head has batch norm, and so another curve, if a near one."""
    student = {"name": "test_vit", "image_size": 32}
    for parts in (1, 2, 4):
        train = {"lr": 1e-3, "accumulate": parts}
        recipe = recipe_for(method, student=student, train=train)
        run(recipe, tiny_images, tmp_path / str(parts), cache)
    whole, halves, quarters = (losses(tmp_path / str(parts)) for parts in (1, 2, 4))
    if method == "simreg":
        assert halves != pytest.approx(whole, rel=1e-5)
    else:
        assert halves == pytest.approx(whole, rel=1e-4)
        assert quarters == pytest.approx(whole, rel=1e-4)


def test_live_teacher_gives_the_losses_of_its_cache_for_parts_and_repeats(
    tiny_images, tiny_weights, cache, tmp_path
):
    recipe = recipe_for("seed", train={"accumulate": 2, "repeats": 2})
    run(recipe, tiny_images, tmp_path / "cached", cache)
    run(recipe, tiny_images, tmp_path / "live", cache, online=Online(tiny_weights))
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), rel=1e-5)


@pytest.mark.parametrize("method", COUPLED)
@pytest.mark.parametrize("name", ["accumulate", "repeats"])
def test_method_that_couples_a_batch_is_not_given_another_one(
    method, name, tiny_images, cache, tmp_path
):
    with pytest.raises(ConfigError, match=f"`train.{name}` is 2, but the loss of") as caught:
        run(recipe_for(method, train={name: 2}), tiny_images, tmp_path / "run", cache)
    assert caught.value.hint == f"--set train.{name}=1"


def test_coupled_methods_are_found_out_by_their_loss(tiny_images, cache):
    """So the flag is right where it is set: the mean of the parts' losses is another number."""
    assert COUPLED
    for method in COUPLED:
        recipe = recipe_for(method)
        lesson = lesson_of(recipe, tiny_images, cache)
        state = build_state(recipe, lesson, CPU)
        (batch,) = batches_at(recipe, lesson, 0)
        queue = {"negatives": batch.negatives}
        own = batch.own_slots
        halves = [
            type(batch)(
                [image[rows] for image in batch.images],
                [target[rows] for target in batch.targets],
                own_slots=None if own is None else own[rows],
                **queue,
            )
            for rows in (slice(0, 4), slice(4, 8))
        ]
        state.student.eval()
        state.method.eval()
        whole, *parts = (state.method(state.student, b).value.item() for b in (batch, *halves))
        assert np.mean(parts) != pytest.approx(whole, rel=1e-3)


REFUSED = {
    "epochs": ({"repeats": 4, "epochs": 6}, "does not divide 6 epochs", "train.epochs=8"),
    "batch": ({"accumulate": 3}, "a batch of 8 cannot be made of 3 parts", "train.batch_size=9"),
    "both": ({"accumulate": 3, "repeats": 2}, "shown 2 times each", "train.batch_size=12"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_batch_that_cannot_be_made_up_is_refused(case, tiny_images, cache, tmp_path):
    train, message, hint = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        run(recipe_for(train=train), tiny_images, tmp_path / "run", cache)
    assert caught.value.hint == f"--set {hint}"
    assert not (tmp_path / "run").exists()


def test_more_repeats_than_views_are_refused(tiny_images, cache, tmp_path):
    recipe = recipe_for("disco", train={"repeats": 4, "epochs": 4})
    with pytest.raises(CacheMismatch, match=r"shows 8 views .*`train.repeats` is 4.* holds 4"):
        run(recipe, tiny_images, tmp_path / "run", cache)
    few = recipe_for("simreg", train={"repeats": 2}, run={"views": 1})
    with pytest.raises(ConfigError, match=r"`run.views` is 1") as caught:
        run(few, tiny_images, tmp_path / "run", cache)
    assert caught.value.hint == "--set run.views=2, or more"


def test_run_begun_before_a_setting_was_known_goes_on(tiny_images, cache, tmp_path):
    run(recipe_for(), tiny_images, tmp_path / "run", cache)
    path = tmp_path / "run" / "recipe.json"
    kept = json.loads(path.read_bytes())
    del kept["recipe"]["train"]["repeats"], kept["recipe"]["run"]["compile"]
    path.write_text(json.dumps(kept))
    assert run(recipe_for(), tiny_images, tmp_path / "run", cache).finished
    with pytest.raises(ConfigError, match=r"`recipe.train.repeats` is 1 there and 2 here"):
        run(recipe_for(train={"repeats": 2}), tiny_images, tmp_path / "run", cache)
