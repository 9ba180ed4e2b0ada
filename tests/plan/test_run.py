"""A plan's bytes and files against the cache that is then made, and what it refuses."""

import json
import os

import pytest
from small import CPU, make_cache, recipe_for, small_extraction, tree_of

from kdcache.errors import ConfigError
from kdcache.images import open_images
from kdcache.plan import Machines, Rates, ask, make_plan
from kdcache.teachers import load_teacher, sketch_teacher

RATES = Rates(
    machine="made up", device="cpu", cores=2, threads=1, index_s=1e-3, decode_s=4e-3, view_s=1e-3,
    teacher_s=2e-2, write_s=1e-4, seal_s=1e-5, student_view_s=1e-3, student_s=1e-2,
)  # fmt: skip
MACHINES = Machines(nodes=1, gpus=1, workers=2)


def question(data, weights, *, name="timm:test_resnet", num_images=None, student=None, **settings):
    images = None if data is None else open_images(data)
    teacher = sketch_teacher(name, weights=weights, image_size=32)
    asked = small_extraction(**settings)
    return ask(images, teacher, asked, num_images=num_images, device=CPU, student=student)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_views": 11, "arrays": ("embedding",), "dtype": "float16"},
        {"num_views": 5, "policy": "moco_v2", "arrays": ("feature", "embedding")},
    ],
)
def test_bytes_and_files_are_those_of_the_cache_that_is_made(
    tiny_images, tiny_weights, tmp_path, changes
):
    foretold = question(tiny_images, tiny_weights, **changes).size().whole
    make_cache(tiny_images, tiny_weights, tmp_path / "c", **changes)
    made = tree_of(tmp_path / "c")
    if 48 * changes.get("num_views", 2) > 256:  # then the number of witnesses is drawn by lot
        made = {k: v for k, v in made.items() if not k.startswith("witness")}
        foretold_bytes = (
            foretold.num_bytes
            - question(tiny_images, tiny_weights, **changes).size().parts["witness"].num_bytes
        )
        assert abs(sum(map(len, made.values())) - foretold_bytes) < 64  # digits of its sizes
    else:
        assert sum(map(len, made.values())) == foretold.num_bytes
        assert len(made) == foretold.num_files
        walked = [os.path.join(top, f) for top, _, files in os.walk(tmp_path / "c") for f in files]
        assert sum(map(os.path.getsize, walked)) == foretold.num_bytes


def test_of_uint8_the_size_is_right_to_some_bytes(tiny_images, tiny_weights, tmp_path):
    foretold = question(tiny_images, tiny_weights, dtype="uint8").size().whole
    make_cache(tiny_images, tiny_weights, tmp_path / "c", dtype="uint8")
    made = tree_of(tmp_path / "c")
    assert len(made) == foretold.num_files
    assert abs(sum(map(len, made.values())) - foretold.num_bytes) < 128


def test_images_that_nobody_has_are_planned_for_by_their_number(tiny_weights):
    asked = question(None, tiny_weights, num_images=10**9, num_views=50)
    answer = make_plan(asked, RATES, MACHINES)
    dims = sum(spec.dim for spec in asked.job.array_specs())
    assert answer.size.whole.num_bytes > 10**9 * 50 * dims * 4
    json.dumps(answer.to_dict(), allow_nan=False)
    assert "1,000,000,000 images x 50 views" in answer.lines()[0]


def test_more_images_than_there_are_have_paths_like_theirs(tiny_images, tiny_weights):
    once = question(tiny_images, tiny_weights)
    thrice = question(tiny_images, tiny_weights, num_images=3 * once.num_images)
    assert thrice.path_bytes == 3 * once.path_bytes


def test_a_student_is_told_of_with_its_break_even(tiny_images, tiny_weights):
    asked = question(tiny_images, tiny_weights, student=recipe_for("seed"))
    answer = make_plan(asked, RATES, MACHINES, price=2.0)
    saved = answer.epochs.live.total_s - answer.epochs.cached.total_s
    assert saved > 0
    assert answer.break_even == pytest.approx(answer.extraction.total_s / saved)
    text = "\n".join(answer.lines())
    assert "has paid for itself after" in text
    cost = answer.to_dict()["cost"]["cost of the extraction"]
    assert cost == pytest.approx(2.0 * answer.extraction.total_s / 3600)


def test_a_cache_that_saves_nothing_never_pays(tiny_images, tiny_weights):
    free = RATES.model_copy(update={"teacher_s": 0.0})
    asked = question(tiny_images, tiny_weights, student=recipe_for("seed"))
    answer = make_plan(asked, free, MACHINES)
    assert answer.break_even is None
    assert "never pays" in "\n".join(answer.lines())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_views": 1, "student": recipe_for("retro")}, "shows 2 views"),
        ({"policy": "swav", "student": recipe_for("simreg")}, "`weak`"),
        ({"policy": "multicrop", "num_views": 8}, "no whole number of sets"),
        ({"student": recipe_for("simreg", train={"batch_size": 64})}, "larger than the 48"),
    ],
)
def test_what_could_not_be_trained_is_refused(tiny_images, tiny_weights, changes, words):
    with pytest.raises(ConfigError, match=words):
        question(tiny_images, tiny_weights, **changes)


def test_a_method_of_embeddings_is_refused_where_the_teacher_has_no_head(
    tiny_images, headless_weights
):
    with pytest.raises(ConfigError, match="no projection head"):
        question(tiny_images, headless_weights, student=recipe_for("seed"))


def test_a_sketch_has_the_sizes_of_the_teacher_and_downloads_nothing(headless_weights):
    sketch = sketch_teacher("timm:test_resnet", image_size=48)
    real = load_teacher("timm:test_resnet", weights=headless_weights, image_size=48)
    assert sketch.feature_dim == real.feature_dim
    assert sketch.image_size == 48
    registered = sketch_teacher("r50")
    assert (registered.feature_dim, registered.embedding_dim) == (2048, 128)
