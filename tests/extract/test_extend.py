"""An extension gives the bytes of a direct extraction, and the teacher sees what is new alone."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_folder
from small import CPU, add_graph, make_cache, tree_of

from kdcache.derive import run_head
from kdcache.errors import CacheCorrupt, CacheMismatch, ConfigError, DataError
from kdcache.extract import run_extension
from kdcache.images import decode, open_images
from kdcache.progress import progress_bar, silent_bar
from kdcache.store import fidelity, layout, open_cache
from kdcache.teachers import Teacher, load_teacher
from kdcache.views import render, witness

TRUE = {name: getattr(layout, name) for name in ("PIECE_ROWS", "MIN_SHARD_ROWS", "MAX_SHARD_ROWS")}
SMALL = {"PIECE_ROWS": 8, "MIN_SHARD_ROWS": 16, "MAX_SHARD_ROWS": 16}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Three blocks of 16 rows, two pieces in each."""
    for name, value in SMALL.items():
        monkeypatch.setattr(layout, name, value)
    # Waiting for the disk takes most of the time, and matters to machines that lose power only.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def old(tiny_images, tiny_weights, tmp_path_factory):
    """48 images in 2 views, float32, feature and embedding; not to be changed."""
    out = tmp_path_factory.mktemp("old") / "old.zarr"
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in SMALL.items():
            monkeypatch.setattr(layout, name, value)
        make_cache(tiny_images, tiny_weights, out)
    before = tree_of(out)
    yield out
    assert tree_of(out) == before, "the old cache is only read"


@pytest.fixture
def seen(monkeypatch):
    """How many images, black ones apart, the teacher has seen."""
    counts, forward = [0], Teacher.forward

    def counted(self, images):
        counts[0] += int(images.flatten(1).any(1).sum())
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    return counts


def extend(old: Path, weights: Path, out: Path, data: Path | None = None, **changes):
    settings = {
        "is_same_teacher": True,
        "skip_unreadable": False,
        "device": CPU,
        "workers": 0,
        "bar": progress_bar,
        "tell": print,
    }
    return run_extension(
        open_cache(old),
        open_images(data) if data is not None else None,
        load_teacher("timm:test_resnet", weights=weights, image_size=32),
        out,
        **{**settings, **changes},
    )


def copied(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "data"))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)


def add(data: Path, name: str, seed: int) -> None:
    from PIL import Image

    (data / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(data / name)


def shared(one: Path, other: Path) -> set[str]:
    """The files of both folders that are one file."""
    return {
        name
        for name in tree_of(one)
        if (other / name).exists() and os.path.samefile(one / name, other / name)
    }


def test_more_views_cost_the_new_views_alone(old, tiny_images, tiny_weights, tmp_path, seen):
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=5)
    seen[0] = 0
    told = []
    extension = extend(
        old, tiny_weights, tmp_path / "new", tiny_images, num_views=5, tell=told.append
    )
    assert seen[0] == extension.outcome.report.views == 48 * 3
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")
    shards = {name for name in tree_of(old) if "/c/" in name and name.startswith(("f", "e"))}
    assert len(shards) == 2 * 3 * 2
    assert shared(tmp_path / "new", old) == shards
    assert extension.num_shared == len(shards)
    assert extension.shared_bytes == sum((old / name).stat().st_size for name in shards)
    assert "96 of 240 views are known" in told[0]
    assert "the teacher sees 144" in told[0]
    assert "12 shards" in extension.lines()[-1]


def test_pieces_hold_nothing_of_views_that_are_taken_over(
    old, tiny_images, tiny_weights, tmp_path, monkeypatch
):
    """Or more views would for a while need the room of all views."""
    stop_at(monkeypatch, 16 + 12)  # after the witnesses that are compared
    with pytest.raises(KeyboardInterrupt):
        extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    with np.load(tmp_path / "new" / ".work" / "pieces" / "0.npz") as piece:
        assert {name for name in piece.files if name[0] in "ef"} == {"feature/2", "embedding/2"}


def appended(data: Path) -> int:
    for i in range(5):
        add(data, f"class3/zz{i}.png", i)
    return 5


def inserted(data: Path) -> int:
    for i in range(3):
        add(data, f"class1/000{i}.png", i)
    return 3


def removed(data: Path) -> int:
    for name in ("class1/003.png", "class2/000.jpg"):
        (data / name).unlink()
    return 0


def renamed(data: Path) -> int:
    (data / "class3" / "011.png").rename(data / "class3" / "0000.png")
    (data / "class0").rename(data / "zebra")
    return 0


