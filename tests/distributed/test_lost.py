"""A process that dies or hangs is told of, and not waited for without end."""

import os
import signal
import socket
import time

import pytest
import torch
from torch import multiprocessing

TIMEOUT_S = 3.0


def meet(number, port, out, fate):
    """Meets the other process once; then the second one has gone, or is silent."""
    from kdcache.distributed import barrier, process_group
    from kdcache.errors import TrainingError

    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with process_group(torch.device("cpu"), timeout_s=TIMEOUT_S):
        barrier()
        if number == 1:
            (out / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL if fate == "dies" else signal.SIGSTOP)
        started = time.monotonic()
        try:
            barrier()
        except TrainingError as error:
            torch.save((str(error), error.hint, time.monotonic() - started), out / "said.pt")
        os._exit(0)  # without the other, the group cannot be left


@pytest.mark.dist
@pytest.mark.parametrize("fate", ["dies", "hangs"])
def test_process_that_is_gone_ends_the_others_with_an_error(fate, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm"])
    both = [context.Process(target=meet, args=(n, port, tmp_path, fate)) for n in (0, 1)]
    for process in both:
        process.start()
    both[0].join(180)
    both[1].kill()
    both[1].join(180)
    assert both[0].exitcode == 0
    message, hint, waited_s = torch.load(tmp_path / "said.pt", weights_only=False)
    assert message.startswith("another process of this run has died, or has not answered in time:")
    assert "goes on from the last checkpoint" in hint
    assert waited_s < 10 * TIMEOUT_S  # torch's own patience would be half an hour
