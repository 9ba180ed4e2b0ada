"""Every family of checkpoints: what is read computes what its authors' network computes."""

import argparse
import copy
import itertools
import pathlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from reference_nets import Padded, Vit, Wide, same_everywhere, same_pool, scrambled
from torch import Tensor, nn

from kdcache.errors import TeacherError
from kdcache.teachers import get_entry, load_teacher

Tensors = dict[str, Tensor]


def exclude_bias_and_norm(parameter):
    """VICReg's checkpoints name this function of their own `__main__`."""
    raise AssertionError("nothing of a checkpoint is run")


exclude_bias_and_norm.__module__ = "__main__"
exclude_bias_and_norm.__qualname__ = "exclude_bias_and_norm"


def mlp(*widths: int, norms: bool = False, bias: bool = True, gelu: bool = False) -> nn.Sequential:
    """Linear layers with activations, and batch normalisation, between them."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(outputs)] if norms else []
            layers.append(nn.GELU() if gelu else nn.ReLU())
    return nn.Sequential(*layers)


def under(prefix: str, module: nn.Module | None) -> Tensors:
    return {} if module is None else {f"{prefix}{k}": v for k, v in module.state_dict().items()}


def trained_with(module: nn.Module) -> dict[str, object]:
    """An optimiser's state, as checkpoints carry it."""
    some = [next(module.parameters())]
    optimiser = torch.optim.SGD(some, lr=0.03, momentum=0.9)
    some[0].grad = torch.zeros_like(some[0])
    optimiser.step()
    return optimiser.state_dict()


def moco(net: nn.Module, head: nn.Module | None) -> object:
    last = head[0] if head is not None and len(head) == 1 else head  # v1: the layer itself is `fc`
    tensors = {**under("module.encoder_q.", net), **under("module.encoder_q.fc.", last)}
    slow = {k.replace("encoder_q", "encoder_k"): 2 * v for k, v in tensors.items()}
    queue = {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1)}
    state = {**slow, **tensors, **queue}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": trained_with(net)}


def swav(net: nn.Module, head: nn.Module | None) -> object:
    prototypes = {"module.prototypes.weight": torch.zeros(3000, 128)}
    return {**under("module.", net), **under("module.projection_head.", head), **prototypes}


def deepcluster(net: nn.Module, head: nn.Module | None) -> object:
    prototypes = {f"module.prototypes.prototypes{i}.weight": torch.zeros(9, 128) for i in range(3)}
    return {**under("module.", net), **under("module.projection_head.", head), **prototypes}


def simclr(net: nn.Module, head: nn.Module | None) -> object:
    wrapper = "module.module.module."
    return {"model": {**under(wrapper, net), **under(f"{wrapper}fc.", head)}}