def doubled(data: Path) -> int:
    shutil.copy(data / "class3" / "000.jpg", data / "class2" / "again.jpg")
    return 0


def all_at_once(data: Path) -> int:
    removed(data)
    renamed(data)
    return inserted(data) + appended(data) + doubled(data)


@pytest.mark.parametrize(
    ("change", "num_views"),
    [(appended, 2), (inserted, 2), (removed, 2), (renamed, 2), (doubled, 2), (all_at_once, 3)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_images_may_come_go_and_move(
    old, tiny_images, tiny_weights, tmp_path, seen, change, num_views
):
    data = copied(tiny_images, tmp_path)
    num_new = change(data)
    num_old = len(open_images(data)) - num_new
    make_cache(data, tiny_weights, tmp_path / "direct", num_views=num_views)
    seen[0] = 0
    extend(old, tiny_weights, tmp_path / "new", data, num_views=num_views)
    assert seen[0] == num_new * num_views + num_old * (num_views - 2)
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")


def test_blocks_that_are_left_as_they_were_are_shared(old, tiny_images, tiny_weights, tmp_path):
    data = copied(tiny_images, tmp_path)
    add(data, "class3/zz.png", 1)
    extend(old, tiny_weights, tmp_path / "new", data)
    found = {name for name in shared(tmp_path / "new", old) if name.startswith("feature")}
    assert found == {f"feature/c/{block}/{view}/0" for block in range(3) for view in range(2)}


def test_witnesses_are_those_of_a_direct_extraction(
    old, tiny_images, tiny_weights, tmp_path, seen, monkeypatch
):
    """Which views are kept depends on their number, so some of known views are rendered."""
    monkeypatch.setattr(witness, "NUM_WITNESSES", 30)
    few = tmp_path / "few"
    make_cache(tiny_images, tiny_weights, few)
    make_cache(tiny_images, tiny_weights, tmp_path / "one", num_views=1)
    seen[0] = 0
    extend(few, tiny_weights, tmp_path / "new", tiny_images, num_views=1)
    assert seen[0] == 0
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "one")
    before, after = len(open_cache(few).witness()["row"]), open_cache(tmp_path / "one").witness()
    assert (after["view"] == 0).sum() > before // 2  # some were not among those of the old cache
    with pytest.raises(DataError, match="have to be rendered") as caught:
        extend(few, tiny_weights, tmp_path / "other", num_views=1)
    assert "--data" in caught.value.hint
    assert not (tmp_path / "other").exists()


def test_float16_of_float32_needs_neither_images_nor_teacher(
    old, tiny_images, tiny_weights, tmp_path, seen
):
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", dtype="float16")
    seen[0] = 0
    extend(old, tiny_weights, tmp_path / "new", dtype="float16")
    assert seen[0] == 0
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")


def test_float32_of_float16_is_computed_anew(old, tiny_images, tiny_weights, tmp_path, seen):
    extend(old, tiny_weights, tmp_path / "half", dtype="float16")
    told = []
    extend(
        tmp_path / "half", tiny_weights, tmp_path / "new", tiny_images, dtype="float32",
        tell=told.append,
    )  # fmt: skip
    assert seen[0] == 96
    assert "can be taken over: arrays.embedding.dtype: `float16` -> `float32`" in told[0]
    assert tree_of(tmp_path / "new") == tree_of(old)


def test_array_less_needs_no_teacher_and_array_more_shares_the_other(
    old, tiny_images, tiny_weights, tmp_path, seen
):
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", arrays=("feature",))
    seen[0] = 0
    extend(old, tiny_weights, tmp_path / "less", arrays=("feature",))
    assert seen[0] == 0
    assert tree_of(tmp_path / "less") == tree_of(tmp_path / "direct")
    arrays = ("feature", "embedding")
    extend(tmp_path / "less", tiny_weights, tmp_path / "more", tiny_images, arrays=arrays)
    assert seen[0] == 96
    assert tree_of(tmp_path / "more") == tree_of(old)
    assert len(shared(tmp_path / "more", tmp_path / "less")) == 6


def test_another_precision_and_another_teacher_see_everything(
    old, tiny_images, tiny_weights, headless_weights, tmp_path, seen
):
    told = []
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", precision="bf16")
    seen[0] = 0
    extend(old, tiny_weights, tmp_path / "bf16", tiny_images, precision="bf16", tell=told.append)
    assert seen[0] == 96
    assert "precision: `fp32` -> `bf16`" in told[0]
    assert tree_of(tmp_path / "bf16") == tree_of(tmp_path / "direct")
    make_cache(tiny_images, headless_weights, tmp_path / "direct2", arrays=("feature",))
    extend(
        old, headless_weights, tmp_path / "other", tiny_images, arrays=("feature",),
        is_same_teacher=False, tell=told.append,
    )  # fmt: skip
    assert "teacher.weights.sha256" in told[1]
    assert tree_of(tmp_path / "other") == tree_of(tmp_path / "direct2")


def test_other_weights_than_meant_are_refused(old, tiny_images, headless_weights, tmp_path):
    with pytest.raises(CacheMismatch, match="is not the teacher of") as caught:
        extend(old, headless_weights, tmp_path / "new", tiny_images, arrays=("feature",))
    assert "--weights FILE" in caught.value.hint
    assert not (tmp_path / "new").exists()


def test_views_that_are_drawn_otherwise_are_refused(
    old, tiny_images, tiny_weights, tmp_path, monkeypatch
):
    with monkeypatch.context() as other:
        other.setattr(render.R1, "version", 2)
        with pytest.raises(
            CacheMismatch, match="by `r1` version 1; this kdcache renders by `r1` version 2"
        ):
            extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    colour = render.R1.colour
    monkeypatch.setattr(render.R1, "colour", lambda *arguments: 255 - colour(*arguments))
    with pytest.raises(CacheMismatch, match="first stage that differs is `colour`"):
        extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    assert not (tmp_path / "new").exists()


def test_images_are_asked_for_where_a_view_must_be_rendered(old, tiny_weights, tmp_path):
    with pytest.raises(DataError, match="have to be rendered") as caught:
        extend(old, tiny_weights, tmp_path / "new", num_views=3)
    assert "--data" in caught.value.hint
    assert not (tmp_path / "new").exists()


def test_unreadable_images_of_both_caches_are_recorded(tiny_images, tiny_weights, tmp_path, seen):
    data = copied(tiny_images, tmp_path)
    victim = data / "class1" / "004.jpg"
    victim.write_bytes(victim.read_bytes()[:-200])
    make_cache(data, tiny_weights, tmp_path / "old", skip_unreadable=True)
    add(data, "class2/new.jpg", 3)
    fresh = data / "class2" / "new.jpg"
    fresh.write_bytes(fresh.read_bytes()[:-200])
    make_cache(data, tiny_weights, tmp_path / "direct", num_views=3, skip_unreadable=True)
    seen[0] = 0
    with pytest.raises(DataError, match=r"1 of 49 images could not be read before") as caught:
        extend(tmp_path / "old", tiny_weights, tmp_path / "new", data, num_views=3)
    assert "--skip-unreadable" in caught.value.hint
    extend(
        tmp_path / "old", tiny_weights, tmp_path / "new", data, num_views=3, skip_unreadable=True
    )
    assert seen[0] == 47
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")
    assert (~open_cache(tmp_path / "new").readable).sum() == 2


def test_new_image_that_cannot_be_read_is_refused(old, tiny_images, tiny_weights, tmp_path):
    data = copied(tiny_images, tmp_path)
    add(data, "class2/new.jpg", 3)
    fresh = data / "class2" / "new.jpg"
    fresh.write_bytes(fresh.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"1 of 49 images cannot be read.*class2/new.jpg"):
        extend(old, tiny_weights, tmp_path / "new", data)
    assert not (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize("change", ["more views", "float16", "one image more"])
def test_flipped_bit_of_what_is_taken_over_is_found(
    old, tiny_images, tiny_weights, tmp_path, change
):
    damaged = Path(shutil.copytree(old, tmp_path / "old"))
    shard = damaged / "embedding" / "c" / "2" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 4
    shard.write_bytes(data)
    images = copied(tiny_images, tmp_path)
    settings = {"data": images}
    if change == "more views":
        settings["num_views"] = 3
    elif change == "float16":
        settings = {"dtype": "float16"}
    else:
        add(images, "class0/new.png", 1)
    with pytest.raises(CacheCorrupt, match=r"embedding/c/2/1/0.* has the SHA-256") as caught:
        extend(damaged, tiny_weights, tmp_path / "new", **settings)
    assert f"kdcache verify {damaged}" in caught.value.hint
    assert not (tmp_path / "new" / "embedding" / "c" / "2" / "1" / "0").exists()


def test_damage_in_what_is_not_taken_over_is_nobodys_matter(
    old, tiny_images, tiny_weights, tmp_path
):
    damaged = Path(shutil.copytree(old, tmp_path / "old"))
    shard = damaged / "embedding" / "c" / "2" / "1" / "0"
    shard.write_bytes(bytes(shard.stat().st_size))
    extend(damaged, tiny_weights, tmp_path / "new", arrays=("feature",))


def stop_at(monkeypatch, number: int) -> None:
    """Ctrl-C while image `number` is decoded."""
    count = iter(range(number))

    def interrupted(data):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr("kdcache.views.maker.decode", interrupted)


def test_interrupted_extension_goes_on(old, tiny_images, tiny_weights, tmp_path, seen, monkeypatch):
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=3)
    seen[0] = 0
    with monkeypatch.context() as stopped:
        stop_at(stopped, 16 + 37)
        with pytest.raises(KeyboardInterrupt):
            extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    assert seen[0] == 32  # four pieces; the fifth was under way
    extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    assert seen[0] == 48
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")
    extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    assert seen[0] == 48  # it was done


def test_extraction_completes_what_an_extension_began(
    old, tiny_images, tiny_weights, tmp_path, monkeypatch
):
    with monkeypatch.context() as stopped:
        stop_at(stopped, 16 + 20)
        with pytest.raises(KeyboardInterrupt):
            extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    make_cache(tiny_images, tiny_weights, tmp_path / "new", num_views=3)
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=3)
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")


