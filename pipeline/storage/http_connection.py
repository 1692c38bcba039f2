"""Connections to web servers, kept open between requests, and through the proxy of the environment if there is one."""

from __future__ import annotations

import base64
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

INTERRUPTED = "connection interrupted after all retries; check that the server is running"
PART = 1 << 20  # bytes of a body that are read at once
IDLE = 32  # connections that wait for the next request
Connection = Any  # HTTPConnection with `prefix` and `extra`: what a proxy wants before the path, and as headers


def origin(url: str) -> str:
    """Return scheme, host and port of a URL, without user and password."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        return f"{parts.scheme}://{parts.hostname}:{port}"
    except ValueError:
        return "an invalid URL"


def explain(error: Exception) -> str:
    """Return the reason of a failed request and what to do about it."""
    if isinstance(error, socket.gaierror):
        return "no such host; check the URL and the endpoint"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection ({error.reason or type(error).__name__}); check the certificate and the URL"
    if isinstance(error, TimeoutError):
        return "timed out after all retries; check that the server is running"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused after all retries; check that the server is running"
    if isinstance(error, ConnectionError | HTTPException):
        return INTERRUPTED
    return "no connection after all retries; check that the server is running"


class InterruptedBody(Exception):
    """The connection ended inside a body, so that another request may succeed."""


class Answer:
    """The body of an object: `range` (first byte, end), `meta` with `size` and `e_tag`. Iterate over it once.

    timeout: seconds for the whole body, however slowly it comes.
    """

    def __init__(
        self, response: HTTPResponse, span: tuple[int, int], size: int, done: Callable[[], None], timeout: float
    ) -> None:
        self.range, self._response, self._done, self._timeout = span, response, done, timeout
        self.meta: dict[str, Any] = {"size": size, "e_tag": response.headers.get("ETag")}

    def __iter__(self) -> Iterator[bytes]:
        left, until = self.range[1] - self.range[0], time.monotonic() + self._timeout
        try:
            while left > 0:
                part = self._response.read1(min(PART, left))
                if not part or time.monotonic() > until:
                    raise InterruptedBody("the body ended early, or took too long")
                left -= len(part)
                self._response.length = left  # older versions of Python do not count what read1 reads
                yield part
        except (OSError, HTTPException) as error:
            raise InterruptedBody(str(error)) from error
        self._done()

    def bytes(self) -> bytes:
        return b"".join(self)


class ConnectionPool:
    """Idle connections by server. Thread-safe. `timeout`: seconds of one read, `connect_timeout` of one connection."""

    def __init__(self, timeout: float, connect_timeout: float) -> None:
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._idle: dict[str, deque[Connection]] = {}
        self._tls = ssl.create_default_context()

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[HTTPResponse, Callable[[], None]]:
        """Send one request. Return its answer, and the function to call when its body was read.

        A connection that the server closed while it was idle is replaced once. Raise OSError or HTTPException.
        """
        server, parts = origin(url), urlsplit(url)
        idle = self._idle.setdefault(server, deque(maxlen=IDLE))
        target = parts.path + (f"?{parts.query}" if parts.query else "") or "/"
        while True:
            try:
                connection, used = idle.pop(), True
            except IndexError:
                connection, used = self._connect(url), False
            try:
                connection.request(method, connection.prefix + target, body, {**headers, **connection.extra})
                response = connection.getresponse()
            except (OSError, HTTPException) as error:
                connection.close()
                if used and not isinstance(error, TimeoutError):
                    continue
                raise
            return response, partial(_keep, idle, connection, response)

    def _connect(self, url: str) -> Connection:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
        via = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
        where = (via.hostname or "", via.port) if via else (host, port)
        if parts.scheme == "https":
            connection: Any = HTTPSConnection(*where, timeout=self._connect_timeout, context=self._tls)
        else:
            connection = HTTPConnection(*where, timeout=self._connect_timeout)
        connection.prefix, connection.extra = "", {}
        if via and parts.scheme == "https":
            connection.set_tunnel(host, port or 443, _proxy_headers(via.username, via.password))
        elif via:
            connection.prefix = f"http://{parts.netloc}"
            connection.extra = _proxy_headers(via.username, via.password)
        connection.connect()
        connection.sock.settimeout(self._timeout)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    if user is None:
        return {}
    text = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(text).decode()}"}


def _keep(idle: deque[Connection], connection: Connection, response: HTTPResponse) -> None:
    """Keep a connection whose answer was read completely, if the server lets it open."""
    response.read(0)
    if response.isclosed() and connection.sock is not None:
        idle.append(connection)
    else:
        connection.close()
