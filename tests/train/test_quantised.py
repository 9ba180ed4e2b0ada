"""A cache of uint8 does all that one of floats does: a head, a graph, students nearly the same."""

import numpy as np
import pytest
from small import add_graph, make_cache, recipe_for, run

from kdcache.derive import run_head
from kdcache.progress import silent_bar
from kdcache.store import open_cache
from kdcache.train import read_metrics

DTYPES = ("float16", "uint8")


@pytest.fixture(scope="module")
def caches(tiny_images, tiny_weights, tmp_path_factory):
    """The same with float16 and with uint8: feature, embedding, graph."""
    folder = tmp_path_factory.mktemp("quantised")
    for dtype in DTYPES:
        make_cache(tiny_images, tiny_weights, folder / dtype, dtype=dtype)
        add_graph(folder / dtype)
    return folder


@pytest.mark.parametrize("method", ["seed", "simreg", "bingo", "retro", "coss"])
def test_losses_are_nearly_those_of_float16(method, tiny_images, caches, tmp_path):
    """Half a scale is 1/510 of a row's range and turns it by some 0.004 rad (mean cosine above
    0.99999), of which losses of the order of 1 feel less than 1/200.

    Small steps: with a method's own rate training makes much of little, and Retro's curves of
    float16 and float32 part by a fifth in places, as do those of float16 and uint8.
    """
    losses = {}
    for dtype in DTYPES:
        recipe = recipe_for(method, train={"lr": 1e-5})
        run(recipe, tiny_images, tmp_path / dtype, caches / dtype)
        losses[dtype] = np.array([record["loss"] for record in read_metrics(tmp_path / dtype)])
    half, eight = (losses[dtype] for dtype in DTYPES)
    assert eight == pytest.approx(half, rel=0.005)
    assert not np.array_equal(half, eight)


def test_graph_is_nearly_that_of_float16(caches):
    ours, theirs = (open_cache(caches / dtype).neighbours() for dtype in DTYPES)
    assert (ours.index == theirs.index).mean() > 0.9
    np.testing.assert_allclose(ours.similarity, theirs.similarity, atol=2e-3)


@pytest.mark.parametrize("method", ["whiten", "infonce"])
def test_head_is_fitted_to_the_values_and_a_student_learns_from_it(
    method, tiny_images, headless_weights, tmp_path
):
    results = []
    for dtype in DTYPES:
        out = tmp_path / dtype
        make_cache(tiny_images, headless_weights, out, dtype=dtype)
        steps = None if method == "whiten" else 20
        report = run_head(
            open_cache(out), method=method, dim=8, steps=steps, seed=0, bar=silent_bar
        )
        results += report.cache.head_origin()["result"].values()
        run(recipe_for("seed"), tiny_images, tmp_path / f"run {dtype}", out)
        assert np.isfinite([r["loss"] for r in read_metrics(tmp_path / f"run {dtype}")]).all()
    assert results[1] == pytest.approx(results[0], rel=0.01)
