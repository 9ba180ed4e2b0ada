import os

import numpy as np
import pytest

from kdcache.errors import DataError
from kdcache.images import open_images


def make_files(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_paths_are_sorted_by_code_point_and_hidden_ones_are_left_out(photos):
    images = open_images(photos)
    expected = ["ant/deep/er/x.png", "ant/y.Jpeg", "cat/a.JPG", "cat/b.jpg", "dog/é.webp"]
    assert list(images.paths) == expected
    assert images.source == str(photos)


def test_the_first_level_folder_is_the_class(photos):
    images = open_images(photos)
    assert images.classes == ("ant", "cat", "dog")
    np.testing.assert_array_equal(images.labels, np.array([0, 0, 1, 1, 2], dtype=np.int32))


def test_labels_are_those_of_torchvision(photos):
    from torchvision.datasets import ImageFolder

    (photos / ".cache" / "thumb.jpg").unlink()
    (photos / ".cache").rmdir()
    theirs = ImageFolder(str(photos))
    ours = open_images(photos)
    by_path = {os.path.relpath(path, photos): label for path, label in theirs.samples}
    assert by_path == dict(zip(ours.paths, ours.labels.tolist(), strict=True))
    assert list(ours.classes) == theirs.classes


def test_classes_keep_their_order_where_paths_sort_otherwise(tmp_path):
    make_files(tmp_path, ["a/1.jpg", "a-b/1.jpg"])
    images = open_images(tmp_path)
    assert list(images.paths) == ["a-b/1.jpg", "a/1.jpg"]
    assert images.classes == ("a", "a-b")
    assert images.labels.tolist() == [1, 0]


def test_images_in_the_root_make_a_set_without_labels(tmp_path):
    make_files(tmp_path, ["1.jpg", "a/2.jpg"])
    images = open_images(tmp_path)
    assert images.classes == ()
    assert images.labels.tolist() == [-1, -1]


def test_a_class_folder_without_images_is_no_class(tmp_path):
    make_files(tmp_path, ["a/1.jpg", "b/readme.txt"])
    assert open_images(tmp_path).classes == ("a",)


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path):
    names = [f"{letter}/{number}.png" for letter in "zyx" for number in range(9)]
    make_files(tmp_path / "one", names)
    make_files(tmp_path / "two", reversed(names))
    one, two = open_images(tmp_path / "one"), open_images(tmp_path / "two")
    assert list(one.paths) == list(two.paths) == sorted(names)


def test_rows_read_the_bytes_of_their_files(photos):
    images = open_images(photos)
    for row, path in enumerate(images.paths):
        assert images.read(row) == (photos / path).read_bytes()


def test_a_relative_source_is_read_after_a_change_of_folder(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    images = open_images("photos")
    monkeypatch.chdir("/")
    assert images.source == "photos"
    assert images.read(2) == (photos / "cat/a.JPG").read_bytes()


def test_links_to_files_and_folders_are_followed(tmp_path):
    make_files(tmp_path / "real", ["deep/1.jpg", "2.jpg"])
    root = tmp_path / "set"
    (root / "a").mkdir(parents=True)
    (root / "a" / "linked.jpg").symlink_to(tmp_path / "real" / "2.jpg")
    (root / "b").symlink_to(tmp_path / "real")
    (root / "c").symlink_to(tmp_path / "real")
    images = open_images(root)
    assert list(images.paths) == [
        "a/linked.jpg", "b/2.jpg", "b/deep/1.jpg", "c/2.jpg", "c/deep/1.jpg"
    ]  # fmt: skip
    assert images.read(0) == b"2.jpg"


def test_links_in_circles_end(tmp_path):
    make_files(tmp_path, ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    assert list(open_images(tmp_path).paths) == ["a/1.jpg", "b/2.jpg"]


def test_a_link_to_nowhere_with_an_image_name_is_refused(tmp_path):
    make_files(tmp_path, ["a/1.jpg"])
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"1 links in .* lead to no file: `a/gone\.jpg`") as caught:
        open_images(tmp_path)
    assert "find" in caught.value.hint


def test_a_file_gone_since_listing_is_named(photos):
    images = open_images(photos)
    (photos / "cat/a.JPG").unlink()
    with pytest.raises(DataError, match=r"cat/a\.JPG` is gone since") as caught:
        images.read(2)
    assert caught.value.hint == "put the file back, or run the command again"


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(DataError, match="is not UTF-8"):
        open_images(tmp_path)


def test_ten_thousand_files_are_listed(tmp_path):
    names = [f"{number % 7}/{number:05}.jpg" for number in range(10_000)]
    for folder in range(7):
        (tmp_path / str(folder)).mkdir()
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT))
    images = open_images(tmp_path)
    assert list(images.paths) == sorted(names)
    assert images.labels.tolist() == [int(name[0]) for name in sorted(names)]
