"""Sharing as a user meets it: push, pull, info, train from afar, and what refuses."""

import json

import pytest
from commands import kdcache, refused
from small import make_cache

from kdcache.train import read_metrics


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tiny_images, tiny_weights):
    """A finished cache, not to be changed."""
    path = tmp_path_factory.mktemp("cli") / "cache"
    make_cache(tiny_images, tiny_weights, path)
    return path


def test_push_pull_info_and_train_from_afar(cache, s3, tiny_images, tmp_path):
    done = kdcache("push", cache, s3)
    assert done.returncode == 0
    name = done.stdout.strip()
    identity = name.rpartition("@")[2]
    assert name == f"{s3}@{identity}"
    assert "0 files sent" in kdcache("push", cache, s3).stderr

    near, far = (json.loads(kdcache("info", what, "--json").stdout) for what in (cache, s3))
    assert near == far
    assert far["identity"] == identity
    assert kdcache("info", s3, "--history").stdout.startswith(identity)

    part = kdcache("pull", s3, tmp_path / "part", "--views", "1", "--arrays", "feature")
    assert part.stdout.strip() == identity
    assert "a part: feature, 1 of 2 views" in part.stderr
    assert "feature, 1 of 2 views" in kdcache("info", tmp_path / "part").stdout
    assert kdcache("verify", tmp_path / "part").returncode == 0
    assert kdcache("pull", name, tmp_path / "part").returncode == 0
    assert "all of it" in kdcache("info", tmp_path / "part").stdout

    learn = ("--method", "simreg", "--student", "test_resnet", "--data", tiny_images)
    more = ("--set", "train.epochs=2", "--set", "train.batch_size=8", "--set",
            "student.image_size=32", "--set", "run.log_every=1", "--workers", 0)  # fmt: skip
    for what, out in ((cache, "near"), (s3, "far")):
        done = kdcache("train", *learn, *more, "--cache", what, "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    losses = [[r["loss"] for r in read_metrics(tmp_path / out)] for out in ("near", "far")]
    assert losses[0] == losses[1]


def test_a_run_goes_on_with_the_views_that_it_was_begun_with(cache, tiny_images, tmp_path):
    assert kdcache("pull", cache, tmp_path / "c", "--views", "1").returncode == 0
    arguments = ("train", "--method", "simreg", "--student", "test_resnet", "--data", tiny_images,
                 "--set", "train.epochs=2", "--set", "train.batch_size=8", "--set",
                 "student.image_size=32", "--workers", 0, "--cache", tmp_path / "c")  # fmt: skip
    assert kdcache(*arguments, "--out", tmp_path / "run").returncode == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["views"] == 1
    refused(
        kdcache(*arguments, "--out", tmp_path / "two", "--set", "run.views=2"),
        "holds 1",
        "--views 2 --arrays embedding,feature --rows 0:48",
    )
    assert kdcache("pull", cache, tmp_path / "c").returncode == 0
    assert kdcache(*arguments, "--out", tmp_path / "run").returncode == 0
    assert kdcache("pull", cache, tmp_path / "less", "--views", "1").returncode == 0
    assert kdcache(*arguments, "--out", tmp_path / "whole").returncode == 0
    shrunk = [*arguments[:-1], tmp_path / "less"]
    refused(
        kdcache(*shrunk, "--out", tmp_path / "whole"),
        "begun with 2 views",
        "--views 2",
    )


def test_what_cannot_be_is_refused(cache, tmp_path):
    refused(kdcache("head", "s3://bucket/c"), "grows there only", "kdcache pull s3://bucket/c")
    refused(kdcache("neighbours", "s3://bucket/c"), "grows there only", "kdcache pull")
    assert kdcache("pull", cache, tmp_path / "p", "--views", "1").returncode == 0
    refused(kdcache("neighbours", tmp_path / "p"), "only a whole one can grow", "--views 2")
    refused(kdcache("pull", cache, tmp_path / "q", "--rows", "7"), "are no rows", "--rows 0:")
    refused(kdcache("push", cache, "ftp://host/c"), "no place that is known", "s3://BUCKET")
    learn = ("train", "--method", "simreg", "--data", tmp_path, "--out", tmp_path / "r")
    refused(
        kdcache(*learn, "--local-size", "plenty", "--cache", "s3://bucket/c"),
        "is no size",
        "--local-size 50GB",
    )
    refused(kdcache(*learn, "--local-size", "1GB", "--cache", cache), "far away", "leave")
