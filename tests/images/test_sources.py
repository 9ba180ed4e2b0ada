import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor

import pytest

from kdcache.errors import DataError
from kdcache.images import image_id, open_images


def refusal(source):
    with pytest.raises(DataError) as caught:
        open_images(source)
    return caught.value


@pytest.fixture(params=["folder", "list", "tar"])
def source(request, photos):
    """The same five images, as each kind of source."""
    if request.param == "folder":
        return photos
    if request.param == "list":
        paths = "".join(f"{path}\n" for path in open_images(photos).paths)
        (photos / "list.csv").write_text("path\n" + paths, encoding="utf-8")
        return photos / "list.csv"
    with tarfile.open(photos.parent / "x.tar", "w") as tar:
        for path in open_images(photos).paths:
            tar.add(photos / path, arcname=path)
    return photos.parent / "x.tar"


def test_every_source_gives_the_same_bytes_in_the_same_order(source, photos):
    images = open_images(source)
    wanted = open_images(photos)
    assert [images.read(row) for row in range(5)] == [wanted.read(row) for row in range(5)]
    assert len(images) == len(images.paths) == len(images.labels) == 5
    assert list(images.paths) == sorted(set(images.paths))
    assert images.source == str(source)


def test_every_set_survives_pickling(source):
    images = open_images(source)
    other = pickle.loads(pickle.dumps(images))
    assert list(other.paths) == list(images.paths)
    assert other.labels.tolist() == images.labels.tolist()
    assert (other.source, other.classes) == (images.source, images.classes)
    assert [other.read(row) for row in range(5)] == [images.read(row) for row in range(5)]


def test_every_set_is_read_in_spawned_processes(source):
    images = open_images(source)
    ids = [image_id(images.read(row)) for row in range(5)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(images.read, range(5))) == [images.read(row) for row in range(5)]
    assert [image_id(images.read(row)) for row in range(5)] == ids


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # this process has threads
def test_every_set_is_read_by_forked_processes_beside_its_parent(source):
    images = open_images(source)
    wanted = [images.read(row) for row in range(5)]
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            right = all(images.read(row) == wanted[row] for _ in range(50) for row in range(5))
            os._exit(0 if right else 1)
        children.append(child)
    for _ in range(50):
        assert [images.read(row) for row in range(5)] == wanted
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_a_source_that_is_not_there_is_named(tmp_path):
    error = refusal(tmp_path / "nothing")
    assert str(error) == f"there is no `{tmp_path}/nothing`"
    assert "give a folder" in error.hint


def test_a_folder_without_images_tells_what_was_looked_for_and_found(tmp_path):
    for name in ["a.txt", "b.txt", "c.npy", "LICENSE"]:
        (tmp_path / name).write_text("")
    error = refusal(tmp_path)
    assert ".bmp .gif .jfif .jpeg .jpg" in str(error)
    assert "found 4 other files (2 .txt, 1 .npy, 1 without extension)" in str(error)


def test_an_empty_folder_is_refused(tmp_path):
    assert "found no files at all" in str(refusal(tmp_path))


def test_a_single_image_is_refused(photos):
    error = refusal(photos / "cat/b.jpg")
    assert "is one image" in str(error)
    assert error.hint == f"give its folder, `{photos}/cat`"


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("")
    assert "x.parquet` is neither a folder" in str(refusal(tmp_path / "x.parquet"))


def test_a_folder_with_brackets_in_its_name_is_a_folder(tmp_path):
    (tmp_path / "set [1]").mkdir()
    (tmp_path / "set [1]" / "a.jpg").write_bytes(b"data")
    assert len(open_images(tmp_path / "set [1]")) == 1


def test_images_win_over_tars_in_a_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"data")
    (tmp_path / "x.tar").write_bytes(b"")
    assert list(open_images(tmp_path).paths) == ["a.jpg"]
