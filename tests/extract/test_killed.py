"""Whatever moment a kill chooses: nothing is lost, and nothing half done is taken for whole."""

import json
import subprocess
import sys

import pytest
from extract import killing
from small import make_cache, tree_of

from kdcache.store import layout


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", ["extract", "extend"])
def test_command_killed_at_twenty_moments_ends_in_the_same_bytes(
    kind, tiny_images, tiny_weights, tmp_path, monkeypatch
):
    for name, value in (("PIECE_ROWS", 4), ("MIN_SHARD_ROWS", 16), ("MAX_SHARD_ROWS", 16)):
        monkeypatch.setattr(layout, name, value)
    make_cache(tiny_images, tiny_weights, tmp_path / "old")
    before = tree_of(tmp_path / "old")
    direct = make_cache(tiny_images, tiny_weights, tmp_path / "direct", num_views=3)
    (tmp_path / "work").mkdir()
    arguments = (kind, tiny_images, tiny_weights, tmp_path / "old", tmp_path / "work")
    done = subprocess.run(
        [sys.executable, killing.__file__, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == killing.KILLS
    views = 3 if kind == "extract" else 1
    for trial in found:
        assert trial["left"] in ("nothing", "unfinished", "finished"), trial
        assert trial["then"] == "finished"
        assert trial["tidy"]
        assert trial["identity"] == direct.identity
        if trial["left"] != "finished":
            assert trial["views"] == (48 - 4 * len(trial["pieces"])) * views, trial
    # The kills hit it at work: in between, not only before it began or after it ended.
    assert len({len(trial["pieces"]) for trial in found}) > 2
    assert tree_of(tmp_path / "old") == before
    assert tree_of(tmp_path / "work" / "out3") == tree_of(tmp_path / "direct")