def test_nothing_changed_gives_the_same_cache_in_no_room(old, tiny_weights, tmp_path, seen):
    extension = extend(old, tiny_weights, tmp_path / "new")
    assert seen[0] == 0
    assert extension.outcome.identity == open_cache(old).identity
    assert tree_of(tmp_path / "new") == tree_of(old)
    assert extension.num_shared == 12


def test_new_cache_keeps_out_of_the_old_one(old, tiny_weights, tmp_path):
    for out in (old, old / "new", tmp_path / "link"):
        if out.name == "link":
            out.symlink_to(old)
        with pytest.raises(ConfigError, match="a finished cache does not change"):
            extend(old, tiny_weights, out)


def test_another_file_system_gets_copies(old, tiny_images, tiny_weights, tmp_path, monkeypatch):
    link = os.link

    def across(source, target, **options):
        if ".work" not in Path(source).parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **options)

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "link", across)
        extension = extend(old, tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    assert extension.num_shared == 0
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=3)
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")


def test_values_of_two_versions_are_recorded_and_told(
    tiny_images, tiny_weights, tmp_path, monkeypatch
):
    from kdcache.extract import begin

    versions = begin.library_versions
    with monkeypatch.context() as before:
        before.setattr(begin, "library_versions", lambda: {**versions(), "numpy": "1.9"})
        make_cache(tiny_images, tiny_weights, tmp_path / "old")
    told = []
    extend(
        tmp_path / "old", tiny_weights, tmp_path / "new", tiny_images, num_views=3,
        tell=told.append,
    )  # fmt: skip
    now = versions()["numpy"]
    assert f"numpy: `1.9` -> `{now}`" in told[1]
    assert open_cache(tmp_path / "new").manifest.versions["numpy"] == f"1.9 and {now}"
    extend(tmp_path / "new", tiny_weights, tmp_path / "third", tiny_images, num_views=4)
    assert open_cache(tmp_path / "third").manifest.versions["numpy"] == f"1.9 and {now}"


