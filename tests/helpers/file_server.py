"""A local web server for one file, with faults that tests switch on."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Behaviour of the server, and the requests it received."""

    content: bytes
    etag: str = '"v1"'
    content_type: str = "application/octet-stream"
    errors: list[int] = field(default_factory=list)  # status codes of the first responses
    cut_after: int | None = None  # bytes of the next body before the connection closes
    ignores_range: bool = False
    ignores_if_range: bool = False
    shifted: int = 0  # wrong offset of partial responses, bytes
    redirect: str = ""
    stall: threading.Event | None = None  # blocks before the second half of a body
    requests: list[tuple[str, int]] = field(default_factory=list)  # Range header, bytes sent
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802, the name that http.server calls
        site: Site = self.server.site
        if site.errors:
            return self.send_error(site.errors.pop(0))
        if site.redirect:
            self.send_response(302)
            self.send_header("Location", site.redirect)
            return self.end_headers()
        return self._send_file(site)

    def _send_file(self, site: Site):
        wanted = self.headers["Range"] or ""
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        same = self.headers["If-Range"] in (None, site.etag) or site.ignores_if_range
        start = 0 if site.ignores_range or not same else start
        if start and start >= len(site.content):
            return self.send_error(416)
        start += site.shifted if start else 0
        body, size = site.content[start:], len(site.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", site.content_type)
        self.send_header("ETag", site.etag)
        cut, site.cut_after = site.cut_after, None
        body = body[:cut]
        site.requests.append((wanted, len(body)))  # before a response that may close the connection
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if site.stall:
            self.wfile.flush()
            site.stall.wait()
        self.wfile.write(body[len(body) // 2 :])
        return None

    def log_message(self, format, *args):
        """No log: tests read site.requests."""


@contextlib.contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Runs the server; site.url is the URL of the file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.site = site
    site.url = f"http://127.0.0.1:{server.server_port}/folder/teacher.pkl"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
