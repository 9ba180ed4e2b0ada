import hashlib
import shutil
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from kdcache.errors import DataError
from kdcache.images import dataset_fingerprint, image_id, index_images, open_images
from kdcache.images.image_set import ImageSet


def test_an_image_id_is_the_head_of_a_sha256():
    assert image_id(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223"  # FIPS 180-2, B.1


@pytest.mark.parametrize("threads", [1, 4])
def test_the_index_holds_ids_and_sizes_of_every_row(photos, threads):
    images = open_images(photos)
    index = index_images(images, threads=threads)
    for row, path in enumerate(images.paths):
        data = (photos / path).read_bytes()
        assert index.ids[row].tobytes() == hashlib.sha256(data).digest()[:16]
        assert index.num_bytes[row] == len(data)
    assert index.suspects == {}


def test_rows_that_are_no_images_are_suspects_with_a_reason(photos):
    (photos / "ant/a.jpg").write_bytes(b"")
    (photos / "dog/a.png").write_bytes(b"<html>404</html>")
    images = open_images(photos)
    index = index_images(images)
    assert index.suspects == {
        0: "the file is empty",
        5: "starts with b'<html>40', which is no known image format",
    }


def test_progress_counts_every_row_once(tmp_path):
    for number in range(600):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    images = open_images(tmp_path)
    counts: list[int] = []
    index = index_images(images, progress=counts.append)
    assert sum(counts) == 600
    assert len(counts) > 1
    assert len(np.unique(index.ids, axis=0)) == 600
    assert len(index.suspects) == 600


def test_a_file_that_goes_away_meanwhile_is_named(photos):
    images = open_images(photos)
    (photos / "cat/b.jpg").unlink()
    with pytest.raises(DataError, match=r"cat/b\.jpg` is gone"):
        index_images(images)


@dataclass(frozen=True, eq=False)
class SlowSet(ImageSet):
    """Counts how many reads go on at once, and fails at one row."""

    busy: list[int]
    peak: list[int]
    lock: threading.Lock
    bad_row: int

    def read(self, row):
        with self.lock:
            self.busy[0] += 1
            self.peak[0] = max(self.peak[0], self.busy[0])
            self.busy[1] += 1
        time.sleep(0.0002)
        with self.lock:
            self.busy[0] -= 1
        if row == self.bad_row:
            raise DataError("bad row", hint="none")
        return b"BM"


def slow_set(bad_row, count=2560):
    paths = [f"{number:05}.bmp" for number in range(count)]
    labels = np.full(count, -1, dtype=np.int32)
    return SlowSet("", paths, labels, (), [0, 0], [0], threading.Lock(), bad_row)


def test_no_more_files_are_in_memory_than_there_are_threads():
    images = slow_set(bad_row=-1)
    index_images(images, threads=3)
    assert 1 < images.peak[0] <= 3


def test_an_error_ends_the_pass_early():
    images = slow_set(bad_row=0)
    with pytest.raises(DataError, match="bad row"):
        index_images(images, threads=2)
    assert images.busy[1] < 2560 // 2


def fingerprint(source):
    images = open_images(source)
    return dataset_fingerprint(images, index_images(images))


def test_the_same_data_at_another_place_has_the_same_fingerprint(photos, tmp_path):
    other = shutil.copytree(photos, tmp_path / "elsewhere" / "copy")
    assert fingerprint(photos) == fingerprint(other)
    assert len(fingerprint(photos)) == 64


def change_byte(root):
    path = root / "cat/b.jpg"
    path.write_bytes(path.read_bytes() + b"\0")


def rename_file(root):
    (root / "cat/b.jpg").rename(root / "cat/c.jpg")


def drop_file(root):
    (root / "cat/b.jpg").unlink()


def drop_labels(root):
    (root / "top.jpg").write_bytes((root / "cat/b.jpg").read_bytes())


@pytest.mark.parametrize("change", [change_byte, rename_file, drop_file, drop_labels])
def test_every_change_of_the_data_changes_the_fingerprint(photos, change):
    before = fingerprint(photos)
    change(photos)
    assert fingerprint(photos) != before


def test_labels_alone_change_the_fingerprint(photos):
    prints = set()
    for label in ["cat", "dog", ""]:
        (photos / "list.csv").write_text(f"path,label\ncat/b.jpg,{label}\n")
        prints.add(fingerprint(photos / "list.csv"))
    assert len(prints) == 3
