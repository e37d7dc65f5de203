"""A local fake of Google Cloud Storage: one in-memory bucket for the real client libraries.

Three clients open gs:// paths. TensorStore (Orbax's arrays) and google-cloud-storage (Orbax's
listings) accept a plain HTTP endpoint; TensorFlow (files of epath and TensorBoard) only connects to
https://*.googleapis.com, so the server is also its HTTPS proxy, with a self-signed certificate.

Reference: cloud.google.com/storage/docs/json_api/v1. Called from tests/whole_runs/test_bucket.py.
"""

import contextlib
import datetime
import json
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BUCKET = "bucket"
PAGE = 20  # names per page of a listing; the real service has 1000, more than any test writes
HOSTS = ("www.googleapis.com", "storage.googleapis.com")  # TensorFlow's endpoints


@dataclass(frozen=True)
class Blob:
    """An immutable object version."""

    content: bytes
    generation: int


@dataclass
class Bucket:
    """The server's objects and failures."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    refuses: str | None = None  # pattern of names whose writes and deletions fail
    status: int = 503  # HTTP status of these failures
    written: list[str] = field(default_factory=list)  # one name per write
    refused: list[str] = field(default_factory=list)  # one name per failure
    environment: dict[str, str] = field(default_factory=dict)  # points the clients to this server
    lock: threading.RLock = field(default_factory=threading.RLock)
    generations: int = 0

    def names(self, prefix: str = "") -> list[str]:
        """Sorted object names; directories are only prefixes of them."""
        with self.lock:
            return sorted(name for name in self.blobs if name.startswith(prefix))

    def text(self, name: str) -> str:
        """An object's content."""
        return self.blobs[name].content.decode()

    def write(self, name: str, content: bytes) -> Blob:
        """Creates or replaces an object."""
        with self.lock:
            self.generations += 1
            self.written.append(name)
            self.blobs[name] = Blob(content, self.generations)
            return self.blobs[name]


