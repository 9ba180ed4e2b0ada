"""Several teachers in one pass: each cache is the one that its teacher would have made alone."""

import numpy as np
import pytest
import timm
import torch
from commands import kdcache, refused
from small import CPU, make_cache, small_extraction, tree_of

from kdcache.errors import ConfigError
from kdcache.extract import run_extractions
from kdcache.extract import together as module
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.teachers import load_teacher
from kdcache.views import maker

SIZES = (32, 48, 32)
"""Of the three teachers; the last one is another network of the first one's size."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_weights):
    path = tmp_path_factory.mktemp("other") / "other.pth"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return [tiny_weights, tiny_weights, path]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_images, weights):
    """The caches of three separate extractions."""
    folder = tmp_path_factory.mktemp("alone")
    for at, (file, size) in enumerate(zip(weights, SIZES, strict=True)):
        make_cache(tiny_images, file, folder / str(at), image_size=size, num_views=3)
    return [tree_of(folder / str(at)) for at in range(3)]


def extract_all(data, weights, outs, *, skip_unreadable=False, workers=0):
    teachers = [
        load_teacher("timm:test_resnet", weights=file, image_size=size)
        for file, size in zip(weights, SIZES, strict=True)
    ]
    return run_extractions(
        open_images(data), teachers, outs, small_extraction(num_views=3),
        skip_unreadable=skip_unreadable, device=CPU, workers=workers, bar=silent_bar,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_each_cache_has_the_bytes_of_a_separate_extraction(
    tiny_images, weights, alone, tmp_path, workers
):
    outs = [tmp_path / str(at) for at in range(3)]
    outcomes = extract_all(tiny_images, weights, outs, workers=workers)
    assert [tree_of(out) for out in outs] == alone
    assert [outcome.report.views for outcome in outcomes] == [48 * 3] * 3
    again = extract_all(tiny_images, weights, outs, workers=workers)
    assert [one.identity for one in again] == [one.identity for one in outcomes]
    assert [one.report.views for one in again] == [0, 0, 0]


def test_each_image_is_decoded_once_for_all(tiny_images, weights, tmp_path, monkeypatch):
    seen, real = [], maker.decode
    monkeypatch.setattr(maker, "decode", lambda data: (seen.append(len(data)), real(data))[1])
    extract_all(tiny_images, weights, [tmp_path / str(at) for at in range(3)])
    assert len(seen) == 48


def test_a_cache_that_is_ahead_is_left_as_it_is_and_the_others_catch_up(
    tiny_images, weights, alone, tmp_path, monkeypatch
):
    outs = [tmp_path / str(at) for at in range(3)]
    make_cache(tiny_images, weights[1], outs[1], image_size=48, num_views=3)
    asked, real = [], module.Draft.add
    monkeypatch.setattr(
        module.Draft,
        "add",
        lambda draft, new: (asked.append(draft._job.teacher.image_size), real(draft, new)),
    )
    extract_all(tiny_images, weights, outs)
    assert set(asked) == {32}
    assert [tree_of(out) for out in outs] == alone


def test_an_unreadable_image_is_one_in_all_caches(tiny_images, weights, tmp_path):
    import shutil

    data = shutil.copytree(tiny_images, tmp_path / "images")
    victim = sorted(data.rglob("*.jpg"))[3]
    victim.write_bytes(victim.read_bytes()[:200])
    outs = [tmp_path / str(at) for at in range(3)]
    outcomes = extract_all(data, weights, outs, skip_unreadable=True)
    reasons = [outcome.report.unreadable for outcome in outcomes]
    assert reasons[0] == reasons[1] == reasons[2]
    assert len(reasons[0]) == 1
    make_cache(data, weights[1], tmp_path / "one", image_size=48, num_views=3, skip_unreadable=True)
    assert tree_of(outs[1]) == tree_of(tmp_path / "one")


def test_as_many_different_folders_as_teachers_are_asked_for(tiny_images, weights, tmp_path):
    with pytest.raises(ConfigError, match="3 teachers"):
        extract_all(tiny_images, weights, [tmp_path / "a", tmp_path / "a", tmp_path / "b"])


def test_the_command_takes_teachers_in_pairs_with_their_caches(tiny_images, weights, tmp_path):
    start = ["extract", "--data", tiny_images, "--image-size", 32, "--views", 1]
    start += ["--device", "cpu", "--workers", 0]
    one, other = (
        ["--teacher", "timm:test_resnet", "--weights", file, "--out", tmp_path / name]
        for file, name in ((weights[0], "a"), (weights[2], "b"))
    )
    done = kdcache(*start, *one, *other[:4])
    refused(done, "2 teachers are given, and 1 --out", "")
    done = kdcache(*start, *one, *other)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2
    assert np.all([(tmp_path / name / "manifest.json").exists() for name in "ab"])
