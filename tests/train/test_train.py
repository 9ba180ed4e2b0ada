"""Training: what a step computes, exact resumes, and refusals before the first step."""

import importlib.metadata
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small import CPU, add_graph, make_cache, recipe_for, run

from kdcache.errors import CacheMismatch, ConfigError, DataError, TrainingError
from kdcache.images import open_images
from kdcache.methods import available_methods, get_method
from kdcache.progress import progress_bar
from kdcache.recipe import build_recipe
from kdcache.store import open_cache
from kdcache.students import load_student
from kdcache.train import read_metrics


@pytest.fixture(scope="module")
def cache_path(tiny_images, tiny_weights, tmp_path_factory):
    """A finished cache with all that a method may need, not to be changed."""
    out = tmp_path_factory.mktemp("cache") / "tiny.zarr"
    make_cache(tiny_images, tiny_weights, out)
    add_graph(out)
    return out


@pytest.mark.parametrize("method", available_methods())
def test_every_method_trains_a_student_that_loads(method, tiny_images, cache_path, tmp_path):
    outcome = run(recipe_for(method), tiny_images, tmp_path / "run", cache_path)
    assert outcome.finished
    assert [r["step"] for r in read_metrics(tmp_path / "run")] == list(range(1, 13))
    assert all(np.isfinite(r["loss"]) for r in read_metrics(tmp_path / "run"))
    student = load_student(outcome.student)
    trained = student.eval()(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert torch.isfinite(trained).all()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_loss_falls(tiny_images, cache_path, tmp_path):
    recipe = recipe_for(train={"epochs": 12})
    run(recipe, tiny_images, tmp_path / "run", cache_path)
    losses = [r["loss"] for r in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])