def simclr_tf(net: nn.Module, head: nn.Module | None) -> object:
    """Layers under the numbers that TensorFlow gave them: see `methods.md` 11."""
    order = ["conv1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            order += [f"{name}.downsample.0"] if block == 0 else []
            order += [f"{name}.conv{i}" for i in (1, 2, 3)]
    state: Tensors = {"fc.weight": torch.zeros(1000, 8192), "fc.bias": torch.zeros(1000)}
    for number, conv in enumerate(order):
        norm = conv.replace("downsample.0", "downsample.1").replace("conv", "bn")
        end = f"_{number}" if number else ""
        for key, value in net.get_submodule(conv).state_dict().items():
            state[f"conv2d{end}.{key}"] = value
        for key, value in net.get_submodule(norm).state_dict().items():
            state[f"batch_normalization{end}.{key}"] = value
    return {"state_dict": state}


def byol(net: nn.Module, head: nn.Module | None) -> object:
    counted = {k: v for k, v in under("", net).items() if "num_batches_tracked" not in k}
    return {**counted, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def flat(net: nn.Module, head: nn.Module | None) -> object:
    return under("", net)


def classified(net: nn.Module, head: nn.Module | None) -> object:
    width = net.layer4[-1].conv2.weight.shape[0]
    return {**under("", net), **under("fc.", nn.Linear(width, 1000))}


def barlow(net: nn.Module, head: nn.Module | None) -> object:
    loss = under("module.bn.", nn.BatchNorm1d(8192, affine=False))
    model = {**under("module.backbone.", net), **under("module.projector.", head), **loss}
    return {"epoch": 1000, "model": model, "optimizer": trained_with(net)}


def vicreg(net: nn.Module, head: nn.Module | None) -> object:
    model = {**under("module.backbone.", net), **under("module.projector.", head)}
    optimizer = trained_with(net)
    optimizer["param_groups"][0]["weight_decay_filter"] = exclude_bias_and_norm
    sys.modules["__main__"].exclude_bias_and_norm = exclude_bias_and_norm  # for pickle to name it
    return {"epoch": 1000, "model": model, "optimizer": optimizer}


def dino(net: nn.Module, head: nn.Module | None) -> object:
    last = {"last_layer.weight_g": torch.ones(99, 1), "last_layer.weight_v": torch.ones(99, 256)}
    if isinstance(net, Wide):
        last = {"last_layer.weight": torch.ones(99, 256)}
    teacher = {
        **under("backbone.", net),
        **under("head.mlp.", head),
        **{f"head.{key}": value for key, value in last.items()},
    }
    return {
        "student": {f"module.{key}": 2 * value for key, value in teacher.items()},
        "teacher": teacher,
        "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
        "epoch": 800,
        "args": argparse.Namespace(arch="vit_small", output_dir=pathlib.PosixPath("/checkpoint")),
        "dino_loss": {"center": torch.zeros(1, 99)},
    }


@dataclass(frozen=True)
class Case:
    """A teacher of the registry, its network by our reference, and its container."""

    net: Callable[[], nn.Module]
    container: Callable[[nn.Module, nn.Module | None], object]
    head: Callable[[], nn.Sequential] | None = None


def projector(inputs: int, *, last_bias: bool) -> nn.Sequential:
    """Barlow Twins' and VICReg's: only the former has no bias anywhere."""
    head = mlp(inputs, 8192, 8192, 8192, norms=True, bias=last_bias)
    head[6] = nn.Linear(8192, 8192, bias=False)
    return head


CASES = {
    "moco_v1_r50": Case(Wide, moco, lambda: mlp(2048, 128)),
    "r50": Case(Wide, moco, lambda: mlp(2048, 2048, 128)),
    "r101": Case(lambda: Wide(101), moco, lambda: mlp(2048, 2048, 128)),
    "swav_r50": Case(Padded, swav, lambda: mlp(2048, 2048, 128, norms=True)),
    "swav_r50w2": Case(lambda: Padded(2), swav, lambda: mlp(4096, 8192, 128, norms=True)),
    "deepclusterv2_r50": Case(Padded, deepcluster, lambda: mlp(2048, 2048, 128, norms=True)),
    "selav2_r50": Case(Padded, swav, lambda: mlp(2048, 2048, 128, norms=True)),
    "simclr_r50": Case(Wide, simclr, lambda: mlp(2048, 2048, 128, norms=True)),
    "byol_r50": Case(lambda: same_everywhere(Wide()), byol),
    "barlow_r50": Case(Wide, flat),
    "barlow_r50_full": Case(Wide, barlow, lambda: projector(2048, last_bias=False)),
    "vicreg_r50": Case(Padded, flat),
    "vicreg_r50_full": Case(Padded, vicreg, lambda: projector(2048, last_bias=True)),
    "dino_r50": Case(Wide, flat),
    "dino_r50_full": Case(Wide, dino, lambda: mlp(2048, 4096, 256, norms=True, gelu=True)),
    "dino_vits16": Case(lambda: Vit(16, 14), flat),
    "dino_vits16_full": Case(
        lambda: Vit(16, 14), dino, lambda: mlp(384, 2048, 2048, 256, gelu=True)
    ),
    "dinov2_vits14": Case(lambda: Vit(14, 37, v2=True), flat),
    "dinov2_vits14_reg": Case(lambda: Vit(14, 37, v2=True, registers=4), flat),
    "sup_r18": Case(lambda: Wide(18), classified),
    "sup_r50": Case(Wide, classified),
}
WIDEST = {
    "swav_r50w4": Case(lambda: Padded(4), swav, lambda: mlp(8192, 8192, 128, norms=True)),
    "swav_r50w5": Case(lambda: Padded(5), swav, lambda: mlp(10240, 10240, 128)),
    "simclr_r50x4": Case(lambda: same_pool(Wide(50, 4)), simclr_tf),
    "simclr_r50x4_compress": Case(lambda: Wide(50, 4), simclr_tf),
}


def build(case: Case) -> tuple[nn.Module, nn.Sequential | None]:
    torch.manual_seed(0)
    head = None if case.head is None else case.head()
    return scrambled(case.net()), None if head is None else scrambled(head)


def images_of(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=generator)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-3 * expected.abs().max()  # something to compare
    assert (found - expected).norm() <= tolerance * expected.norm()


def check(name: str, case: Case, path: pathlib.Path, sides: tuple[int, ...]) -> None:
    entry = get_entry(name)
    net, head = build(case)
    torch.save(case.container(net, head), path)
    net.double()
    if head is not None:
        head.double()
    for side in sides:
        teacher = load_teacher(name, weights=path, image_size=side)
        images = images_of(side)
        mean, std = torch.tensor(entry.mean).double(), torch.tensor(entry.std).double()
        pixels = ((images.double() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            expected = net(pixels)
            projected = None if head is None else head(expected)
            feature, embedding = teacher(images)
            assert_same(feature, expected, 1e-5)  # in float32
            assert_same(teacher.double().backbone.model(pixels), expected)
            if projected is None:
                assert embedding is teacher.head is None
            else:
                assert_same(embedding, projected, 1e-5)
                assert_same(teacher.head(expected), projected)
    path.unlink()


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_computes_what_the_authors_network_computes(name, tmp_path):
    # BYOL's padding depends on the size, and so do the positions of vision transformers.
    sides = {"byol_r50": (224, 75), "dino_vits16": (224, 112)}
    sides |= dict.fromkeys(("dinov2_vits14", "dinov2_vits14_reg"), (224,))
    check(name, CASES[name], tmp_path / "teacher.pth", sides.get(name, (64,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDEST)
def test_the_widest_are_read_as_well(name, tmp_path):
    check(name, WIDEST[name], tmp_path / "teacher.pth", (64,))


def test_byols_weights_in_the_usual_resnet_are_another_teacher(tmp_path):
    """What `byol_r50` is for: the file loads into it without a word."""
    net, _ = build(CASES["byol_r50"])
    torch.save(byol(net, None), tmp_path / "byol.pth")
    right = load_teacher("byol_r50", weights=tmp_path / "byol.pth")
    usual = load_teacher("timm:resnet50", weights=tmp_path / "byol.pth", image_size=224)
    images = images_of(224)
    assert (right(images)[0] - usual(images)[0]).norm() > 0.01 * right(images)[0].norm()


def tensors_in(content: object) -> Tensors:
    """The tensors of the teacher in a container, to be damaged in place."""
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return tensors_in(content[key])
    assert isinstance(content, dict)
    return content


def dropped(tensors: Tensors, key: str) -> None:
    del tensors[key]


def renamed(tensors: Tensors, key: str) -> None:
    prefix, _, end = key.rpartition(".")
    tensors[f"{prefix}x.{end}"] = tensors.pop(key)


def transposed(tensors: Tensors, key: str) -> None:
    tensors[key] = tensors[key].transpose(0, 1).contiguous()


def longer(tensors: Tensors, key: str) -> None:
    tensors[key] = torch.cat([tensors[key], tensors[key][:1]])


DAMAGES = [dropped, renamed, transposed, longer]
ALIKE = {"r101", "swav_r50w2", "selav2_r50", "barlow_r50", "dino_r50", "sup_r50"}
"""Those whose layout another case has."""


@pytest.mark.parametrize("name", [name for name in CASES if name not in ALIKE])
def test_what_is_damaged_is_refused(name, tmp_path):
    case = CASES[name]
    net, head = build(case)
    content = case.container(net, head)
    rng = np.random.default_rng(sum(name.encode()))
    whole = tensors_in(content)
    matrices = [
        key
        for key, tensor in whole.items()
        if tensor.ndim >= 2
        and tensor.shape[0] != tensor.shape[1]
        and not any(word in key for word in ("encoder_k", "queue", "prototypes", "last_layer"))
        and not (key.startswith("fc.") and head is None)
        and key != "mask_token"
    ]
    of_head = re.compile(r".*(fc|projection_head|projector|head\.mlp)\.(\d+\.)?weight")
    heads = [key for key in matrices if of_head.fullmatch(key)]
    assert bool(heads) == (head is not None)
    damages = rng.permutation(np.array(DAMAGES))
    path = tmp_path / "damaged.pth"
    for i, damage in enumerate(damages):
        broken = copy.copy(whole)
        damage(broken, str(rng.choice(heads if heads and i % 2 else matrices)))
        torch.save({"state_dict": broken}, path)
        with pytest.raises(TeacherError) as caught:
            load_teacher(name, weights=path)
        assert caught.value.hint
