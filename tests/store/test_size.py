"""The size of a cache, told before it is made, against caches that were made."""

import numpy as np
import pytest
from store import making

from kdcache.store import ArraySpec, cache_size


def _foretold(specs, num_rows, num_views, head):
    index = making.index_of(num_rows)
    num_pieces = -(-num_rows // 64)  # each of which gives one witness here
    return cache_size(
        recipe=making.RECIPE,
        arrays=specs,
        num_rows=num_rows,
        num_views=num_views,
        classes=index.classes,
        path_bytes=sum(len(path.encode()) for path in index.paths),
        head=head,
        witness={
            "row": ((num_pieces,), np.dtype(np.int64)),
            "thumb": ((num_pieces, 4, 4, 3), np.dtype(np.uint8)),
        },
        made_with={"numpy": "2.0"},
    )


def _found(path):
    sizes: dict[str, list[int]] = {}
    for name, data in making.tree(path).items():
        sizes.setdefault(name.partition("/")[0], []).append(len(data))
    return {top: (len(all_of_them), sum(all_of_them)) for top, all_of_them in sizes.items()}


@pytest.mark.parametrize(
    ("specs", "num_rows", "num_views", "head"),
    [
        (making.SPECS, 1100, 3, making.head()),
        ((ArraySpec("feature", 64, "float16"),), 3001, 12, None),  # 10 blocks and views, and more
        ((ArraySpec("embedding", 8, "float32"),), 1, 1, None),
        ((ArraySpec("embedding", 8), ArraySpec("feature", 48)), 512, 2, making.head()),
    ],
)
def test_files_and_bytes_are_those_of_the_cache_that_is_made(
    tmp_path, small_shards, specs, num_rows, num_views, head
):
    making.make(
        tmp_path / "c", specs=specs, num_rows=num_rows, num_views=num_views, head=head,
        unreadable={},
    )  # fmt: skip
    size = _foretold(specs, num_rows, num_views, head)
    found = _found(tmp_path / "c")
    assert {top: (p.num_files, p.num_bytes) for top, p in size.parts.items()} == found
    assert size.whole.num_files == len(making.tree(tmp_path / "c"))


def test_of_uint8_only_the_digits_of_fidelity_are_not_known(tmp_path, small_shards):
    specs = (ArraySpec("embedding", 8, "uint8"), ArraySpec("feature", 64, "float16"))
    making.make(tmp_path / "c", specs=specs, num_rows=700, num_views=11, unreadable={})
    size = _foretold(specs, 700, 11, making.head())
    found = _found(tmp_path / "c")
    parts = {top: (p.num_files, p.num_bytes) for top, p in size.parts.items()}
    assert parts.keys() == found.keys()
    unsure = {"fidelity", "manifest.json", "zarr.json"}
    assert {k: v for k, v in parts.items() if k not in unsure} == {
        k: v for k, v in found.items() if k not in unsure
    }
    for top in unsure:
        assert parts[top][0] == found[top][0]
        assert abs(parts[top][1] - found[top][1]) < 64


def test_a_writer_that_begins_asks_for_the_room_that_was_told(tmp_path, small_shards):
    writer = making.begin(tmp_path / "c")
    size = _foretold(making.SPECS, making.NUM_ROWS, making.NUM_VIEWS, making.head())
    shards = sum(
        grid.shard_bytes(block) * grid.num_views
        for grid in writer.grids.values()
        for block in range(grid.num_blocks)
    )
    assert size.under_way.num_bytes + shards == writer.missing_bytes()
    assert size.under_way.num_files == writer.num_pieces


def test_the_size_of_a_billion_images_is_told_at_once():
    specs = (ArraySpec("feature", 2048),)
    size = cache_size(
        recipe=making.RECIPE, arrays=specs, num_rows=10**9, num_views=50, classes=(),
        path_bytes=32 * 10**9, head=None, witness={}, made_with={"numpy": "2.0"},
    )  # fmt: skip
    assert size.parts["feature"].num_bytes > 10**9 * 50 * 2048 * 2
    assert size.parts["feature"].num_files == 50 * -(-(10**9) // 16_384) + 1
