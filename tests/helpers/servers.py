"""A real S3 API server and a real web server on loopback, with faults on demand."""

from __future__ import annotations

import http.server
import logging
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDLOOPBACK", "AWS_SECRET_ACCESS_KEY": "never-to-be-shown"}


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's server in a thread. Yields its address, with a bucket named `bucket`, and sets the environment for it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **KEYS,
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        yield address
    server.stop()


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of `root` with byte ranges; each request takes the first fault that is waiting, if any."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root: ClassVar[Path]
    faults: ClassVar[list[str]]
    asked: ClassVar[list[tuple[str, str, str | None]]]  # method, path, range
    sent: ClassVar[int] = 0  # bytes of endless answers
    delay: ClassVar[float] = 0.0  # seconds before each answer
    address: ClassVar[str]

    def log_message(self, *args: object) -> None: ...

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.command, self.path, wanted))
        time.sleep(self.delay)
        fault = self.faults.pop(0) if self.faults else ""
        path = self.root / self.path.lstrip("/")
        if fault.isdigit():
            self.answer(int(fault))
            return
        if fault in ("drop", "stall"):
            time.sleep(1.5 if fault == "stall" else 0)
            self.close_connection = True
            if fault == "drop":
                self.connection.close()
            return
        if not path.is_file():
            self.answer(404)
            return
        if fault.startswith("endless"):
            self.endless(wanted, declared=fault == "endless")
            return
        body, tag = path.read_bytes(), {} if fault == "cut without a tag" else {"ETag": '"1"'}
        if wanted and fault != "no ranges":
            first, last = (int(n) for n in re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())  # type: ignore[union-attr]
            last = min(last, len(body) - 1)
            self.answer(206, body[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(body)}", **tag)
            body = body[first : last + 1]
        else:
            self.answer(200, body, **tag)
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        if self.command == "HEAD":
            return
        if fault.startswith("cut") or fault == "stall inside":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(1.5 if fault == "stall inside" else 0)
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def endless(self, wanted: str | None, declared: bool) -> None:
        """More than was asked for and than any cache holds, until the other side has enough."""
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"{wanted.replace('=', ' ')}/{1 << 40}")
        name, value = ("Content-Length", str(1 << 40)) if declared else ("Transfer-Encoding", "chunked")
        self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        block = bytes(1 << 20)
        with suppress(OSError):
            while type(self).sent < 1 << 30:
                self.wfile.write(block if declared else b"100000\r\n" + block + b"\r\n")
                type(self).sent += len(block)
        self.close_connection = True

    do_HEAD = do_GET


class Redirecting(http.server.BaseHTTPRequestHandler):
    """Redirects every request to the same path of `target`, with `status`; without a target, answers with b"ok".

    `seen`: method and headers of each request.
    """

    protocol_version = "HTTP/1.1"
    target: ClassVar[str]
    status: ClassVar[int]
    seen: ClassVar[list[tuple[str, dict[str, str]]]]
    address: ClassVar[str]

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, dict(self.headers)))
        body = b"" if self.target else b"ok"
        self.send_response(self.status if self.target else 200)
        self.send_header("Location", self.target + self.path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET


@contextmanager
def redirecting_server(target: str = "", status: int = 302) -> Iterator[type[Redirecting]]:
    """Yields the handler: its `address`, and what it has `seen`."""
    handler: Any = type("Redirected", (Redirecting,), {"target": target, "status": status, "seen": []})
    with serving(handler):
        yield handler


@contextmanager
def serving(handler: Any) -> Iterator[None]:
    """Run a server on loopback; its URL is the handler's `address`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield
    server.shutdown()
    server.server_close()


@contextmanager
def web_server(root: Path) -> Iterator[type[Handler]]:
    """Yields the handler: its `address`, its waiting `faults`, and what it was `asked`."""
    handler: Any = type("Served", (Handler,), {"root": root, "faults": [], "asked": []})
    with serving(handler):
        yield handler
