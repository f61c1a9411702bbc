"""A hub on this machine that serves one folder as every repository, in the answers of the Hugging Face Hub."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = ".safetensors"
_BLOCK = 2**16


@dataclass
class HubServer:
    """What is served and how; `ranges` has the Range header of every request for a large file, in order.

    `cut_after` closes the next answers with a large file after as many bytes each. `block_seconds` is the pause after
    each 64 KiB. `ignore_ranges` sends the whole file whatever part of it was asked for. `page` is sent with 200 in
    place of a large file, as by a network that asks for a log-in; `empty` sends 206 and no byte. `refused` has the
    status of answers for files by their name. `sha256` replaces those of the listing. Requests for a path that ends
    with `stall` set `stalled` and wait for `resumed`.
    """

    folder: Path
    url: str = ""
    ranges: list[str] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    block_seconds: float = 0.0
    ignore_ranges: bool = False
    damaged: bool = False
    status: int = 200
    page: bytes = b""
    empty: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    sha256: str = ""
    stall: str = ""
    stalled: Event = field(default_factory=Event)
    resumed: Event = field(default_factory=Event)

    def files(self) -> list[Path]:
        """Return the served files."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables with which huggingface_hub uses this server and `cache`."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


class HubHandler(BaseHTTPRequestHandler):
    """Answers for the hub of its server."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        assert isinstance(self.server, HubHTTPServer)
        return self.server.hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.stall and path.endswith(self.hub.stall):
            self.hub.stalled.set()
            self.hub.resumed.wait(120)
        if self.hub.status != 200:
            self._send(
                self.hub.status, b"", {"X-Error-Code": "RepoNotFound"} if self.hub.status == 404 else {}, body=body
            )
        elif path.startswith("/api/models/"):
            value = _tree(self.hub) if "/tree/" in path else _listing(self.hub, path)
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body=body)
        elif refused := self.hub.refused.get(path.rsplit("/", 1)[-1]):
            self._send(refused, b"", {}, body=body)
        elif "/resolve/" in path:
            self._file(self.hub.folder / path.rsplit("/", 1)[-1], body=body, redirect=path)
        else:
            self._file(self.hub.folder / path.rsplit("/", 1)[-1], body=body, redirect=None)

    def _file(self, file: Path, *, body: bool, redirect: str | None) -> None:
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        content, sha256 = file.read_bytes(), _sha256(file)
        facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(file)}"'}
        if file.suffix != _LARGE:
            self._send(200, content, facts, body=body)
        elif redirect is not None:  # as the hub sends large files from another host
            facts |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"'}
            self._send(
                302,
                b"",
                facts | {"Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{file.name}"},
                body=body,
            )
        else:
            self._large(b"\1" * len(content) if self.hub.damaged else content)

    def _large(self, content: bytes) -> None:
        asked = self.headers.get("Range", "")
        self.hub.ranges.append(asked)
        if self.hub.page or self.hub.empty:
            self._send(200 if self.hub.page else 206, self.hub.page, {}, body=True)
            return
        begin = 0 if self.hub.ignore_ranges or not asked else int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if asked and not self.hub.ignore_ranges else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        rest = content[begin:]
        cut = self.hub.cut_after.pop(0) if self.hub.cut_after else len(rest)
        with suppress(OSError):  # the client has stopped
            for at in range(0, cut, _BLOCK):
                self.wfile.write(rest[at : min(at + _BLOCK, cut)])
                time.sleep(self.hub.block_seconds)
        if cut < len(rest):
            self.close_connection = True

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


class HubHTTPServer(ThreadingHTTPServer):
    """Serves `hub` at a free port of this machine."""

    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = hub
        hub.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub_server(folder: Path) -> Iterator[HubServer]:
    """Serve a folder until the block ends."""
    with HubHTTPServer(hub := HubServer(folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.resumed.set()
            server.shutdown()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _etag(file: Path) -> str:
    return _sha256(file) if file.suffix == _LARGE else hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(file: Path, name: str) -> dict[str, Any]:
    size = file.stat().st_size
    entry: dict[str, Any] = {name: file.name, "size": size}
    if file.suffix == _LARGE:
        entry["lfs"] = {"sha256": _sha256(file), "oid": _sha256(file), "size": size, "pointerSize": 134}
    return entry


def _listing(hub: HubServer, path: str) -> dict[str, Any]:
    siblings = [_entry(file, "rfilename") | {"blobId": _etag(file)} for file in hub.files()]
    for entry in siblings:
        if "lfs" in entry and hub.sha256:
            entry["lfs"]["sha256"] = hub.sha256
    return {"id": path.removeprefix("/api/models/").split("/revision/")[0], "sha": COMMIT, "siblings": siblings}


def _tree(hub: HubServer) -> list[dict[str, Any]]:
    return [_entry(file, "path") | {"type": "file", "oid": _etag(file)} for file in hub.files()]
