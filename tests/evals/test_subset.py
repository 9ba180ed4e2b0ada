"""Subsets of labels are balanced and stable, or those of a list."""

import numpy as np
import pytest
from conftest import make_folder

from kdcache.errors import ConfigError, DataError
from kdcache.evals import open_labelled
from kdcache.evals.subset import listed_rows, seeded_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("subset") / "train", per_class=20)


@pytest.fixture(scope="module")
def part(folder):
    return open_labelled(folder)


def test_seeded_subset_has_its_share_of_every_class(part):
    rows = seeded_rows(part, 10.0, seed=0)
    assert np.bincount(part.images.labels[rows]).tolist() == [2, 2, 2, 2]
    assert np.bincount(part.images.labels[seeded_rows(part, 1.0, seed=0)]).tolist() == [1] * 4
    assert (np.diff(rows) > 0).all()


def test_larger_share_holds_the_smaller_and_seeds_differ(part):
    small, large = (set(seeded_rows(part, percent, 3).tolist()) for percent in (10.0, 50.0))
    assert small < large
    assert small != set(seeded_rows(part, 10.0, 4).tolist())


def test_images_that_come_to_another_class_change_nothing(folder, part, tmp_path):
    import shutil

    more = tmp_path / "train"
    shutil.copytree(folder, more)
    shutil.copytree(folder / "class0", more / "class9")
    other = open_labelled(more)
    chosen = {part.images.paths[r] for r in seeded_rows(part, 10.0, 0)}
    again = {other.images.paths[r] for r in seeded_rows(other, 10.0, 0)}
    assert {p for p in again if not p.startswith("class9")} == chosen


def test_list_names_images_by_path_or_by_file_name(part, tmp_path):
    path = tmp_path / "1percent.txt"
    path.write_text("class1/003.png\nclass0/000.jpg\n\nclass0/000.jpg\n")
    named = [part.images.paths[r] for r in listed_rows(part, path)]
    assert named == ["class0/000.jpg", "class1/003.png"]


def test_imagenet_names_are_found_without_their_class(tmp_path):
    folder = make_folder(tmp_path / "train", per_class=2)
    for path in sorted(folder.glob("*/*")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    (tmp_path / "list.txt").write_text("class2_000.jpg\nclass0_001.png\n")
    part = open_labelled(folder)
    named = [part.images.paths[r] for r in listed_rows(part, tmp_path / "list.txt")]
    assert named == ["class0/class0_001.png", "class2/class2_000.jpg"]


def test_names_of_several_images_are_refused(part, tmp_path):
    (tmp_path / "list.txt").write_text("000.jpg\n")
    with pytest.raises(DataError, match=r"are those of several images: `000\.jpg`") as caught:
        listed_rows(part, tmp_path / "list.txt")
    assert "<class>/<image>" in caught.value.hint


def test_images_that_are_not_there_are_refused(part, tmp_path):
    (tmp_path / "list.txt").write_text("class0/000.jpg\nclass0/nowhere.jpg\n")
    with pytest.raises(DataError, match=r"1 of 2 images of .* are not in .*: `class0/nowh"):
        listed_rows(part, tmp_path / "list.txt")


@pytest.mark.parametrize(("text", "message"), [(None, "no list at"), ("\n", "names no image")])
def test_list_that_is_none_is_refused(part, tmp_path, text, message):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        listed_rows(part, tmp_path / "list.txt")
