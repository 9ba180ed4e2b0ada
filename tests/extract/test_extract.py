"""Extraction gives what a plain loop gives, the same bytes however it is run, or a refusal."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from small import make_cache, tree_of

from kdcache.errors import CacheMismatch, ConfigError, DataError, TeacherError
from kdcache.heads import ProjectionHead
from kdcache.images import decode, index_images, open_images
from kdcache.store import layout, open_cache
from kdcache.teachers import Teacher, load_teacher
from kdcache.views import (
    ViewMaker,
    check_witnesses,
    draw,
    get_policy,
    get_renderer,
    witnesses_from_arrays,
)


@pytest.fixture(scope="module")
def made(tiny_images, tiny_weights, tmp_path_factory):
    """A finished cache, not to be changed."""
    out = tmp_path_factory.mktemp("cache") / "tiny.zarr"
    make_cache(tiny_images, tiny_weights, out)
    return out


def test_cache_holds_what_a_plain_loop_computes(made, tiny_images, tiny_weights):
    """One image, one view at a time, through nothing but the teacher and the renderer."""
    cache, images = open_cache(made), open_images(tiny_images)
    teacher = load_teacher("timm:test_resnet", weights=tiny_weights, image_size=32)
    renderer, ids = get_renderer(), index_images(images).ids
    for row in (0, 7, 31, 47):
        pixels = decode(images.read(row))
        height, width = (np.array([side]) for side in pixels.shape[:2])
        drawn = draw(get_policy("weak"), 0, ids[row : row + 1], np.arange(2), height, width)[0]
        for view in range(2):
            shaped = renderer.colour(renderer.geometry(pixels, drawn[view], 32), drawn[view])
            feature, embedding = teacher(torch.from_numpy(shaped[None].copy()))
            kept = cache.rows("feature", np.array([row]), np.array([view]))
            np.testing.assert_allclose(kept[0], feature[0].numpy(), rtol=0, atol=2e-6)
            kept = cache.rows("embedding", np.array([row]), np.array([view]))
            np.testing.assert_allclose(kept[0], embedding[0].numpy(), rtol=0, atol=2e-6)


SMALL_CROPS = {"policy": "multicrop", "num_views": 7, "image_size": 64}


@pytest.fixture(scope="module")
def small_crops(tiny_images, tiny_weights, tmp_path_factory):
    """A finished cache of one set of `multicrop`, large 64 px and small 27; not to be changed."""
    out = tmp_path_factory.mktemp("cache") / "small.zarr"
    make_cache(tiny_images, tiny_weights, out, **SMALL_CROPS)
    return out


def test_teacher_sees_large_and_small_crops_at_their_own_sides(
    small_crops, tiny_images, tiny_weights
):
    cache, images = open_cache(small_crops), open_images(tiny_images)
    assert cache.num_views == 7
    teacher = load_teacher("timm:test_resnet", weights=tiny_weights, image_size=64)
    ids = index_images(images).ids
    maker = ViewMaker(images, ids, get_policy("multicrop"), 0, get_renderer(), 64)
    rows = np.array([0, 7, 31, 47])
    for view, pixels in enumerate(maker.make(rows, np.arange(7)).pixels):
        assert pixels.shape == ((4, 64, 64, 3) if view == 0 else (4, 27, 27, 3))
        seen = teacher(torch.from_numpy(pixels))
        for name, expected in zip(("feature", "embedding"), seen, strict=True):
            kept = cache.rows(name, rows, np.full(4, view))
            np.testing.assert_allclose(kept, expected.numpy(), rtol=0, atol=2e-6)


def test_witnesses_of_small_crops_are_kept(small_crops, tiny_images):
    cache, images = open_cache(small_crops), open_images(tiny_images)
    maker = ViewMaker(images, cache.image_ids, get_policy("multicrop"), 0, get_renderer(), 64)
    kept = witnesses_from_arrays(cache.witness())
    assert {one.view for one in kept} == set(range(7))
    assert check_witnesses(kept, maker, count=64).differences == ()


def shapes_seen(monkeypatch, *arguments, **settings):
    """The shapes of the batches that the teacher sees in an extraction."""
    shapes, forward = [], Teacher.forward

    def noted(self, images):
        shapes.append(tuple(images.shape[:2]))
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", noted)
    make_cache(*arguments, **settings)
    return shapes


def test_batches_are_of_one_side_and_full(tiny_images, tiny_weights, tmp_path, monkeypatch):
    shapes = shapes_seen(
        monkeypatch, tiny_images, tiny_weights, tmp_path / "c",
        policy="multicrop", num_views=14, image_size=64,
    )  # fmt: skip
    # 48 images have 96 large crops and 576 small ones.
    assert Counter(shapes) == {(16, 64): 6, (16, 27): 36}


def test_batches_are_full_whatever_the_number_of_views(
    tiny_images, tiny_weights, tmp_path, monkeypatch
):
    shapes = shapes_seen(monkeypatch, tiny_images, tiny_weights, tmp_path / "c", num_views=5)
    assert shapes == [(16, 32)] * 15


@pytest.mark.parametrize(
    ("num_views", "hint"), [(8, "--views 7 or --views 14"), (3, "--views 7"), (50, "--views 56")]
)
def test_part_of_a_set_of_views_is_refused(tiny_images, tiny_weights, tmp_path, num_views, hint):
    with pytest.raises(ConfigError, match=f"in sets of 7, .* `{num_views}` views") as caught:
        make_cache(
            tiny_images, tiny_weights, tmp_path / "c", policy="multicrop", num_views=num_views
        )
    assert hint in caught.value.hint
    assert not (tmp_path / "c").exists()


def test_teacher_tied_to_one_size_is_refused_before_the_first_image(
    tiny_images, tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("an image was read")

    monkeypatch.setattr("kdcache.extract.run.index_images", never)
    weights = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    change = {"model": "test_vit", "image_size": 160}
    with pytest.raises(TeacherError, match=r"small crops of `multicrop`.* `69` x `69`") as caught:
        make_cache(tiny_images, weights, tmp_path / "c", policy="multicrop", num_views=7, **change)
    assert "--policy swav" in caught.value.hint
    assert not (tmp_path / "c").exists()


def test_interrupted_extraction_of_small_crops_ends_in_the_same_bytes(
    small_crops, tiny_images, tiny_weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "PIECE_ROWS", 16)
    make_cache(tiny_images, tiny_weights, tmp_path / "whole", **SMALL_CROPS)
    count = itertools.count()

    def interrupted(data):
        if next(count) == 37:
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr("kdcache.views.maker.decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(tiny_images, tiny_weights, tmp_path / "c", **SMALL_CROPS)
    assert not (tmp_path / "c" / "manifest.json").exists()
    outcome = make_cache(tiny_images, tiny_weights, tmp_path / "c", **SMALL_CROPS)
    assert outcome.report.views == 16 * 7  # two of three pieces were kept
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "whole")
    assert tree_of(tmp_path / "c") == tree_of(small_crops)  # made in one piece


@pytest.mark.dist
@pytest.mark.slow
def test_worker_leaves_no_trace_in_small_crops(small_crops, tiny_images, tiny_weights, tmp_path):
    make_cache(tiny_images, tiny_weights, tmp_path / "c", workers=1, **SMALL_CROPS)
    assert tree_of(tmp_path / "c") == tree_of(small_crops)


def test_embedding_follows_from_feature_and_the_head_in_the_cache(made):
    cache = open_cache(made)
    head = ProjectionHead.from_arrays(*cache.head()).eval()
    derived = head(torch.from_numpy(cache.slab("feature", 1)))
    np.testing.assert_allclose(derived.detach().numpy(), cache.slab("embedding", 1), atol=1e-5)


def test_labels_and_paths_are_kept(made, tiny_images):
    cache, images = open_cache(made), open_images(tiny_images)
    assert list(cache.paths) == list(images.paths)
    assert cache.labels.tolist() == images.labels.tolist()
    assert cache.classes == images.classes == ("class0", "class1", "class2", "class3")


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_number_of_workers_leaves_no_trace(made, tiny_images, tiny_weights, tmp_path, workers):
    make_cache(tiny_images, tiny_weights, tmp_path / "c", workers=workers)
    assert tree_of(tmp_path / "c") == tree_of(made)


def test_second_run_computes_nothing(made, tiny_images, tiny_weights, monkeypatch):
    def never(*_):
        raise AssertionError("an image was decoded again")

    before = tree_of(made)
    monkeypatch.setattr("kdcache.views.maker.decode", never)
    make_cache(tiny_images, tiny_weights, made)
    assert tree_of(made) == before


CHILD = """
import sys, time
from pathlib import Path
from kdcache.store import layout
layout.PIECE_ROWS = 4
from kdcache.views import maker
from kdcache.images import decode
log = open(sys.argv[4], "a")
def noted(data):
    log.write(f"{hash(data)}\\n"); log.flush()
    time.sleep(0.02)
    return decode(data)
