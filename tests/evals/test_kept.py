"""Kept features are read back as they were computed, and never taken for others'."""

import json

import numpy as np
import pytest
import torch
from conftest import make_folder
from small import CPU

from kdcache.errors import DataError
from kdcache.evals import Subject, extract_features, keep_features, kept, open_labelled
from kdcache.networks import build_backbone
from kdcache.progress import silent_bar
from kdcache.views import get_policy


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    return open_labelled(make_folder(tmp_path_factory.mktemp("kept") / "set", per_class=5))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 8 rows in batches of 4, so that 20 images make three."""
    monkeypatch.setattr(kept, "ROWS_A_PART", 8)
    monkeypatch.setattr(kept, "_BATCH", 4)


def subject(seed=0, size=32, mean=(0.5, 0.5, 0.5)):
    torch.manual_seed(seed)
    network = build_backbone("test_resnet", image_size=size, mean=mean).eval()
    return Subject("it", network, size, "test_resnet")


def keep(root, part, who=None, view="center"):
    who = who or subject()
    return keep_features(root, who, part, get_policy(view), device=CPU, workers=0, bar=silent_bar)


def looks(monkeypatch):
    """How many images each network is shown from now on."""
    shown, forward = [], kept.see

    def spy(network, maker, order, **options):
        shown.append(len(order))
        return forward(network, maker, order, **options)

    monkeypatch.setattr(kept, "see", spy)
    return shown


def test_kept_features_are_those_computed_without_keeping(part, tmp_path, monkeypatch):
    plain = extract_features(subject().network, part.images, image_size=32, ids=part.ids)
    first = keep(tmp_path, part)
    shown = looks(monkeypatch)
    again = keep(tmp_path, part)
    assert sum(shown) == 4  # those that are checked
    for found in (first, again):
        np.testing.assert_allclose(found.values, plain.values, rtol=1e-5, atol=1e-5)
        assert np.array_equal(found.labels, plain.labels)
        assert (found.classes, found.view) == (plain.classes, "center")
    assert np.array_equal(first.values, again.values)


@pytest.mark.parametrize(
    "other",
    [
        {"who": subject(seed=1)},
        {"who": subject(size=40)},
        {"who": subject(mean=(0.4, 0.5, 0.5))},
        {"view": "full"},
    ],
    ids=["weights", "size", "normalisation", "view"],
)
def test_another_network_or_preprocessing_has_another_place(part, tmp_path, other):
    keep(tmp_path, part)
    keep(tmp_path, part, **other)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_image_set_has_another_place(part, tmp_path):
    keep(tmp_path, part)
    keep(tmp_path, part.take(np.arange(19)))
    assert len(list(tmp_path.iterdir())) == 2


class Broken(BaseException):
    """What nobody catches."""


def test_broken_extraction_goes_on_where_it_stopped(part, tmp_path, monkeypatch):
    whole = keep(tmp_path / "whole", part)

    def breaks(*arguments, **options):
        for number, seen in enumerate(forward(*arguments, **options)):
            if number == 3:
                raise Broken
            yield seen

    forward = kept.see
    with monkeypatch.context() as patch:
        patch.setattr(kept, "see", breaks)
        with pytest.raises(Broken):
            keep(tmp_path / "broken", part)
    (folder,) = (tmp_path / "broken").iterdir()
    assert not (folder / kept.MANIFEST).exists()
    shown = looks(monkeypatch)
    ended = keep(tmp_path / "broken", part)
    assert shown == [12]  # 8 of 20 were whole
    np.testing.assert_array_equal(ended.values, whole.values)
    for path in (tmp_path / "whole" / folder.name).glob("*.npy"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_unreadable_images_stay_left_out(tmp_path):
    data = make_folder(tmp_path / "set", per_class=5)
    (data / "class1" / "002.jpg").write_bytes(b"no image")
    part = open_labelled(data)
    for _ in range(2):
        found = keep(tmp_path / "kept", part)
        assert list(found.unreadable) == [7]
        assert found.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 5 + [3] * 5
    assert len(found) == 19


def test_damaged_part_is_refused(part, tmp_path):
    keep(tmp_path, part)
    (folder,) = tmp_path.iterdir()
    path = folder / "0000000008.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"0000000008\.npy` is not the file") as caught:
        keep(tmp_path, part)
    assert caught.value.hint.startswith(f"rm -r {folder}")


def test_network_of_equal_weights_and_another_code_is_found_out(part, tmp_path):
    who = subject()
    keep(tmp_path, part, who)
    forward = type(who.network).forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(who.network), "forward", lambda *given: 2 * forward(*given))
        with pytest.raises(DataError, match="its code has changed"):
            keep(tmp_path, part, who)


def test_diverged_network_leaves_nothing_whole(part, tmp_path):
    who = subject()
    with torch.no_grad():
        next(who.network.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="are not finite"):
        keep(tmp_path, part, who)
    assert not list(tmp_path.rglob("*.json"))


def test_manifest_says_what_the_features_are_of(part, tmp_path):
    keep(tmp_path, part)
    (folder,) = tmp_path.iterdir()
    identity = json.loads((folder / kept.MANIFEST).read_bytes())["identity"]
    assert identity["images"] == part.fingerprint
    assert identity["network"]["architecture"] == "test_resnet"
    assert len(identity["network"]["weights"]) == 64
    assert identity["view"]["policy"]["name"] == "center"
