import json

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.heads import ProjectionHead

LAYERS = [
    {"kind": "linear", "in": 6, "out": 8, "bias": False},
    {"kind": "batchnorm", "dim": 8, "affine": True, "eps": 1e-5},
    {"kind": "relu"},
    {"kind": "linear", "in": 8, "out": 4, "bias": True},
    {"kind": "batchnorm", "dim": 4, "affine": False, "eps": 1e-3},
]


def trained_head() -> ProjectionHead:
    """A head whose running statistics and affine weights are not the initial ones."""
    torch.manual_seed(0)
    head = ProjectionHead(LAYERS)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        for _ in range(3):
            head(torch.randn(16, 6) * 2 + 1)
    return head.eval()


def test_head_computes_what_its_layers_written_in_numpy_do():
    head = trained_head()
    feature = torch.randn(5, 6)
    a = head.to_arrays()
    hidden = feature.numpy() @ a["0.weight"].T
    hidden = (hidden - a["1.running_mean"]) / np.sqrt(a["1.running_var"] + 1e-5)
    hidden = np.maximum(hidden * a["1.weight"] + a["1.bias"], 0)
    expected = hidden @ a["3.weight"].T + a["3.bias"]
    expected = (expected - a["4.running_mean"]) / np.sqrt(a["4.running_var"] + 1e-3)
    np.testing.assert_allclose(head(feature).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_head_survives_json_and_arrays_unchanged():
    head = trained_head()
    layers = json.loads(json.dumps(head.layers))
    arrays = head.to_arrays()
    for array in arrays.values():
        assert array.dtype == np.float32
        array.flags.writeable = False  # as they come from a store
    again = ProjectionHead.from_arrays(layers, arrays).eval()
    feature = torch.randn(5, 6)
    torch.testing.assert_close(again(feature), head(feature), rtol=0, atol=0)
    assert again.layers == head.layers
    assert (again.in_dim, again.out_dim) == (6, 4)


def test_arrays_are_copies():
    head = trained_head()
    before = head.to_arrays()
    head.to_arrays()["0.weight"][:] = 0
    np.testing.assert_array_equal(head.to_arrays()["0.weight"], before["0.weight"])


def test_batch_normalisation_uses_running_statistics_in_eval_mode():
    head = trained_head()
    feature = torch.randn(5, 6)
    torch.testing.assert_close(head(feature)[:1], head(feature[:1]), rtol=1e-5, atol=1e-6)


def test_loading_a_head_draws_no_random_numbers():
    arrays = trained_head().to_arrays()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ProjectionHead.from_arrays(LAYERS, arrays)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("damage", ["missing", "left over", "transposed"])
def test_arrays_that_do_not_fit_are_named(damage):
    arrays = trained_head().to_arrays()
    weight = arrays.pop("3.weight")
    if damage == "transposed":
        arrays["3.weight"] = weight.T
    if damage == "left over":
        arrays |= {"3.weight": weight, "9.weight": weight}
    with pytest.raises(ConfigError, match=r"`[39]\.weight`"):
        ProjectionHead.from_arrays(LAYERS, arrays)


@pytest.mark.parametrize(
    "layer",
    [
        {"kind": "tanh"},
        {"kind": "linear", "in": 6, "out": 8},
        {"kind": "linear", "in": 6, "out": 0, "bias": True},
        {"kind": "linear", "in": "6", "out": 8, "bias": True},
        {"kind": "relu", "inplace": True},
        {},
    ],
)
def test_a_layer_of_another_kind_is_refused(layer):
    with pytest.raises(ConfigError, match="is no layer"):
        ProjectionHead([LAYERS[0], layer])


def test_layers_must_fit_each_other():
    with pytest.raises(ConfigError, match="takes `9` numbers, but is given `8`"):
        ProjectionHead([LAYERS[0], {"kind": "linear", "in": 9, "out": 4, "bias": True}])


def test_a_head_without_a_width_is_refused():
    with pytest.raises(ConfigError, match="no width"):
        ProjectionHead([{"kind": "relu"}])


def test_gradients_pass_through_a_frozen_head():
    head = trained_head().requires_grad_(False)
    feature = nn.Parameter(torch.randn(5, 6))
    head(feature).square().sum().backward()
    assert feature.grad is not None
    assert feature.grad.abs().sum() > 0
