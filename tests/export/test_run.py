"""An exported student gives the same features in every program that loads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import ModelCard
from torch import nn

from kdcache.errors import ConfigError
from kdcache.export import formats, run, run_export
from kdcache.networks import parameter_digest
from kdcache.progress import silent_bar
from kdcache.students import build_student, save_student


def student_file(folder: Path, name: str = "test_efficientnet", size: int = 40) -> Path:
    """A student whose batch norms have seen something, so that none of them is the identity."""
    torch.manual_seed(3)
    student = build_student(name, image_size=size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    student.train()
    for _ in range(3):
        student(torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8))
    save_student(folder / "student.safetensors", student, {"method": "simreg"})
    return folder / "student.safetensors"


def run_folder(folder: Path, **about) -> Path:
    student_file(folder)
    record = {
        "recipe": {"method": {"name": "simreg"}, "train": {"epochs": 7, "batch_size": 32}},
        "caches": ["c0ffee"],
        "taught_by": [
            {
                "name": "swav_r50",
                "weights": {"source": "somewhere", "sha256": "ab"},
                "image_size": 96,
                "licence": "CC-BY-NC-4.0",
                "policy": "weak",
                "views": 4,
                "images": 1234,
            }
        ],
        **about,
    }
    (folder / "recipe.json").write_text(json.dumps(record))
    return folder


def our_features(path: Path, pixels: np.ndarray) -> np.ndarray:
    from kdcache.students import load_student

    with torch.no_grad():
        return load_student(path).eval()(torch.from_numpy(pixels)).numpy()


def normalised(pixels: np.ndarray) -> np.ndarray:
    """What a timm transform would give, in plain numpy."""
    mean, std = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.25])
    values = (pixels.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)


@pytest.mark.slow
def test_timm_onnx_runtime_and_torch_export_give_the_features_of_kdcache(tmp_path, pixels):
    import onnxruntime

    source, out = student_file(tmp_path), tmp_path / "out"
    exported = run_export(source, out, ["timm", "pth", "onnx", "pt2"], bar=silent_bar)
    assert set(exported.differences) == set(formats.FORMATS)
    expected, images = our_features(source, pixels), normalised(pixels)

    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, 40, 40)
    assert tuple(config["mean"]) == (0.4, 0.5, 0.6)
    assert tuple(config["std"]) == (0.2, 0.3, 0.25)
    bare = timm.create_model("test_efficientnet", num_classes=0).eval()
    bare.load_state_dict(torch.load(out / "model.pth", weights_only=True))
    program = torch.export.load(out / "model.pt2").module()
    with torch.no_grad():
        for network in (model, bare, program):
            found = network(torch.from_numpy(images)).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())

    session = onnxruntime.InferenceSession(out / "model.onnx")
    (feature,) = session.run(["feature"], {"images": images})
    np.testing.assert_allclose(feature, expected, atol=1e-5 * np.abs(expected).max())
    assert session.get_inputs()[0].shape == ["batch", 3, 40, 40]
    about = session.get_modelmeta().custom_metadata_map
    assert about["student"] == "test_efficientnet"
    assert about["parameters_sha256"] == parameter_digest(bare)


def test_student_of_another_size_than_its_architecture_is_rebuilt_by_timm(tmp_path):
    """A transformer's position embedding is tied to the side, which timm must be told."""
    source, out = student_file(tmp_path, "test_vit", 80), tmp_path / "out"
    run_export(source, out, ["timm", "pth"], bar=silent_bar)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    pixels = np.random.default_rng(1).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8)
    with torch.no_grad():
        found = model(torch.from_numpy(normalised(pixels))).numpy()
    np.testing.assert_allclose(found, our_features(source, pixels), rtol=1e-4, atol=1e-5)
    assert "img_size=80" in (out / "README.md").read_text()


def test_torchvision_takes_the_state_dict_of_a_resnet(tmp_path):
    out = tmp_path / "out"
    run_export(student_file(tmp_path, "resnet18", 32), out, ["pth"], bar=silent_bar)
    network = torchvision.models.resnet18()
    state = torch.load(out / "model.pth", weights_only=True)
    keys = network.load_state_dict(state, strict=False)
    assert sorted(keys.missing_keys) == ["fc.bias", "fc.weight"]
    assert not keys.unexpected_keys


def test_card_says_what_the_run_recorded_and_the_hub_can_read_it(tmp_path):
    out = tmp_path / "out"
    run_export(run_folder(tmp_path), out, ["timm"], bar=silent_bar)
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == "timm"
    for said in (
        "`swav_r50`",
        "CC-BY-NC-4.0",
        "`c0ffee`",
        "4 `weak` views of 1,234 images",
        "7 ep",
    ):
        assert said in card.text
    assert str(tmp_path) not in card.text


def test_card_of_a_lone_file_says_that_its_training_is_not_known(tmp_path):
    run_export(student_file(tmp_path), tmp_path / "out", ["timm"], bar=silent_bar)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "not known: the file was exported without its run" in text


def test_card_of_a_run_without_a_teacher_says_so(tmp_path):
    run_export(
        run_folder(tmp_path, caches=[], taught_by=[]), tmp_path / "out", ["timm"], bar=silent_bar
    )
    assert "trained without a teacher" in (tmp_path / "out" / "README.md").read_text()


def test_same_export_twice_is_the_same_bytes(tmp_path):
    source, out = run_folder(tmp_path), tmp_path / "out"
    run_export(source, out, ["timm"], bar=silent_bar)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    run_export(source, out, ["timm"], bar=silent_bar)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_form_that_gives_other_features_is_refused(tmp_path, monkeypatch):
    class Wrong(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images) + 1e-3

    def write_wrong(student, folder, metadata):
        return formats._evaluating(Wrong(student.model))

    monkeypatch.setitem(formats.FORMATS, "pth", write_wrong)
    with pytest.raises(ConfigError, match="`pth` gives other features"):
        run_export(student_file(tmp_path), tmp_path / "out", ["pth"], bar=silent_bar)
    assert not (tmp_path / "out" / run.CARD).exists()


@pytest.mark.parametrize(
    ("make", "form", "said"),
    [
        (lambda tmp: tmp / "none", "timm", "holds no `student.safetensors`"),
        (student_file, "tflite", "no form `tflite`"),
        (student_file, "", "no form ``"),
    ],
)
def test_wrong_request_is_refused_before_anything_is_written(tmp_path, make, form, said):
    with pytest.raises(ConfigError, match=said):
        run_export(make(tmp_path), tmp_path / "out", form.split(","), bar=silent_bar)
    assert not (tmp_path / "out").exists()


def test_folder_with_other_things_in_it_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"it holds `thesis\.tex`"):
        run_export(student_file(tmp_path), out, ["timm"], bar=silent_bar)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
