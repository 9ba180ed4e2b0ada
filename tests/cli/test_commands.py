"""The command line as a user meets it: a process, its output, its exit code."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import kdcache, refused
from conftest import make_folder
from small import make_cache, tree_of

from kdcache.methods import available_methods
from kdcache.train import read_metrics


def process(*arguments, **environment) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kdcache_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_images, tiny_weights):
    """A labelled data set and a cache of its training images; neither is to be changed."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_images, root / "data" / "train")
    make_folder(root / "data" / "val", per_class=3, seed=9)
    make_cache(root / "data" / "train", tiny_weights, root / "cache.zarr")
    return root


def extract(place, weights, out, *more):
    teacher = ("--teacher", "timm:test_resnet", "--weights", weights, "--image-size", 32)
    views = ("--views", 2, "--dtype", "float32", "--batch-size", 16, "--workers", 0)
    return kdcache(
        "extract", "--data", place / "data" / "train", "--out", out, *teacher, *views, *more
    )


def train(place, out, *more):
    return kdcache(
        "train", "--data", place / "data" / "train", "--cache", place / "cache.zarr", "--out", out,
        "--student", "test_resnet", "--set", "student.image_size=32", "--workers", 0,
        "--set", "train.batch_size=16", "--set", "train.epochs=2", *more,
    )  # fmt: skip


@pytest.mark.slow
def test_images_to_evaluated_student_in_three_commands(place, tiny_weights, tmp_path):
    done = extract(place, tiny_weights, tmp_path / "c.zarr")
    assert done.returncode == 0, done.stderr
    assert tree_of(tmp_path / "c.zarr") == tree_of(place / "cache.zarr")
    info = json.loads(kdcache("info", tmp_path / "c.zarr", "--json").stdout)
    assert info["identity"] == done.stdout.strip()

    done = train(place, tmp_path / "run", "--method", "simreg")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "run" / "student.safetensors"

    done = kdcache(
        "eval", tmp_path / "run", "--data", place / "data", "--references", "--json", "--workers", 0
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert list(scores) == ["pixels 16x16", "untrained test_resnet", str(tmp_path / "run")]
    student = {
        (s["protocol"], s["setting"].get("k")): s["value"] for s in scores[str(tmp_path / "run")]
    }
    assert student.keys() == {("knn", 1), ("knn", 10), ("knn", 20), ("fast-linear", None)}
    assert all(0 <= value <= 100 for value in student.values())
    kept = tree_of(tmp_path / "run" / "features")
    done = kdcache("eval", tmp_path / "run", "--data", place / "data", "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "features of" not in done.stderr  # they were kept in the run's folder
    assert tree_of(tmp_path / "run" / "features") == kept


def test_no_such_folder(tmp_path, tiny_weights):
    done = kdcache("extract", "--teacher", "timm:test_resnet", "--data", tmp_path / "none",
                   "--out", tmp_path / "c")  # fmt: skip
    refused(done, str(tmp_path / "none"), "folder")
    assert not (tmp_path / "c").exists()


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    done = kdcache("extract", "--teacher", "timm:test_resnet", "--data", tmp_path / "empty",
                   "--out", tmp_path / "c")  # fmt: skip
    refused(done, "no images", "give a folder")
    assert ".jpg" in done.stderr
    assert not (tmp_path / "c").exists()


def test_text_file_named_jpg(tmp_path, tiny_images, tiny_weights):
    shutil.copytree(tiny_images, tmp_path / "data" / "train")
    (tmp_path / "data" / "train" / "class0" / "a.jpg").write_text("shopping list")
    done = extract(tmp_path, tiny_weights, tmp_path / "c")
    refused(done, "1 of 49 files are no images", "--skip-unreadable")
    assert "class0/a.jpg" in done.stderr
    assert not (tmp_path / "c").exists()


def test_unknown_teacher(place, tmp_path):
    done = kdcache("extract", "--teacher", "resnet18", "--data", place / "data" / "train",
                   "--out", tmp_path / "c")  # fmt: skip
    refused(done, "no teacher `resnet18`", "timm:resnet18")


OWN_TEACHER = """
import torch
from torch import nn
from kdcache.teachers import own_teacher

class Spectrum(nn.Module):
    def forward(self, pixels):
        grey = pixels.mean(dim=1)
        return torch.fft.rfft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().flatten(1)

class Blind(nn.Module):
    def forward(self, pixels):
        return torch.ones(len(pixels), 3) + 0 * pixels.mean()

def made_of(model):
    return own_teacher("mine", model, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)

def spectrum():
    return made_of(Spectrum())

def blind():
    return made_of(Blind())
"""


@pytest.fixture
def own_teachers(tmp_path, monkeypatch):
    """A folder with teachers of one's own, in which commands are run."""
    (tmp_path / "spectral.py").write_text(OWN_TEACHER)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("spectral", None)


def test_teachers_are_listed_and_shown():
    listed = kdcache("teachers").stdout
    assert re.search(r"^r50 +67\.7 +- +MIT +ResNet-50 by MoCo v2, 200 epochs$", listed, re.M)
    assert "timm:MODEL" in listed
    shown = kdcache("teachers", "swav_r50").stdout
    assert "0.228, 0.224, 0.225" in shown
    assert "https://" in shown
    assert "linear 2048 to 2048, batchnorm 2048, relu, linear 2048 to 128" in shown
    refused(kdcache("teachers", "swav_r5O"), "has no teacher `swav_r5O`", "`swav_r50`")


def test_check_of_a_teacher_ends_with_what_is_wrong(own_teachers, tmp_path):
    data = make_folder(tmp_path / "set", per_class=40)
    options = ("--data", data, "--policy", "full", "--workers", 0)
    good = kdcache("teachers", "check", "spectral:spectrum", *options)
    assert good.returncode == 0
    assert "kNN (k = 10) of 80 images in 80 others, 4 classes" in good.stdout
    bad = kdcache("teachers", "check", "spectral:blind", *options)
    assert bad.returncode == 1
    assert "wrong: all images look alike" in bad.stderr


def test_own_teacher_fills_a_cache_and_is_evaluated(own_teachers, tiny_images, tmp_path):
    out = tmp_path / "own.zarr"
    teacher = ("--teacher", "spectral:spectrum", "--data", tiny_images)
    done = kdcache("extract", *teacher, "--views", 2, "--workers", 0, "--out", out)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "recipe.json").read_text())["teacher"]["name"] == "spectral:spectrum"
    live = ("--cache", out, "--online", "--data", tiny_images, "--student", "test_resnet")
    short = ("--set", "train.epochs=1", "--set", "train.batch_size=16")
    small = ("--set", "student.image_size=32", "--workers", 0, "--out", tmp_path / "run")
    done = kdcache("train", "--method", "simreg", *live, *short, *small)
    assert done.returncode == 0, done.stderr


