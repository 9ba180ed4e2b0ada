"""Measuring: that every stage is really run; how fast it was is nobody's business here."""

import json

import pytest
from commands import kdcache, refused
from plan.test_run import question
from small import CPU, recipe_for

from kdcache.plan import load_rates, measure
from kdcache.progress import silent_bar


@pytest.mark.parametrize("name", [None, "retro"])
def test_every_stage_gets_a_rate_and_the_disk_is_left_as_it_was(
    tiny_images, tiny_weights, tmp_path, name
):
    student = None if name is None else recipe_for(name, run={"policy": "multicrop"})
    asked = question(
        tiny_images, tiny_weights, policy="multicrop", num_views=7, student=student
    )  # fmt: skip
    rates = measure(
        asked, device=CPU, cores=2, machine="this", disk=tmp_path, bar=silent_bar, spend_s=0.01
    )
    assert not list(tmp_path.iterdir())
    for stage in ("index_s", "teacher_s", "write_s", "seal_s"):
        assert getattr(rates, stage) > 0
    assert (rates.student_s is None) == (student is None)
    assert rates.about == asked.about()


def test_rates_that_were_saved_give_the_same_plan_again(tiny_images, tiny_weights, tmp_path):
    arguments = [
        "plan", "--teacher", "timm:test_resnet", "--weights", tiny_weights,
        "--data", tiny_images, "--image-size", "32", "--views", "2", "--device", "cpu",
        "--method", "simreg", "--student", "test_resnet", "--workers", "1", "--json",
        "--set", "student.image_size=32", "--set", "train.batch_size=8", "--epochs", "3",
    ]  # fmt: skip
    path = tmp_path / "rates.toml"
    answers = []
    for more in (["--disk", tmp_path, "--save-rates", path], ["--rates", path]):
        done = kdcache(*arguments, *more)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    first, again = answers
    assert again == first
    assert first["asked"]["epochs"] == 3
    assert load_rates(path).student_batch == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "1e6"], "no images to measure on"),
        (["--images", "many"], "no number of images"),
        ([], "neither images nor their number"),
        (["--student", "resnet18", "--images", "1e6"], "no --method"),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_what_lacks(options, words):
    done = kdcache("plan", "--teacher", "timm:test_resnet", "--device", "cpu", *options)
    refused(done, words, "")
