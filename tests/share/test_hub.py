"""A cache on the Hugging Face Hub, against a hub of our own."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from share.caches import RECIPE, grow, make_cache
from share.fake_hub import Blob, hub_for, serve_hub

from kdcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound, ConfigError, PlaceError
from kdcache.files import sha256_of
from kdcache.progress import silent, silent_bar
from kdcache.share import hub
from kdcache.share.hub import HubPlace, open_hub
from kdcache.store import FileDigest, Manifest, check_digests, open_cache

URL = "hf://datasets/lab/cache"

# huggingface_hub 2.4.0 itself sends large files in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache of two views, one of three by the same recipe, and the first one grown."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)  # for speed
        make_cache(folder / "two")
        make_cache(folder / "three", num_views=3)
        make_cache(folder / "other", recipe={**RECIPE, "precision": "bf16"})
        shutil.copytree(folder / "two", folder / "grown")
        grow(open_cache(folder / "grown"))
    return folder


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub, to which this process speaks with a token that may write."""
    with hub_for(monkeypatch, tmp_path / "hf") as running:
        yield running


def push(path: Path, **options) -> str:
    return open_hub(URL).push(open_cache(path), silent_bar, **options)


def pull(place: HubPlace, to: Path) -> None:
    """What a pull does, without its comforts."""
    manifest = place.read("manifest.json")
    for name, digest in Manifest.from_bytes(manifest).files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        place.fetch(name, to / name, digest, silent)
    (to / "zarr.json").write_bytes(place.read("zarr.json"))
    (to / "manifest.json").write_bytes(manifest)


def refused(kind, message, hint, action) -> None:
    with pytest.raises(kind, match=message) as caught:
        action()
    assert hint in caught.value.hint


def test_what_was_pushed_comes_back_byte_for_byte(served, made, tmp_path):
    cache = open_cache(made / "two")
    url = push(made / "two")
    assert url == f"{URL}@{cache.identity[:12]}"
    pull(open_hub(url), tmp_path / "back")
    assert open_cache(tmp_path / "back").identity == cache.identity
    assert check_digests(tmp_path / "back") == []
    assert not list((tmp_path / "back").rglob("*.hub"))


def test_manifest_and_card_come_in_one_commit_with_all_else(served, made):
    push(made / "two", data_licence="CC0-1.0")
    repo = served.repos["lab/cache"]
    assert len(repo.history) == 2  # the first one is the hub's own
    promised = open_cache(made / "two").manifest.files
    own = {".gitattributes", "manifest.json", "zarr.json", "README.md"}
    assert set(repo.head) == set(promised) | own
    card = repo.head["README.md"].data.decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"
    assert f"kdcache pull {URL}@{open_cache(made / 'two').identity[:12]}" in card


def test_a_new_repository_is_private_unless_asked_otherwise(served, made):
    push(made / "two")
    assert served.repos["lab/cache"].private
    open_hub("hf://datasets/lab/open").push(open_cache(made / "two"), silent_bar, public=True)
    assert not served.repos["lab/open"].private


def test_a_second_push_sends_nothing_and_makes_no_commit(served, made):
    first = push(made / "two")
    sent = len(served.received)
    assert push(made / "two") == first
    assert len(served.received) == sent
    assert len(served.repos["lab/cache"].history) == 2


def test_a_push_that_broke_off_goes_on(served, made, monkeypatch):
    monkeypatch.setattr(hub, "_BATCH_FILES", 5)
    served.failures = [("POST /api/datasets/lab/cache/commit", 500)]
    refused(PlaceError, "500", "run the same command", lambda: push(made / "two"))
    sent = list(served.received)
    assert "manifest.json" not in served.repos["lab/cache"].head
    push(made / "two")
    assert served.received == sent, "a file was sent twice"
    assert "manifest.json" in served.repos["lab/cache"].head


def test_a_killed_push_shows_nothing_and_goes_on(served, made, monkeypatch):
    monkeypatch.setattr(hub, "_BATCH_FILES", 5)

    @contextmanager
    def dying_bar(title, *, total, unit, done=0):
        batches = []

        def progress(count):
            batches.append(count)
            if len(batches) == 2:
                raise KeyboardInterrupt

        yield progress

    with pytest.raises(KeyboardInterrupt):
        open_hub(URL).push(open_cache(made / "two"), dying_bar)
    assert set(served.repos["lab/cache"].head) == {".gitattributes"}
    first = set(served.received)
    push(made / "two")
    assert len(served.received) == len(set(served.received)) > len(first) > 0


def test_growth_sends_what_is_new_and_the_old_identity_stays(served, made, tmp_path):
    old_url, sent = push(made / "two"), len(served.received)
    new_url = push(made / "grown")
    grown = open_cache(made / "grown").manifest.files
    added = {
        file.sha256
        for name, file in grown.items()
        if name not in open_cache(made / "two").manifest.files
    }
    assert set(served.received[sent:]) <= added
    pull(open_hub(old_url), tmp_path / "old")
    pull(open_hub(new_url), tmp_path / "new")
    assert open_cache(tmp_path / "old").identity == open_cache(made / "two").identity
    assert open_cache(tmp_path / "new").identity == open_cache(made / "grown").identity
    assert open_cache(tmp_path / "new").lineage[1] == open_cache(made / "two").identity


