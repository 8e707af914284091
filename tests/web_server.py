"""A web server on a loopback port that says of its files what the tests want it to say."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class FileServer(ThreadingHTTPServer):
    """Serves the files of a folder with ETag, Last-Modified, ranges and conditions, and lists its directories.

    Attributes:
        validators: what it says of a file: any of "etag", "modified", "size".
        ranges: whether it heeds Range.
        password: `user:password` that it wants; None: nothing.
        on_body: called before each body is sent, to change things under the reader's feet.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _FileHandler)
        self.folder = folder
        self.validators = {"etag", "modified", "size"}
        self.ranges = True
        self.only_get = False
        self.password: str | None = None
        self.on_body: Callable[[str], None] = lambda path: None
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away."""


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    """Serve a folder until the block ends."""
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; what was asked is recorded."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        self.server.asked.append(f"{self.command} {self.path} {self.headers.get('Range') or ''}".strip())
        if self.server.only_get and self.command == "HEAD":
            return self._send(403, {}, b"")
        if self.server.password and not self._may():
            return self._send(401, {}, b"")
        if path.is_dir():
            links = "".join(f'<a href="{p.name}{"/" * p.is_dir()}">x</a>' for p in sorted(path.iterdir()))
            return self._send(200, {"Content-Type": "text/html"}, f'<a href="?C=N;O=D">sort</a>{links}'.encode())
        if not path.is_file():
            return self._send(404, {}, b"")
        content = path.read_bytes()
        etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
        headers = {"Content-Type": "application/octet-stream"}
        if "etag" in self.server.validators:
            headers["ETag"] = etag
        if "modified" in self.server.validators:
            headers["Last-Modified"] = formatdate(path.stat().st_mtime, usegmt=True)
        if self.headers.get("If-Match", etag) != etag:
            return self._send(412, headers, b"")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.server.ranges and asked and self.command == "GET":
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._send(206, headers, content[first : last + 1])
        return self._send(200, headers, content)

    def _may(self) -> bool:
        wanted = base64.b64encode((self.server.password or "").encode()).decode()
        return self.headers.get("Authorization") == f"Basic {wanted}" or self.server.password in self.path

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "size" in self.server.validators or self.command == "GET":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.server.on_body(self.path)
            self.wfile.write(content)
