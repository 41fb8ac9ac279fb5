"""A stand-in for the Hugging Face Hub on this machine, which is read and written."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


@dataclass
class HubServer:
    """What the server holds and was asked.

    Attributes:
        address: of the server, for ``HF_ENDPOINT``.
        files: content by repository, revision and name.
        private: repositories that want the token ``hf_secret``.
        gated: repositories that nobody was admitted to.
        asked: (method, path, Authorization) of every request.
    """

    address: str = ""
    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def publish(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Store files as a new commit and return its name."""
        commit = hashlib.sha1(json.dumps(sorted(files)).encode() + b"".join(files.values()))
        revisions = self.files.setdefault(repository, {})
        revisions[revision] = revisions[commit.hexdigest()] = files
        return commit.hexdigest()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Serve on a free port of this machine."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._read(with_body=True)

    def do_HEAD(self) -> None:
        self._read(with_body=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._log()
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made.get('organization') or 'someone'}/{made['name']}"
            self.hub.files.setdefault(name, {})
            return self._say(200, {"url": f"{self.hub.address}/{name}", "name": name})
        if "/preupload/" in path:
            names = [item["path"] for item in json.loads(body)["files"]]
            ways = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self._say(200, {"files": ways})
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            name = "/".join(path.split("/")[3:5])
            files = {item["path"]: base64.b64decode(item["content"]) for item in sent}
            commit = self.hub.publish(name, files)
            answer = {"commitUrl": f"{self.hub.address}/c/{commit}", "commitOid": commit}
            return self._say(200, answer | {"hookOutput": ""})
        return self._say(200, {})

    def _read(self, *, with_body: bool) -> None:
        parts = self._log().strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if is_api else parts[:2])
        rest = parts[4:] if is_api else parts[2:]
        if repository in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        hidden = repository in self.hub.private and not self._has_token()
        if repository not in self.hub.files or hidden:
            return self._refuse(404 if self._has_token() else 401, "RepoNotFound")
        revision = unquote(rest[1]) if len(rest) > 1 else "main"
        files = self.hub.files[repository].get(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        commit = next(
            c for c, f in self.hub.files[repository].items() if f is files and len(c) == 40
        )
        if is_api and rest[:1] == ["tree"]:
            rows = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self._say(200, rows)
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self._say(200, {"id": repository, "sha": commit, "siblings": siblings})
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self._refuse(404, "EntryNotFound")
        tag = hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit}
        return self._send(200, content, headers, with_body=with_body)

    def _log(self) -> str:
        path = urlparse(self.path).path
        self.hub.asked.append((self.command, path, self.headers.get("Authorization")))
        return path

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == "Bearer hf_secret"

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _say(self, status: int, values: object) -> None:
        self._send(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