def test_more_views_of_one_recipe_share_the_shards(served, made):
    push(made / "two")
    sent = len(served.received)
    push(made / "three")
    shards = {
        file.sha256
        for name, file in open_cache(made / "two").manifest.files.items()
        if "/c/" in name and name.startswith(("feature", "embedding"))
    }
    assert shards
    assert not shards & set(served.received[sent:])


@pytest.mark.parametrize(("there", "pushed"), [("two", "other"), ("three", "two")])
def test_another_cache_is_never_replaced(served, made, there, pushed):
    push(made / there)
    before = dict(served.repos["lab/cache"].refs)
    refused(CacheMismatch, "has not grown", "another name", lambda: push(made / pushed))
    assert served.repos["lab/cache"].refs == before


def test_of_two_pushers_the_second_is_told(served, made):
    other = open_cache(made / "other")
    served.before_commit = lambda: push(made / "other")
    refused(CacheMismatch, other.identity, "run the same command", lambda: push(made / "two"))
    assert (
        served.repos["lab/cache"].head["manifest.json"].data
        == (made / "other" / "manifest.json").read_bytes()
    )


def test_of_two_pushers_of_one_cache_both_succeed(served, made):
    served.before_commit = lambda: push(made / "two")
    assert push(made / "two") == f"{URL}@{open_cache(made / 'two').identity[:12]}"
    assert len(served.repos["lab/cache"].history) == 2


def test_many_pushers_at_once_leave_one_whole_cache(served, made):
    results = {}

    def attempt(name):
        try:
            results[name] = push(made / name)
        except CacheMismatch as error:
            results[name] = error

    threads = [threading.Thread(target=attempt, args=(name,)) for name in ("two", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = [name for name, result in results.items() if isinstance(result, str)]
    assert len(winner) == 1
    head = served.repos["lab/cache"].head
    promised = json.loads(head["manifest.json"].data)["files"]
    assert {name: head[name].sha256 for name in promised} == {
        name: file["sha256"] for name, file in promised.items()
    }
    assert head["manifest.json"].data == (made / winner[0] / "manifest.json").read_bytes()


def test_an_edited_card_is_kept_and_an_unedited_one_renewed(served, made):
    push(made / "two")
    repo = served.repos["lab/cache"]
    first = repo.head["README.md"].data
    push(made / "grown")
    assert repo.head["README.md"].data != first
    edited = repo.head["README.md"].data + b"Our own words.\n"
    repo.commit({"README.md": Blob(edited, is_lfs=False), ".gitattributes": Blob(b"", False)})
    told = []
    push(made / "two", tell=told.append)
    assert repo.head["README.md"].data == edited
    assert "stays as it is" in told[0]


def test_a_broken_file_is_not_pushed(served, made, tmp_path):
    shutil.copytree(made / "two", tmp_path / "broken")
    shard = tmp_path / "broken" / "feature/c/0/1/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    refused(CacheCorrupt, "feature/c/0/1/0", "verify", lambda: push(tmp_path / "broken"))
    assert set(served.repos["lab/cache"].head) == {".gitattributes"}


def test_what_arrives_wrong_is_not_kept(served, made, tmp_path):
    push(made / "two")
    place = open_hub(URL)
    name = "feature/c/0/0/0"
    served.corrupt.add(name)
    digest = open_cache(made / "two").manifest.files[name]
    to = tmp_path / "shard"
    refused(CacheCorrupt, name, "run the same", lambda: place.fetch(name, to, digest, silent))
    assert list(tmp_path.glob("*shard*")) == []
    absent = FileDigest(1, "0" * 64)
    refused(CacheCorrupt, "does not hold", "", lambda: place.fetch("nothing", to, absent, silent))


def test_all_is_read_from_the_commit_that_was_seen_first(served, made):
    push(made / "two")
    place = open_hub(URL)
    before = place.read("manifest.json")
    push(made / "grown")
    assert place.read("manifest.json") == before
    assert open_hub(URL).read("manifest.json") != before


def test_reading_moves_the_bytes_of_what_is_asked_for_only(served, made, tmp_path):
    push(made / "two")
    manifest = open_cache(made / "two").manifest
    name = "embedding/c/0/0/0"
    served.bytes_out = 0
    counted = []
    open_hub(URL).fetch(name, tmp_path / "shard", manifest.files[name], counted.append)
    assert served.bytes_out == manifest.files[name].num_bytes == sum(counted)


def test_files_come_in_parallel_and_clear_what_a_killed_pull_left(served, made, tmp_path):
    push(made / "two")
    place, files = open_hub(URL), open_cache(made / "two").manifest.files
    names = [name for name in files if name.startswith(("embedding/c", "feature/c", "index"))]
    left = tmp_path / ".0.hub" / names[0]
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of it")

    def fetch(i: int) -> str:
        place.fetch(names[i], tmp_path / str(i), files[names[i]], silent)
        return sha256_of(tmp_path / str(i))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fetch, range(len(names))))
    assert found == [files[name].sha256 for name in names]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf") == sorted(
        map(str, range(len(names)))
    )


