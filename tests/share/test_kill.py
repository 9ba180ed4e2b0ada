"""SIGKILL at random moments: nothing is lost, nothing half done is taken for whole."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from store import making

from kdcache.errors import CacheNotFound, CacheUnfinished
from kdcache.progress import silent_bar
from kdcache.share import find_published, open_place, pull_cache, push_cache
from kdcache.store import check_digests, open_cache

KILLS = 20

# Forks a process for each job, before it has used obstore itself, which would not survive that.
SERVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from store import making
making.shrink_shards()
os.fsync = lambda handle: None
from kdcache.progress import silent_bar
from kdcache.share import bucket, pull_cache, push_cache
from kdcache.store import open_cache
for line in sys.stdin:
    what, first, second = line.split()
    pid = os.fork()
    if pid == 0:
        if what == "push":
            push_cache(open_cache(first), second, bar=silent_bar)
        else:
            pull_cache(first, Path(second), bar=silent_bar)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def jobs(environment):
    """Runs jobs in processes of their own, told by a line each."""
    tests = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tests)],
        env=os.environ | {"PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as server:
        yield server
        server.stdin.close()


def kill_at_random(jobs, line_of, look, rng):
    """Kill 20 jobs at moments spread over the time that one takes, and `look` at what each
    leaves. Returns the number of the last one."""

    def begin(turn):
        jobs.stdin.write(line_of(turn))
        return int(jobs.stdout.readline())

    begin(0)
    begun = time.monotonic()
    assert int(jobs.stdout.readline()) == 0
    takes = time.monotonic() - begun
    turn = deaths = 0
    while deaths < KILLS:
        turn += 1
        assert turn < 5 * KILLS, "most jobs were done before they could be killed"
        pid = begin(turn)
        time.sleep(takes * rng.random())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if int(jobs.stdout.readline()) == -signal.SIGKILL:
            deaths += 1
        else:  # the first one was slower than they are: kill earlier
            takes *= 0.8
        look(turn)
    return turn


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_push(big, s3, jobs, kind, tmp_path):
    cache, urls = open_cache(big), {}

    def line_of(turn):
        urls[turn] = f"{s3}/{turn}" if kind == "s3" else str(tmp_path / f"place{turn}")
        return f"push {big} {urls[turn]}\n"

    def look(turn):
        place = open_place(urls[turn])
        if place.read("manifest.json") is None:
            with pytest.raises((CacheNotFound, CacheUnfinished)):
                find_published(place)
        else:
            assert find_published(place).identity == cache.identity
            for name, digest in cache.manifest.files.items():
                assert place.holds(name, digest)
        before = {n for n in place.sizes() if n in cache.manifest.files}
        done = push_cache(cache, urls[turn], bar=silent_bar)
        assert done.num_sent == len(cache.manifest.files) - len(before)
        assert place.read("pushing.json") is None

        if kind == "folder":
            assert not list(Path(urls[turn]).rglob("*.part"))

    last = kill_at_random(jobs, line_of, look, random.Random(1))
    pull_cache(urls[last], tmp_path / "out", bar=silent_bar)
    assert making.promises(tmp_path / "out") == making.promises(big)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_pull(big, s3, jobs, kind, tmp_path):
    url = s3 if kind == "s3" else str(big)
    if kind == "s3":
        push_cache(open_cache(big), s3, bar=silent_bar)
    expected = making.promises(big)
    out = tmp_path / "out"

    def line_of(turn):
        if turn % 2:  # a part is there, and to be made whole
            pull_cache(url, out / str(turn), num_views=1, bar=silent_bar)
        return f"pull {url} {out / str(turn)}\n"

    def look(turn):
        folder = out / str(turn)
        if (folder / "manifest.json").exists():
            assert check_digests(folder) == []
        else:
            with pytest.raises((CacheNotFound, CacheUnfinished)):
                open_cache(folder)
        for name, data in making.tree(folder).items() if folder.exists() else ():
            if name in open_cache(big).manifest.files:
                assert data == expected[name]
        pull_cache(url, folder, bar=silent_bar)
        assert making.promises(folder) == expected

    kill_at_random(jobs, line_of, look, random.Random(2))
