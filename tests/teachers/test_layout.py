import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcache.errors import TeacherError
from kdcache.teachers import Parts, split_checkpoint

WIDTH = 96  # of test_resnet's feature
OWN = timm.create_model("test_resnet", num_classes=0).state_dict()


def split(tensors: dict[str, Tensor]) -> Parts:
    return split_checkpoint(tensors, OWN, model="test_resnet", classifiers=("fc",))


def named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": tensor for key, tensor in module.state_dict().items()}


def trained(*layers: nn.Module) -> nn.Sequential:
    """A Sequential whose running statistics are not the initial ones."""
    torch.manual_seed(0)
    head = nn.Sequential(*layers)
    for _ in range(3):
        head(torch.randn(16, WIDTH) * 2 + 1)
    return head.eval()


HEADS = {
    "moco_v2": ("fc", trained(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 16))),
    "swav": (
        "projection_head",
        trained(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)),
    ),
    "simclr": (
        "fc",
        trained(nn.Linear(WIDTH, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)),
    ),
    "simsiam": (
        "projector",
        trained(
            nn.Linear(WIDTH, 32, bias=False),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 16),
            nn.BatchNorm1d(16, affine=False),
        ),
    ),
    "simreg": (
        "head",
        trained(
            nn.Linear(WIDTH, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 16),
            nn.Linear(16, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 24),
        ),
    ),
    "one_layer": ("classifier", trained(nn.Linear(WIDTH, 16))),
}


@pytest.mark.parametrize("family", HEADS)
def test_the_head_of_a_checkpoint_computes_what_it_computed_there(family):
    name, reference = HEADS[family]
    parts = split({**OWN, **named(name, reference)})
    assert parts.head is not None
    feature = torch.randn(7, WIDTH)
    found = parts.head.eval()(feature)
    torch.testing.assert_close(found, reference(feature), rtol=0, atol=0)
    assert (parts.head.in_dim, parts.head.out_dim) == (WIDTH, found.shape[1])
    assert [type(layer) for layer in parts.head] == [type(layer) for layer in reference]


def test_the_backbone_comes_whole_and_unchanged():
    parts = split(OWN)
    assert parts.head is None
    assert parts.backbone.keys() == OWN.keys()
    assert all(torch.equal(parts.backbone[key], tensor) for key, tensor in OWN.items())


def test_classifier_and_baggage_are_left_out():
    baggage = {
        "fc.weight": torch.zeros(10, WIDTH),
        "fc.bias": torch.zeros(10),
        "queue": torch.zeros(16, 64),
        "queue_ptr": torch.zeros(1),
        "prototypes.weight": torch.zeros(30, 16),
        "prototypes0.weight": torch.zeros(30, 16),
    }
    parts = split({**OWN, **baggage})
    assert parts.head is None
    assert parts.backbone.keys() == OWN.keys()


def test_a_classifier_under_another_name_is_left_over():
    with pytest.raises(TeacherError, match=r"1 left over: `head\.weight`"):
        split({**OWN, "head.weight": torch.zeros(10, WIDTH)})


def test_checkpoints_that_count_no_batches_are_taken():
    tensors = {key: tensor for key, tensor in OWN.items() if "num_batches" not in key}
    assert len(tensors) < len(OWN)
    assert split(tensors).backbone.keys() == OWN.keys()


def rectangular() -> str:
    """A convolution whose transpose has another shape."""
    return next(k for k, t in OWN.items() if t.ndim == 4 and t.shape[0] != t.shape[1])


@pytest.mark.parametrize("key", [key for key in OWN if "num_batches" not in key][::7])
def test_a_missing_tensor_is_named(key):
    tensors = {name: tensor for name, tensor in OWN.items() if name != key}
    with pytest.raises(TeacherError, match=f"1 missing: `{key}`") as caught:
        split(tensors)
    assert "timm:MODEL" in caught.value.hint


def test_a_renamed_tensor_is_named_twice():
    tensors = copy.copy(OWN)
    tensors["conv_one.weight"] = tensors.pop("conv1.0.weight")
    with pytest.raises(TeacherError, match=r"1 missing: `conv1\.0\.w.*1 left over: `conv_one\.w"):
        split(tensors)


def test_a_transposed_tensor_is_named_with_both_shapes():
    key = rectangular()
    rows, columns, height, width = OWN[key].shape
    with pytest.raises(
        TeacherError,
        match=f"1 of another shape: `{key} {columns}x{rows}x{height}x{width} "
        f"for {rows}x{columns}x{height}x{width}`",
    ):
        split({**OWN, key: OWN[key].transpose(0, 1)})


def test_long_lists_are_cut_and_counted():
    with pytest.raises(TeacherError) as caught:
        split({f"net.{key}": tensor for key, tensor in OWN.items()})
    counted = sum("num_batches" not in key for key in OWN)
    assert f"{counted} missing" in str(caught.value)
    assert f"and {counted - 8} more" in str(caught.value)
    assert str(caught.value).count("`net.") == 8


LINEAR = {"weight": torch.zeros(4, WIDTH), "bias": torch.zeros(4)}


def numbered(name: str, **layers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{i[1:]}.{k}": t for i, part in layers.items() for k, t in part.items()}


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (numbered("fc", _1=LINEAR), "no layer `fc.0`"),
        (numbered("fc", _0=LINEAR, _3={"weight": torch.zeros(2, 4)}), "no layer `fc.1`"),
        (numbered("fc", _0=LINEAR, _1={"weight": torch.ones(4)}), "`fc.1` holds weight 4"),
        (numbered("fc", _0={"weight": torch.zeros(4, WIDTH, 1, 1)}), "holds weight 4x96x1x1"),
        (numbered("fc", _0={"bias": torch.zeros(4)}), "`fc.0` holds bias 4"),
        (numbered("fc", _0={**LINEAR, "gamma": torch.zeros(4)}), "gamma 4"),
        (numbered("fc", _0=LINEAR, _2={"weight": torch.zeros(2, 5)}), "takes `5` numbers"),
        (numbered("fc", _0={**LINEAR, "bias": torch.zeros(5)}), r"`0.bias` is \(5,\)"),
    ],
)
def test_a_head_of_other_layers_is_refused(head, words):
    with pytest.raises(TeacherError, match=words) as caught:
        split({**OWN, **head})
    assert "without `fc.*`" in caught.value.hint


def test_two_heads_are_refused():
    with pytest.raises(TeacherError, match="`fc`, `projector`"):
        split({**OWN, **numbered("fc", _0=LINEAR), **numbered("projector", _0=LINEAR)})
