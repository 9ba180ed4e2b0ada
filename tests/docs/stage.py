"""A tiny, real world in which the commands of the guide run: what their names stand for.

Pages show `imagenet/train`, `resnet18` and `s3://team/r50`; here are a few patches of photographs,
a tiny network with random weights and an S3 server on this machine. All that differs from what a
page says stands in the tables of this file.
"""

import shutil
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save, save_file
from share.fake_hub import Blob, Hub
from skimage import data as photographs

from kdcache.files import sha256_of
from kdcache.methods import get_method

INSTEAD = {
    "--teacher r50 --weights": "--teacher timm:test_resnet --weights",
    "--teacher r50": "--teacher stage_teachers:r50",
    "--teacher r50_800": "--teacher stage_teachers:r50_800",
    "timm:resnet50": "timm:test_resnet",
    "timm:tf_efficientnet_lite0": "timm:test_resnet",
    "resnet18": "test_resnet",
    "untrained:resnet18": "untrained:test_resnet",
    "mobilenetv3_large_100": "test_efficientnet",
    "configs/seed/resnet18.toml": "{configs}/seed/resnet18.toml --student test_resnet",
    "configs/simreg/resnet18.toml": "{configs}/simreg/resnet18.toml --student test_resnet",
    "r18.toml": "simreg/r18.toml",
    "effnet.toml": "simreg/effnet.toml",
    "https://example.org/r50": "{http}/r50",
    "s3://team/r50@IDENTITY": "s3://team/r50@{identity}",
    "0:100000": "0:32",
    "[--history]": "--history",
    "...": "--method simreg --data imagenet/train --student test_resnet --out far",
}
"""Words of a command, and those that take their place; the longest match counts."""

SMALL = {
    "extract": "--image-size 32 --batch-size 16 --workers 0",
    "extend": "--workers 0",
    "train": "--workers 0 --set student.image_size=32 --set train.epochs=1"
    " --set train.batch_size=16",
    "eval": "--workers 0",
    "export": "",
    "plan": "--image-size 32 --batch-size 16 --workers 0",
    "report": "--workers 0",
    "verify": "",
    "teachers check": "--image-size 32 --workers 0",
}
"""What is added to a command, where it does not say otherwise itself."""

BRIEF = {
    "knn:dino": "knn.k=[1,10]",
    "linear:": "linear.epochs=2",
    "semi-frozen:": "semi-frozen.epochs=2",
    "semi-finetune:": "semi-finetune.epochs=2",
    "transfer-linear:": "transfer-linear.epochs=2",
    "transfer-finetune": "transfer-finetune.epochs=2",
}
"""Settings of protocols, for the few images and seconds that there are."""

PYTHON = {
    '"resnet50"': '"test_resnet"',
    '"resnet18"': '"test_resnet"',
    "image_size=224": "image_size=32",
    'torch.device("cuda")': 'torch.device("cpu")',
    "workers=16": "workers=0",
    "batch_size=64": "batch_size=16",
}
"""What is replaced in blocks of Python."""

_TEACHERS = """
import timm, torch
from torch import nn
from kdcache.teachers import own_teacher

def _teacher(name):
    torch.manual_seed(len(name))
    model = timm.create_model("test_resnet", num_classes=0)
    head = nn.Sequential(nn.Linear(model.num_features, 32), nn.ReLU(), nn.Linear(32, 16))
    grey = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return own_teacher(name, model, image_size=32, head=head, **grey)

def r50():
    return _teacher("r50")

def r50_800():
    return _teacher("r50_800")
"""

_CLASSES = ("brick", "grass", "gravel", "page")
_PER_CLASS = {"train": 12, "val": 6}
_SIDE = 48
_DATA_SETS = ("imagenet", "tiny50", "tiny2000", "cars")


