"""An object store on this machine: flat names, whole objects, no append, no rename; and a fsspec file system over it.

It speaks the part of Google Cloud Storage's JSON interface that gcsfs, TensorStore and Orbax use, so that `gs://` can
be tried without a network; `FileSystem` is a client for everybody else, under the scheme `objects://`.
"""

import email.utils
import http.server
import io
import itertools
import json
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

import fsspec

ADDRESS = "OBJECT_SERVER"  # the variable that tells a process where the store is


class Store:
    """Objects by (bucket, name): bytes and a generation that grows with every write. Any bucket is there.

    Attributes:
      objects: the contents.
      room: bytes that still fit; None for no end.
      writes: names in the order of their writing.
    """

    def __init__(self):
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.room: int | None = None
        self.writes: list[str] = []
        self.lock = threading.Lock()
        self.sessions: dict[str, tuple[str, str, bytearray]] = {}
        self.numbers = itertools.count(1)

    def files(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        with self.lock:
            found = {name: data for (where, name), (data, _) in self.objects.items() if where == bucket}
        return {name.removeprefix(prefix): data for name, data in found.items() if name.startswith(prefix)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    store: Store

    def log_message(self, *_):
        pass

    def _ask(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(r"(?:/(upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?(/?)", url.path)
        if not found:
            return self._answer(404, b"{}")
        kind, bucket, name, _ = found.groups()
        name = None if name is None else urllib.parse.unquote(name)
        with self.store.lock:
            if kind == "upload":
                return self._upload(bucket)
            if name is None:
                is_bucket = not url.path.rstrip("/").endswith("/o")
                return self._json({"kind": "storage#bucket", "name": bucket}) if is_bucket else self._list(bucket)
            return self._object(bucket, name)

    do_GET = do_POST = do_PUT = do_DELETE = _ask

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 304:
            self.wfile.write(body)

    def _json(self, value: dict, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _error(self, status: int, message: str) -> None:
        self._json({"error": {"code": status, "message": message}}, status)

    def _about(self, bucket: str, name: str) -> dict:
        data, generation = self.store.objects[bucket, name]
        when = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)),
            "generation": str(generation), "metageneration": "1", "updated": when, "timeCreated": when,
        }  # fmt: skip

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        items, folders = [], set()
        for where, name in sorted(self.store.objects):
            if where != bucket or not name.startswith(prefix) or name < start or (end is not None and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self._about(bucket, name))
        self._json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _object(self, bucket: str, name: str) -> None:
        data, generation = self.store.objects.get((bucket, name), (None, 0))
        if not self._meets(generation):
            return self._error(412, "conditionNotMet")
        if data is None:
            return self._error(404, f"No such object: {bucket}/{name}")
        if self.command == "DELETE":
            del self.store.objects[bucket, name]
            return self._answer(204, b"")
        if self.query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, b"")
        if self.query.get("alt") != "media":
            return self._json(self._about(bucket, name))
        headers = {"x_goog_generation": str(generation), "Date": email.utils.formatdate(usegmt=True)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data, **headers)
        first, last = wanted.groups()
        begin = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if begin >= len(data):
            return self._answer(416, b"", Content_Range=f"bytes */{len(data)}", **headers)
        self._answer(206, data[begin:stop], Content_Range=f"bytes {begin}-{stop - 1}/{len(data)}", **headers)

    def _meets(self, generation: int) -> bool:
        wanted = self.query.get("ifGenerationMatch")
        return wanted is None or int(wanted) == generation

    def _upload(self, bucket: str) -> None:
        kind = self.query.get("uploadType")
        if "upload_id" in self.query:
            return self._continue(self.query["upload_id"])
        if kind == "resumable":
            name = self.query.get("name") or json.loads(self.body)["name"]
            number = str(next(self.store.numbers))
            self.store.sessions[number] = (bucket, name, bytearray())
            host = self.headers["Host"]
            where = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return self._json({}, Location=where)
        if kind == "multipart":
            boundary = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])[1].encode()
            _, about, rest = self.body.split(b"--" + boundary, 2)
            name = json.loads(about.replace(b"\r\n", b"\n").split(b"\n\n", 1)[1])["name"]
            data = rest[: rest.rindex(b"--" + boundary)]
            data = data.split(b"\r\n\r\n" if data.startswith(b"\r\n") else b"\n\n", 1)[1]
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            return self._put(bucket, name, data)
        return self._put(bucket, self.query["name"], self.body)

    def _continue(self, number: str) -> None:
        bucket, name, data = self.store.sessions[number]
        data += self.body
        total = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*"))[1]
        if total == "*" or int(total) > len(data):
            return self._answer(308, b"", Range=f"bytes=0-{len(data) - 1}")
        del self.store.sessions[number]
        self._put(bucket, name, bytes(data))

    def _put(self, bucket: str, name: str, data: bytes) -> None:
        _, generation = self.store.objects.get((bucket, name), (b"", 0))
        if not self._meets(generation):
            return self._error(412, "conditionNotMet")
        if self.store.room is not None:
            if len(data) > self.store.room:
                return self._error(403, "the quota of this bucket is used up")
            self.store.room -= len(data)
        self.store.objects[bucket, name] = (data, next(self.store.numbers))
        self.store.writes.append(name)
        self._json(self._about(bucket, name))


