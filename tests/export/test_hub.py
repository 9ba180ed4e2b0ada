"""An export on the Hugging Face Hub, against a hub of our own."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from commands import kdcache
from export.test_run import normalised, our_features, run_folder, student_file
from huggingface_hub import ModelCard, constants
from share.fake_hub import Blob, hub_for

from kdcache.errors import CacheNotFound, ConfigError, PlaceError
from kdcache.export import open_hub_model, run_export
from kdcache.progress import silent_bar

URL = "hf://lab/student"
REPO = "models/lab/student"

# huggingface_hub 2.4.0 itself sends large files in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def served(monkeypatch, tmp_path):
    with hub_for(monkeypatch, tmp_path / "hf") as running:
        yield running


@pytest.fixture
def exported(tmp_path):
    return run_export(run_folder(tmp_path), tmp_path / "out", ["timm"], bar=silent_bar)


def publish(exported, url=URL, public=False, tell=pytest.fail) -> str:
    return open_hub_model(url).publish(exported, public=public, bar=silent_bar, tell=tell)


def refused(kind, message, hint, action) -> None:
    with pytest.raises(kind, match=message) as caught:
        action()
    assert hint in caught.value.hint


def test_timm_loads_the_student_from_the_hub_by_the_name_that_the_command_prints(served, tmp_path):
    source, out = run_folder(tmp_path), tmp_path / "out"
    code, printed, told = kdcache("export", source, "--out", out, "--to-hub", URL)
    assert code == 0, told
    repo = served.repos[REPO]
    assert repo.private
    assert set(repo.head) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert len(repo.history) == 2  # the first one is the hub's own

    model = timm.create_model(printed.strip(), pretrained=True).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    expected = our_features(source / "student.safetensors", pixels)
    with torch.no_grad():
        found = model(torch.from_numpy(normalised(pixels))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert tuple(timm.data.resolve_model_data_config(model)["mean"]) == (0.4, 0.5, 0.6)
    card = ModelCard(repo.head["README.md"].data.decode())
    assert 'timm.create_model("hf-hub:lab/student", pretrained=True)' in card.text


def test_a_new_repository_is_private_unless_asked_otherwise(served, exported):
    publish(exported)
    publish(exported, "hf://lab/open", public=True)
    assert served.repos[REPO].private
    assert not served.repos["models/lab/open"].private


def test_the_same_export_again_sends_nothing_and_makes_no_commit(served, exported):
    first = publish(exported)
    sent = list(served.received)
    assert publish(exported) == first
    assert served.received == sent
    assert len(served.repos[REPO].history) == 2


def test_another_student_follows_and_the_first_stays_under_its_name(served, exported, tmp_path):
    both = run_export(tmp_path, tmp_path / "both", ["timm", "pth"], bar=silent_bar)
    first = publish(both)
    assert "model.pth" in served.repos[REPO].head
    (tmp_path / "b").mkdir()
    other = run_export(
        student_file(tmp_path / "b", "test_resnet"), tmp_path / "other", ["timm"], bar=silent_bar
    )
    second = publish(other)
    assert first != second
    assert "model.pth" not in served.repos[REPO].head  # it is the first one's
    assert timm.create_model(first, pretrained=True).default_cfg["architecture"] == (
        "test_efficientnet"
    )
    assert timm.create_model("hf-hub:lab/student").default_cfg["architecture"] == "test_resnet"


def test_an_edited_card_is_kept(served, exported, tmp_path):
    publish(exported)
    repo = served.repos[REPO]
    edited = Blob(repo.head["README.md"].data + b"\nGood for birds.\n", is_lfs=False)
    repo.commit({**repo.head, "README.md": edited})
    told = []
    publish(exported, tell=told.append)
    assert repo.head["README.md"] == edited
    assert "stays as it is" in told[0]


def test_a_model_of_others_is_not_replaced(served, exported):
    for config in ({"architecture": "x", "pretrained_cfg": {"tag": "in1k"}}, {}, []):
        repo = served.add_repo(REPO)
        repo.commit({"config.json": Blob(json.dumps(config).encode(), is_lfs=False)})
        refused(ConfigError, "has not exported", "another name", partial(publish, exported))
        assert set(repo.head) == {"config.json"}


def test_of_two_who_export_at_once_the_second_is_told(served, exported):
    def somebody():
        repo = served.repos[REPO]
        repo.commit({**repo.head, "notes.txt": Blob(b"mine", is_lfs=False)})

    served.before_commit = somebody
    refused(PlaceError, "somebody else", "same command", partial(publish, exported))
    assert "config.json" not in served.repos[REPO].head
    publish(exported)
    assert {"config.json", "notes.txt"} <= set(served.repos[REPO].head)


def test_without_a_token_nothing_is_written(served, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    source = run_folder(tmp_path)
    code, _, told = kdcache("export", source, "--out", tmp_path / "out", "--to-hub", URL)
    assert code == 1
    assert "no token" in told
    assert "hf auth login" in told
    assert served.requests == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to-hub", "hf://datasets/lab/student"], "no model repository"),
        (["--to-hub", "hf://lab"], "no address on the Hub"),
        (["--to-hub", "hf://lab/student@v1"], "no model repository"),
        (["--to-hub", URL, "--format", "onnx"], "--format timm,onnx"),
        (["--public"], "nothing goes to the Hub"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    served, tmp_path, arguments, said
):
    code, _, told = kdcache("export", run_folder(tmp_path), "--out", tmp_path / "out", *arguments)
    assert code == 1
    assert said in told
    assert served.requests == []
    assert not (tmp_path / "out").exists()


def test_refusals_of_the_hub_are_worded(served, exported, monkeypatch):
    refused(
        PlaceError, "403", "token that may", partial(publish, exported, "hf://elsewhere/student")
    )
    served.failures = [("GET /api/models/lab/student", 404)]
    publish_again = partial(publish, exported)
    with pytest.raises((CacheNotFound, PlaceError), match="hf://lab/student"):
        publish_again()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(PlaceError, "HF_HUB_OFFLINE", "unset", publish_again)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(PlaceError, "the Hub failed", "again", publish_again)


def test_an_upload_that_broke_off_goes_on(served, exported):
    served.failures = [(f"POST /api/{REPO}/commit", 500)]
    refused(PlaceError, "500", "same command", partial(publish, exported))
    sent = list(served.received)
    assert sent
    publish(exported)
    assert served.received == sent, "a file was sent twice"
