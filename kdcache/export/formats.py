"""The forms in which a student leaves: each is written, loaded again as its user would, compared.

All of them take what timm's transforms give: float32 pixels [B, 3, S, S], normalised with the mean
and the standard deviation that stand in `config.json`, and give the feature [B, F]. Any B.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdcache.errors import MissingExtra
from kdcache.files import atomic_file, canonical_json, write_atomic
from kdcache.networks import Backbone, timm_config
from kdcache.shapes import Float

Runs = Callable[[Float[Tensor, "B 3 S S"]], Float[Tensor, "B F"]]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TAG = "kdcache"
"""timm's word for where weights come from."""


def write_timm(student: Backbone, folder: Path, metadata: Mapping[str, str]) -> Runs:
    """`config.json` and `model.safetensors`, as timm and the Hugging Face Hub lay a model out.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them, and so does
    `timm.create_model("hf-hub:ORG/MODEL", pretrained=True)` when they are uploaded.
    """
    tensors = {
        name: t.detach().cpu().contiguous() for name, t in student.model.state_dict().items()
    }
    # One entry, because safetensors writes several in random order.
    about = json.dumps(dict(metadata), sort_keys=True)
    write_atomic(folder / WEIGHTS, save(tensors, {"kdcache": about}))
    write_atomic(folder / CONFIG, canonical_json(_config(student)))
    return _evaluating(timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True))


def write_state_dict(student: Backbone, folder: Path, metadata: Mapping[str, str]) -> Runs:
    """`model.pth`: the state dict under timm's keys, for `load_state_dict`.

    timm's ResNets have torchvision's keys, so `torchvision.models.resnet18` takes theirs too, but
    for the classifier `fc`, which a student has not.
    """
    state = {name: t.detach().cpu().contiguous() for name, t in student.model.state_dict().items()}
    with atomic_file(folder / "model.pth") as file:
        torch.save(state, file)
    model = timm.create_model(student.name, num_classes=0, **model_args(student))
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    return _evaluating(model)


def write_program(student: Backbone, folder: Path, metadata: Mapping[str, str]) -> Runs:
    """`model.pt2`: a program of torch.export, for ExecuTorch, AOTInductor and C++."""
    program = torch.export.export(_network(student), _example(student), dynamic_shapes=_any_batch())
    path = folder / "model.pt2"
    with atomic_file(path) as file:
        torch.export.save(program, file, extra_files=dict(metadata))  # type: ignore[arg-type]
    runs: Runs = torch.export.load(path).module()
    return runs


def write_onnx(student: Backbone, folder: Path, metadata: Mapping[str, str]) -> Runs:
    """`model.onnx`: input `images`, output `feature`; compared as ONNX Runtime runs it.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it, and would say so less clearly
    except ImportError as error:
        raise MissingExtra(
            f"ONNX needs `{error.name}`, which is not installed",
            hint="pip install 'kdcache[onnx]'",
        ) from error
    program = torch.onnx.export(
        _network(student),
        _example(student),
        input_names=["images"],
        output_names=["feature"],
        dynamic_shapes=_any_batch(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    path = folder / "model.onnx"
    with tempfile.TemporaryDirectory(dir=folder) as staged:
        program.save(Path(staged) / path.name, external_data=False)
        os.replace(Path(staged) / path.name, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def runs(images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        return torch.from_numpy(session.run(["feature"], {"images": images.numpy()})[0])

    return runs


FORMATS: Mapping[str, Callable[[Backbone, Path, Mapping[str, str]], Runs]] = {
    "timm": write_timm,
    "pth": write_state_dict,
    "onnx": write_onnx,
    "pt2": write_program,
}
"""What can be asked for. Each writes its files and returns how a user of them runs the network."""

FILES: Mapping[str, tuple[str, ...]] = {
    "timm": (CONFIG, WEIGHTS),
    "pth": ("model.pth",),
    "onnx": ("model.onnx",),
    "pt2": ("model.pt2",),
}
"""What each of them writes."""


def reference(student: Backbone) -> Runs:
    """The student as kdcache itself runs it, behind the normalisation."""
    return _evaluating(student.model)


def _network(student: Backbone) -> nn.Module:
    return student.model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def _example(student: Backbone) -> tuple[Float[Tensor, "2 3 S S"]]:
    return (torch.zeros(2, 3, student.image_size, student.image_size),)


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


def _evaluating(model: nn.Module) -> Runs:
    model.eval()

    def runs(images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        with torch.inference_mode():
            feature: Tensor = model(images)
        return feature

    return runs


def model_args(student: Backbone) -> dict[str, Any]:
    """What timm must be told to build this student, besides its name."""
    config = timm_config(student.name)
    side = (student.image_size, student.image_size)
    return (
        {"img_size": side[0]} if config.fixed_input_size and config.input_size[1:] != side else {}
    )


def _config(student: Backbone) -> dict[str, Any]:
    """timm's `config.json` (`timm/models/_hub.py` and `_pretrained.py` say what is read)."""
    known = timm_config(student.name)
    config: dict[str, Any] = {
        "architecture": student.name.partition(".")[0],
        "num_classes": 0,
        "num_features": student.feature_dim,
        "pretrained_cfg": {
            "tag": TAG,
            "custom_load": False,
            "input_size": [3, student.image_size, student.image_size],
            "fixed_input_size": known.fixed_input_size,
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(student.mean),
            "std": list(student.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.first_conv,
            "classifier": known.classifier,
        },
    }
    if args := model_args(student):
        config["model_args"] = args
    return config
