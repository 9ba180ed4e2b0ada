"""The registry: every entry can be built, and says where it is from."""

import pytest
import torch

from kdcache.errors import TeacherError
from kdcache.heads import ProjectionHead
from kdcache.networks import timm_config, timm_model
from kdcache.teachers import get_entry, load_teacher, registered_teachers
from kdcache.teachers.resnet import build_resnet, is_resnet

REGISTRY = registered_teachers()


@pytest.mark.parametrize("name", REGISTRY)
def test_an_entry_is_whole(name):
    entry = REGISTRY[name]
    assert entry.name == name == name.lower()
    assert all(url.startswith("https://") for url in entry.urls)
    assert bool(entry.urls) != bool(entry.kept), "either an address, or where to look"
    assert entry.licence
    assert entry.paper
    assert entry.source
    assert entry.interpolation in ("bilinear", "bicubic")
    assert all(0 <= value <= 1 for value in (*entry.mean, *entry.std))
    assert all(value is None or 20 < value < 95 for value in (entry.linear, entry.knn))
    assert all(entry.lines().values())


@pytest.mark.parametrize("name", REGISTRY)
def test_its_network_exists_and_its_head_fits_it(name):
    entry = REGISTRY[name]
    with torch.device("meta"):
        if is_resnet(entry.architecture):
            model = build_resnet(entry.architecture)
        else:
            model = timm_model(entry.architecture, entry.image_size)
        width = model(torch.zeros(1, 3, entry.image_size, entry.image_size)).shape[1]
        if entry.head:
            assert ProjectionHead(entry.head).in_dim == width


def test_what_the_papers_distil_from_is_there():
    names = "r50 r101 r152 swav_r50 swav_r50w2 swav_r50w4 swav_r50w5 deepclusterv2_r50 selav2_r50"
    names += " simclr_r50 simclr_r50x4 byol_r50 barlow_r50 vicreg_r50 dino_r50 dino_vits16"
    names += " dino_vitb16 dinov2_vits14 dinov2_vitb14 dinov2_vitl14 dinov2_vits14_reg sup_r50"
    assert set(names.split()) <= set(REGISTRY)


def test_the_quirks_that_poison_students_are_stated():
    assert get_entry("swav_r50").std == (0.228, 0.224, 0.225)
    assert get_entry("simclr_r50x4").mean == (0.0, 0.0, 0.0)
    assert get_entry("simclr_r50x4").std == (1.0, 1.0, 1.0)
    assert get_entry("byol_r50").architecture == "resnet50_same"
    assert "batchnorm" not in {layer["kind"] for layer in get_entry("swav_r50w5").head}
    assert timm_config(get_entry("dinov2_vits14").architecture).input_size[1] == 518


def test_an_unknown_name_is_answered_with_a_close_one():
    with pytest.raises(TeacherError, match="no teacher `swav_r5O`") as caught:
        get_entry("swav_r5O")
    assert "`swav_r50`" in caught.value.hint


def test_a_teacher_without_an_address_says_where_its_file_is_kept():
    nowhere = next(entry for entry in REGISTRY.values() if not entry.urls)
    with pytest.raises(TeacherError, match="no lasting address") as caught:
        load_teacher(nowhere.name)
    assert nowhere.kept in str(caught.value)
    assert f"--teacher {nowhere.name} --weights FILE" in caught.value.hint
