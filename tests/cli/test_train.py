"""`kdcache train` with several recipes, and what a scheduler sees of a run that was stopped."""

import os
import signal

import pytest
from commands import kdcache
from small import make_cache

from kdcache.train import loop

RECIPE = """
[method]
name = "{method}"
[student]
name = "test_resnet"
image_size = 32
[train]
epochs = 1
batch_size = 8
[run]
policy = "weak"
"""


@pytest.fixture(scope="module")
def cache(tiny_images, tiny_weights, tmp_path_factory):
    """A cache of 2 views, not to be changed."""
    out = tmp_path_factory.mktemp("cache") / "c.zarr"
    make_cache(tiny_images, tiny_weights, out)
    return out


@pytest.fixture
def recipes(tmp_path):
    """Two files that can share their views."""
    for method in ("simreg", "vkd"):
        (tmp_path / f"{method}.toml").write_text(RECIPE.format(method=method))
    return tmp_path / "simreg.toml", tmp_path / "vkd.toml"


def options(recipes, data, out):
    given = [part for recipe in recipes for part in ("--config", recipe)]
    return ["train", *given, "--data", data, "--out", out, "--workers", 0, "--device", "cpu"]


def test_several_recipes_make_a_run_each(recipes, cache, tiny_images, tmp_path):
    out = tmp_path / "runs"
    command = options(recipes, tiny_images, out)
    own = [*command, "--cache", f"simreg={cache}", "--cache", f"vkd={cache}"]
    code, stdout, stderr = kdcache(*own)
    assert code == 0, stderr
    students = [str(out / name / "student.safetensors") for name in ("simreg", "vkd")]
    assert stdout.split() == students
    code, stdout, stderr = kdcache(*command, "--cache", cache)  # for both; they are finished
    assert code == 0, stderr
    assert stdout.split() == students
    (tmp_path / "other").mkdir()
    recipes[0].rename(tmp_path / "other" / "vkd.toml")
    same = options((tmp_path / "other" / "vkd.toml", recipes[1]), tiny_images, out)
    code, _, stderr = kdcache(*same, "--cache", cache)
    assert code == 1
    assert "two recipes are called `vkd`" in stderr


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_run_says_by_its_exit_code_that_it_wants_to_go_on(
    number, expected, recipes, cache, tiny_images, tmp_path, monkeypatch
):
    step = loop._step

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return step(*arguments)

    command = [*options(recipes[:1], tiny_images, tmp_path / "run"), "--cache", cache]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", interrupted)
        code, stdout, stderr = kdcache(*command)
    assert (code, stdout) == (expected, "")
    assert "stopped at step 1; the same command goes on" in stderr
    code, stdout, stderr = kdcache(*command)
    assert code == 0, stderr
    assert stdout.strip() == str(tmp_path / "run" / "student.safetensors")
