import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdcache.errors import ConfigError
from kdcache.students import build_student, load_student, save_student

MEAN = (0.4, 0.5, 0.6)
STD = (0.1, 0.2, 0.3)


def some_student(name="test_resnet"):
    torch.manual_seed(0)
    return build_student(name, image_size=32, mean=MEAN, std=STD)


def some_images():
    return torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_saved_student_comes_back_the_same(tmp_path, name):
    student = some_student(name)
    student(some_images())  # moves running statistics, where there are any
    save_student(tmp_path / "student.safetensors", student, {"method": "seed"})
    again = load_student(tmp_path / "student.safetensors")
    assert (again.name, again.image_size, again.mean, again.std) == (name, 32, MEAN, STD)
    images = some_images()
    assert torch.equal(again.eval()(images), student.eval()(images))


def test_timm_alone_takes_the_saved_weights(tmp_path):
    student = some_student()
    save_student(tmp_path / "student.safetensors", student, {})
    model = timm.create_model("test_resnet", num_classes=0)
    model.load_state_dict(load_file(tmp_path / "student.safetensors"))
    for key, tensor in student.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_metadata_says_how_to_use_the_file(tmp_path):
    save_student(tmp_path / "student.safetensors", some_student(), {"method": "seed"})
    with safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["kdcache"])
    assert about.pop("version")
    assert about == {
        "name": "test_resnet",
        "image_size": 32,
        "mean": list(MEAN),
        "std": list(STD),
        "method": "seed",
    }


def test_equal_students_are_equal_files(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        save_student(file, some_student(), {"method": "seed", "epochs": "200"})
    assert len({file.read_bytes() for file in files}) == 1


def test_mean_and_std_are_timms_unless_given():
    student = build_student("test_resnet", image_size=32)
    assert (student.mean, student.std) == ((0.5,) * 3, (0.5,) * 3)


def test_a_foreign_file_of_weights_is_no_student(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="not a student saved by kdcache: it has no"):
        load_student(tmp_path / "other.safetensors")


def test_a_truncated_student_is_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(path, some_student(), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not a student saved by kdcache"):
        load_student(path)


def test_a_missing_student_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_student(tmp_path / "student.safetensors")