def build_stage(root: Path) -> Path:
    """Everything that the pages' commands find in their folder, at `root`."""
    _cut_patches(root / "imagenet")
    for name in _DATA_SETS[1:]:
        (root / name).symlink_to(root / "imagenet")
    (root / "sketches").symlink_to(root / "imagenet" / "val")
    paths = sorted(path.relative_to(root) for path in (root / "imagenet/train").rglob("*.png"))
    (root / "images.tsv").write_text("\n".join(["path", *map(str, paths)]) + "\n")
    labelled = [path for path in paths if path.stem == "0"]
    (root / "10percent.txt").write_text(
        "".join(f"{path.parent.name}/{path.name}\n" for path in labelled)
    )
    (root / "stage_teachers.py").write_text(_TEACHERS)
    (root / "simreg").mkdir()
    for name, student in (("r18", "test_resnet"), ("effnet", "test_efficientnet")):
        recipe = f'[method]\nname = "simreg"\n\n[student]\nname = "{student}"\n'
        (root / "simreg" / f"{name}.toml").write_text(recipe)
    (root / "gpu.toml").write_text(_assumed_rates())
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", num_classes=0)
    state = model.state_dict()
    torch.save(state, root / "strong.pth")
    head = torch.nn.Sequential(
        torch.nn.Linear(model.num_features, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)
    )
    with_head = {**state, **{f"fc.{key}": value for key, value in head.state_dict().items()}}
    torch.save({"state_dict": with_head}, root / "moco_v2_200ep.pth.tar")
    save_file(state, root / "tf_efficientnet_lite0.safetensors")
    return root


def enter_stage(stage: Path, folder: Path) -> Path:
    """A page's own folder, in which the stage lies."""
    folder.mkdir()
    for entry in stage.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


def follow(left: Path, folder: Path) -> Path:
    """A page's own folder, as another page has left its."""
    return shutil.copytree(left, folder, symlinks=True)


def serve_weights(hub: Hub) -> None:
    """Have the hub hold timm's weights of the tiny network, as random ones."""
    torch.manual_seed(6)
    model = timm.create_model("test_resnet")
    hub.add_repo(f"models/{model.default_cfg['hf_hub_id']}", private=False).commit(
        {"model.safetensors": Blob(save(model.state_dict()), is_lfs=True)}
    )
    for blob in hub.repos[f"models/{model.default_cfg['hf_hub_id']}"].head.values():
        hub.objects[blob.sha256] = blob.data


def staged(words: list[str], addresses: dict[str, str]) -> list[str]:
    """A command as it is run: words exchanged, small settings added."""
    found: list[str] = []
    while words:
        length, instead = _longest_match(words)
        found += [word.format(**addresses) if "{" in word else word for word in instead]
        words = words[length:]
    return [*found, *_small(found)]


def _longest_match(words: list[str]) -> tuple[int, list[str]]:
    for key in sorted(INSTEAD, key=lambda key: -len(key.split())):
        length = len(key.split())
        if words[:length] == key.split():
            return length, INSTEAD[key].split()
    return 1, words[:1]


def _small(words: list[str]) -> list[str]:
    command = " ".join(words[1:3]) if words[1] == "teachers" else words[1]
    added = SMALL.get(command, "").split()
    if "--image-size" in added and "--image-size" in words:
        added = added[: added.index("--image-size")] + added[added.index("--image-size") + 2 :]
    if command == "eval" and ":" in words[2]:
        added += ["--image-size", "32"]
    if command == "eval" and "--protocol" in words:
        asked = words[words.index("--protocol") + 1].split(",")
        brief = {value for key, value in BRIEF.items() for one in asked if one.startswith(key)}
        added += [word for value in sorted(brief) for word in ("--set", value)]
    if command == "plan" and "--student" in words:
        added += ["--set", "student.image_size=32", "--set", "train.batch_size=16"]
    if _trains(command, words) and "queue" in get_method(_method(words)).Config.model_fields:
        added += ["--set", "method.queue=16"]
    return added


def _trains(command: str, words: list[str]) -> bool:
    return command == "train" or (command == "plan" and "--student" in words)


def _assumed_rates() -> str:
    """The rates of a cluster of GPUs, as the page on `kdcache plan` assumes them."""
    page = (Path(__file__).parents[2] / "docs/plan.md").read_text()
    return page.split("```toml\n", 1)[1].split("```", 1)[0]


def _method(words: list[str]) -> str:
    if "--method" in words:
        return words[words.index("--method") + 1]
    return Path(words[words.index("--config") + 1]).parent.name


def identity_of(cache: Path) -> str:
    """The name of a cache, and nothing where there is none."""
    manifest = cache / "manifest.json"
    return sha256_of(manifest) if manifest.is_file() else ""


def _cut_patches(folder: Path) -> None:
    for number, name in enumerate(_CLASSES):
        picture = Image.fromarray(getattr(photographs, name)()).convert("RGB")
        rng = np.random.default_rng(number)
        for split, count in _PER_CLASS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                left = int(rng.integers(picture.width - _SIDE))
                top = int(rng.integers(picture.height - _SIDE))
                patch = picture.crop((left, top, left + _SIDE, top + _SIDE))
                patch.save(folder / split / name / f"{index}.png")