def test_what_depends_on_the_views_is_left_out_and_named(
    tiny_images, tiny_weights, tmp_path, monkeypatch
):
    for name, value in TRUE.items():  # a graph is made of shards that can be mapped side by side
        monkeypatch.setattr(layout, name, value)
    make_cache(tiny_images, tiny_weights, tmp_path / "old")
    add_graph(tmp_path / "old")
    extension = extend(tmp_path / "old", tiny_weights, tmp_path / "new", tiny_images, num_views=3)
    assert open_cache(tmp_path / "new").neighbours() is None
    assert open_cache(tmp_path / "new").head() is not None  # the teacher's own comes along
    command = f"kdcache neighbours {tmp_path / 'new'} --k 3 --index exact --array feature"
    assert command in extension.lines()[-1]


def test_fitted_head_is_left_out_and_named(tiny_images, headless_weights, tmp_path, monkeypatch):
    for name, value in TRUE.items():
        monkeypatch.setattr(layout, name, value)
    make_cache(tiny_images, headless_weights, tmp_path / "old")
    run_head(
        open_cache(tmp_path / "old"), method="whiten", dim=8, steps=None, seed=3, bar=silent_bar
    )
    extension = extend(tmp_path / "old", headless_weights, tmp_path / "new")
    assert open_cache(tmp_path / "new").head() is None
    command = f"kdcache head {tmp_path / 'new'} --method whiten --seed 3 --dim 8"
    assert extension.lines()[-1].endswith(command)


