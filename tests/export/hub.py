"""A hub on this machine: the routes that huggingface_hub uses, over models given as bytes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Model:
    """A model at its commits: path -> content by commit, and branches and tags by name."""

    files: Mapping[str, bytes]
    commit: str = COMMIT
    refs: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False  # its listing is public, its files want a token with access
    private: bool = False
    lies: frozenset[str] = frozenset()  # files whose sha256 the listing has wrong

    def resolved(self, revision: str) -> str | None:
        known = {"main": self.commit, self.commit: self.commit, **self.refs}
        return known.get(revision)


def from_directory(directory: Path, **options: Any) -> Model:
    """A model whose files are those of a directory."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return Model({p.relative_to(directory).as_posix(): p.read_bytes() for p in paths}, **options)


class Hub(ThreadingHTTPServer):
    """Serves `models` by id; `asked` has the paths of all requests, in order."""

    daemon_threads = True

    def __init__(self, models: Mapping[str, Model]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = dict(models)
        self.renamed: dict[str, str] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """The names of the files whose content was asked for."""
        found = (re.fullmatch(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", a) for a in self.asked)
        return [match[1] for match in found if match]


@contextmanager
def serving(models: Mapping[str, Model]) -> Iterator[Hub]:
    """Run a hub until the block ends."""
    with Hub(models) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        """Say nothing: `Hub.asked` has what was asked."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        for pattern, handler in _ROUTES:
            if match := re.fullmatch(pattern, path):
                name = self.server.renamed.get(match["id"], match["id"])
                model = self.server.models.get(name)
                if model is None or model.private:
                    # What the hub answers to those who may not know that it exists.
                    return self._error(401, "RepoNotFound")
                return getattr(self, handler)(name, model, match)  # type: ignore[no-any-return]
        return self._send(200 if path == "/" else 404, b"")

    def _info(self, name: str, model: Model, match: re.Match[str]) -> None:
        commit = model.resolved(match["revision"] or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound")
        siblings = [_described(model, path, "rfilename", "sha256") for path in model.files]
        info = {"id": name, "sha": commit, "siblings": siblings, "private": model.private}
        return self._json({**info, "gated": "manual" if model.gated else False})

    def _tree(self, name: str, model: Model, match: re.Match[str]) -> None:
        if model.resolved(match["revision"]) is None:
            return self._error(404, "RevisionNotFound")
        return self._json(
            [{"type": "file", **_described(model, path, "path", "oid")} for path in model.files]
        )

    def _file(self, name: str, model: Model, match: re.Match[str]) -> None:
        commit = model.resolved(match["revision"])
        if commit is None:
            return self._error(404, "RevisionNotFound")
        if model.gated:
            return self._error(403, "GatedRepo")
        content = model.files.get(match["file"])
        if content is None:
            return self._error(404, "EntryNotFound", commit)
        return self._send(200, content, commit)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _error(self, status: int, code: str, commit: str = "") -> None:
        self._send(status, b"", commit, code)

    def _send(self, status: int, content: bytes, commit: str = "", code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if commit:
            self.send_header("X-Repo-Commit", commit)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


_ID = r"(?P<id>[^/]+/[^/]+)"
_ROUTES = (
    (rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)/?", "_tree"),
    (rf"/api/models/{_ID}(?:/revision/(?P<revision>.+))?", "_info"),
    (rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "_file"),
)


def _described(model: Model, path: str, name: str, digest: str) -> dict[str, Any]:
    """A file as a listing has it; weights are kept beside git, with their sha256."""
    content = model.files[path]
    described: dict[str, Any] = {name: path, "size": len(content)}
    described["oid" if name == "path" else "blobId"] = hashlib.sha1(content).hexdigest()  # noqa: S324
    if path.endswith((".safetensors", ".bin")):
        found = hashlib.sha256(b"other" if path in model.lies else content).hexdigest()
        described["lfs"] = {digest: found, "size": len(content), "pointerSize": 130}
    return described
