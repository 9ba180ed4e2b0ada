"""What the tests of `share` talk to: a real S3 server, a counting proxy, servers of plain files."""

import http.client
import http.server
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(handler: type, **attributes):
    """A server on 127.0.0.1 while the block lasts; gives its address and its handler."""
    made = type("Handler", (handler,), attributes)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Proxy(_Quiet):
    """Passes requests on to `target`; keeps (method, path, bytes sent, bytes received) of each."""

    target = ""
    seen: list[tuple[str, str, int, int]]
    fault = None
    """Called with the handler before a request is passed on; True if it was dealt with."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.fault is not None and type(self).fault(self, body):
            return
        host = self.target.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        self.seen.append((self.command, self.path, len(body), len(data)))
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def refuse(self, status: int) -> bool:
        """Answer with a status and nothing else."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True


class Static(_Quiet):
    """Files below `root`, with Range unless `has_range` is false; `seen` has the bytes of each."""

    root = Path()
    has_range = True
    seen: list[tuple[str, int]]
    cut_after = None
    """Bytes after which the next answers break off."""

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, wanted = 0, self.headers.get("Range")
        if wanted and self.has_range:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        sent = data[first:]
        if self.cut_after is not None and len(sent) > self.cut_after:
            sent = sent[: self.cut_after]
            self.close_connection = True
        self.seen.append((self.path, len(sent)))
        self.wfile.write(sent)


def make_bucket(endpoint: str, name: str) -> None:
    """A new bucket on an S3 server."""
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
