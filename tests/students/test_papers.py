"""The papers' students: the width and the meaning of their feature, and their life as a student."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from kdcache.students import PAPER_STUDENTS, build_student, load_student, save_student

WIDTHS = {
    "resnet18": 512,
    "resnet34": 512,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "mobilenetv3_large_100": 1280,
    "mobilenetv2_100": 1280,
    "vit_tiny_patch16_224": 192,
}
SIZE = 64


@pytest.fixture(scope="module", params=WIDTHS)
def student(request):
    """One student for all tests of a name: whoever changes its weights or mode works on a copy."""
    torch.manual_seed(0)
    return build_student(request.param, image_size=SIZE)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def pixels_of(student, images):
    """The images as the network inside the student takes them."""
    mean, std = torch.tensor(student.mean), torch.tensor(student.std)
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def batch_norms_of(student):
    return [m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def stem_and_blocks(model, pixels):
    """Everything of an EfficientNet, MobileNetV2 or MobileNetV3 up to its last stage."""
    return model.blocks(model.bn1(model.conv_stem(pixels)))


def feature_by_hand(name, model, pixels):
    """What PAPER_STUDENTS says in words, layer by layer."""
    if name.startswith("resnet"):
        maps = model.maxpool(model.act1(model.bn1(model.conv1(pixels))))
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            maps = stage(maps)
        assert maps.min() >= 0, "after its ReLU"
        return maps.mean((2, 3))
    if name.startswith("mobilenetv3"):
        pooled = stem_and_blocks(model, pixels).mean((2, 3), keepdim=True)
        assert pooled.shape[1] == 960
        return functional.hardswish(model.conv_head(pooled)).flatten(1)
    if name.startswith("vit"):
        patches = model.patch_embed(pixels)
        tokens = torch.cat([model.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        return model.norm(model.blocks(tokens + model.pos_embed))[:, 0]
    bn = model.bn2
    maps = model.conv_head(stem_and_blocks(model, pixels))
    maps = functional.batch_norm(
        maps, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
    )
    activation = functional.relu6 if name.startswith("mobilenetv2") else functional.silu
    return activation(maps).mean((2, 3))


def test_the_papers_five_lead_the_list():
    assert list(WIDTHS) == list(PAPER_STUDENTS)


def test_feature_has_the_papers_width(student):
    assert student.feature_dim == WIDTHS[student.name]


@torch.no_grad()
def test_feature_is_the_tensor_that_is_described(student, images):
    student.eval()
    by_hand = feature_by_hand(student.name, student.model, pixels_of(student, images))
    feature = student(images)
    student.train()
    assert feature.std() > 0
    torch.testing.assert_close(feature, by_hand, rtol=1e-4, atol=1e-5)


def test_every_weight_learns(student, images):
    student = copy.deepcopy(student)
    for norm in batch_norms_of(student):
        # timm starts the last one of each residual block of a ResNet at zero: nothing that comes
        # before it in the block has a gradient at the very first step.
        if not norm.weight.any():
            nn.init.ones_(norm.weight)
    target = torch.randn(3, student.feature_dim, generator=torch.Generator().manual_seed(2))
    (student(images) * target).sum().backward()
    still = [n for n, w in student.named_parameters() if w.grad is None or not w.grad.any()]
    assert still == []


def test_batch_norm_moves_in_training_only(student, images):
    norms = batch_norms_of(student)
    assert bool(norms) != student.name.startswith("vit")
    before = [norm.running_mean.clone() for norm in norms]
    student.eval()(images)
    assert all(torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True))
    student.train()(images)
    assert not any(torch.equal(n.running_mean, b) for n, b in zip(norms, before, strict=True))


@torch.no_grad()
def test_nothing_is_dropped_in_training(student, images):
    """Two passes of the same batch differ only if something is drawn: dropout, drop path."""
    assert student.training
    assert torch.equal(student(images), student(images))


@torch.no_grad()
def test_timm_alone_takes_the_saved_student(student, images, tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(path, student, {})
    size = {"img_size": SIZE} if student.name.startswith("vit") else {}
    model = timm.create_model(student.name, num_classes=0, **size)
    model.load_state_dict(load_file(path))
    wanted = student.eval()(images)
    student.train()
    torch.testing.assert_close(model.eval()(pixels_of(student, images)), wanted)
    assert torch.equal(load_student(path).eval()(images), wanted)


def test_documentation_holds_the_measured_table():
    text = (Path(__file__).parents[2] / "docs" / "students.md").read_text()
    for name, feature in PAPER_STUDENTS.items():
        model = timm.create_model(name, num_classes=0)
        parameters = sum(weight.numel() for weight in model.parameters())
        assert f"| `{name}` | {WIDTHS[name]} | {parameters:,} | {feature} |" in text
