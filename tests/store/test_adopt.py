"""A shard of another cache is taken over whole, or refused; the same file where it can be."""

import errno
import os
import shutil

import numpy as np
import pytest
from store import making

from kdcache.errors import CacheCorrupt, CacheMismatch
from kdcache.store import common_blocks, grid_of, open_cache, require_digest

NAME = "embedding"


def adopt(writer, whole, block, view):
    there = open_cache(whole)
    file = grid_of(there, NAME).shard_file(block, view)
    writer.adopt(NAME, block, view, whole / file, there.manifest.files[file])
    return file


def test_adopted_shards_are_the_same_files_in_an_equal_cache(whole, tmp_path):
    writer = making.begin(tmp_path / "new")
    needed = writer.missing_bytes()
    files = [adopt(writer, whole, block, 1) for block in range(3)]
    grid = writer.grids[NAME]
    assert (
        writer.missing_bytes()
        == needed - sum(grid.shard_bytes(block) for block in range(3)) - 512 * grid.row_bytes
    )  # nor do pieces hold them for a while
    assert writer.wanted_views(NAME, 0) == [0, 2]
    for piece in writer.missing():
        making.compute(writer, piece)
    writer.seal()
    assert making.tree(tmp_path / "new") == making.tree(whole)
    assert all(os.path.samefile(tmp_path / "new" / file, whole / file) for file in files)


def test_adoption_that_was_killed_before_its_receipt_goes_on(whole, tmp_path):
    writer = making.begin(tmp_path / "new")
    file = adopt(writer, whole, 0, 1)
    receipt = tmp_path / "new" / writer.grids[NAME].receipt_file(0, 1)
    receipt.unlink()
    adopt(making.begin(tmp_path / "new"), whole, 0, 1)
    assert receipt.exists()
    (tmp_path / "new" / file).unlink()
    receipt.unlink()
    (tmp_path / "new" / file).write_bytes(bytes((whole / file).stat().st_size))
    with pytest.raises(CacheMismatch, match="is promised with"):
        adopt(making.begin(tmp_path / "new"), whole, 0, 1)
    assert not receipt.exists()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_what_cannot_be_linked_is_copied(whole, tmp_path, monkeypatch, number):
    link = os.link

    def refused(source, target, **options):
        if "new" not in str(source):
            raise OSError(number, os.strerror(number))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", refused)
    file = adopt(making.begin(tmp_path / "new"), whole, 0, 1)
    assert (tmp_path / "new" / file).read_bytes() == (whole / file).read_bytes()
    assert not os.path.samefile(tmp_path / "new" / file, whole / file)


def test_other_trouble_with_a_link_is_told(whole, tmp_path, monkeypatch):
    writer = making.begin(tmp_path / "new")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        adopt(writer, whole, 0, 1)


def test_link_to_a_shard_is_followed(whole, tmp_path):
    """A cache may be made of symbolic links; a hard link to one of these would dangle."""
    file = open_cache(whole).path / "embedding/c/0/1/0"
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    writer = making.begin(tmp_path / "new")
    adopt(writer, whole, 0, 1)
    assert not (tmp_path / "new" / "embedding/c/0/1/0").is_symlink()


def test_blocks_are_common_where_the_same_rows_end_at_the_same_place(whole):
    there = grid_of(open_cache(whole), NAME)
    same = np.arange(making.NUM_ROWS)
    assert common_blocks(there, there, same) == [0, 1, 2]
    swapped = same.copy()
    swapped[[600, 601]] = 601, 600
    assert common_blocks(there, there, swapped) == [0, 2]
    more = type(there).of(there.spec, making.NUM_ROWS + 1, 5)
    assert common_blocks(more, there, np.append(same, -1)) == [0, 1]
    other = type(there).of(making.ArraySpec(NAME, 8, "float32"), making.NUM_ROWS, 3)
    assert common_blocks(other, there, same) == []


def test_file_of_other_bytes_than_promised_is_refused(whole):
    cache = open_cache(whole)
    require_digest(whole, cache.manifest, "embedding/c/0/1/0")
    shard = whole / "embedding/c/0/1/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(CacheCorrupt, match="the manifest promises") as caught:
        require_digest(whole, cache.manifest, "embedding/c/0/1/0")
    assert "kdcache verify" in caught.value.hint
