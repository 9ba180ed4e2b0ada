import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdcache.errors import TeacherError
from kdcache.teachers import read_checkpoint

WEIGHT = torch.arange(6.0).reshape(2, 3)
OTHER = torch.full((2, 3), 9.0)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.pth.tar"])
def test_torch_files_are_read_by_any_of_their_names(tmp_path, name):
    tensors = read_checkpoint(saved(tmp_path / name, {"conv.weight": WEIGHT}))
    assert tensors.keys() == {"conv.weight"}
    assert torch.equal(tensors["conv.weight"], WEIGHT)


def test_the_torch_format_of_before_2020_is_read(tmp_path):
    path = saved(tmp_path / "w.pth", {"a": WEIGHT}, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path)["a"], WEIGHT)


def test_safetensors_are_read(tmp_path):
    save_file({"a": WEIGHT}, tmp_path / "w.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "w.safetensors")["a"], WEIGHT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_integers_stay(tmp_path, dtype):
    save_file({"a": WEIGHT.to(dtype), "n": torch.tensor(3)}, tmp_path / "w.safetensors")
    tensors = read_checkpoint(tmp_path / "w.safetensors")
    assert tensors["a"].dtype == torch.float32
    assert torch.equal(tensors["a"], WEIGHT)
    assert tensors["n"].dtype == torch.int64


def test_parameters_come_without_a_gradient(tmp_path):
    path = saved(tmp_path / "w.pth", {"a": torch.nn.Parameter(WEIGHT)})
    assert not read_checkpoint(path)["a"].requires_grad


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": {"a": WEIGHT}, "epoch": 3}, {"a"}),
        ({"model": {"a": WEIGHT}, "opt": argparse.Namespace(lr=0.1)}, {"a"}),
        ({"student": {"a": OTHER}, "teacher": {"a": WEIGHT}, "epoch": 1}, {"a"}),
        ({"state_dict": {"model": {"a": WEIGHT}}}, {"a"}),
        ({"module.module.a": WEIGHT}, {"a"}),
        ({"module.a": WEIGHT, "b": WEIGHT}, {"module.a", "b"}),
        (
            {
                "module.encoder_q.a": WEIGHT,
                "module.encoder_k.a": OTHER,
                "module.teacher_encoder_q.a": OTHER,
                "module.queue": OTHER,
            },
            {"a"},
        ),
        (
            {
                "encoder_q.module.a": WEIGHT,
                "predict_q.module.0.weight": WEIGHT,
                "encoder_t.module.a": OTHER,
            },
            {"a", "predict_q.module.0.weight"},
        ),
        (
            {
                "module.student.a": WEIGHT,
                "module.student.fc.0.weight": WEIGHT,
                "module.teacher.a": OTHER,
                "module.queue": OTHER,
            },
            {"a", "fc.0.weight"},
        ),
        (
            {
                "module.backbone.a": WEIGHT,
                "module.head.mlp.0.weight": WEIGHT,
                "module.head.last_layer.weight_g": OTHER,
                "module.bn.running_mean": OTHER,
            },
            {"a", "head.mlp.0.weight"},
        ),
        ({"backbone.a": WEIGHT, "something.else": WEIGHT}, {"a", "something.else"}),
        (
            {"backbone.a": WEIGHT, "projection_head.0.weight": WEIGHT},
            {"a", "projection_head.0.weight"},
        ),
        ({"encoder.a": WEIGHT, "encoder.fc.0.weight": WEIGHT}, {"a", "fc.0.weight"}),
    ],
)
def test_containers_and_prefixes_are_taken_off(tmp_path, content, expected):
    tensors = read_checkpoint(saved(tmp_path / "w.pth", content))
    assert tensors.keys() == expected
    assert all(torch.equal(tensor, WEIGHT) for tensor in tensors.values())


def test_a_teacher_encoder_alone_is_not_taken_for_the_query_encoder(tmp_path):
    path = saved(tmp_path / "w.pth", {"teacher_encoder_q.a": WEIGHT})
    assert read_checkpoint(path).keys() == {"teacher_encoder_q.a"}


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def dump(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, dump])
def test_a_malicious_file_is_refused_before_it_runs(tmp_path, write):
    write({"a": WEIGHT, "extra": Malice(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="read safely") as caught:
        read_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()
    assert "state dict alone" in caught.value.hint
    # The trap does work on a reader that is not careful, so this test can fail.
    torch.save({"extra": Malice(tmp_path / "ran")}, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    with pytest.raises(TeacherError, match="read safely"):
        read_checkpoint(saved(tmp_path / "w.pth", torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("keep", [1, 0.5, 0.02])
def test_a_truncated_file_is_refused(tmp_path, name, keep):
    path = tmp_path / name
    tensors = {"a": torch.zeros(5000), "b": torch.zeros(5000)}
    if name == "w.pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: -1 if keep == 1 else int(len(data) * keep)])
    with pytest.raises(TeacherError, match=r"bytes, beginning with") as caught:
        read_checkpoint(path)
    assert "download it again" in caught.value.hint


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_text_file_shows_how_it_begins(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html> <p>404</p>")
    with pytest.raises(TeacherError, match="<!DOCTYPE"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_random_bytes_are_refused(tmp_path, name):
    generator = np.random.default_rng(0)
    for _ in range(100):
        (tmp_path / name).write_bytes(generator.bytes(200))
        with pytest.raises(TeacherError):
            read_checkpoint(tmp_path / name)


def test_an_empty_file_a_folder_and_a_missing_file_say_what_they_are(tmp_path):
    (tmp_path / "empty.pth").touch()
    for name, words in {"empty.pth": "is empty", "": "is a folder", "x.pth": "not exist"}.items():
        with pytest.raises(TeacherError, match=words) as caught:
            read_checkpoint(tmp_path / name)
        assert "--weights FILE" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [([WEIGHT], "`list`"), ({"epoch": 3, "nets": {"a": WEIGHT}}, "`epoch`, `nets`"), ({}, "none")],
)
def test_a_file_without_a_state_dict_shows_its_keys(tmp_path, content, words):
    with pytest.raises(TeacherError, match=words):
        read_checkpoint(saved(tmp_path / "w.pth", content))