def test_sets_of_two_sizes_are_extended_too(tiny_weights, tmp_path, seen):
    images = make_folder(tmp_path / "images", per_class=3)
    crops = {"policy": "multicrop", "image_size": 32}
    make_cache(images, tiny_weights, tmp_path / "old", num_views=7, **crops)
    make_cache(images, tiny_weights, tmp_path / "direct", num_views=14, **crops)
    seen[0] = 0
    extend(tmp_path / "old", tiny_weights, tmp_path / "new", images, num_views=14)
    assert seen[0] == 12 * 7
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")
    with pytest.raises(ConfigError, match="in sets of 7"):
        extend(tmp_path / "old", tiny_weights, tmp_path / "part", images, num_views=8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answer_of_a_teacher_depends_on_the_number_of_views_at_once_alone(name, precision):
    """What makes an extension equal to an extraction, bit for bit."""
    import timm

    from kdcache.precision import autocast
    from kdcache.teachers.own import own_teacher

    model = timm.create_model(name, num_classes=0)
    size = model.default_cfg["input_size"][1]
    grey = (0.5, 0.5, 0.5)
    teacher = own_teacher(name, model, image_size=size, mean=grey, std=grey)
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (24, size, size, 3), np.uint8))
    with torch.inference_mode(), autocast(precision, CPU):
        first, _ = teacher(images[:16])
        company, _ = teacher(torch.cat([images[16:], images[:8]]))
        black, _ = teacher(torch.cat([images[:8], torch.zeros_like(images[:8])]))
    assert torch.equal(company[8:], first[:8])
    assert torch.equal(black[:8], first[:8])


@pytest.mark.dist
@pytest.mark.slow
def test_workers_leave_no_trace_in_an_extension(old, tiny_images, tiny_weights, tmp_path):
    data = copied(tiny_images, tmp_path)
    all_at_once(data)
    for workers in (0, 2):
        extend(old, tiny_weights, tmp_path / f"new{workers}", data, num_views=3, workers=workers)
    assert tree_of(tmp_path / "new0") == tree_of(tmp_path / "new2")


@pytest.fixture
def quantised(tiny_images, tiny_weights, tmp_path, monkeypatch):
    """The old cache in eight bits, of which eight images are measured."""
    monkeypatch.setattr(fidelity, "_IMAGES", 8)
    make_cache(tiny_images, tiny_weights, tmp_path / "uint8", dtype="uint8")
    return tmp_path / "uint8"


def test_more_views_of_a_quantised_cache_need_the_measured_images_again(
    quantised, tiny_images, tiny_weights, tmp_path, seen
):
    """What uint8 keeps is measured by floats, and those are the teacher's alone."""
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=4, dtype="uint8")
    seen[0] = 0
    told = []
    extension = extend(
        quantised, tiny_weights, tmp_path / "new", tiny_images, num_views=4, tell=told.append
    )
    assert seen[0] == 48 * 2 + 8
    assert "88 of 192 views are known" in told[0]
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")
    assert extension.num_shared == 2 * 3 * 2 * 3  # arrays, blocks, views; values, scale, minimum


def test_moved_and_new_images_of_a_quantised_cache_come_over_bit_for_bit(
    quantised, tiny_images, tiny_weights, tmp_path, seen
):
    data = copied(tiny_images, tmp_path)
    add(data, "aaa/first.png", 1)
    sorted(data.rglob("*.*"))[7].unlink()
    make_cache(data, tiny_weights, tmp_path / "direct", num_views=3, dtype="uint8")
    direct = open_cache(tmp_path / "direct")
    measured = set(fidelity.sample_rows(direct.image_ids).tolist())
    old_ids = {one.tobytes() for one in open_cache(quantised).image_ids}
    is_old = [one.tobytes() in old_ids for one in direct.image_ids]
    again = sum(is_old[row] for row in measured)
    seen[0] = 0
    extend(quantised, tiny_weights, tmp_path / "new", data, num_views=3)
    assert seen[0] == sum(is_old) + 3 * (len(is_old) - sum(is_old)) + again
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")


def test_quantised_cache_of_a_float32_one_needs_no_teacher(
    old, tiny_images, tiny_weights, tmp_path, seen
):
    make_cache(tiny_images, tiny_weights, tmp_path / "direct", dtype="uint8")
    seen[0] = 0
    extend(old, tiny_weights, tmp_path / "new", dtype="uint8")
    assert seen[0] == 0
    assert tree_of(tmp_path / "new") == tree_of(tmp_path / "direct")
