"""A run may look at a part of its queue, found by an index that it keeps up to date."""

import pytest
from small import make_cache, recipe_for, run

from kdcache.recipe import build_recipe
from kdcache.train import read_metrics


@pytest.fixture(scope="module")
def cache_path(tiny_images, tiny_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "tiny.zarr"
    make_cache(tiny_images, tiny_weights, out)
    return out


def losses(tiny_images, cache_path, out, queue, **settings):
    tables = recipe_for("seed").to_dict()
    tables["method"] = {"name": "seed", "queue": queue, **settings}
    assert run(build_recipe(tables), tiny_images, out, cache_path).finished
    return [record["loss"] for record in read_metrics(out)]


@pytest.mark.parametrize("queue", [20, "all"])
def test_part_that_is_the_whole_queue_trains_as_the_exact_loss_does(
    tiny_images, cache_path, tmp_path, queue
):
    exact = losses(tiny_images, cache_path, tmp_path / "exact", queue)
    for name, settings in {"search": {}, "index": {"nprobe": 4}}.items():
        found = losses(
            tiny_images, cache_path, tmp_path / name, queue, sampled=48, nearest=5, **settings
        )
        assert found == pytest.approx(exact, rel=1e-4)
    part = losses(tiny_images, cache_path, tmp_path / "part", queue, sampled=6, nearest=2, nprobe=1)
    assert part != pytest.approx(exact, rel=1e-4)
