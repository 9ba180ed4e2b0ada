"""Own teachers, from Python and by `module:function`."""

import sys

import pytest
import torch
from torch import nn

from kdcache.errors import TeacherError
from kdcache.teachers import load_teacher, own_teacher

MODULE = """
import torch
from torch import nn
from kdcache.teachers import own_teacher

NOT_A_TEACHER = 3

def mean_of_each_channel(scale=1.0):
    torch.manual_seed(3)
    head = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4))
    return own_teacher("own", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=32,
                       mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), head=head, licence="MIT")

def a_bare_module():
    return nn.Flatten()

def needs_another_module():
    import a_module_that_is_not_there
"""
IMAGES = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)


def test_the_function_of_a_module_in_the_current_folder_gives_the_teacher():
    before = list(sys.path)
    teacher = load_teacher("mine:mean_of_each_channel")
    assert sys.path == before
    feature, embedding = teacher(IMAGES)
    expected = (IMAGES.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(feature, expected.mean(dim=(1, 2)))
    torch.manual_seed(3)
    head = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4)).eval()
    torch.testing.assert_close(embedding, head(feature).detach())
    said = teacher.description()
    assert (said["name"], said["licence"]) == ("mine:mean_of_each_channel", "MIT")
    assert [layer["kind"] for layer in said["head"]] == ["linear", "batchnorm", "gelu", "linear"]


def test_its_weights_are_known_by_their_digest():
    def digest(fill: float) -> str:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        nn.init.constant_(model[0].weight, fill)
        nn.init.zeros_(model[0].bias)
        teacher = own_teacher("own", model, image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
        return teacher.description()["weights"]["sha256"]

    assert digest(1.0) == digest(1.0) != digest(1.5)


def test_another_image_size_is_taken_if_the_network_can():
    assert load_teacher("mine:mean_of_each_channel", image_size=48).image_size == 48
    (fixed,) = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)),)
    teacher = own_teacher("own", fixed, image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(TeacherError, match="cannot take images of `16` x `16`"):
        teacher.resize(16)
    assert teacher.image_size == 8


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("nowhere:teacher", "no module `nowhere`", "in the folder of the module"),
        ("mine:missing", "has no function `missing`", "module:function"),
        ("mine:NOT_A_TEACHER", "has no function `NOT_A_TEACHER`", "module:function"),
        ("mine:a_bare_module", "gives a `Flatten`, not a Teacher", "own_teacher"),
    ],
)
def test_what_gives_no_teacher_says_why(name, message, hint):
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(name)
    assert hint in caught.value.hint


def test_an_error_of_the_function_is_not_hidden():
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load_teacher("mine:needs_another_module")


def test_weights_beside_a_function_are_refused(tmp_path):
    with pytest.raises(TeacherError, match="loads its weights itself"):
        load_teacher("mine:mean_of_each_channel", weights=tmp_path / "w.pth")


@pytest.mark.parametrize("bad", [nn.Tanh(), nn.BatchNorm1d(3, track_running_stats=False)])
def test_a_head_of_other_layers_is_refused(bad):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(TeacherError, match="a projection head cannot hold"):
        own_teacher(
            "own", model, image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, head=nn.Sequential(bad)
        )


def test_a_model_that_does_not_pool_is_refused():
    with pytest.raises(TeacherError, match="does not give one feature vector"):
        own_teacher("own", nn.Conv2d(3, 4, 1), image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
