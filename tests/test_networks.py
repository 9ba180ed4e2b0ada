import copy
import hashlib

import pytest
import timm
import torch

from kdcache.errors import ConfigError
from kdcache.networks import build_backbone, parameter_digest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def some_images(size: int, num: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8, generator=generator)


def plain_features(name: str, backbone, images: torch.Tensor, **size) -> torch.Tensor:
    """What timm alone makes of the images, with its classifier in place and NCHW floats."""
    model = timm.create_model(name, **size).eval()
    model.load_state_dict(backbone.model.state_dict(), strict=False)
    mean = torch.tensor(backbone.mean).view(3, 1, 1)
    std = torch.tensor(backbone.std).view(3, 1, 1)
    pixels = (images.permute(0, 3, 1, 2).contiguous().float() / 255 - mean) / std
    with torch.no_grad():
        return model.forward_head(model.forward_features(pixels), pre_logits=True)


@pytest.mark.parametrize(
    ("name", "size", "arguments", "width"),
    [
        ("test_resnet", 64, {}, 96),
        ("test_vit", 160, {}, 64),
        ("test_vit", 64, {"img_size": 64}, 64),
        ("resnet10t", 64, {}, 512),
        ("mobilenetv3_small_050", 64, {}, 1024),
    ],
)
def test_backbone_gives_timms_features_before_the_classifier(name, size, arguments, width):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=size).eval()
    images = some_images(size)
    with torch.no_grad():
        feature = backbone(images)
    assert feature.dtype == torch.float32
    assert feature.shape == (2, width) == (2, backbone.feature_dim)
    expected = plain_features(name, backbone, images, **arguments)
    scale = expected.abs().max()
    torch.testing.assert_close(feature / scale, expected / scale, rtol=0, atol=1e-6)


def test_size_mean_and_std_are_timms_unless_given():
    backbone = build_backbone("test_resnet")
    assert (backbone.image_size, backbone.mean, backbone.std) == (160, (0.5,) * 3, (0.5,) * 3)
    backbone = build_backbone("test_resnet", image_size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert (backbone.image_size, backbone.mean, backbone.std) == (64, IMAGENET_MEAN, IMAGENET_STD)


def test_mean_and_std_reach_the_pixels():
    torch.manual_seed(0)
    one = build_backbone("test_resnet", image_size=32).eval()
    other = build_backbone(
        "test_resnet",
        image_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        state_dict=one.model.state_dict(),
    ).eval()
    images = some_images(32)
    assert not torch.allclose(one(images), other(images))


def test_features_are_float32_under_autocast():
    backbone = build_backbone("test_resnet", image_size=32).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = backbone(some_images(32))
    assert rough.dtype == torch.float32
    exact = backbone(some_images(32)).detach()
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))


def test_pixels_are_seen_in_channels_last_without_a_copy():
    backbone = build_backbone("test_resnet", image_size=32)
    seen = []
    backbone.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(some_images(32))
    assert seen[0].shape == (2, 3, 32, 32)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_building_moves_no_running_statistics_and_leaves_train_mode():
    backbone = build_backbone("test_resnet", image_size=32)
    assert all(module.training for module in backbone.modules())
    counters = [t for key, t in backbone.state_dict().items() if "num_batches" in key]
    assert counters
    assert not any(counters)


def test_equal_seeds_give_equal_backbones_and_digests():
    digests = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        digests.append(parameter_digest(build_backbone("test_resnet", image_size=32)))
    assert digests[0] == digests[1] != digests[2]


def test_digest_sees_one_changed_number_and_a_changed_shape():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 6)
    other = copy.deepcopy(layer)
    assert parameter_digest(other) == parameter_digest(layer)
    with torch.no_grad():
        other.weight[3, 2] += 1e-6
    assert parameter_digest(other) != parameter_digest(layer)
    other = torch.nn.Linear(6, 4)
    other.weight.data = layer.weight.data.reshape(4, 6)
    other.bias.data = layer.bias.data
    assert parameter_digest(other) != parameter_digest(layer)
    assert parameter_digest(copy.deepcopy(layer).half()) != parameter_digest(layer)


def test_digest_is_the_written_sum():
    module = torch.nn.Module()
    module.register_buffer("b", torch.tensor([1.0, 2.0]))
    module.register_buffer("a", torch.tensor(7))
    text = b"a int64 ()\n" + (7).to_bytes(8, "little")
    text += b"b float32 (2,)\n" + bytes.fromhex("0000803f00000040")
    assert parameter_digest(module) == hashlib.sha256(text).hexdigest()


def test_an_unknown_model_is_answered_with_close_names():
    with pytest.raises(ConfigError, match="no model `resnet8`") as caught:
        build_backbone("resnet8")
    assert "`resnet18`" in caught.value.hint


def test_an_unknown_tag_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"`resnet18\.nope`") as caught:
        build_backbone("resnet18.nope")
    assert "`resnet18.a1_in1k`" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 65), ("test_resnet", 0), ("efficientformer_l1", 96)]
)
def test_a_size_that_a_model_cannot_take_is_refused(name, size):
    with pytest.raises(ConfigError, match=f"`{name}` cannot take images of `{size}`"):
        build_backbone(name, image_size=size)


def test_another_side_can_be_tried_before_it_is_needed():
    backbone = build_backbone("test_resnet", image_size=64).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert backbone.measure(27) == backbone.feature_dim
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(ConfigError, match="`test_vit` cannot take images of `69` x `69`"):
        build_backbone("test_vit").measure(69)


def test_weights_of_another_model_are_refused():
    other = build_backbone("test_vit").model.state_dict()
    with pytest.raises(ConfigError, match="do not fit timm model `test_resnet`"):
        build_backbone("test_resnet", image_size=32, state_dict=other)
