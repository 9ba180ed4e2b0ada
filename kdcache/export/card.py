"""The model card of an exported student: what it is, who taught it, how to load it.

It says only what the run recorded; what was not recorded is said to be unknown. The lines between
dashes are the Hugging Face Hub's metadata.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import kdcache
from kdcache.export.formats import model_args
from kdcache.networks import Backbone
from kdcache.share.card import seal

_LOADING = {
    "timm": """```python
import timm, torch

model = timm.create_model("{where}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
feature = model(transform(image)[None])
```""",
    "pth": """```python
model = timm.create_model({name!r}, num_classes=0{args})
model.load_state_dict(torch.load("model.pth", weights_only=True))
```""",
    "onnx": """```python
session = onnxruntime.InferenceSession("model.onnx")
(feature,) = session.run(["feature"], {{"images": pixels}})  # float32 [B, 3, {size}, {size}]
```""",
    "pt2": """```python
feature = torch.export.load("model.pt2").module()(pixels)  # float32 [B, 3, {size}, {size}]
```""",
}


def model_card(
    student: Backbone,
    about: Mapping[str, Any],
    record: Mapping[str, Any] | None,
    formats: Sequence[str],
    where: str,
) -> str:
    """The text of README.md, sealed: a card that was edited is not replaced on the Hub.

    Args:
        about: what the student's file says of itself, and `parameters_sha256`.
        record: `recipe.json` of the run; None for a file without one.
        formats: those that lie beside the card.
        where: what timm is told to load.
    """
    num_parameters = sum(weight.numel() for weight in student.model.parameters())
    facts = [
        ("architecture", f"timm `{student.name}`, without a classifier"),
        ("input", _input(student)),
        ("feature", f"{student.feature_dim} numbers, pooled, not normalised"),
        ("parameters", f"{num_parameters / 1e6:.2f} M, SHA-256 `{about['parameters_sha256']}`"),
        ("made by", f"kdcache {about['version']}; exported by {kdcache.__version__}"),
        *_training(about, record),
    ]
    loading = "\n\n".join(
        _LOADING[name].format(
            name=student.name, size=student.image_size, args=_args(student), where=where
        )
        for name in formats
    )
    parts = [
        "---",
        "license: unknown",
        "library_name: timm",
        "pipeline_tag: image-feature-extraction",
        "tags: [timm, image-feature-extraction, knowledge-distillation, kdcache]",
        "---",
        f"# {student.name}, a student of kdcache",
        "",
        "A backbone for image features" + _taught(record) + ".",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        "## Use",
        loading,
        "",
        "Pixels are RGB in 0 to 1, less `mean`, by `std`; the largest difference of any form from"
        " the original was checked when it was exported.",
        *_recipe(record),
    ]
    return seal("\n".join(parts) + "\n\n")


def _input(student: Backbone) -> str:
    numbers = ", ".join(f"{value:g}" for value in student.mean)
    spread = ", ".join(f"{value:g}" for value in student.std)
    side = student.image_size
    return f"{side} x {side} RGB, mean ({numbers}), std ({spread})"


def _args(student: Backbone) -> str:
    return "".join(f", {name}={value}" for name, value in model_args(student).items())


def _taught(record: Mapping[str, Any] | None) -> str:
    teachers = [t["name"] for t in (record or {}).get("taught_by", [])]
    if teachers:
        return ", distilled from " + " and ".join(f"`{name}`" for name in teachers)
    return ", trained without a teacher" if record and not record.get("caches") else ""


def _training(about: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    facts = [("method", f"`{about['method']}`")] if "method" in about else []
    if record is None:
        return [*facts, ("training", "not known: the file was exported without its run")]
    train = record["recipe"]["train"]
    facts.append(("training", f"{train['epochs']} epochs at batch {train['batch_size']}"))
    # Runs of before `taught_by` was recorded name their caches alone.
    taught_by, caches = record.get("taught_by", []), record.get("caches", [])
    for teacher, identity in zip(taught_by, caches, strict=False):
        facts.append(
            (
                "teacher",
                f"`{teacher['name']}` at {teacher['image_size']} px (weights:"
                f" {teacher['weights']['source']}, licence: {teacher['licence'] or 'not known'}),"
                f" {teacher['views']} `{teacher['policy']}` views of {teacher['images']:,} images,"
                f" cache `{identity}`",
            )
        )
    facts.append(("licence", "not stated: it may be bound by those of teacher and images"))
    return facts


def _recipe(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return []
    text = json.dumps(record["recipe"], indent=2, sort_keys=True)
    return ["", "## Recipe", "```json", text, "```"]
