"""Processes: their numbers, devices and parts of a batch; a run of one process joins nothing."""

import os

import pytest
import torch
from ranks import in_ranks

from kdcache.distributed import (
    any_rank,
    barrier,
    is_first,
    local_device,
    process_group,
    rank,
    world_size,
)
from kdcache.errors import ConfigError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def meet(out):
    """What the processes find out about themselves."""
    mine = out / f"came{rank()}"
    mine.touch()
    barrier()
    return {
        "who": (rank(), world_size(), is_first()),
        "one says": any_rank(rank() == 1),
        "none says": any_rank(False),
        "came": sorted(p.name for p in out.glob("came*")),
    }


@pytest.mark.dist
def test_processes_find_each_other_and_agree(tmp_path):
    found = in_ranks(3, meet, tmp_path, out=tmp_path)
    assert [f["who"] for f in found] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for f in found:
        assert (f["one says"], f["none says"]) == (True, False)
        assert f["came"] == ["came0", "came1", "came2"]


def test_single_process_joins_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group(CPU):
        assert not torch.distributed.is_initialized()
        assert (rank(), world_size(), is_first()) == (0, 1, True)
        assert any_rank(True)
        assert not any_rank(False)
        barrier()
    assert local_device(CUDA) == CUDA


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "environ", {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(CUDA) == torch.device("cuda", 1)
    assert local_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert local_device(CPU) == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="a GPU of its own, and there are `1`") as caught:
        local_device(CUDA)
    assert "--nproc-per-node=1" in caught.value.hint


def test_process_without_a_number_is_refused(monkeypatch):
    """It would do the whole run, beside others that do so too, into one folder."""
    monkeypatch.setattr(os, "environ", {"WORLD_SIZE": "2", "RANK": "0"})
    with pytest.raises(ConfigError, match="WORLD_SIZE=`2`") as caught, process_group(CPU):
        pass
    assert "torchrun" in caught.value.hint