class RefusalError(Exception):
    """An HTTP error response."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # persistent connections
    routes = (  # the first match; names are URL-quoted (no slash), except in the last
        ("GET", r"/storage/v1/b/[^/]+", "bucket_metadata"),
        ("GET", r"/storage/v1/b/[^/]+/storageLayout", "layout"),
        ("GET", r"/storage/v1/b/[^/]+/o", "listing"),
        ("GET", r"/storage/v1/b/[^/]+/o/([^/]+)", "metadata_or_content"),
        ("DELETE", r"/storage/v1/b/[^/]+/o/([^/]+)", "delete"),
        ("POST", r"/storage/v1/b/[^/]+/o/([^/]+)/rewriteTo/b/[^/]+/o/([^/]+)", "rewrite"),
        ("POST", r"/upload/storage/v1/b/[^/]+/o", "upload"),
        ("PUT", r"/session/([^/]+)", "upload_of_session"),
        ("GET", r"/[^/]+/(.+)", "content"),
    )

    def do_CONNECT(self):  # noqa: N802, the name that http.server calls
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)

    def answer(self):
        """Dispatches a request to its route and sends the response."""
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        bucket: Bucket = self.server.bucket
        try:
            for method, pattern, name in self.routes:
                if self.command == method and (found := re.fullmatch(pattern, url.path)):
                    arguments = [unquote(group) for group in found.groups()]
                    if method != "GET":
                        self.refuse_if_set(bucket, self.query.get("name") or arguments[-1])
                    with bucket.lock:
                        return getattr(self, name)(bucket, *arguments)
            raise RefusalError(501, f"{self.command} {self.path} is not implemented")
        except RefusalError as refusal:
            error = {"code": refusal.status, "message": str(refusal)}
            return self.reply(json.dumps({"error": error}).encode(), refusal.status)

    def refuse_if_set(self, bucket: Bucket, name: str):
        """Fails like a bucket without permission (403) or a temporary outage (503)."""
        if bucket.refuses is not None and re.search(bucket.refuses, name):
            bucket.refused.append(name)
            raise RefusalError(bucket.status, f"{name} cannot be written")

    def read_body(self) -> bytes:
        """The request body; TensorFlow uses chunked transfer encoding."""
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        chunks = []
        while not chunks or chunks[-1]:
            size = int(self.rfile.readline(), 16)
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(chunks)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def bucket_metadata(self, bucket: Bucket):
        self.reply_json({"name": BUCKET, "location": "EARTH"})

    def layout(self, bucket: Bucket):
        self.reply_json({"bucket": BUCKET, "hierarchicalNamespace": {"enabled": False}})

    def listing(self, bucket: Bucket):
        """Names with a prefix; names with a delimiter after it are folded into prefixes."""
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        after, end = self.query.get("pageToken", ""), self.query.get("endOffset")
        found: dict[str, bool] = {}  # name or prefix, in order: whether it is an object
        for name in bucket.names(prefix):
            if name < self.query.get("startOffset", "") or (end and name >= end):
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
            folded = prefix + head + cut
            if folded > after:
                found[folded] = not cut
        page = list(found)[: min(PAGE, int(self.query.get("maxResults", PAGE)))]
        answer = {
            "items": [self.metadata(bucket, name) for name in page if found[name]],
            "prefixes": [name for name in page if not found[name]],
        }
        more = {"nextPageToken": page[-1]} if len(page) < len(found) else {}
        self.reply_json({name: value for name, value in answer.items() if value} | more)

    def metadata_or_content(self, bucket: Bucket, name: str):
        if self.query.get("alt") == "media":
            return self.content(bucket, name)
        return self.reply_json(self.metadata(bucket, name))

    def content(self, bucket: Bucket, name: str):
        """An object's bytes, or a range of them."""
        blob = self.blob(bucket, name)
        unless = self.query.get("ifGenerationNotMatch")
        if unless is not None and int(unless) == blob.generation:
            raise RefusalError(304, "not changed")
        self.require_generation(bucket, name)
        size, span = len(blob.content), re.match(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        first, last = (int(span[1]), int(span[2] or size)) if span else (0, size)
        if span and first >= size:
            raise RefusalError(416, "range beyond the end")
        part = blob.content[first : last + 1]
        found = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{size}"} if span else {}
        generation = {"x-goog-generation": str(blob.generation)}
        self.reply(part, 206 if span else 200, found | generation)

    def delete(self, bucket: Bucket, name: str):
        self.require_generation(bucket, name)
        self.blob(bucket, name)
        del bucket.blobs[name]
        self.reply(b"", 204)

    def rewrite(self, bucket: Bucket, name: str, target: str):
        bucket.write(target, self.blob(bucket, name).content)
        self.reply_json({"done": True, "resource": self.metadata(bucket, target)})

    def upload(self, bucket: Bucket):
        """Uploads an object, or starts a resumable session for it."""
        name = self.query["name"]
        self.require_generation(bucket, name)
        if self.query["uploadType"] == "resumable":
            session = f"https://{HOSTS[0]}/session/{name.replace('/', '%2F')}"
            return self.reply(b"", 200, {"Location": session})
        bucket.write(name, self.body)
        return self.reply_json(self.metadata(bucket, name))

    def upload_of_session(self, bucket: Bucket, name: str):
        bucket.write(name, self.body)
        self.reply_json(self.metadata(bucket, name))

    def blob(self, bucket: Bucket, name: str) -> Blob:
        if name not in bucket.blobs:
            raise RefusalError(404, f"no such object: {name}")
        return bucket.blobs[name]

    def metadata(self, bucket: Bucket, name: str) -> dict[str, str]:
        blob = self.blob(bucket, name)
        return {
            "name": name,
            "bucket": BUCKET,
            "size": str(len(blob.content)),
            "generation": str(blob.generation),
            "updated": "2000-01-01T00:00:00.000Z",
        }

    def require_generation(self, bucket: Bucket, name: str):
        """Checks ifGenerationMatch, the version that the client replaces; 0 for a new object."""
        wanted = self.query.get("ifGenerationMatch")
        current = bucket.blobs[name].generation if name in bucket.blobs else 0
        if wanted is not None and int(wanted) != current:
            raise RefusalError(412, "another generation")

    def reply_json(self, value):
        self.reply(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def reply(self, body: bytes, status: int, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)

    def log_message(self, format, *args):
        """No log: tests read the bucket."""


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[Bucket]:
    """Runs the server; its certificate is written to `directory`."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True  # killed clients leave connections open
    server.bucket = bucket
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(_certificate(directory))
    url = f"http://127.0.0.1:{server.server_port}"
    bucket.environment = {
        "TENSORSTORE_GCS_HTTP_URL": url,
        "STORAGE_EMULATOR_HOST": url,
        "https_proxy": url,
        "CURL_CA_BUNDLE": str(directory / "certificate.pem"),
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # TensorFlow's and TensorStore's
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _certificate(directory: Path) -> Path:
    """A file with a new key and its self-signed certificate for HOSTS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOSTS[0])])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(map(x509.DNSName, HOSTS)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = directory / "certificate.pem"
    path.write_bytes(key.private_bytes(pem, pkcs8, plain) + certificate.public_bytes(pem))
    return path