def test_first_step_is_what_a_plain_script_computes(tiny_images, cache_path, tmp_path):
    """SimReg's loss of the first batch, from pixels and targets that are looked up by hand."""
    from kdcache.methods import TeacherSide
    from kdcache.students import build_student
    from kdcache.targets import permutation
    from kdcache.views import ViewMaker, get_policy, get_renderer

    run(recipe_for(train={"epochs": 1}), tiny_images, tmp_path / "run", cache_path)
    cache, images = open_cache(cache_path), open_images(tiny_images)
    rows = permutation(48, seed=0, epoch=0)[:8]
    maker = ViewMaker(images, cache.image_ids, get_policy("weak"), 0, get_renderer(), 32)
    pixels = torch.from_numpy(maker.make(rows, np.array([0])).pixels[0])
    target = torch.from_numpy(cache.rows("feature", rows, np.zeros(8, np.int64)))
    torch.manual_seed(0)
    student = build_student("test_resnet", image_size=32)
    method = get_method("simreg")
    teachers = [TeacherSide(target.shape[1])]
    head = method(method.Config(), student_dim=student.feature_dim, teachers=teachers).heads[0]
    prediction = torch.nn.functional.normalize(head(student(pixels)), dim=1)
    expected = (prediction - torch.nn.functional.normalize(target, dim=1)).square().sum(1).mean()
    assert read_metrics(tmp_path / "run")[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_epochs_show_the_cached_views_in_turn(tiny_images, cache_path):
    from kdcache.train.data import ViewSchedule

    assert [ViewSchedule(1, 3).views(e) for e in range(-1, 5)] == [[2], [0], [1], [2], [0], [1]]
    assert [ViewSchedule(2, 3).views(e) for e in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert [ViewSchedule(2, None).views(e) for e in range(2)] == [[0, 1], [2, 3]]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small import recipe_for, run
recipe = recipe_for(sys.argv[2], run={"checkpoint_every_s": 0.0}, train={"epochs": 3})
run(recipe, Path(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
"""


def start_child(method, data, out, cache) -> subprocess.Popen:
    tests = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-c", CHILD, tests, method, str(data), str(out), str(cache)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


class Broken(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("method", available_methods())
def test_broken_run_ends_bit_for_bit_as_the_unbroken_one(
    method, tiny_images, cache_path, tmp_path, monkeypatch
):
    from kdcache.train import loop

    often = recipe_for(method, run={"checkpoint_every_s": 0.0}, train={"epochs": 3})
    whole = run(often, tiny_images, tmp_path / "whole", cache_path)
    for steps in (3, 5):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_step", breaks_after(steps, loop._step))
            with pytest.raises(Broken):
                run(often, tiny_images, tmp_path / "broken", cache_path)
    ended = run(often, tiny_images, tmp_path / "broken", cache_path)
    assert ended.student.read_bytes() == whole.student.read_bytes()
    losses = [[r["loss"] for r in read_metrics(tmp_path / name)] for name in ("whole", "broken")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 18


def breaks_after(steps, step):
    """The training step, that many times; then `Broken`."""
    left = iter(range(steps))

    def stepping(*arguments):
        if next(left, None) is None:
            raise Broken
        return step(*arguments)

    return stepping


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("method", ["disco"])
def test_killed_run_ends_bit_for_bit_as_the_unbroken_one(method, tiny_images, cache_path, tmp_path):
    assert start_child(method, tiny_images, tmp_path / "whole", cache_path).wait() == 0
    for kill_at in (3, 8):
        child = start_child(method, tiny_images, tmp_path / "killed", cache_path)
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while child.poll() is None and not (
            metrics.exists() and len(metrics.read_text().splitlines()) >= kill_at
        ):
            time.sleep(0.005)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert start_child(method, tiny_images, tmp_path / "killed", cache_path).wait() == 0
    whole, killed = (
        (tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")
    )
    assert whole == killed
    losses = [[r["loss"] for r in read_metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 18


def test_stop_signal_ends_after_the_step_and_the_run_goes_on(tiny_images, cache_path, tmp_path):
    recipe = recipe_for()
    whole = run(recipe, tiny_images, tmp_path / "whole", cache_path)
    from kdcache.train import loop

    step, calls = loop._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    loop._step = interrupted
    try:
        stopped = run(recipe, tiny_images, tmp_path / "run", cache_path)
    finally:
        loop._step = step
    assert not stopped.finished
    assert stopped.student is None
    assert stopped.last["step"] == 4
    again = run(recipe, tiny_images, tmp_path / "run", cache_path)
    assert again.finished
    assert again.student.read_bytes() == whole.student.read_bytes()


def test_finished_run_is_left_alone(tiny_images, cache_path, tmp_path):
    first = run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    before = first.student.read_bytes()
    assert run(recipe_for(), tiny_images, tmp_path / "run", cache_path).finished
    assert first.student.read_bytes() == before
    assert len(read_metrics(tmp_path / "run")) == 12


def test_other_settings_do_not_go_on_with_a_run(tiny_images, cache_path, tmp_path):
    run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    with pytest.raises(ConfigError, match=r"`recipe.train.epochs` is 2 there and 3 here") as caught:
        run(recipe_for(train={"epochs": 3}), tiny_images, tmp_path / "run", cache_path)
    assert "--out" in caught.value.hint


def test_loss_that_is_not_finite_stops_with_step_and_checkpoint(tiny_images, cache_path, tmp_path):
    recipe = recipe_for(train={"lr": 1e30}, run={"checkpoint_every_s": 0.0})
    with pytest.raises(TrainingError, match=r"at step \d+ the (loss|gradient)") as caught:
        run(recipe, tiny_images, tmp_path / "run", cache_path)
    assert str(tmp_path / "run") in str(caught.value)
    assert "train.lr" in caught.value.hint
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert kept["step"] == len(read_metrics(tmp_path / "run"))
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_truncated_checkpoint_is_named(tiny_images, cache_path, tmp_path):
    run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"checkpoint.pt` is damaged"):
        run(recipe_for(), tiny_images, tmp_path / "run", cache_path)


def test_strangers_folder_is_not_written_into(tiny_images, cache_path, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        run(recipe_for(), tiny_images, tmp_path / "photos", cache_path)
    assert os.listdir(tmp_path / "photos") == ["cat.txt"]


def test_moved_and_renamed_images_are_found_by_their_bytes(tiny_images, cache_path, tmp_path):
    expected = run(recipe_for(), tiny_images, tmp_path / "a", cache_path)
    data = tmp_path / "elsewhere"
    for i, path in enumerate(sorted(tiny_images.rglob("*.*"))):
        (data / f"k{i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / f"k{i % 3}" / f"{97 * i % 101}{path.suffix}")
    found = run(recipe_for(), data, tmp_path / "b", cache_path)
    assert found.student.read_bytes() == expected.student.read_bytes()


def test_missing_image_is_refused_before_the_first_step(tiny_images, cache_path, tmp_path):
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    (data / "class3" / "005.png").unlink()
    with pytest.raises(DataError, match=r"1 of the cache's 48 images.*class3/005.png"):
        run(recipe_for(), data, tmp_path / "run", cache_path)
    assert not (tmp_path / "run").exists()


def test_changed_image_stops_the_run(tiny_images, cache_path, tmp_path):
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    shutil.copy(data / "class0" / "000.jpg", data / "class1" / "002.jpg")
    with pytest.raises(DataError, match=r"class1/002.jpg.*has changed"):
        run(recipe_for(), data, tmp_path / "run", cache_path)


def test_added_images_take_no_part_and_are_told_of(tiny_images, cache_path, tmp_path):
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    shutil.copy(data / "class0" / "000.jpg", data / "class0" / "zzz.jpg")
    told = []
    run(recipe_for(), data, tmp_path / "run", cache_path, tell=told.append)
    assert told[0].startswith("1 images of")


REFUSED = {
    "policy": (
        recipe_for("seed", run={"policy": None}),
        "`moco_v2` views",
        "run.policy=weak",
    ),
    "batch": (recipe_for(train={"batch_size": 64}), "larger than the 48 images", "batch_size=32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_the_first_step(
    case, tiny_images, cache_path, tmp_path
):
    recipe, message, hint = REFUSED[case]
    with pytest.raises((CacheMismatch, ConfigError), match=message) as caught:
        run(recipe, tiny_images, tmp_path / "run", cache_path)
    assert hint in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_batch_that_the_processes_cannot_share_is_refused(
    tiny_images, cache_path, tmp_path, monkeypatch
):
    from kdcache import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 9)
    with pytest.raises(ConfigError, match="8 images cannot be dealt to 9") as caught:
        run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    assert caught.value.hint == "--set train.batch_size=9, or start fewer processes"


def test_unmasked_queue_of_more_than_half_of_the_images_is_refused(
    tiny_images, cache_path, tmp_path
):
    recipe = build_recipe(
        {**recipe_for("seed").to_dict(), "method": {"name": "seed", "queue": 30, "mask_own": False}}
    )
    with pytest.raises(ConfigError, match="a queue of 30") as caught:
        run(recipe, tiny_images, tmp_path / "run", cache_path)
    assert "mask_own=true" in caught.value.hint


def test_teacher_without_a_head_has_no_embedding(tiny_images, headless_weights, tmp_path):
    make_cache(tiny_images, headless_weights, tmp_path / "c")
    with pytest.raises(CacheMismatch, match=r"`embedding`.*holds only: feature") as caught:
        run(recipe_for("seed"), tiny_images, tmp_path / "run", tmp_path / "c")
    assert "kdcache head" in caught.value.hint
    assert "--set method.target=feature" in caught.value.hint
    tables = recipe_for("seed").to_dict()
    feature = build_recipe({**tables, "method": {**tables["method"], "target": "feature"}})
    assert run(feature, tiny_images, tmp_path / "run", tmp_path / "c").finished


def test_cache_that_left_the_feature_out_says_how_to_get_it(tiny_images, tiny_weights, tmp_path):
    make_cache(tiny_images, tiny_weights, tmp_path / "c", arrays=("embedding",))
    with pytest.raises(CacheMismatch, match="holds only: embedding") as caught:
        run(recipe_for("simreg"), tiny_images, tmp_path / "run", tmp_path / "c")
    assert "--arrays feature" in caught.value.hint


def test_embedding_that_is_not_kept_is_derived_from_feature_and_head(
    tiny_images, tiny_weights, cache_path, tmp_path
):
    """The loss curves are those of the stored embedding."""
    make_cache(tiny_images, tiny_weights, tmp_path / "c", arrays=("feature",))
    for name, cache in (("stored", cache_path), ("derived", tmp_path / "c")):
        run(recipe_for("seed"), tiny_images, tmp_path / name, cache)
    stored, derived = (
        [r["loss"] for r in read_metrics(tmp_path / name)] for name in ("stored", "derived")
    )
    assert derived == pytest.approx(stored, rel=1e-5)


def test_views_that_the_teacher_did_not_see_are_refused(
    tiny_images, cache_path, tmp_path, monkeypatch
):
    """A renderer that mirrors rows: the first stage that differs is named."""
    from kdcache.views.render import R1

    geometry = R1.geometry
    monkeypatch.setattr(
        R1, "geometry", lambda self, p, v, s: np.ascontiguousarray(geometry(self, p, v, s)[::-1])
    )
    with pytest.raises(CacheMismatch, match="first stage that differs is `geometry`"):
        run(recipe_for(), tiny_images, tmp_path / "run", cache_path)


def test_student_may_see_another_size_than_the_teacher(tiny_images, cache_path, tmp_path):
    recipe = recipe_for(student={"image_size": 48})
    outcome = run(recipe, tiny_images, tmp_path / "run", cache_path)
    assert load_student(outcome.student).image_size == 48


def test_run_says_what_it_was_made_with(tiny_images, cache_path, tmp_path):
    run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    kept = json.loads((tmp_path / "run" / "recipe.json").read_bytes())
    assert kept["caches"] == [open_cache(cache_path).identity]
    assert kept["recipe"]["run"]["precision"] == "fp32"  # `auto` is settled
    assert kept["recipe"]["train"]["lr"] == 0.05
    assert kept["versions"]["torch"] == importlib.metadata.version("torch")


def test_run_without_a_cache_goes_on_with_the_same_images_only(tiny_images, tmp_path):
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    run(recipe_for("moco"), data, tmp_path / "run")
    shutil.copy(data / "class0" / "000.jpg", data / "class0" / "zzz.jpg")
    with pytest.raises(ConfigError, match="holds another run: `images`"):
        run(recipe_for("moco"), data, tmp_path / "run")


def test_gradient_that_is_not_finite_stops_the_run(tiny_images, cache_path, tmp_path, monkeypatch):
    """The loss may be finite while the weights are about to be lost."""
    from kdcache.methods.simreg import SimReg

    forward = SimReg.forward

    def poisoned(self, student, batch):
        loss = forward(self, student, batch)
        loss.value.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(SimReg, "forward", poisoned)
    with pytest.raises(TrainingError, match="at step 0 the gradient's norm is") as caught:
        run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    assert "no checkpoint was written" in str(caught.value)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_two_processes_do_not_share_a_run(tiny_images, cache_path, tmp_path):
    from kdcache.files import exclusive

    run(recipe_for(), tiny_images, tmp_path / "run2", cache_path)
    with exclusive(tmp_path / "run2"), pytest.raises(ConfigError, match="another process"):
        run(recipe_for(), tiny_images, tmp_path / "run2", cache_path)


def test_full_disk_while_saving_keeps_the_old_checkpoint(tiny_images, cache_path, tmp_path):
    import resource

    run(recipe_for(), tiny_images, tmp_path / "run", cache_path)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    from kdcache.train.checkpoint import State, load_checkpoint, save_checkpoint
    from kdcache.train.lesson import lesson_from
    from kdcache.train.run import build_state

    recipe, images = recipe_for(), open_images(tiny_images)
    lesson = lesson_from(
        [open_cache(cache_path)], recipe, images, device=CPU, tell=print, bar=progress_bar
    )
    state: State = build_state(recipe, lesson, CPU)
    assert load_checkpoint(tmp_path / "run", state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path / "run", state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow
@pytest.mark.dist
def test_signal_to_the_whole_group_ends_in_a_checkpoint(tiny_images, cache_path, tmp_path):
    """As Slurm and systemd send it: the workers die, the run does not lose its steps."""
    tests = os.path.dirname(os.path.dirname(__file__))
    code = CHILD.replace('epochs": 3', 'epochs": 3000').replace("0.0}", "600.0}")
    code = code.replace(
        "run(recipe", "import functools; run = functools.partial(run, workers=2); run(recipe"
    )
    command = [sys.executable, "-c", code, tests, "simreg", str(tiny_images)]
    command += [str(tmp_path / "run"), str(cache_path)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 20):
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(timeout=60) == 0
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert kept["step"] >= 20


def test_signal_while_waiting_for_images_keeps_steps_that_are_logged(
    tiny_images, cache_path, tmp_path, monkeypatch
):
    """Nothing is left to log then, and there is still a checkpoint to write."""
    import kdcache.train.loop
    from kdcache.errors import WorkerKilled

    rendered = kdcache.train.loop.render_ahead

    def cut_off(*args, **kwargs):
        yield from itertools.islice(rendered(*args, **kwargs), 5)
        os.kill(os.getpid(), signal.SIGTERM)
        raise WorkerKilled("a process is gone", hint="none")

    monkeypatch.setattr(kdcache.train.loop, "render_ahead", cut_off)
    outcome = run(recipe_for(run={"log_every": 1}), tiny_images, tmp_path / "run", cache_path)
    assert not outcome.finished
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 5
