import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from kdcache.errors import DataError
from kdcache.images import open_images
from kdcache.images.tar import _NUM_OPEN_SHARDS


def write_tar(path, members, kind=tarfile.GNU_FORMAT):
    """A tar of (name, bytes) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def refusal(source):
    with pytest.raises(DataError) as caught:
        open_images(source)
    return caught.value


SAMPLES = [
    ("b.jpg", b"image b"), ("b.cls", b"10\n"), ("b.json", b"{}"),
    ("a.PNG", b"image a" * 99), ("a.cls", b"2"),
]  # fmt: skip


def test_samples_are_images_with_their_class(tmp_path):
    images = open_images(write_tar(tmp_path / "x.tar", SAMPLES))
    assert list(images.paths) == ["x.tar/b.jpg", "x.tar/a.PNG"]  # as they lie there
    assert images.classes == ("2", "10")  # by number, not by letter
    assert images.labels.tolist() == [1, 0]
    assert images.read_rows([0, 1]) == [b"image b", b"image a" * 99]
    assert images.read_rows([1, 0, 1]) == [images.read(1), images.read(0), images.read(1)]


def test_rows_rise_through_the_shards_from_front_to_back(tmp_path):
    for shard in ("z.tar", "a.tar"):
        names = np.random.default_rng(len(shard)).permutation(30)
        write_tar(tmp_path / shard, [(f"{n}.jpg", b"%d" % n) for n in names])
    images = open_images(tmp_path)
    assert [path.partition("/")[0] for path in images.paths] == ["a.tar"] * 30 + ["z.tar"] * 30
    for shard in (0, 1):
        assert (np.diff(images.offsets[images.shard_of == shard]) > 0).all()


def test_the_label_of_a_json_serves_where_there_is_no_class(tmp_path):
    members = [
        ("a.jpg", b"a"), ("a.json", b'{"label": 7, "caption": "x"}'),
        ("b.json", b'{"label": 7}'), ("b.cls", b"3"), ("b.jpg", b"b"),
        ("c.jpg", b"c"), ("c.json", b'{"label": "a dog"}'),
        ("d.jpg", b"d"), ("d.json", b"[7]"), ("e.jpg", b"e"), ("e.json", b'{"label": true}'),
    ]  # fmt: skip
    images = open_images(write_tar(tmp_path / "x.tar", members))
    assert images.classes == ("3", "7")
    assert images.labels.tolist() == [1, 0, -1, -1, -1]


def test_a_json_that_is_none_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.json", b"{label")])
    assert "`a.json`" in str(refusal(path))
    assert "is no JSON" in str(refusal(path))


def test_a_sample_without_a_class_has_no_label(tmp_path):
    images = open_images(write_tar(tmp_path / "x.tar", [*SAMPLES, ("c.jpg", b"c")]))
    assert images.labels.tolist() == [1, 0, -1]


def test_shards_without_any_class_have_no_classes(tmp_path):
    images = open_images(write_tar(tmp_path / "x.tar", [("c.jpg", b"c")]))
    assert images.classes == ()
    assert images.labels.tolist() == [-1]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_accented_names_are_read(tmp_path, kind):
    name = "folder/" * 30 + "é" * 40 + ".jpg"
    images = open_images(write_tar(tmp_path / "x.tar", [(name, b"data")], kind))
    assert list(images.paths) == [f"x.tar/{name}"]
    assert images.read(0) == b"data"


def test_a_tar_holds_the_same_bytes_as_the_folder_it_was_packed_from(photos):
    folder = open_images(photos)
    path = photos.parent / "photos.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(photos, arcname=".")
    packed = open_images(path)
    wanted = {f"photos.tar/{name}": folder.read(row) for row, name in enumerate(folder.paths)}
    found = {name: packed.read(row) for row, name in enumerate(packed.paths)}
    assert found == wanted


def test_hidden_members_are_left_out(tmp_path):
    images = open_images(
        write_tar(tmp_path / "x.tar", [("._a.jpg", b"mac"), (".x/c.jpg", b"c"), *SAMPLES])
    )
    assert len(images) == 2


def make_shards(root, count):
    for number in range(count):
        write_tar(root / f"t-{number:03}.tar", [(f"{number}.jpg", b"%d" % number)])


@pytest.mark.parametrize("pattern", ["", "t-*.tar", "t-{000..011}.tar", "t-0{00..11}.tar"])
def test_a_folder_and_patterns_stand_for_their_shards(tmp_path, pattern):
    make_shards(tmp_path, 12)
    images = open_images(tmp_path / pattern)
    assert images.paths[11] == "t-011.tar/11.jpg"
    assert [images.read(row) for row in range(12)] == [b"%d" % row for row in range(12)]


def test_more_shards_are_read_than_are_kept_open(tmp_path):
    make_shards(tmp_path, _NUM_OPEN_SHARDS + 40)
    images = open_images(tmp_path)
    num_before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [int(images.read(row)) for row in range(len(images))] == list(range(len(images)))
    assert len(os.listdir("/proc/self/fd")) - num_before <= _NUM_OPEN_SHARDS
    del images
    assert len(os.listdir("/proc/self/fd")) <= num_before


def test_a_pickled_set_reads_and_carries_no_handles(tmp_path):
    images = open_images(write_tar(tmp_path / "x.tar", SAMPLES))
    images.read(0)
    other = pickle.loads(pickle.dumps(images))
    assert other.read(0) == b"image b"


def test_missing_shards_of_a_range_are_counted_and_named(tmp_path):
    make_shards(tmp_path, 2)
    error = refusal(tmp_path / "t-{000..003}.tar")
    assert "2 of 4" in str(error)
    assert "t-002.tar" in str(error)


def test_an_empty_range_is_refused(tmp_path):
    assert "`{003..001}`" in str(refusal(tmp_path / "t-{003..001}.tar"))


def test_a_pattern_that_matches_other_files_is_refused(tmp_path):
    make_shards(tmp_path, 1)
    (tmp_path / "t-notes.txt").write_text("")
    assert "t-notes.txt" in str(refusal(tmp_path / "t-*"))


def test_a_tar_cut_at_any_place_is_refused_and_named(tmp_path):
    path = write_tar(tmp_path / "cut.tar", SAMPLES)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = max(tar, key=lambda member: member.offset)
        end = last.offset_data + 512
    for size in [*range(1, end + 1, 97), 512, 1024, end, end + 1]:
        path.write_bytes(whole[:size])
        assert "cut.tar" in str(refusal(path)), size
    path.write_bytes(whole[: end + 512])
    assert len(open_images(path)) == 2


def test_a_damaged_header_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 0xFF  # the checksum of the second header
    path.write_bytes(data)
    assert "goes on with what is no tar member" in str(refusal(path))


def test_tars_joined_end_to_end_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    path.write_bytes(path.read_bytes() * 2)
    assert "must not be joined" in refusal(path).hint


def test_a_compressed_tar_is_refused_by_name_and_by_content(tmp_path):
    error = refusal(tmp_path / "x.tar.gz")
    assert "is compressed" in str(error)
    assert "gunzip" in error.hint
    with tarfile.open(tmp_path / "y.tar", "w:gz"):
        pass
    assert "not an uncompressed tar" in str(refusal(tmp_path / "y.tar"))


def test_two_images_in_a_sample_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.mask.png", b"2")])
    assert "`a.jpg` and `a.mask.png`" in str(refusal(path))


def test_a_class_that_is_no_number_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.cls", b"cat")])
    assert "holds b'cat'; a class is a whole number" in str(refusal(path))


def test_a_link_in_a_tar_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "b.jpg"
        tar.addfile(link)
    assert "--hard-dereference" in refusal(path).hint


def test_a_tar_without_images_is_refused(tmp_path):
    assert "holds no images in 1 tar" in str(refusal(write_tar(tmp_path / "x.tar", [])))


def test_shards_of_one_name_that_hold_one_path_are_refused(tmp_path):
    for folder in "ab":
        write_tar(tmp_path / folder / "x.tar", SAMPLES)
    assert "both hold `x.tar/b.jpg`" in str(refusal(tmp_path / "*" / "x.tar"))


def test_a_shard_gone_or_changed_since_listing_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", SAMPLES)
    images = open_images(path)
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(DataError, match=r"x\.tar` was changed since"):
        images.read(0)
    images = open_images(path)
    path.unlink()
    with pytest.raises(DataError, match=r"x\.tar` is gone since"):
        images.read(0)
