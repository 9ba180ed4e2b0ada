"""Weights come whole or not at all, whatever servers, networks and people do meanwhile.

A real server on 127.0.0.1 answers; what it is asked for is looked at in its log.
"""

import errno
import functools
import gzip
import hashlib
import multiprocessing
import random
import resource
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdcache.errors import TeacherError
from kdcache.teachers import download
from kdcache.teachers.download import Digest, cache_folder, fetch

BODY = random.Random(1).randbytes(200_003)
OTHER = random.Random(2).randbytes(150_001)
SHA256 = Digest("sha256", hashlib.sha256(BODY).hexdigest())


@dataclass
class Site:
    """One file on a server, and how the server misbehaves."""

    body: bytes = BODY
    etag: str = '"1"'
    modified: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    knows_ranges: bool = True
    knows_if_range: bool = True
    shifts: int = 0
    """The answer to a Range request begins so many bytes too late."""
    most: int | None = None
    """The most bytes that the answer to a Range request brings."""
    length: bool = True
    chunked: bool = False
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answered first, one a request."""
    cuts: list[int] = field(default_factory=list)
    """The first answers with a body break off after so many bytes."""
    gate: threading.Event | None = None
    """The end of the body is sent once this is set."""
    log: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and If-Range of each request."""

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.log]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, self.close_connection = self.server.site, True
        asked, condition = self.headers["Range"], self.headers["If-Range"]
        site.log.append((self.path, asked, condition))
        assert self.headers["Accept-Encoding"] == "identity"
        if site.statuses:
            status, headers = site.statuses.pop(0)
            return self.answer(status, {**headers, "Content-Length": "0"}, b"")
        headers = {"ETag": site.etag, "Last-Modified": site.modified, **site.headers}
        if not asked or not site.knows_ranges or self.is_changed(condition):
            return self.answer(200, headers, site.body)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) + site.shifts
        if start >= len(site.body):
            size = {"Content-Range": f"bytes */{len(site.body)}", "Content-Length": "0"}
            return self.answer(416, size, b"")
        rest = site.body[start:][: site.most]
        span = f"bytes {start}-{start + len(rest) - 1}/{len(site.body)}"
        return self.answer(206, {**headers, "Content-Range": span}, rest)

    def is_changed(self, condition):
        site = self.server.site
        return site.knows_if_range and condition not in (None, site.etag, site.modified)

    def answer(self, status, headers, body):
        site = self.server.site
        if body and site.length:
            headers["Content-Length"] = str(len(body))
        if body and site.chunked:
            headers["Transfer-Encoding"] = "chunked"
        headers["Connection"] = "close"
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        cut = site.cuts.pop(0) if body and site.cuts else None
        if site.chunked and body:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        if body and site.gate and not site.gate.is_set():
            self.wfile.write(body[: len(body) // 2])
            site.gate.wait(60)
            body = body[len(body) // 2 :]
        self.wfile.write(body[:cut])

    def handle(self):
        # A client that is killed or has heard enough is what these tests are about.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_):
        pass


@contextmanager
def listening(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def serve():
    """Puts a site on a server of its own; gives its address."""
    ends = []

    def start(site, name="moco.pth.tar"):
        server_at = listening(Handler)
        server, address = server_at.__enter__()
        server.site = site
        ends.append(server_at)
        return f"{address}/models/{name}"

    yield start
    for end in reversed(ends):
        end.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def _online_and_quick(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "KDCACHE_OFFLINE", "KDCACHE_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDCACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_BACKOFF_S", 0.0)
    monkeypatch.setattr(download, "_PIECE_BYTES", 1000)


@pytest.fixture
def slept(monkeypatch):
    """How long the code under test would have slept."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def files():
    """Everything in the cache folder but the locks."""
    return sorted(p for p in cache_folder().rglob("*") if p.is_file() and p.name != ".lock")


def part():
    return next(cache_folder().rglob("*.part"))


def closed_port():
    """An address at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/moco.pth.tar"


class Interrupted(BaseException):
    """What a person's Ctrl-C is to the code."""


def interrupting(at):
    """A bar during which the process is interrupted, once about `at` bytes have come."""

    @contextmanager
    def bar(title, *, total, unit, done=0):
        seen = done

        def progress(count):
            nonlocal seen
            seen += count
            if seen >= at:
                raise Interrupted

        yield progress

    return bar


def begin(urls, at=100_000, digest=SHA256):
    """Interrupt a download; how many bytes of it were kept."""
    with pytest.raises(Interrupted):
        fetch(urls, digest=digest, bar=interrupting(at))
    assert [path.name for path in files()] == ["moco.pth.tar.part", "moco.pth.tar.part.json"]
    return part().stat().st_size


# A plain download


def test_a_file_comes_whole_under_its_own_name_and_nothing_else_stays(serve):
    site = Site()
    path = fetch([serve(site)], digest=SHA256)
    assert path.read_bytes() == BODY
    assert path.name == "moco.pth.tar"
    assert path.is_relative_to(cache_folder() / "weights")
    assert files() == [path]
    assert site.ranges == [None]


def test_a_file_that_is_there_is_used_without_asking_the_server(serve, monkeypatch):
    site = Site()
    url = serve(site)
    path = fetch([url], digest=SHA256)
    assert fetch([url], digest=SHA256) == path
    monkeypatch.setenv("KDCACHE_OFFLINE", "1")
    assert fetch([url], digest=SHA256) == path
    assert len(site.log) == 1


def test_files_of_one_name_from_two_addresses_do_not_meet(serve):
    first, second = serve(Site()), serve(Site(body=OTHER))
    paths = [fetch([url], digest=None) for url in (first, second)]
    assert [path.read_bytes() for path in paths] == [BODY, OTHER]


def test_a_digest_that_became_known_later_is_not_thought_checked(serve):
    url = serve(Site(body=OTHER))
    fetch([url], digest=None)
    with pytest.raises(TeacherError, match="expected"):
        fetch([url], digest=SHA256)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.pth?dl=1&x=/b.pth", "a.pth"),
        ("..%2F..%2Fescaped.pth", "_.._escaped.pth"),
        ("%2e%2e", "weights"),
        ("", "models"),
        ("two%20words.safetensors", "two_words.safetensors"),
    ],
)
def test_no_address_names_a_file_outside_the_cache(serve, name, kept):
    path = fetch([serve(Site(), name)], digest=SHA256)
    assert path.name == kept
    assert path.parent.parent == cache_folder() / "weights"


def test_a_body_in_chunks_has_an_end_but_no_length(serve):
    site = Site(length=False, chunked=True, cuts=[70_000])
    assert fetch([serve(site)], digest=None).read_bytes() == BODY
    assert site.ranges == [None, None]


def test_the_bar_counts_every_byte_once(serve):
    shown = []

    @contextmanager
    def bar(title, *, total, unit, done=0):
        shown.append([title, total, unit, done, 0])

        def progress(count):
            shown[-1][-1] += count

        yield progress

    url = serve(Site())
    kept = begin([url])
    fetch([url], digest=SHA256, bar=bar)
    assert shown == [["moco.pth.tar", len(BODY), "B", kept, len(BODY) - kept]]


# Broken off, and taken up again


@pytest.mark.parametrize("seed", range(12))
def test_a_connection_lost_anywhere_costs_only_the_missing_bytes(serve, seed):
    rng = random.Random(seed)
    site = Site(cuts=[rng.randrange(len(BODY)), rng.randrange(len(BODY) // 2)])
    path = fetch([serve(site)], digest=SHA256 if seed % 2 else None)
    assert path.read_bytes() == BODY
    starts = [0 if asked is None else int(asked[6:-1]) for asked in site.ranges]
    assert starts == sorted(starts)
    for asked, condition in [entry[1:] for entry in site.log[1:]]:
        assert condition == ('"1"' if asked else None)
    # At most the piece in hand is asked for twice.
    cuts = [rng.randrange(length) for rng in [random.Random(seed)] for length in (200_003, 100_001)]
    assert cuts[0] - 1000 < starts[1] <= cuts[0]
    if starts[1] + cuts[1] < len(BODY):
        assert starts[1] + cuts[1] - 1000 < starts[2] <= starts[1] + cuts[1]


@pytest.mark.parametrize("at", random.Random(3).sample(range(1, len(BODY)), 12))
def test_an_interrupted_process_leaves_what_the_next_one_goes_on_with(serve, at):
    site = Site()
    url = serve(site)
    kept = begin([url], at)
    assert at <= kept <= at + 1000
    path = fetch([url], digest=SHA256)
    assert path.read_bytes() == BODY
    assert files() == [path]
    assert site.log[1:] == ([("/models/moco.pth.tar", f"bytes={kept}-", '"1"')] * (kept < 200_003))


def test_a_date_stands_in_for_an_etag_that_is_weak(serve):
    date = "Tue, 03 Mar 2020 10:00:00 GMT"
    site = Site(etag='W/"1"', modified=date)
    url = serve(site)
    kept = begin([url], digest=None)
    assert fetch([url], digest=None).read_bytes() == BODY
    assert site.log[1][1:] == (f"bytes={kept}-", date)


@pytest.mark.parametrize("etag", ["", 'W/"1"'])
def test_without_a_way_to_tell_versions_apart_it_starts_anew(serve, etag):
    site = Site(etag=etag)
    url = serve(site)
    begin([url], digest=None)
    assert fetch([url], digest=None).read_bytes() == BODY
    assert site.ranges == [None, None]


def test_a_server_that_ignores_ranges_is_read_from_the_start(serve):
    site = Site(knows_ranges=False)
    url = serve(site)
    kept = begin([url], digest=None)
    assert fetch([url], digest=None).read_bytes() == BODY
    assert site.ranges == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_on_the_server_is_not_mixed_with_the_old(serve, knows_if_range):
    site = Site(knows_if_range=knows_if_range)
    url = serve(site)
    begin([url], digest=None)
    site.body, site.etag = random.Random(4).randbytes(len(BODY)), '"2"'
    assert fetch([url], digest=None).read_bytes() == site.body


def test_a_file_that_became_shorter_than_the_part_is_read_anew(serve):
    site = Site(knows_if_range=False)
    url = serve(site)
    kept = begin([url], 180_000, digest=None)
    site.body = OTHER  # under the same ETag: the server answers 416
    assert fetch([url], digest=None).read_bytes() == OTHER
    assert site.ranges == [None, f"bytes={kept}-", None]


def test_a_file_that_became_longer_under_the_same_etag_is_read_anew(serve):
    site = Site()
    url = serve(site)
    kept = begin([url], digest=None)
    site.body = random.Random(6).randbytes(len(BODY) + 500)
    assert fetch([url], digest=None).read_bytes() == site.body
    assert site.ranges == [None, f"bytes={kept}-", None]


def test_a_server_that_sends_less_than_the_rest_is_asked_for_more(serve):
    site = Site(cuts=[100_000], most=30_000)
    assert fetch([serve(site)], digest=None).read_bytes() == BODY
    assert len(site.log) == 5


def test_other_bytes_than_those_asked_for_are_not_appended(serve):
    site = Site(shifts=5)
    url = serve(site)
    begin([url], digest=None)
    assert fetch([url], digest=None).read_bytes() == BODY
    assert site.ranges[2:] == [None]


def test_the_part_of_one_address_is_not_finished_from_another(serve):
    first, second = Site(), Site(body=OTHER)
    urls = [serve(first), serve(second)]
    begin(urls, digest=None)
    first.statuses = [(404, {})]
    assert fetch(urls, digest=None).read_bytes() == OTHER
    assert second.ranges == [None]


def test_a_part_of_unknown_origin_is_not_used(serve):
    url = serve(Site())
    begin([url], digest=None)
    part().with_name("moco.pth.tar.part.json").unlink()
    part().write_bytes(OTHER)
    assert fetch([url], digest=None).read_bytes() == BODY


def test_a_part_that_is_complete_is_checked_and_not_asked_for_again(serve):
    site = Site()
    url = serve(site)
    assert begin([url], len(BODY)) == len(BODY)
    assert fetch([url], digest=SHA256).read_bytes() == BODY
    assert len(site.log) == 1


def test_a_body_that_always_ends_early_is_given_up_and_never_served(serve):
    site = Site(knows_ranges=False, cuts=[60_000] * 50)
    with pytest.raises(TeacherError, match="broke off after 60000 bytes"):
        fetch([serve(site)], digest=None)
    assert len(site.log) < 10
    assert "moco.pth.tar" not in [path.name for path in files()]


def test_a_body_without_length_or_end_is_refused(serve):
    site = Site(length=False, cuts=[60_000])
    with pytest.raises(TeacherError, match="does not say how long"):
        fetch([serve(site)], digest=None)
    assert files() == []


def test_a_full_disk_is_the_systems_error_and_the_part_is_kept(serve):
    site = Site()
    url = serve(site)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch([url], digest=SHA256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    kept = part().stat().st_size
    assert 80_000 < kept <= 90_000
    assert fetch([url], digest=SHA256).read_bytes() == BODY
    assert site.ranges == [None, f"bytes={kept}-"]


# Digests


@pytest.mark.parametrize("kind", ["sha256", "md5"])
@pytest.mark.parametrize("length", [8, 10, None])
def test_a_digest_is_checked_as_far_as_it_is_known(serve, kind, length):
    digits = hashlib.new(kind, BODY).hexdigest()[:length]
    url = serve(Site())
    assert fetch([url], digest=Digest(kind, digits)).read_bytes() == BODY
    wrong = digits[:-1] + ("0" if digits[-1] != "0" else "1")
    with pytest.raises(TeacherError) as caught:
        fetch([url], digest=Digest(kind, wrong))
    assert f"`{digits}`" in str(caught.value)
    assert f"expected `{wrong}`" in str(caught.value)
    assert "--weights FILE" in caught.value.hint
    assert len(files()) == 1, "the wrong one or a part of it is still there"


@pytest.mark.parametrize("digits", ["", "abc", "A" * 64, "x" * 64])
def test_a_digest_that_would_check_nothing_cannot_be_made(digits):
    with pytest.raises(AssertionError):
        Digest("sha256", digits)


def test_a_part_that_was_damaged_is_found_out_and_deleted(serve):
    url = serve(Site())
    begin([url])
    damaged = bytearray(part().read_bytes())
    damaged[50] ^= 1
    part().write_bytes(damaged)
    with pytest.raises(TeacherError, match="they were deleted"):
        fetch([url], digest=SHA256)
    assert files() == []
    assert fetch([url], digest=SHA256).read_bytes() == BODY


# Answers that are no file


def test_a_server_in_trouble_is_asked_again_after_growing_pauses(serve, monkeypatch, slept):
    monkeypatch.setattr(download, "_BACKOFF_S", 0.5)
    site = Site(statuses=[(500, {}), (502, {}), (503, {})])
    assert fetch([serve(site)], digest=SHA256).read_bytes() == BODY
    assert len(site.log) == 4
    assert slept == [1.0, 2.0]


@pytest.mark.parametrize(("said", "waited"), [("7", [7.0]), ("0", []), ("86400", [60.0])])
def test_a_server_says_how_long_to_wait_within_reason(serve, slept, said, waited):
    site = Site(statuses=[(429, {"Retry-After": said})])
    assert fetch([serve(site)], digest=SHA256).read_bytes() == BODY
    assert slept == waited


def test_a_lost_connection_is_taken_up_after_a_pause(serve, monkeypatch, slept):
    monkeypatch.setattr(download, "_BACKOFF_S", 0.5)
    fetch([serve(Site(cuts=[60_000]))], digest=SHA256)
    assert slept == [0.5]


def test_a_server_that_stays_in_trouble_is_given_up(serve):
    site = Site(statuses=[(503, {})] * 50)
    with pytest.raises(TeacherError, match="the server answered 503 Service Unavailable"):
        fetch([serve(site)], digest=SHA256)
    assert len(site.log) == 5


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_a_refusal_is_final_and_names_address_and_status(serve, status, words):
    site = Site(statuses=[(status, {})] * 9)
    url = serve(site)
    with pytest.raises(TeacherError) as caught:
        fetch([url], digest=SHA256)
    assert f"`{url}`: the server answered {words}" in str(caught.value)
    assert url in caught.value.hint
    assert "--weights FILE" in caught.value.hint
    assert len(site.log) == 1
    assert files() == []


def test_a_redirect_is_followed_with_the_range(serve):
    target = Site()
    url = serve(target)
    moved = Site(statuses=[(302, {"Location": url})] * 2)
    start = serve(moved)
    kept = begin([start])
    assert fetch([start], digest=SHA256).read_bytes() == BODY
    assert target.ranges == moved.ranges == [None, f"bytes={kept}-"]


def test_a_login_page_is_not_taken_for_weights(serve):
    site = Site(body=b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(TeacherError, match="sent a web page"):
        fetch([serve(site)], digest=None)
    assert files() == []


def test_bytes_compressed_on_the_way_are_not_taken_for_weights(serve):
    site = Site(body=gzip.compress(BODY), headers={"Content-Encoding": "gzip"})
    with pytest.raises(TeacherError, match="compressed by `gzip`"):
        fetch([serve(site)], digest=None)
    assert files() == []


def test_nobody_listening_is_tried_again_and_said(caplog):
    url = closed_port()
    with pytest.raises(TeacherError, match="Connection refused") as caught:
        fetch([url], digest=SHA256)
    assert f"`{url}`" in str(caught.value)
    assert url in caught.value.hint
    assert len([line for line in caplog.messages if line.startswith("Retrying")]) == 4


def test_without_a_network_every_address_is_named_with_its_reason(monkeypatch):
    def no_network(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    urls = ["https://one.example/a/moco.pth.tar", "http://two.example/b.pth"]
    with pytest.raises(TeacherError) as caught:
        fetch(urls, digest=SHA256)
    for url in urls:
        assert f"`{url}`: " in str(caught.value)
    assert str(caught.value).count("Temporary failure in name resolution") == 2
    assert urls[0] in caught.value.hint
    assert "--weights FILE" in caught.value.hint


# Mirrors


def test_mirrors_are_asked_in_order_until_one_has_the_right_bytes(serve):
    sites = [Site(statuses=[(404, {})]), Site(body=OTHER), Site(), Site()]
    urls = [serve(site) for site in sites]
    path = fetch(urls, digest=SHA256)
    assert path.read_bytes() == BODY
    assert [len(site.log) for site in sites] == [1, 1, 1, 0]
    assert files() == [path]
    assert fetch(urls[:1], digest=SHA256) == path, "it is the file of the original address"


def test_all_mirrors_are_named_when_none_has_it(serve):
    urls = [serve(Site(statuses=[(404, {})])), serve(Site(body=OTHER))]
    with pytest.raises(TeacherError) as caught:
        fetch(urls, digest=SHA256)
    assert f"`{urls[0]}`: the server answered 404" in str(caught.value)
    assert f"`{urls[1]}`: the sha256 of the {len(OTHER)} bytes" in str(caught.value)


def test_the_cache_of_one_machine_is_the_mirror_of_another(serve, monkeypatch, tmp_path):
    site = Site()
    url = serve(site)
    path = fetch([url], digest=SHA256)
    theirs = functools.partial(Quiet, directory=str(cache_folder() / "weights"))
    with listening(theirs) as (_, address):
        monkeypatch.setenv("KDCACHE_HOME", str(tmp_path / "other"))
        monkeypatch.setenv("KDCACHE_MIRROR", f"{address}/")
        copy = fetch([url], digest=SHA256)
    assert copy != path
    assert copy.read_bytes() == BODY
    assert len(site.log) == 1


def test_what_the_own_mirror_lacks_comes_from_the_original(serve, monkeypatch):
    mirror, original = Site(statuses=[(404, {})]), Site()
    monkeypatch.setenv("KDCACHE_MIRROR", serve(mirror, "").rstrip("/"))
    path = fetch([serve(original)], digest=SHA256)
    assert [entry[0] for entry in mirror.log] == [f"/models/{path.parent.name}/moco.pth.tar"]
    assert len(original.log) == 1


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


# Offline


@pytest.mark.parametrize("by", ["KDCACHE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody_and_says_where_the_file_would_lie(serve, monkeypatch, by):
    site = Site()
    url = serve(site)
    monkeypatch.setenv(by, "1")
    with pytest.raises(TeacherError) as caught:
        fetch([url], digest=SHA256)
    assert f"`{by}`" in str(caught.value)
    assert f"`{url}`" in str(caught.value)
    assert "--weights FILE" in caught.value.hint
    assert site.log == []
    monkeypatch.delenv(by, raising=False)
    assert f"`{fetch([url], digest=SHA256)}`" in str(caught.value)


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_offline_can_be_said_to_be_off(serve, monkeypatch, value):
    monkeypatch.setenv("KDCACHE_OFFLINE", value)
    assert fetch([serve(Site())], digest=SHA256).read_bytes() == BODY


# The cache folder


def test_the_cache_folder_follows_kdcache_home_then_xdg_then_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("KDCACHE_HOME", "~/here")
    assert cache_folder() == Path("/home/somebody/here")
    monkeypatch.setenv("KDCACHE_HOME", "")
    assert cache_folder() == Path("/caches/kdcache")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == Path("/home/somebody/.cache/kdcache")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/kdcache")


# Several at once


def test_of_many_threads_one_downloads_and_all_have_the_file(serve):
    site = Site(gate=threading.Event())
    url = serve(site)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch([url], digest=SHA256)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while not site.log or part_bytes() < 50_000:
        time.sleep(0.01)
    assert results == []
    site.gate.set()
    for thread in threads:
        thread.join()
    assert len(site.log) == 1
    assert len(results) == 4
    assert len(set(results)) == 1
    assert results[0].read_bytes() == BODY


@pytest.mark.slow
def test_a_process_takes_over_from_one_that_is_killed(serve):
    body = random.Random(5).randbytes(2_000_003)  # the child reads pieces of the usual size
    site = Site(body, gate=threading.Event())
    url = serve(site)
    spawn = multiprocessing.get_context("spawn")
    first = spawn.Process(target=functools.partial(fetch, [url], digest=None))
    first.start()
    while not part_bytes():
        time.sleep(0.01)
        assert first.is_alive()
    results = []
    second = threading.Thread(target=lambda: results.append(fetch([url], digest=None)))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    assert len(site.log) == 1, "the second waits for the first"
    first.kill()
    first.join()
    kept = part_bytes()
    site.gate.set()
    second.join()
    assert results[0].read_bytes() == body
    assert site.ranges == [None, f"bytes={kept}-"]


def part_bytes():
    return sum(path.stat().st_size for path in cache_folder().rglob("*.part"))