def test_absent_files_revisions_and_repositories_are_told_apart(served, made):
    push(made / "two")
    assert open_hub(URL).read("neighbours/zarr.json") is None
    refused(CacheNotFound, "no such revision", "tag", lambda: open_hub(f"{URL}@v9").read("a"))
    refused(
        CacheNotFound, "there is no", "name", lambda: open_hub("hf://datasets/lab/no").read("a")
    )


def test_a_missing_token_is_said_before_anything_is_done(served, made, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    refused(ConfigError, "no token", "hf auth login", lambda: push(made / "two"))
    assert served.requests == []


def test_a_private_repository_is_not_shown_to_strangers(served, made, monkeypatch):
    push(made / "two")
    monkeypatch.delenv("HF_TOKEN")
    refused(CacheNotFound, "may not see", "HF_TOKEN", lambda: open_hub(URL).read("recipe.json"))


def test_a_token_that_may_only_read_is_refused(served, made, monkeypatch):
    push(made / "two")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert open_hub(URL).read("recipe.json") == (made / "two/recipe.json").read_bytes()
    refused(PlaceError, "403", "token that may", lambda: push(made / "grown"))


def test_a_gated_repository_says_so(served, made, monkeypatch):
    push(made / "two")
    served.repos["lab/cache"].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    refused(PlaceError, "gated", "ask for access", lambda: open_hub(URL).read("recipe.json"))


def test_offline_is_an_error_that_names_the_switch(served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(PlaceError, "HF_HUB_OFFLINE", "unset", lambda: open_hub(URL).read("recipe.json"))


def test_a_hub_that_cannot_be_reached_is_an_error(served, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(PlaceError, "the Hub failed", "again", lambda: open_hub(URL).read("recipe.json"))


@pytest.mark.parametrize(
    "url",
    ["hf://lab/model", "hf://datasets/lab/cache/folder", "hf://datasets/lab", "hf://buckets/a/b"],
)
def test_other_addresses_are_refused(url):
    refused(ConfigError, url, "hf://datasets/ORG/NAME", lambda: open_hub(url))


def test_a_push_to_a_revision_is_refused(made):
    cache = open_cache(made / "two")
    place = open_hub(f"{URL}@v1")
    refused(ConfigError, "names one revision", URL, lambda: place.push(cache, silent_bar))


def test_a_gitignore_that_could_drop_files_is_refused(served, made):
    repo = served.add_repo("lab/cache")
    repo.commit({".gitignore": Blob(b"c/\n", is_lfs=False)})
    refused(CacheMismatch, "gitignore", "delete it", lambda: push(made / "two"))


def test_the_hubs_limits_are_named_before_the_upload(served, made, monkeypatch):
    digest = FileDigest(1, "0" * 64)
    files = {f"receipts/feature/{i}.0.json": digest for i in range(10_001)}
    files |= {f"feature/c/{i}/0/0": digest for i in range(90_001)}
    manifest = Manifest("", 1, 1, 1, files, {})
    folder, shards = "receipts/feature` has 10,001", "feature/c` has 90,001"
    total, *folders = hub.hub_warnings(manifest)
    assert "100,002 files" in total
    assert any(folder in text for text in folders)
    assert any(shards in text for text in folders)
    assert hub.hub_warnings(open_cache(made / "two").manifest) == []
    told = []
    monkeypatch.setattr(hub, "_MAX_FILES", 10)
    push(made / "two", tell=told.append)
    assert "the Hub recommends" in told[0]


def test_more_large_files_than_a_commit_takes_are_refused_first(served, made, monkeypatch):
    monkeypatch.setattr(hub, "_MAX_LARGE_FILES", 3)
    refused(PlaceError, "in one commit", "fewer views", lambda: push(made / "two"))
    assert served.received == []


SCRIPT = """
import sys
from kdcache.files import sha256_of
from kdcache.progress import progress_bar
from kdcache.share.hub import open_hub
from kdcache.store import open_cache
print(open_hub(sys.argv[2]).push(open_cache(sys.argv[1]), progress_bar))
"""


@pytest.mark.slow
def test_a_process_with_the_usual_environment_can_push(made, tmp_path):
    with serve_hub() as running:
        environment = {
            "HF_ENDPOINT": running.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_writer",
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(made / "two"), URL],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{URL}@{open_cache(made / 'two').identity[:12]}"
    assert "manifest.json" in running.repos["lab/cache"].head
