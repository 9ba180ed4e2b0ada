"""An S3 server for the session, a bucket for each test, and small caches to share."""

import logging
import secrets
import shutil
from datetime import timedelta

import pytest
from share import serving
from store import making
from store.conftest import _shrink

BIG = {"specs": making.SPECS, "num_rows": 600, "num_views": 8, "unreadable": {5: "truncated JPEG"}}


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of moto's S3."""
    server = pytest.importorskip("moto.server", reason="needs moto[server], an S3 server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def environment(s3_server, monkeypatch):
    """Credentials and endpoint, as a user sets them; and no long waits."""
    from kdcache import objects

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(objects, "RETRIES", 2)
    monkeypatch.setattr(objects, "BACKOFF", timedelta(milliseconds=1))
    return s3_server


@pytest.fixture
def s3(environment):
    """The URL of an empty bucket."""
    name = f"b{secrets.token_hex(6)}"
    serving.make_bucket(environment, name)
    return f"s3://{name}/caches/one"


@pytest.fixture
def counted(environment, s3, monkeypatch):
    """All requests go through a proxy, which is given: it has `seen` and `fault`."""
    with serving.running(serving.Proxy, target=environment, seen=[]) as (url, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


@pytest.fixture(scope="session")
def _big_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        _shrink(monkeypatch)
        path = tmp_path_factory.mktemp("share") / "big"
        making.make(path, **BIG)
    return path


@pytest.fixture
def big(tmp_path, small_shards, _big_once):
    """A finished cache of two arrays, 8 views and 600 rows in several blocks."""
    return shutil.copytree(_big_once, tmp_path / "big")


@pytest.fixture
def small_shards(monkeypatch):
    _shrink(monkeypatch)
