"""Examining: what is shared is computed once, and what cannot be is refused before anything is."""

import shutil

import numpy as np
import pytest
import torch
from conftest import make_folder
from small import CPU, recipe_for, run

from kdcache.errors import ConfigError, DataError
from kdcache.evals import (
    Beside,
    Subject,
    available_presets,
    examine,
    examine_pixels,
    open_labelled,
    open_splits,
    open_subject,
)
from kdcache.evals.readout import read_last_blocks
from kdcache.progress import silent_bar


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("examine")
    make_folder(root / "train", per_class=12)
    make_folder(root / "val", per_class=4, seed=9)
    make_folder(root / "ood", per_class=3, classes=3, seed=5)
    make_folder(root / "one" / "train", per_class=5, classes=1)
    make_folder(root / "one" / "val", per_class=2, classes=1)
    return root


@pytest.fixture(scope="module")
def splits(data):
    return open_splits(data)


class Counting(torch.nn.Module):
    """A network that counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.num = 0
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        self.num += len(images)
        blocks = images.float().reshape(len(images), 4, 2, 4, 2, 3).mean(dim=(2, 4))
        return self.scale * blocks.flatten(1) / 255


def exam(splits, *protocols, network=None, **options):
    subject = Subject("it", network or Counting(), 8, "it")
    return examine(subject, splits, protocols, device=CPU, workers=0, bar=silent_bar, **options)


def test_ten_protocols_cost_one_pass(splits, data):
    network = Counting()
    names = ["knn", "knn:simreg", "knn:seed", "fast-linear", "retrieval", "cluster:compress"]
    scores = exam(splits, *names, network=network)
    assert {s.protocol for s in scores} == {"knn", "fast-linear", "retrieval", "cluster"}
    assert network.num == 48 + 16
    exam(splits, "linear:moco", "linear:swav", "linear:simreg", network=network,
         overrides=["linear.epochs=2"])  # fmt: skip
    assert network.num == 2 * (48 + 16) + 2 * 48  # one pass over the views for all of them


def test_kept_features_serve_the_next_command(splits, tmp_path):
    first, second = Counting(), Counting()
    before = exam(splits, "knn", network=first, keep=tmp_path)
    after = exam(splits, "knn", "retrieval", network=second, keep=tmp_path)
    assert before == after[: len(before)]
    assert (first.num, second.num) == (64, 2 * 4)  # four of each side are checked


QUICK = [
    f"{family}.epochs=2"
    for family in ("linear", "fast-linear", "semi-frozen", "semi-finetune", "transfer-linear",
                   "transfer-finetune", "ood")
]  # fmt: skip


def test_every_preset_gives_figures_that_repeat(splits, data, tmp_path):
    """Scaled down, on pictures; twice, the second time from kept features."""
    beside = Beside(
        transfer=splits,
        ood=open_labelled(data / "ood"),
        teacher=open_subject("untrained:test_resnet", image_size=32),
    )
    # 200 neighbours there are not.
    names = [name for name in available_presets() if name != "knn:dino"]
    overrides = [*QUICK, "fidelity.neighbours=3"]
    network = Counting()
    scores = exam(splits, *names, network=network, beside=beside, overrides=overrides)
    again = exam(
        splits, *names, network=network, beside=beside, overrides=overrides, keep=tmp_path / "kept"
    )
    assert [s.setting for s in scores] == [s.setting for s in again]
    for one, other in zip(scores, again, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4), one.label
        assert np.isfinite(one.value)
        assert 0 <= one.value <= 100 or one.unit == "one"
    assert {s.protocol for s in scores} == {name.partition(":")[0] for name in names}
    papers = [s for s in scores if s.protocol in ("linear", "semi-frozen", "semi-finetune")]
    assert all(str(s.setting["preset"]).startswith("not ") for s in papers)
    frozen = {s.setting["backbone"] for s in scores if s.protocol == "semi-frozen"}
    tuned = {s.setting["backbone"] for s in scores if s.protocol == "semi-finetune"}
    assert (frozen, tuned) == ({"frozen"}, {"finetuned"})
    assert network.scale.item() == 1.0  # finetuning works on a copy
    assert network.scale.grad is None


def test_caller_random_numbers_are_left_alone(splits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    exam(splits, "semi-finetune:swav-10", overrides=["semi-finetune.epochs=1"])
    assert torch.equal(torch.rand(3), expected)


def test_ood_figure_among_present_classes_is_no_worse(splits, data):
    scores = exam(splits, "ood", beside=Beside(ood=open_labelled(data / "ood")))
    inside, outside, present = scores
    assert inside.setting["images"] == "in distribution"
    assert present.setting["answers"] == "the 3 classes that are there"
    assert present.value >= outside.value
    assert (inside.num_queries, outside.num_queries) == (16, 9)
    assert inside.value == exam(splits, "fast-linear")[0].value


def test_answers_among_present_classes_are_only_those(splits, tmp_path):
    """Pictures of class3 under two other names: either name is right for one of two copies."""
    for name in ("class0", "class1"):
        shutil.copytree(splits.test.root / "class3", tmp_path / name)
    _, outside, present = exam(splits, "ood", beside=Beside(ood=open_labelled(tmp_path)))
    assert present.value == 50.0
    assert outside.value < 50.0


def test_pixels_are_judged_by_what_needs_features_only(splits):
    scores = examine_pixels(
        splits, ["knn", "linear:moco", "retrieval", "fast-linear"], ks=[1], workers=0,
        bar=silent_bar,
    )  # fmt: skip
    assert [s.protocol for s in scores] == ["knn", *["retrieval"] * 4, "fast-linear"]
    assert scores[0].setting["view"] == "full"


def test_images_that_cannot_be_read_are_told_of(data, tmp_path):
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copytree(data / "val", tmp_path / "val")
    (tmp_path / "val" / "class1" / "000.jpg").write_bytes(b"no image")
    told = []
    scores = exam(open_splits(tmp_path), "knn", tell=told.append)
    assert told == [f"1 images of `{tmp_path / 'val'}` cannot be read"]
    assert scores[0].num_queries == 15


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("transfer-linear:disco", "needs --transfer DIR", "leave `transfer-linear:disco` out"),
        ("ood", "needs --ood DIR", "add --ood DIR"),
        ("fidelity", "needs --cache CACHE or --teacher NAME", "add --cache"),
        ("knn:dino", "k is `100`, and the gallery has 48 images", "leave `knn:dino` out"),
    ],
)
def test_protocol_that_lacks_something_is_refused(splits, name, message, hint):
    network = Counting()
    with pytest.raises(ConfigError) as caught:
        exam(splits, "knn", name, network=network)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert network.num == 0


def test_what_no_protocol_looks_at_is_refused(splits, data):
    with pytest.raises(ConfigError, match="no protocol that was asked for looks at it") as caught:
        exam(splits, "knn", beside=Beside(ood=open_labelled(data / "ood")))
    assert "ask for one that does: ood" in caught.value.hint


def test_transfer_set_with_one_class_is_refused(splits, data):
    with pytest.raises(DataError, match="has 1 class, and whoever always answers it is right"):
        exam(splits, "transfer-linear:disco", beside=Beside(transfer=open_splits(data / "one")))


def test_data_set_with_one_class_is_refused(data):
    with pytest.raises(DataError, match="has one class only"):
        exam(open_splits(data / "one"), "fast-linear")


def test_ood_folder_whose_classes_are_named_otherwise_is_refused(splits, tmp_path):
    make_folder(tmp_path / "ood", per_class=2)
    (tmp_path / "ood" / "class0").rename(tmp_path / "ood" / "klasse0")
    with pytest.raises(DataError, match=r"1 of 4 classes of .* are not in .*: `klasse0`"):
        exam(splits, "ood", beside=Beside(ood=open_labelled(tmp_path / "ood")))


def test_list_of_another_share_is_refused(splits, tmp_path):
    lines = [path for path in splits.train.paths if "000" in path or "001" in path]
    (tmp_path / "10percent.txt").write_text("\n".join(lines))
    beside = Beside(labelled_list=tmp_path / "10percent.txt")
    with pytest.raises(ConfigError, match=r"names 8 of 48 training images, 16\.7 %, and") as caught:
        exam(splits, "semi-frozen:disco-1", beside=beside)
    assert "the list's share" in caught.value.hint
    scores = exam(splits, "semi-frozen:disco-10", beside=beside, overrides=["semi-frozen.epochs=1"])
    assert scores[0].setting["labels"] == "8 of 10percent.txt"


def test_list_without_a_label_for_some_class_is_refused(splits, tmp_path):
    lines = [path for path in splits.train.paths if path.startswith("class0/00")][:5]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match="3 of 4 classes"):
        exam(splits, "semi-frozen:disco-10", beside=Beside(labelled_list=tmp_path / "list.txt"))


def test_semi_supervised_without_labels_is_refused(tmp_path):
    for split in ("train", "val"):
        folder = make_folder(tmp_path / split, per_class=2)
        for path in list(folder.glob("*/*")):
            path.rename(folder / f"{path.parent.name}_{path.name}")
        for path in folder.iterdir():
            if path.is_dir():
                path.rmdir()
    with pytest.raises(DataError, match="have no class") as caught:
        open_splits(tmp_path)
    assert "one folder a class" in caught.value.hint


def test_class_token_of_the_last_blocks_is_what_timm_gives():
    subject = open_subject("untrained:test_vit", image_size=32)
    reader = read_last_blocks(subject, 3, patch_mean=True)
    width = subject.network.feature_dim
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    subject.network.eval()
    with torch.no_grad():
        found, pooled = reader.network.eval()(images), subject.network(images)
    assert found.shape == (2, 4 * width)
    # timm's feature is the normalised class token of the last block.
    torch.testing.assert_close(found[:, 2 * width : 3 * width], pooled)
    assert reader.identity() != subject.identity()
    convolutional = open_subject("untrained:test_resnet", image_size=32)
    assert read_last_blocks(convolutional, 4, patch_mean=False) is convolutional


@pytest.fixture
def finished(tiny_images, tmp_path):
    run(recipe_for("moco"), tiny_images, tmp_path / "run")
    return tmp_path / "run"


def test_checkpoint_of_a_run_is_its_student(finished):
    student = open_subject(str(finished))
    kept = open_subject(str(finished / "checkpoint.pt"))
    assert kept.identity() == student.identity()


def test_checkpoint_of_another_student_is_refused(finished, tmp_path):
    recipe = finished / "recipe.json"
    recipe.write_text(recipe.read_text().replace("test_resnet", "test_efficientnet"))
    with pytest.raises(ConfigError, match="holds no `test_efficientnet`") as caught:
        open_subject(str(finished / "checkpoint.pt"))
    assert "its recipe lies beside it" in caught.value.hint
    (tmp_path / "alone").mkdir()
    shutil.copy(finished / "checkpoint.pt", tmp_path / "alone" / "checkpoint.pt")
    with pytest.raises(ConfigError, match=r"no `recipe\.json` beside it|has no `recipe"):
        open_subject(str(tmp_path / "alone" / "checkpoint.pt"))


def test_unfinished_run_points_at_its_checkpoint(finished):
    (finished / "student.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no `student") as caught:
        open_subject(str(finished))
    assert f"kdcache eval {finished / 'checkpoint.pt'}" in caught.value.hint
