"""A small Hugging Face Hub on a loopback port: real HTTP, real files, a commit for every change.

`Hub(folder)` serves the repositories below `folder`: `datasets/<owner>/<name>/` and `models/<owner>/<name>/`. The
commit of a repository is the SHA-1 of its files' names and bytes, so that a changed file is a new commit; earlier
commits stay readable, as on the Hub. Only reading is served.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.+))?"
)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub(ThreadingHTTPServer):
    """The server; `requests` records every path that was asked for, `broken` makes it answer 503 to all.

    With a `token` its repositories are private: who does not send it is told that there are none.
    Of a repository in `gated` it tells everybody, and gives its files to those who bring a token.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[str] = []
        self.broken = False
        self.token: str | None = None
        self.gated: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, kind: str, repo: str) -> str:
        """Return the commit of what lies in the repository's folder now, and keep a copy of it."""
        head = self.folder / kind / repo
        digest = hashlib.sha1(usedforsecurity=False)
        for path in _files(head):
            digest.update(f"{path}\0{len((head / path).read_bytes())}\0".encode() + (head / path).read_bytes())
        kept = self.folder / "commits" / kind / repo / digest.hexdigest()
        if not kept.exists():
            shutil.copytree(head, kept)
        return digest.hexdigest()

    def tree(self, kind: str, repo: str, revision: str) -> tuple[str, Path] | None:
        """Return (commit, folder) of a revision: main, or a commit that was served before."""
        commit = self.commit(kind, repo) if revision == "main" else revision
        folder = self.folder / "commits" / kind / repo / commit
        return (commit, folder) if folder.is_dir() else None


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve a folder of repositories until the block ends."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the requests are recorded."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.broken:
            self._send_json(503, {"error": "out of order"})
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send_json(401, {"error": "Repository not found"}, "RepoNotFound")
        elif match := API.fullmatch(path):
            self._answer_api(match, parse_qs(url.query), body)
        elif match := FILE.fullmatch(path):
            self._answer_file(match)
        else:
            self._send_json(404, {"error": f"no such endpoint: {path}"}, "EntryNotFound")

    def _answer_api(self, match: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        kind, repo, what = match["kind"], match["repo"], match["what"] or "revision"
        revision, _, below = (match["rest"] or "main").partition("/")
        if not (self.server.folder / kind / repo).is_dir():
            return self._send_json(404, {"error": "Repository not found"}, "RepoNotFound")
        found = self.server.tree(kind, repo, revision)
        if found is None:
            return self._send_json(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
        commit, folder = found
        if what == "revision":
            siblings = [{"rfilename": name} for name in _files(folder)]
            return self._send_json(200, {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        if what == "paths-info":
            names = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            return self._send_json(200, [_entry(folder, name) for name in names if (folder / name).exists()])
        if not (folder / below).is_dir():
            return self._send_json(404, {"error": f"{below} does not exist"}, "EntryNotFound")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found_paths = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
        return self._send_json(200, [_entry(folder, p.relative_to(folder).as_posix()) for p in sorted(found_paths)])

    def _answer_file(self, match: re.Match[str]) -> None:
        kind, repo = "datasets" if match["kind"] else "models", match["repo"]
        if not (self.server.folder / kind / repo).is_dir():
            return self._send_json(404, {"error": "Repository not found"}, "RepoNotFound")
        if repo in self.server.gated and not self.headers.get("Authorization"):
            return self._send_json(401, {"error": f"Access to model {repo} is restricted"}, "GatedRepo")
        found = self.server.tree(kind, repo, match["revision"])
        if found is None or not (found[1] / match["path"]).is_file():
            return self._send_json(404, {"error": "Entry not found"}, "EntryNotFound")
        commit, folder = found
        content = (folder / match["path"]).read_bytes()
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._send(200, content, headers)
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, content[first : last + 1], headers)

    def _send_json(self, status: int, value: Any, error_code: str = "") -> None:
        self._send(status, json.dumps(value).encode(), {"X-Error-Code": error_code} if error_code else {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, name: str) -> dict[str, Any]:
    if (folder / name).is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    content = (folder / name).read_bytes()
    return {"type": "file", "path": name, "oid": _oid(content), "size": len(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
