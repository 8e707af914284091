"""A proxy that stands before a real HTTP server and breaks what passes through it, as networks do.

A fault is one of

    403, 429, 500, 503  an answer of the proxy's, with Retry-After; the server hears nothing
    reset            the connection is reset before the server hears anything
    lost             the server does what it is asked, and its answer is lost by a reset
    cut              half of the answer's body comes, then the connection closes
    flipped          one bit of the answer's body is another
    slow             the answer comes in small pieces
    silent           no answer for `silence` seconds, then a closed connection
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ANSWERS = ("403", "429", "500", "503")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}

Choice = Callable[[int, str, str], str | None]
"""(number of the request, method, path) -> a fault or None."""


class FaultProxy(ThreadingHTTPServer):
    """The proxy.

    Attributes:
        choose: says what happens to a request.
        requests: "METHOD path" of every request, in order.
        ranges: the Range headers that came.
        injected: fault -> how often.
        before, after: called with the number of a request before it is passed on, and after the server has done it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, choose: Choice = lambda number, method, path: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.choose = choose
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.injected: Counter[str] = Counter()
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None
        self.retry_after = "0"
        self.silence = 3.0
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that are killed, and connections that we reset, are what this is for."""


@contextmanager
def faulty(upstream: str, choose: Choice = lambda number, method, path: None) -> Iterator[FaultProxy]:
    """Stand before a server until the block ends."""
    proxy = FaultProxy(upstream, choose)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._pass_on()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815  the names of the base class

    def _pass_on(self) -> None:
        body = self._body()
        with self.server.lock:
            self.server.requests.append(f"{self.command} {self.path}")
            number = len(self.server.requests)
            if "Range" in self.headers:
                self.server.ranges.append(self.headers["Range"])
            fault = self.server.choose(number, self.command, self.path)
            if fault:
                self.server.injected[fault] += 1
        if fault in ANSWERS:
            return self._answer(int(fault), {"Retry-After": self.server.retry_after}, b"")
        if fault == "reset":
            return self._reset()
        if fault == "silent":
            time.sleep(self.server.silence)
            return self._reset()
        self.server.before(number)
        status, headers, content = self._ask(body)
        self.server.after(number)
        if fault == "lost":
            return self._reset()
        return self._answer(status, headers, content, fault)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(
            self.server.upstream.hostname or "", self.server.upstream.port, timeout=60
        )
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
            length = answer.headers.get("Content-Length")
            content = answer.read()
            if self.command == "HEAD" and length:
                headers["Content-Length"] = length
            return answer.status, headers, content
        finally:
            upstream.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, fault: str | None = None) -> None:
        if fault == "flipped" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("date", "server"):
                self.send_header(name, value)
        if "Content-Length" not in headers and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, len(content), max(1, len(content) // 5)):
                self.wfile.write(content[start : start + max(1, len(content) // 5)])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
