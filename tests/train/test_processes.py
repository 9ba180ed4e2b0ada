"""Two processes of one run do what one does with the same global batch."""

import pytest
from ranks import in_ranks
from small import add_graph, make_cache, recipe_for, run

from kdcache.methods import available_methods
from kdcache.train import read_metrics


def gentle(method):
    """Small steps: differences in the last bit do not grow within a few of them."""
    return recipe_for(method, train={"lr": 1e-4, "epochs": 2})


def train_all(data, cache, out):
    """A run of every method, in whatever processes call this; its losses."""
    curves = {}
    for method in available_methods():
        run(gentle(method), data, out / method, cache)
        curves[method] = [record["loss"] for record in read_metrics(out / method)]
    return curves


@pytest.fixture(scope="module")
def curves(tiny_images, tiny_weights, tmp_path_factory):
    """The losses of every method, in one process and in two."""
    folder = tmp_path_factory.mktemp("processes")
    cache = folder / "cache.zarr"
    make_cache(tiny_images, tiny_weights, cache)
    add_graph(cache)
    (folder / "said").mkdir()
    together, _ = in_ranks(
        2, train_all, tiny_images, cache, folder / "together", out=folder / "said"
    )
    return train_all(tiny_images, cache, folder / "alone"), together


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("method", available_methods())
def test_two_processes_have_the_loss_curve_of_one(method, curves):
    alone, together = curves
    assert len(together[method]) == 12
    assert together[method] == pytest.approx(alone[method], rel=1e-5)
