"""What a cluster gives each teacher, and what an actor refuses before it computes anything."""

import shutil
import sys
from types import ModuleType

import pytest
import torch
from small import make_cache, tree_of

from kdcache.errors import ConfigError, DataError, MissingExtra, TeacherError, WorkerKilled
from kdcache.extract import join_ray, run
from kdcache.extract.actor import PROBE, Actor, Description
from kdcache.extract.cluster import Cluster, Share, _Call, share_of
from kdcache.store import layout

GPU = {"CPU": 32.0, "GPU": 4.0}
HEAD = {"CPU": 4.0}

SHARES = {
    "a core each without GPUs": ([HEAD, HEAD], None, None, Share(0, 1, 0), 8),
    "cores for those that render": ([HEAD, HEAD], None, 2, Share(0, 2, 2), 4),
    "a GPU and its part of the cores": ([HEAD, GPU, GPU], None, None, Share(1, 8, 8), 8),
    "as the poorest node has": ([GPU, {"CPU": 4.0, "GPU": 2.0}], None, None, Share(1, 2, 2), 6),
    "no more than can be of use": ([{"CPU": 96.0, "GPU": 1.0}], None, None, Share(1, 16, 16), 1),
    "as was asked for": ([GPU], None, 4, Share(1, 4, 4), 4),
    "cores though there are GPUs": ([GPU], "cpu", 0, Share(0, 1, 0), 32),
    "more GPUs than cores": ([{"CPU": 2.0, "GPU": 4.0}], None, None, Share(1, 1, 0), 2),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARES)
def test_share_of_an_actor(case):
    nodes, device, workers, share, number = SHARES[case]
    assert share_of(nodes, device, workers) == share
    assert share.fit(nodes) == number


@pytest.mark.parametrize(
    ("device", "workers", "message"),
    [
        ("cuda:1", None, "names one device"),
        ("cuda", None, "no node of the cluster has a GPU"),
        (None, 8, "8 cores and 0 GPUs, and no node"),
    ],
)
def test_what_no_node_has_is_refused(device, workers, message):
    with pytest.raises(ConfigError, match=message):
        share_of([HEAD], device, workers)


def test_without_ray_there_is_a_line_to_paste(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtra, match="needs `ray`") as caught,
        join_ray(None, weights=None, device=None, workers=None),
    ):
        pass
    assert caught.value.hint == "pip install 'kdcache[ray]'"


class NoRay(ModuleType):
    """Has nothing to kill."""

    def kill(self, actor) -> None:
        assert actor == "actor"


@pytest.fixture
def cluster():
    cluster = Cluster(NoRay("ray"), Share(0, 1, 0), None)
    cluster._actors = {0: "actor", 1: "actor"}
    return cluster


def test_piece_that_kills_every_actor_ends_the_run(cluster):
    for number in (0, 1, 0):
        cluster._give_up(_Call(number, 7), OSError("gone"))
    cluster._give_up(_Call(0, 8), OSError("gone"))
    with pytest.raises(WorkerKilled, match="4 processes of the cluster died of piece 7"):
        cluster._give_up(_Call(1, 7), OSError("gone"))


def test_actor_that_is_never_ready_ends_the_run(cluster):
    for _ in range(3):
        cluster._give_up(_Call(1, None), OSError("gone"))
    assert cluster._gone == {1}
    with pytest.raises(WorkerKilled, match="died of loading the teacher"):
        cluster._give_up(_Call(1, None), OSError("gone"))


@pytest.fixture
def begun(tiny_images, tiny_weights, tmp_path, monkeypatch):
    """What an actor is told of a cache that was begun; it holds nothing yet."""
    monkeypatch.setattr(layout, "PIECE_ROWS", 16)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "extract", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_cache(tiny_images, tiny_weights, tmp_path / "c")
    (tmp_path / "c" / PROBE).write_text("seen")
    return {
        "out": tmp_path / "c",
        "probe": "seen",
        "source": str(tiny_images),
        "weights": tiny_weights,
        "num_views": 2,
        "device": "cpu",
        "workers": 0,
        "num_threads": 1,
    }


def test_actor_computes_each_piece_once_and_in_the_same_bytes(
    begun, tiny_images, tiny_weights, tmp_path
):
    actor = Actor(Description(**begun))
    actor.prepare()
    assert [actor.compute(piece).views for piece in (2, 0, 2)] == [32, 32, 0]
    outcome = make_cache(tiny_images, tiny_weights, begun["out"])
    assert outcome.report.views == 32
    make_cache(tiny_images, tiny_weights, tmp_path / "whole")
    assert tree_of(begun["out"]) == tree_of(tmp_path / "whole")
    assert actor.compute(1).views == 0  # who was cut off finds it finished


@pytest.mark.dist
@pytest.mark.slow
def test_processes_of_an_actor_stay_from_piece_to_piece(begun):
    actor = Actor(Description(**begun | {"workers": 1}))
    actor.compute(0)
    loader = actor._rendering._loader
    pids = [process.pid for process in loader._iterator._workers]
    actor.compute(1)
    assert [process.pid for process in loader._iterator._workers] == pids


def test_actor_that_sees_another_folder_refuses(begun, tmp_path):
    with pytest.raises(ConfigError, match="is another folder here") as caught:
        Actor(Description(**begun | {"probe": "other"})).prepare()
    assert "all nodes share" in caught.value.hint
    with pytest.raises(ConfigError, match="is not there here"):
        Actor(Description(**begun | {"out": tmp_path / "elsewhere"})).prepare()


def test_actor_that_sees_other_images_refuses(begun, tmp_path):
    other = shutil.copytree(begun["source"], tmp_path / "train")
    (other / "class0" / "000.jpg").rename(other / "class0" / "0000.jpg")
    with pytest.raises(DataError, match="other images here"):
        Actor(Description(**begun | {"source": str(other)})).prepare()
    (other / "class0" / "0000.jpg").unlink()
    with pytest.raises(DataError, match="holds 47 images here"):
        Actor(Description(**begun | {"source": str(other)})).prepare()
    with pytest.raises(DataError, match="there is no"):
        Actor(Description(**begun | {"source": str(tmp_path / "gone")})).prepare()


def test_actor_that_has_other_weights_refuses(begun, tiny_weights, tmp_path):
    state = torch.load(tiny_weights)
    state["state_dict"]["fc.2.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(TeacherError, match="those at hand are"):
        Actor(Description(**begun | {"weights": tmp_path / "other.pth"})).prepare()


def test_image_that_changed_is_refused_by_the_actor_that_renders_it(begun, tmp_path):
    other = shutil.copytree(begun["source"], tmp_path / "train")
    shutil.copy(other / "class0" / "000.jpg", other / "class0" / "002.jpg")
    actor = Actor(Description(**begun | {"source": str(other)}))
    actor.prepare()
    with pytest.raises(DataError, match=r"class0/002.jpg.*has changed"):
        actor.compute(0)
