import hashlib
import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.errors import TeacherError
from kdcache.teachers import load_teacher


def moco_file(path: Path) -> tuple[Path, nn.Module, nn.Module]:
    """A checkpoint as MoCo-v2 writes it, with the network and head inside."""
    torch.manual_seed(0)
    encoder = timm.create_model("test_resnet", num_classes=0).eval()
    head = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 16))
    tensors = {"module.queue": torch.zeros(16, 8), "module.queue_ptr": torch.zeros(1)}
    for prefix, scale in (("encoder_q", 1), ("encoder_k", 2)):
        for name, module in (("", encoder), ("fc.", head)):
            for key, tensor in module.state_dict().items():
                tensors[f"module.{prefix}.{name}{key}"] = tensor * scale
    torch.save({"epoch": 200, "arch": "test_resnet", "state_dict": tensors}, path)
    return path, encoder, head


def some_images(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)


def test_a_moco_checkpoint_gives_its_features_and_embeddings(tmp_path):
    path, encoder, head = moco_file(tmp_path / "moco.pth.tar")
    teacher = load_teacher("timm:test_resnet", weights=path, image_size=32)
    images = some_images(32)
    pixels = ((images.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        expected = encoder(pixels)
        projected = head(expected)
    feature, embedding = teacher(images)
    torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embedding, projected, rtol=1e-5, atol=1e-6)


def test_the_description_names_the_bytes_and_not_the_file(tmp_path):
    path, _, _ = moco_file(tmp_path / "moco.pth.tar")
    description = load_teacher("timm:test_resnet", weights=path, image_size=32).description()
    assert description["weights"] == {
        "source": "file",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    assert description["licence"] is None
    assert str(tmp_path) not in json.dumps(description)
    path.rename(tmp_path / "renamed.pth.tar")
    again = load_teacher("timm:test_resnet", weights=tmp_path / "renamed.pth.tar", image_size=32)
    assert again.description() == description  # the same bytes are the same teacher


def test_loading_draws_no_random_numbers(tmp_path):
    path, _, _ = moco_file(tmp_path / "moco.pth.tar")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_teacher("timm:test_resnet", weights=path, image_size=32)
    assert torch.equal(torch.rand(4), expected)


def test_the_image_size_is_timms_unless_given(tmp_path):
    path, _, _ = moco_file(tmp_path / "moco.pth.tar")
    assert load_teacher("timm:test_resnet", weights=path).image_size == 160


def test_a_vision_transformer_of_another_size_is_refused(tmp_path):
    vit = timm.create_model("test_vit", num_classes=0)
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match="1 of another shape: `pos_embed 1x101x64 for 1x17x64`"):
        load_teacher("timm:test_vit", weights=tmp_path / "w.safetensors", image_size=64)


def test_weights_of_another_model_are_refused(tmp_path):
    path, _, _ = moco_file(tmp_path / "moco.pth.tar")
    with pytest.raises(TeacherError, match="not those of `test_efficientnet`"):
        load_teacher("timm:test_efficientnet", weights=path)


def test_a_bare_timm_model_is_answered_with_its_full_name():
    with pytest.raises(TeacherError, match="no teacher `resnet18`") as caught:
        load_teacher("resnet18")
    assert caught.value.hint == "write `timm:resnet18`"


@pytest.mark.parametrize("name", ["rsnet", "a/b:c", "timn:", ""])
def test_an_unknown_teacher_is_answered_with_what_a_name_may_be(name):
    with pytest.raises(TeacherError, match=f"no teacher `{name}`; known are names of the registry"):
        load_teacher(name)


def test_a_mistyped_name_is_answered_with_a_close_one():
    with pytest.raises(TeacherError, match="no teacher `swav_r5O`") as caught:
        load_teacher("swav_r5O")
    assert caught.value.hint == "did you mean `swav_r50`?"


def test_an_unknown_timm_model_is_answered_with_close_names():
    with pytest.raises(TeacherError, match="no model `resnt18`") as caught:
        load_teacher("timm:resnt18")
    assert "`resnet18`" in caught.value.hint


def test_a_model_that_timm_has_no_weights_for_asks_for_a_file():
    with pytest.raises(TeacherError, match="could not be downloaded") as caught:
        load_teacher("timm:ghostnet_050", image_size=32)
    assert "--weights FILE" in caught.value.hint


def test_without_a_network_a_file_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(TeacherError, match="could not be downloaded") as caught:
        load_teacher("timm:test_resnet", image_size=32)
    assert "--weights FILE" in caught.value.hint


def test_real_weights_of_an_efficientnet_give_timms_features(shared):
    path = shared / "data" / "weights" / "tf_efficientnet_lite0.safetensors"
    teacher = load_teacher("timm:tf_efficientnet_lite0", weights=path, image_size=64)
    assert (teacher.feature_dim, teacher.head) == (1280, None)
    assert teacher.backbone.mean == teacher.backbone.std == (0.5, 0.5, 0.5)
    reference = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(path)).eval()
    images = some_images(64)
    pixels = (images.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = reference.forward_features(pixels.permute(0, 3, 1, 2))
        expected = reference.forward_head(features, pre_logits=True)
    torch.testing.assert_close(teacher(images)[0], expected, rtol=1e-4, atol=1e-5)


def test_real_half_precision_weights_load_without_their_classifier(shared):
    path = shared / "data" / "weights" / "resnet18_tinyimagenet_aughost.fp16.safetensors"
    teacher = load_teacher("timm:resnet18", weights=path, image_size=64)
    feature, embedding = teacher(some_images(64))
    assert feature.shape == (2, 512)
    assert feature.isfinite().all()
    assert embedding is None
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