def test_offline_asks_for_a_file(place, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("KDCACHE_MIRROR", "http://127.0.0.1:9")  # nobody answers there
    command = ("extract", "--teacher", "r50", "--data", place / "data" / "train")
    done = kdcache(*command, "--offline", "--out", tmp_path / "c")
    refused(done, "moco_v2_200ep_pretrain.pth.tar", "--weights FILE")
    assert not (tmp_path / "c").exists()


def test_unknown_model(place, tmp_path):
    done = kdcache("extract", "--teacher", "timm:resnet81", "--data", place / "data" / "train",
                   "--out", tmp_path / "c")  # fmt: skip
    refused(done, "has no model `resnet81`", "did you mean")


def test_weights_of_another_architecture(place, tiny_weights, tmp_path):
    done = kdcache("extract", "--teacher", "timm:resnet18", "--weights", tiny_weights,
                   "--data", place / "data" / "train", "--out", tmp_path / "c")  # fmt: skip
    refused(done, "are not those of `resnet18`", "--teacher timm:MODEL")
    assert "of another shape" in done.stderr
    assert not (tmp_path / "c").exists()


def test_cache_made_with_another_policy(place, tiny_weights, tmp_path):
    before = tree_of(place / "cache.zarr")
    done = extract(place, tiny_weights, place / "cache.zarr", "--policy", "moco_v2")
    refused(done, "views.policy.name: `weak` -> `moco_v2`", "--out")
    assert tree_of(place / "cache.zarr") == before
    done = train(place, tmp_path / "run", "--method", "seed", "--set", "method.queue=20")
    refused(done, "holds `weak` views", "--set run.policy=weak")
    assert not (tmp_path / "run").exists()


def test_changed_image_file(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "cache.zarr").symlink_to(place / "cache.zarr")
    for path in (tmp_path / "data" / "train" / "class0").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    done = train(tmp_path, tmp_path / "run", "--method", "simreg")
    refused(done, "has changed since it was indexed", "put the original file back")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 600 kB; needs the right to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", path])
    if mount.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_full_disk_is_foreseen(place, tiny_weights, small_disk):
    done = extract(place, tiny_weights, small_disk / "c")
    refused(done, "MB more, its disk has 0.", "free some space")
    assert not (small_disk / "c" / "manifest.json").exists()


@pytest.mark.slow
def test_disk_that_fills_on_the_way_loses_nothing(place, tiny_weights, tmp_path, small_disk):
    """What was computed before is used when there is space again."""
    code = (
        "from kdcache.extract import run as r; r._check_room = lambda *_: None;"
        "from kdcache_cli.main import main; main()"
    )
    command = [
        sys.executable, "-c", code, "extract", "--teacher", "timm:test_resnet",
        "--weights", tiny_weights, "--image-size", 32, "--views", 2, "--dtype", "float32",
        "--batch-size", 16, "--workers", 0, "--data", place / "data" / "train",
        "--out", small_disk / "c",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    refused(done, "no space left on device", "run the same command again")
    assert not (small_disk / "c" / "manifest.json").exists()
    assert list((small_disk / "c" / ".work" / "pieces").glob("*.npz"))
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    done = extract(place, tiny_weights, small_disk / "c")
    assert done.returncode == 0, done.stderr
    assert " views in " not in done.stderr  # nothing was computed again
    assert tree_of(small_disk / "c") == tree_of(place / "cache.zarr")


def test_output_that_cannot_be_written(place, tiny_weights, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = extract(place, tiny_weights, tmp_path / "file" / "c")
    refused(done, "not a directory", "see that the path is right")


def test_read_only_disk(place, tiny_weights, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = extract(place, tiny_weights, small_disk / "c")
    refused(done, "read-only file system", "a place that you may write to")


def test_method_that_needs_an_embedding_where_there_is_none(place, headless_weights, tmp_path):
    make_cache(place / "data" / "train", headless_weights, tmp_path / "cache.zarr")
    (tmp_path / "data").symlink_to(place / "data")
    done = train(tmp_path, tmp_path / "run", "--method", "seed", "--set", "run.policy=weak")
    refused(done, "`embedding`", "--set method.target=feature")
    assert not (tmp_path / "run").exists()


def test_unfinished_cache_is_not_taken_for_whole(place, tmp_path):
    shutil.copytree(place / "cache.zarr", tmp_path / "cache.zarr")
    (tmp_path / "cache.zarr" / "manifest.json").unlink()
    (tmp_path / "data").symlink_to(place / "data")
    refused(
        train(tmp_path, tmp_path / "run", "--method", "simreg"), "cache.zarr", "kdcache extract"
    )


def test_checkpoint_of_another_kind_is_not_evaluated(place, tiny_weights):
    done = kdcache("eval", tiny_weights, "--data", place / "data")
    refused(done, "is not a student saved by kdcache", "kdcache train")


def test_debug_shows_the_traceback(tmp_path):
    arguments = ("info", tmp_path / "none")
    refused(process(*arguments), "there is no cache at", "kdcache extract")
    done = process(*arguments, KDCACHE_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_shelves_are_listed():
    done = kdcache("methods")
    assert [line.split()[0] for line in done.stdout.splitlines()] == available_methods()
    policies = kdcache("policies").stdout
    assert "moco_v2" in policies
    assert "small.count 6, small.side 96, small.scale [0.05, 0.14]\n" in policies


def test_protocols_are_listed_with_their_source():
    listed = kdcache("protocols").stdout
    assert re.search(r"^  linear:moco +MoCo v2, arXiv:2003.04297, main_lincls.py", listed, re.M)
    assert "schedule=step, milestones=[60, 80]" in listed
    assert re.search(r"^  fidelity  +cosine, linear CKA", listed, re.M)


def test_scaled_down_preset_does_not_bear_the_papers_name(place):
    untrained = ("eval", "untrained:test_resnet", "--image-size", 32, "--data", place / "data")
    done = kdcache(
        *untrained, "--protocol", "linear:moco,knn:simreg", "--set", "linear.epochs=1",
        "--workers", 0, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    linear, *knn = json.loads(done.stdout)["untrained test_resnet"]
    assert linear["setting"] == {"preset": "not moco", "epochs": 1}
    assert {s["setting"]["preset"] for s in knn} == {"simreg"}
    refused(kdcache(*untrained, "--protocol", "linear:mocco"), "no protocol", "`linear:moco`")
    refused(kdcache(*untrained, "--protocol", "fidelity"), "needs --cache", "--teacher NAME")
    refused(kdcache(*untrained, "--ood", place / "data" / "val"), "no protocol that was", "ood")
    both = ("--cache", place / "cache.zarr", "--teacher", "r50")
    refused(kdcache(*untrained, "--protocol", "fidelity", *both), "are both given", "one of them")
    refused(kdcache(*untrained, "--teacher-weights", "x"), "no --teacher", "--teacher NAME")


def test_fidelity_to_a_cache_from_the_command_line(place, tiny_weights):
    done = kdcache(
        "eval", "timm:test_resnet", "--weights", tiny_weights, "--image-size", 32, "--data",
        place / "data", "--protocol", "fidelity", "--cache", place / "cache.zarr", "--workers", 0,
        "--set", "fidelity.neighbours=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if " cka " in line)
    assert row.split("|")[2].strip() == "1.000"


def test_training_is_watched_on_held_out_images(place, tmp_path):
    watched = ("--eval-data", place / "data", "--eval-every", 1)
    done = train(place, tmp_path / "run", "--method", "simreg", *watched)
    assert done.returncode == 0, done.stderr
    seen = [r for r in read_metrics(tmp_path / "run") if "eval/knn10" in r]
    assert [r["epoch"] for r in seen] == [1, 2]
    assert "after epoch 2: kNN (k = 10)" in done.stderr
    assert re.search(r"^loss [0-9.]+ after 6 steps$", done.stderr, re.M)
    refused(
        train(place, tmp_path / "other", "--method", "simreg", "--eval-every", 1),
        "nothing to evaluate on", "--eval-data DIR",
    )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_students_are_listed_with_what_their_feature_is():
    lines = kdcache("students").stdout.splitlines()
    assert lines[0].split()[:3] == ["resnet18", "512", "11,176,512"]
    assert "the class token" in lines[-2]
    assert "timm.list_models()" in lines[-1]


def test_published_figures_are_listed_and_the_unverified_marked():
    lines = kdcache("published", "--method", "seed", "--student", "resnet18").stdout.splitlines()
    marked = {line.split()[1] for line in lines if "UNVERIFIED" in line}
    assert any(
        line.startswith("57.60  bingo_linear/seed/r50_200/resnet18/linear") for line in lines
    )
    assert all(key.startswith("memory") for key in marked)
    assert "memory/seed/r101_200/resnet18/linear" in marked
    assert len(lines) > len(marked) > 0


def test_version():
    assert kdcache("--version").stdout.startswith("kdcache 0.")


def test_verify_names_the_file_that_has_changed(place, tmp_path):
    shutil.copytree(place / "cache.zarr", tmp_path / "cache.zarr")
    assert kdcache("verify", tmp_path / "cache.zarr").returncode == 0
    shard = tmp_path / "cache.zarr" / "feature" / "c" / "0" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    done = kdcache("verify", tmp_path / "cache.zarr")
    assert done.returncode == 1
    assert done.stdout.startswith("feature/c/0/1/0 has SHA-256")
    done = kdcache("verify", tmp_path / "cache.zarr", "--json")
    assert done.returncode == 1
    about = json.loads(done.stdout)
    assert about["whole"] is False
    assert [(p["file"], p["kind"]) for p in about["problems"]] == [("feature/c/0/1/0", "bytes")]
    assert about["checked"]["rows"] == 48 * 2 * 2
    copy = ("--repair", "--from", place / "cache.zarr")
    done = kdcache("verify", tmp_path / "cache.zarr", *copy, "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["repair"]["mended"]) == ["feature/c/0/1/0"]
    assert kdcache("verify", tmp_path / "cache.zarr", "--quick").returncode == 0


def test_verify_asks_the_teacher_again(place, tiny_weights, tmp_path):
    data = ("--data", place / "data" / "train", "--weights", tiny_weights, "--workers", 0)
    done = kdcache("verify", place / "cache.zarr", "--teacher", *data, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["teacher"]["feature"]["lowest cosine"] > 0.99999
    shutil.copytree(place / "cache.zarr", tmp_path / "cache.zarr")
    (tmp_path / "cache.zarr" / "feature" / "c" / "0" / "1" / "0").unlink()
    done = kdcache("verify", tmp_path / "cache.zarr", "--repair", *data)
    assert done.returncode == 0, done.stderr
    assert "feature/c/0/1/0: made again" in done.stderr


def test_verify_has_an_exit_code_for_each_answer(place, tmp_path):
    done = kdcache("verify", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no cache at" in done.stderr
    shutil.copytree(place / "cache.zarr", tmp_path / "cache.zarr")
    manifest = tmp_path / "cache.zarr" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 3'))
    done = kdcache("verify", tmp_path / "cache.zarr")
    assert done.returncode == 3
    assert "made by a newer kdcache" in done.stderr
    manifest.write_text("{")
    assert kdcache("verify", tmp_path / "cache.zarr").returncode == 1
    for wrong in (
        ("--teacher",),
        ("--weights", manifest),
        ("--from", tmp_path),
        ("--quick", "--repair"),
    ):
        done = kdcache("verify", tmp_path / "cache.zarr", *wrong)
        assert done.returncode == 2, wrong


def test_options_that_would_be_ignored_are_refused(place, tmp_path, tiny_weights):
    train(place, tmp_path / "run", "--method", "simreg")
    evaluate = ("eval", tmp_path / "run", "--data", place / "data", "--workers", 0)
    refused(kdcache(*evaluate, "--image-size", 64), "needs no --image-size", "leave --image-size")
    refused(kdcache(*evaluate, "--weights", tiny_weights), "needs no --weights", "--weights out")
    refused(kdcache(*evaluate, "--policy", "weak"), "drawn at random", "--policy center")
    refused(kdcache(*evaluate, "--k", "1,100"), "the gallery has 48 images", "--k")


@pytest.mark.slow
def test_live_teacher_is_the_control_of_its_cache(place, tiny_weights, tmp_path):
    method = ("--method", "simreg", "--set", "run.log_every=1")
    assert train(place, tmp_path / "cached", *method).returncode == 0
    live = train(place, tmp_path / "live", *method, "--online", "--weights", tiny_weights)
    assert live.returncode == 0, live.stderr
    cached, online = (
        [record["loss"] for record in read_metrics(tmp_path / run)] for run in ("cached", "live")
    )
    assert online == pytest.approx(cached, rel=1e-5)


def test_weights_of_a_teacher_that_is_not_asked_are_refused(place, tiny_weights, tmp_path):
    done = train(place, tmp_path / "run", "--method", "simreg", "--weights", tiny_weights)
    refused(done, "the teacher is not asked again", "add --online")


def test_two_caches_for_a_method_of_one_teacher_are_refused(place, tmp_path):
    second = ("--cache", place / "cache.zarr", "--set", "run.policy=weak")
    done = train(place, tmp_path / "run", "--method", "seed", *second)
    refused(done, "2 caches are given", "--method simreg")


def test_augmented_probe_stands_beside_references_without_one(place, tmp_path):
    done = kdcache(
        "eval", "untrained:test_resnet", "--image-size", 32, "--data", place / "data",
        "--protocol", "knn,linear-augmented", "--k", "1", "--references", "--workers", 0,
        "--set", "linear.epochs=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "not simreg" in line)
    assert row.split("|")[3].strip() == "-"  # pixels have no augmented views


@pytest.fixture
def headless(place, headless_weights, tmp_path):
    """A cache of a teacher without a projection head."""
    make_cache(place / "data" / "train", headless_weights, tmp_path / "headless.zarr")
    return tmp_path / "headless.zarr"


def test_info_says_what_eight_bits_keep(place, tiny_weights, tmp_path):
    done = extract(place, tiny_weights, tmp_path / "c.zarr", "--dtype", "uint8")
    assert done.returncode == 0, done.stderr
    lines = kdcache("info", tmp_path / "c.zarr").stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("fidelity"))
    assert re.search(r"embedding cosine 0\.9999.* KL .* at tau 0\.01, .* over 48 images", line)
    assert "feature cosine 0.9999" in line
    assert any("feature uint8[48, 2, " in line for line in lines)
    figures = json.loads(kdcache("info", tmp_path / "c.zarr", "--json").stdout)["fidelity"]
    assert figures["feature"].keys() == figures["embedding"].keys()
    assert figures["feature"]["images"] == 48
    assert 0 < figures["feature"]["kl_0.07"] < figures["feature"]["kl_0.01"] < 0.01
    assert "fidelity" not in json.loads(kdcache("info", place / "cache.zarr", "--json").stdout)


def test_graph_is_added_once(headless):
    before = json.loads(kdcache("info", headless, "--json").stdout)
    assert (before["neighbours"], before["grown from"]) == ("none", "nothing")
    done = kdcache("neighbours", headless, "--k", 3)
    assert done.returncode == 0, done.stderr
    assert "3 neighbours by `feature` of 2 views, exact, recall 1.0000, of 48 images" in done.stderr
    assert "share the label" in done.stderr
    after = json.loads(kdcache("info", headless, "--json").stdout)
    assert after["identity"] == done.stdout.strip() != before["identity"]
    assert after["grown from"] == before["identity"]
    assert after["neighbours"] == "3 neighbours by `feature` of 2 views, exact"
    tree = tree_of(headless)
    done = kdcache("neighbours", headless, "--k", 3)
    assert done.stdout.strip() == after["identity"]
    assert "nothing has changed" in done.stderr
    refused(kdcache("neighbours", headless), "has a graph already", "cp --remove-destination")
    assert tree_of(headless) == tree
    assert kdcache("verify", headless).returncode == 0


def test_graph_that_cannot_be_is_refused(headless):
    refused(kdcache("neighbours", headless, "--k", 48), "has 47 others", "--k")
    refused(kdcache("neighbours", headless, "--nprobe", 4), "has no lists", "--index ivf")
    refused(kdcache("neighbours", headless, "--array", "embedding"), "`embedding`", "kdcache head")


def test_head_is_fitted_where_there_is_none(place, headless, tmp_path):
    done = kdcache("head", headless, "--dim", 8, "--steps", 20)
    assert done.returncode == 0, done.stderr
    assert "| feature " in done.stderr
    assert "| embedding " in done.stderr
    info = json.loads(kdcache("info", headless, "--json").stdout)
    assert info["identity"] == done.stdout.strip()
    assert info["head"] == "a head of 8 numbers fitted by `infonce`, seed 0"
    assert kdcache("verify", headless).returncode == 0
    again = kdcache("head", headless, "--dim", 8, "--steps", 20)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    refused(kdcache("head", headless, "--dim", 9), "has a head of 8 numbers", "cp -al")
    refused(kdcache("head", place / "cache.zarr"), "the teacher's own head", "train on it")


def test_growth_that_was_cut_off_is_completed_by_the_same_command(headless):
    kdcache("head", headless, "--method", "whiten", "--dim", 8)
    whole = tree_of(headless)
    (headless / "zarr.json").write_text("{}")  # as before the last step
    (headless / ".work" / "staged").mkdir(parents=True)
    assert kdcache("verify", headless).returncode == 1
    assert kdcache("head", headless, "--method", "whiten", "--dim", 8).returncode == 0
    assert tree_of(headless) == whole
    assert kdcache("verify", headless).returncode == 0