@contextmanager
def serving():
    """(store, address) of a store that answers while the block runs."""
    store = Store()
    handler = type("Bound", (Handler,), {"store": store})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # clients are killed here
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class FileSystem(fsspec.AbstractFileSystem):
    """The store of the server that $OBJECT_SERVER names, as `objects://bucket/name`."""

    protocol = "objects"

    def _call(self, method: str, path: str, data: bytes | None = None, **query: str) -> bytes:
        url = f"{os.environ[ADDRESS]}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise FileNotFoundError(path) from None
            raise ConnectionError(f"{error.code} {json.loads(error.read())['error']['message']}") from None

    def _at(self, path: str) -> tuple[str, str]:
        bucket, _, name = self._strip_protocol(path).partition("/")
        return f"/storage/v1/b/{bucket}/o", name

    def ls(self, path, detail=True, **_):
        where, name = self._at(path)
        bucket = where.split("/")[4]
        entries = []
        if name:
            found = json.loads(self._call("GET", where, prefix=name, endOffset=name + "\0"))["items"]
            entries = [(name, "file", int(one["size"])) for one in found]
        if not entries:
            prefix = f"{name}/" if name else ""
            found = json.loads(self._call("GET", where, prefix=prefix, delimiter="/"))
            entries = [(one["name"], "file", int(one["size"])) for one in found["items"]]
            entries += [(one.rstrip("/"), "directory", 0) for one in found["prefixes"]]
        if not entries:
            raise FileNotFoundError(path)
        entries = [{"name": f"{bucket}/{one}", "type": kind, "size": size} for one, kind, size in entries]
        return entries if detail else [one["name"] for one in entries]

    def rm_file(self, path):
        where, name = self._at(path)
        self._call("DELETE", f"{where}/{urllib.parse.quote(name, safe='')}")

    def rm(self, path, recursive=False, maxdepth=None):
        for name in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
            if self.isfile(name):
                self.rm_file(name)

    def _open(self, path, mode="rb", **_):
        where, name = self._at(path)
        if mode == "rb":
            return io.BytesIO(self._call("GET", f"{where}/{urllib.parse.quote(name, safe='')}", alt="media"))
        if mode != "wb":
            raise NotImplementedError(f"an object store has no mode {mode}")
        return _Writing(lambda data: self._call("POST", "/upload" + where, data, uploadType="media", name=name))


class _Writing(io.BytesIO):
    """Sends the whole object when it is closed well."""

    def __init__(self, send):
        super().__init__()
        self._send = send

    def __exit__(self, kind, *rest):
        if kind is not None:
            self._send = None
        self.close()

    def close(self):
        if not self.closed and self._send is not None:
            data, send, self._send = self.getvalue(), self._send, None
            super().close()
            send(data)
        super().close()


fsspec.register_implementation("objects", FileSystem, clobber=True)


def environment(address: str) -> dict[str, str]:
    """What a process needs to find the store, by `objects://` (after an import of this file) and by `gs://`."""
    return {
        ADDRESS: address,
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": "nobody",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "NO_GCE_CHECK": "true",
    }
