"""A hub on 127.0.0.1 that speaks what huggingface_hub 2.4.0 calls for datasets and models.

Repositories with commits, branches and tags; LFS objects by SHA-256, whose bytes it checks; the
commit endpoint with its parent; files by revision, large ones behind a redirect, with ranges.
Datasets are called `ORG/NAME` here, models `models/ORG/NAME`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import constants

LARGE_BYTES = 10 << 20
TOKENS = {"Bearer hf_writer": "writer", "Bearer hf_reader": "reader"}


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its bytes, or what stands for them in LFS."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """What `preupload` calls the file."""
        if self.is_lfs:
            return self.sha256
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repo:
    """A repository."""

    private: bool = True
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, Blob]) -> str:
        sha = hashlib.sha1(f"{len(self.history)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs["main"] = sha
        self.history.append(sha)
        return sha

    def find(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None

    @property
    def head(self) -> dict[str, Blob]:
        return self.commits[self.refs["main"]]


@dataclass
class Hub:
    """All of it; tests look at it, and arrange for trouble."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    """SHA-256 of the large files that came in, in order."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_out: int = 0
    before_commit: object = None
    """Called once, before the next commit is looked at."""
    failures: list[tuple[str, int]] = field(default_factory=list)
    """(pattern, status): the next request that matches is answered so."""
    corrupt: set[str] = field(default_factory=set)
    """Paths of which another byte is served."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def cdn_url(self) -> str:
        """Large files come from another host, as from the hub's."""
        return self.url.replace("127.0.0.1", "localhost") + "/cdn"

    def add_repo(self, name: str, **settings) -> Repo:
        repo = self.repos[name] = Repo(**settings)
        repo.commit({".gitattributes": Blob(b"", is_lfs=False)})
        return repo


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub that runs as long as the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = unquote(parts.path)
        self.hub.requests.append((self.command, path))
        try:
            self._fail_if_told(path)
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path)
                if self.command in method.split() and match:
                    action(self, *match.groups())
                    return
            raise _Refusal(404, message=f"no route for {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, b"{}", {k: v for k, v in headers.items() if v})

    def _chunks(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _fail_if_told(self, path: str) -> None:
        with self.hub.lock:
            for failure in self.hub.failures:
                if re.search(failure[0], f"{self.command} {path}"):
                    self.hub.failures.remove(failure)
                    raise _Refusal(failure[1], message="as the test wishes")

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _who(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", ""))

    def _require_writer(self) -> None:
        if self._who() is None:
            raise _Refusal(401, message="Invalid username or password.")
        if self._who() != "writer":
            raise _Refusal(403, message="You do not have write access")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._who() is None):
            raise _Refusal(401 if self._who() is None else 404, "RepoNotFound")
        return repo

    def _commit_of(self, name: str, revision: str) -> tuple[Repo, str]:
        repo = self._repo(name)
        if (sha := repo.find(revision)) is None:
            raise _Refusal(404, "RevisionNotFound")
        return repo, sha

    def create(self) -> None:
        self._require_writer()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        is_model = asked.get("type", "model") == "model"
        url = {"url": f"{self.hub.url}/{name if is_model else f'datasets/{name}'}"}
        name = f"models/{name}" if is_model else name
        with self.hub.lock:
            if asked["organization"] != "lab":
                raise _Refusal(403, message="You don't have the rights to create it there")
            if name in self.hub.repos:
                self._json(url, 409)
                return
            self.hub.add_repo(name, private=asked.get("visibility") == "private")
        self._json(url)

    def info(self, name: str, revision: str | None = None) -> None:
        repo, sha = self._commit_of(name, revision or "main")
        self._json({"id": name, "sha": sha, "private": repo.private})

    def tree(self, name: str, revision: str) -> None:
        repo, sha = self._commit_of(name, revision)
        found = []
        for path, blob in repo.commits[sha].items():
            about = {"type": "file", "path": path, "size": len(blob.data), "oid": "0" * 40}
            if blob.is_lfs:
                about["lfs"] = {"size": len(blob.data), "oid": blob.sha256, "pointerSize": 130}
            found.append(about)
        start = int(self.query.get("cursor", ["0"])[0])
        page = found[start : start + 50]  # of two pages and more, as on the hub
        headers = {"Content-Type": "application/json"}
        if start + 50 < len(found):
            link = f"{self.hub.url}{urlsplit(self.path).path}?recursive=True&cursor={start + 50}"
            headers["Link"] = f'<{link}>; rel="next"'
        self._send(200, json.dumps(page).encode(), headers)

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        table = yaml.safe_load(match[1]) if match else None
        if not isinstance(table, dict) or "license" not in table:
            self._json({"errors": [{"message": "no license"}], "warnings": []}, 400)
            return
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        repo, sha = self._commit_of(name, revision)
        self._require_writer()
        answers = []
        for file in json.loads(self.body)["files"]:
            is_binary = b"\0" in base64.b64decode(file["sample"])
            there = repo.commits[sha].get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_binary or file["size"] > LARGE_BYTES else "regular",
                    "shouldIgnore": False,
                    "oid": there.oid if there else None,
                }
            )
        self._json({"files": answers})

    def lfs_batch(self, name: str) -> None:
        self._repo(name)
        self._require_writer()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, message="other bytes than announced")
        with self.hub.lock:
            self.hub.objects[oid] = self.body
            self.hub.received.append(oid)
        self._send(200, b"")

    def commit(self, name: str, revision: str) -> None:
        repo, _ = self._commit_of(name, revision)
        self._require_writer()
        if (act := self.hub.before_commit) is not None:
            self.hub.before_commit = None
            act()
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            parent = header["value"].get("parentCommit")
            if parent is not None and parent != repo.refs["main"]:
                raise _Refusal(412, message="A commit has happened since. Please refresh.")
            files = dict(repo.head)
            for operation in operations:
                if operation["key"] == "deletedFile":
                    del files[operation["value"]["path"]]
                else:
                    files[operation["value"]["path"]] = self._added(operation)
            sha = repo.commit(files)
        page = name.removeprefix("models/") if "models/" in name else f"datasets/{name}"
        url = f"{self.hub.url}/{page}/commit/{sha}"
        self._json({"commitUrl": url, "commitOid": sha})

    def _added(self, operation: dict) -> Blob:
        value = operation["value"]
        if operation["key"] == "file":
            return Blob(base64.b64decode(value["content"]), is_lfs=False)
        assert operation["key"] == "lfsFile"
        if value["oid"] not in self.hub.objects:
            raise _Refusal(400, message="LFS object was never uploaded")
        return Blob(self.hub.objects[value["oid"]], is_lfs=True)

    def tag(self, name: str, revision: str) -> None:
        repo, sha = self._commit_of(name, revision)
        self._require_writer()
        tag = json.loads(self.body)["tag"]
        if tag in repo.refs:
            raise _Refusal(409, message="Tag exists")
        repo.refs[tag] = sha
        self._send(200, b"")

    def lfs_batch_of_model(self, name: str) -> None:
        self.lfs_batch(f"models/{name}")

    def resolve_of_model(self, name: str, revision: str, path: str) -> None:
        self.resolve(f"models/{name}", revision, path)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo, sha = self._commit_of(name, revision)
        if repo.gated and self._who() != "writer":
            raise _Refusal(403, "GatedRepo")
        blob = repo.commits[sha].get(path)
        if blob is None:
            raise _Refusal(404, "EntryNotFound")
        headers = {"X-Repo-Commit": sha}
        if blob.is_lfs:
            headers |= {
                "X-Linked-Size": str(len(blob.data)),
                "X-Linked-ETag": f'"{blob.sha256}"',
                "Location": f"{self.hub.cdn_url}/{blob.sha256}/{path}",
            }
            self._send(302, b"", headers)
            return
        self._file(path, blob.data, {**headers, "ETag": f'"{blob.oid}"'})

    def cdn(self, oid: str, path: str) -> None:
        self._file(path, self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _file(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        if path in self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        if self.command == "GET":
            self.hub.bytes_out += len(data)
        self._send(status, data, headers)


_NAME = r"([^/]+/[^/]+)"
_API = r"/api/(?:datasets/(?=[^/]+/)|(?=models/))((?:models/)?[^/]+/[^/]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/revision/(.+)", _Handler.info),
    ("GET", rf"{_API}/tree/([^/]+)", _Handler.tree),
    ("POST", rf"{_API}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"{_API}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"{_API}/tag/([^/]+)", _Handler.tag),
    ("POST", rf"/datasets/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch_of_model),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    ("GET HEAD", rf"/datasets/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve_of_model),
    ("GET HEAD", r"/cdn/([0-9a-f]{64})/(.+)", _Handler.cdn),
]


@contextmanager
def hub_for(monkeypatch, home) -> Iterator[Hub]:
    """A hub to which this process speaks, with a token that may write, as long as the block.

    Args:
        home: a folder for what the library keeps.
    """
    with serve_hub() as running:
        # The library reads its environment once, when it is imported, so its constants are set.
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield running