maker.decode = noted
sys.path.insert(0, sys.argv[5])
from small import make_cache
make_cache(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), batch_size=4)
"""


def start_child(*arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    tests = os.path.dirname(os.path.dirname(__file__))
    command = [sys.executable, "-c", CHILD, *map(str, arguments), tests]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.dist
def test_killed_extraction_ends_in_the_same_bytes_and_decodes_nothing_twice(
    tiny_images, tiny_weights, tmp_path
):
    whole = start_child(tiny_images, tiny_weights, tmp_path / "whole", tmp_path / "whole.log")
    assert whole.wait() == 0
    rng, kills = random.Random(5), 0
    log = tmp_path / "killed.log"
    for _ in range(3):
        child = start_child(tiny_images, tiny_weights, tmp_path / "killed", log)
        goal = (len(log.read_text().split()) if log.exists() else 0) + rng.randint(3, 14)
        while child.poll() is None and (not log.exists() or len(log.read_text().split()) < goal):
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills == 3
    assert start_child(tiny_images, tiny_weights, tmp_path / "killed", log).wait() == 0
    assert tree_of(tmp_path / "killed") == tree_of(tmp_path / "whole")
    decoded = log.read_text().split()
    # 48 images, of which each kill repeats those of the piece (4 rows) in flight at the most.
    assert 48 <= len(decoded) <= 48 + 3 * 4
    assert set(decoded) == set((tmp_path / "whole.log").read_text().split())


def test_black_image_stands_in_for_an_unreadable_one(tiny_images, tiny_weights, tmp_path, made):
    """The rows around it are what they are without it."""
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    victim = data / "class1" / "004.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"1 of 48 images cannot be read.*class1/004.jpg") as caught:
        make_cache(data, tiny_weights, tmp_path / "c")
    assert "--skip-unreadable" in caught.value.hint
    assert not (tmp_path / "c" / "manifest.json").exists()
    outcome = make_cache(data, tiny_weights, tmp_path / "c", skip_unreadable=True)
    assert outcome.report.views == 0  # what was computed before is used
    cache, whole = open_cache(tmp_path / "c"), open_cache(made)
    row = list(cache.paths).index("class1/004.jpg")
    assert np.flatnonzero(~cache.readable).tolist() == [row]
    with pytest.raises(DataError, match=f"row {row}"):
        cache.rows("feature", np.array([row]), np.array([0]))
    others = np.arange(48) != row
    np.testing.assert_array_equal(
        cache.slab("feature", 0)[others], whole.slab("feature", 0)[others]
    )


def test_what_is_no_image_is_found_before_the_teacher_looks(tiny_images, tiny_weights, tmp_path):
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    (data / "class0" / "notes.jpg").write_text("hello world")
    with pytest.raises(DataError, match=r"1 of 49 files are no images.*notes.jpg") as caught:
        make_cache(data, tiny_weights, tmp_path / "c")
    assert "--skip-unreadable" in caught.value.hint
    assert not (tmp_path / "c").exists()


def test_changed_image_is_refused(tiny_images, tiny_weights, tmp_path, monkeypatch):
    """It changes between the index and its turn."""
    data = tmp_path / "train"
    shutil.copytree(tiny_images, data)
    from kdcache.extract import run as module

    index = module.index_or_refuse

    def index_then_change(*arguments):
        found = index(*arguments)
        shutil.copy(data / "class0" / "000.jpg", data / "class2" / "002.jpg")
        return found

    monkeypatch.setattr(module, "index_or_refuse", index_then_change)
    with pytest.raises(DataError, match=r"class2/002.jpg.*has changed since it was indexed"):
        make_cache(data, tiny_weights, tmp_path / "c")
    assert not (tmp_path / "c" / "manifest.json").exists()


CHANGES = {
    "policy": ({"policy": "moco_v2"}, "views.policy"),
    "seed": ({"seed": 1}, "views.seed"),
    "size": ({"image_size": 48}, "teacher.image_size"),
    "dtype": ({"dtype": "float16"}, "dtype"),
    "batch": ({"batch_size": 8}, "batch_size"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_cache_of_other_settings_is_not_written_into(made, tiny_images, tiny_weights, case):
    before = tree_of(made)
    change, key = CHANGES[case]
    with pytest.raises(CacheMismatch, match=key) as caught:
        make_cache(tiny_images, tiny_weights, made, **change)
    assert "--out" in caught.value.hint
    assert tree_of(made) == before


def test_other_number_of_views_is_refused(made, tiny_images, tiny_weights):
    with pytest.raises(CacheMismatch, match="2 views"):
        make_cache(tiny_images, tiny_weights, made, num_views=3)


def test_array_that_the_teacher_does_not_give_is_refused(tiny_images, headless_weights, tmp_path):
    with pytest.raises(ConfigError, match="gives no `embedding`") as caught:
        make_cache(tiny_images, headless_weights, tmp_path / "c", arrays=("embedding",))
    assert "--arrays feature" in caught.value.hint


def test_piece_borders_do_not_show(made, tiny_images, tiny_weights, tmp_path, monkeypatch):
    """Smaller pieces end in batches that black images fill up: the same number at once."""
    monkeypatch.setattr(layout, "PIECE_ROWS", 4)
    make_cache(tiny_images, tiny_weights, tmp_path / "c")
    assert tree_of(tmp_path / "c") == tree_of(made)
