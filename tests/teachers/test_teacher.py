import json

import pytest
import torch
from torch import nn

from kdcache.errors import TeacherError
from kdcache.heads import ProjectionHead
from kdcache.networks import build_backbone, parameter_digest
from kdcache.teachers import Teacher

LAYERS = [
    {"kind": "linear", "in": 96, "out": 32, "bias": True},
    {"kind": "batchnorm", "dim": 32, "affine": True, "eps": 1e-5},
    {"kind": "relu"},
    {"kind": "linear", "in": 32, "out": 16, "bias": True},
]


def some_teacher(layers=LAYERS) -> Teacher:
    torch.manual_seed(0)
    return Teacher(
        "timm:test_resnet",
        build_backbone("test_resnet", image_size=32),
        None if layers is None else ProjectionHead(layers),
        weights={"file": "w.pth", "sha256": "00", "bytes": 1},
        interpolation="bicubic",
        licence=None,
    )


def some_images(num: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (num, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_a_teacher_gives_feature_and_embedding():
    teacher = some_teacher()
    feature, embedding = teacher(some_images())
    assert feature.shape == (4, 96) == (4, teacher.feature_dim)
    assert embedding.shape == (4, 16) == (4, teacher.embedding_dim)
    assert torch.equal(feature, teacher.backbone(some_images()))
    assert torch.equal(embedding, teacher.head(feature))


def test_a_teacher_without_a_head_gives_no_embedding():
    teacher = some_teacher(layers=None)
    assert teacher(some_images())[1] is None
    assert teacher.embedding_dim is None


def test_a_teacher_is_frozen_whatever_is_around_it():
    teacher = some_teacher()
    digest = parameter_digest(teacher)
    whole = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(2, 2)})
    whole.train()
    assert whole["student"].training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    feature, embedding = teacher(some_images())
    assert not feature.requires_grad
    assert not embedding.requires_grad
    assert parameter_digest(teacher) == digest


def test_an_answer_does_not_depend_on_the_other_images():
    teacher = some_teacher()
    images = some_images()
    for whole, alone in zip(teacher(images), teacher(images[2:3]), strict=True):
        torch.testing.assert_close(whole[2:3], alone, rtol=1e-5, atol=1e-6)


def test_answers_are_deterministic():
    first, second = some_teacher()(some_images()), some_teacher()(some_images())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_answers_are_float32_under_autocast():
    teacher = some_teacher()
    with torch.autocast("cpu", torch.bfloat16):
        feature, embedding = teacher(some_images())
    assert feature.dtype == embedding.dtype == torch.float32
    assert not torch.equal(embedding, teacher(some_images())[1])  # it did compute in bfloat16


def test_the_description_is_plain_json():
    description = some_teacher().description()
    assert json.loads(json.dumps(description)) == description
    assert description == {
        "name": "timm:test_resnet",
        "architecture": "test_resnet",
        "weights": {"file": "w.pth", "sha256": "00", "bytes": 1},
        "image_size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "feature_dim": 96,
        "embedding_dim": 16,
        "head": LAYERS,
        "licence": None,
    }


def test_a_head_of_another_width_is_refused():
    with pytest.raises(TeacherError, match=r"takes `95` numbers, but `test_resnet` gives `96`"):
        some_teacher([{"kind": "linear", "in": 95, "out": 16, "bias": True}])
