"""A server that answers as the Hugging Face hub does, with faults to switch on, and processes that ask it."""

import hashlib
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
import types
import urllib.parse
from dataclasses import dataclass
from typing import NamedTuple

GOOD_TOKEN, NARROW_TOKEN, BAD_TOKEN = "hf_good", "hf_narrow", "hf_bad"
LARGE = (".jsonl", ".parquet", ".safetensors")


def commit_of(name: str, revision: str) -> str:
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


def content_of(path: str, data: bytes) -> str:
    """The digest by which the hub names a file's content."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Faults:
    """Shares of the requests, or of the files' bodies, that go wrong."""

    dropped: float = 0.0
    """Connections closed without an answer."""
    failed: float = 0.0
    """Answers of status 500."""
    limited: float = 0.0
    """Answers of status 429 that say when to come back."""
    cut: float = 0.0
    """Bodies that end half-way."""
    spoilt: float = 0.0
    """Bodies of the right length with a wrong byte."""
    ranges: bool = True
    """Whether the server sends the rest of a file when it is asked for a range."""


class Seen(NamedTuple):
    """A request; `sent` counts the bytes of a file that were sent."""

    name: str
    method: str
    action: str
    revision: str | None
    file: str | None
    sent: int


class HubServer(http.server.ThreadingHTTPServer):
    """Serves models and data sets: hub id -> revision -> path -> bytes.

    Attributes:
      seen: all requests so far.
      faults: what goes wrong from now on; the seed decides which requests are affected.
    """

    daemon_threads = True

    def __init__(self, models=None, datasets=None, gated=(), broken=(), seed=0):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories = {"models": models or {}, "datasets": datasets or {}}
        self.gated, self.broken = set(gated), set(broken)
        self.seen: list[Seen] = []
        self.faults = Faults()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self._random, self._lock = random.Random(seed), threading.Lock()

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def happens(self, share: float) -> bool:
        with self._lock:
            return share > 0 and self._random.random() < share

    def sent(self, name: str) -> list[str]:
        """The files of a repository whose content was sent, once per time that it was."""
        return [seen.file for seen in self.seen if seen.name == name and seen.sent]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub: listings, access checks and files."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|auth-check)(?:/(.+))?)?", path)
        file = re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not api and not file:
            return self.answer(404)
        if api:
            self.asked = Seen(api[2], self.command, api[3] or "info", api[4], None, 0)
            repositories = self.server.repositories[api[1]]
        else:
            self.asked = Seen(file[2], self.command, "resolve", file[3], file[4], 0)
            repositories = self.server.repositories[file[1] or "models"]
        faults = self.server.faults
        if self.server.happens(faults.dropped):
            self.server.seen.append(self.asked)
            self.close_connection = True
            return None
        if self.server.happens(faults.failed):
            return self.answer(500)
        if self.server.happens(faults.limited):
            return self.answer(429, {"Retry-After": "1"})
        return self.look_up(repositories)

    def look_up(self, repositories):
        name, _, action, revision, file, _ = self.asked
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == BAD_TOKEN:
            return self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if name in self.server.broken:
            return self.answer(503)
        if name not in repositories:
            message = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}
            return self.answer(401, message)
        gated = name in self.server.gated
        if gated and action in ("resolve", "auth-check") and token != GOOD_TOKEN:
            if token == NARROW_TOKEN:  # the hub gives no code here
                return self.answer(403, {"X-Error-Message": "Please enable access to public gated repositories"})
            message = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted."}
            return self.answer(401, message)
        revisions = repositories[name]
        by_commit = {commit_of(name, branch): branch for branch in revisions}
        branch = by_commit.get(revision, revision or "main")
        if branch not in revisions:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        files, commit = revisions[branch], commit_of(name, branch)
        if action == "tree":
            return self.answer_json([
                {"type": "file", "path": path, "size": len(data), "oid": content_of(path, data)}
                for path, data in files.items()
            ])  # fmt: skip
        if action != "resolve":
            siblings = [self.sibling(path, data) for path, data in files.items()]
            return self.answer_json(
                {"id": name, "sha": commit, "gated": "manual" if gated else False, "siblings": siblings}
            )
        if file not in files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self.answer_file(files[file], {"X-Repo-Commit": commit, "ETag": f'"{content_of(file, files[file])}"'})

    def sibling(self, path, data):
        known = {"rfilename": path, "size": len(data)}
        if path.endswith(LARGE):
            return known | {"lfs": {"sha256": content_of(path, data), "size": len(data), "pointerSize": 130}}
        return known | {"blobId": content_of(path, data)}

    def answer_file(self, data, headers):
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        status, body = 200, data
        if first and self.server.faults.ranges:
            status, body = 206, data[int(first[1]) :]
            headers["Content-Range"] = f"bytes {first[1]}-{len(data) - 1}/{len(data)}"
        length = len(body)
        if self.command == "GET":
            if self.server.happens(self.server.faults.spoilt):
                body = bytes([body[0] ^ 1]) + body[1:]
            if self.server.happens(self.server.faults.cut):
                body = body[: length // 2]
            self.asked = self.asked._replace(sent=len(body))
        self.answer(status, headers, body, length)

    def answer_json(self, value):
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer(self, status, headers=None, body=b"", length=None):
        if hasattr(self, "asked"):
            self.server.seen.append(self.asked)
        self.send_response(status)
        length = len(body) if length is None else length
        for key, value in {**(headers or {}), "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Process:
    """A fresh interpreter that runs a script, which answers each line of JSON on its input with one on its output.

    The environment alone tells huggingface_hub of the server and of its cache; it reads it when it is imported.
    """

    def __init__(self, script: str, home, endpoint: str, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        settings = {
            "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "JAX_PLATFORMS": "cpu", "MOSSA_CACHE": os.path.join(home, "mossa"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=inherited | settings | environment,
        )  # fmt: skip

    def start(self, cases: dict):
        """Sends cases without waiting for the answer."""
        self.process.stdin.write(json.dumps(cases) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        """Waits for the answers, by the keys of their cases."""
        answers = json.loads(self.process.stdout.readline())
        return {key: types.SimpleNamespace(**answer) for key, answer in answers.items()}

    def ask(self, cases: dict) -> dict:
        self.start(cases)
        return self.answer()

    def close(self):
        """Closes its input and waits for its end."""
        self.process.communicate()
