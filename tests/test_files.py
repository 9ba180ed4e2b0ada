"""Files are whole or not there."""

import os
import stat

import pytest

from kdcache.files import atomic_file, canonical_json, put_if_absent, write_atomic


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_first_of_two_writers_wins_and_the_second_is_told(tmp_path):
    path = tmp_path / "deep" / "file"
    assert put_if_absent(path, b"first")
    assert not put_if_absent(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["file"]


def test_files_can_be_read_by_others_as_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_json_has_one_form():
    assert canonical_json({"b": 1, "a": ["\u00e4"]}) == canonical_json({"a": ["\u00e4"], "b": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})
