"""A client of one web server or S3 endpoint that never follows a redirect to another server.

obstore follows every redirect. It sends the session token of S3 along, and a web server could make it request any
address that this machine can reach. Redirects within the same scheme, host and port are followed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urljoin

from pipeline.errors import StoreError
from pipeline.storage.http_connection import Answer, ConnectionPool, explain, origin

REDIRECTS = 3  # within one server
REDIRECT_STATUS = (301, 302, 303, 307, 308)
RETRIED = {429, *range(500, 600)} - {501}
LARGEST_ERROR = 1 << 14  # bytes of an error's text that are read, to tell one 404 from another
NO_RANGES = "this server does not support range requests; use one that does, or copy the cache to this machine"
FORBIDDEN = (
    "forbidden; check the credentials in the environment. A store that does not allow listing also answers this for a "
    "missing object; allow listing to distinguish the two"
)
REASONS = {
    401: FORBIDDEN,
    403: FORBIDDEN,
    501: "this store does not support conditional put; use another store",
}


@dataclass(frozen=True)
class Patience:
    """Seconds for one read and for one connection, number of retries, and seconds for all retries."""

    timeout: float
    connect_timeout: float
    max_retries: int
    retry_timeout: float


class HttpClient:
    """GET, HEAD, PUT and DELETE by key. Thread-safe.

    address: returns the URL of a method and key; its query may be a signature, so it is in no message. url: the same
    for messages, without the key. Raises StoreError, FileNotFoundError, FileExistsError and InterruptedBody.
    """

    def __init__(self, url: str, address: Callable[[str, str], str], patience: Patience) -> None:
        self._url, self._address, self._patience = url.rstrip("/"), address, patience
        self._pool = ConnectionPool(patience.timeout, patience.connect_timeout)

    def head(self, key: str) -> dict[str, Any]:
        """Return `size` and `e_tag` of an object."""
        response, done = self._request("HEAD", key)
        done()
        return {"size": self._length(key, response), "e_tag": response.headers.get("ETag")}

    def get(self, key: str, options: Mapping[str, Any] | None = None) -> Answer:
        """Request an object, or its bytes in `options["range"]` (first, end)."""
        wanted = (options or {}).get("range")
        headers = {"Range": f"bytes={wanted[0]}-{wanted[1] - 1}"} if wanted else {}
        response, done = self._request("GET", key, headers)
        length = self._length(key, response)
        if not wanted:
            return Answer(response, (0, length), length, done, self._patience.timeout)
        unit, _, size = response.headers.get("Content-Range", "").partition("/")
        first = unit.removeprefix("bytes ").partition("-")[0]
        if response.status != 206 or first != str(wanted[0]) or not size.isdecimal() or len(size) > 18:
            raise self._error(key, NO_RANGES)
        return Answer(response, (wanted[0], wanted[0] + length), int(size), done, self._patience.timeout)

    def put(self, key: str, content: bytes, mode: Any) -> str | None:
        """Write an object in one request, as obstore's `put` does. Return its e_tag."""
        headers = {} if isinstance(mode, str) else {"If-Match": mode["e_tag"]}
        if mode == "create":
            headers = {"If-None-Match": "*"}
        response, done = self._request("PUT", key, headers, content)
        done()
        return response.headers.get("ETag")

    def delete(self, key: str) -> None:
        self._request("DELETE", key)[1]()

    def require_no_redirect(self, key: str) -> None:
        """Raise StoreError where the server redirects requests for an object. Other answers are ignored."""
        with suppress(OSError, HTTPException):
            self._send("HEAD", key, {}, None)[1]()

    def _request(
        self, method: str, key: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> tuple[HTTPResponse, Callable[[], None]]:
        """Send a request until it is answered. Return the answer, and the function to call after its body was read."""
        patience, begun, wait, reason = self._patience, time.monotonic(), 0.1, ""
        for attempt in range(patience.max_retries + 1):
            if attempt:
                if time.monotonic() - begun + wait > patience.retry_timeout:
                    break
                time.sleep(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, 15)
            try:
                response, done = self._send(method, key, headers or {}, body)
                if response.status < 300:
                    return response, done
                text = response.read(LARGEST_ERROR).decode(errors="replace")
                done()
            except (OSError, HTTPException) as error:
                reason = explain(error)
                continue
            if response.status not in RETRIED:
                raise self._refused(key, response.status, text)
            reason = f"HTTP status {response.status} from the server after all retries; try again later"
        raise self._error(key, reason)

    def _send(
        self, method: str, key: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[HTTPResponse, Callable[[], None]]:
        """Send a request once, and follow redirects within the server."""
        address = self._address(method, key)
        for _ in range(REDIRECTS + 1):
            response, done = self._pool.send(method, address, headers, body)
            if response.status not in REDIRECT_STATUS:
                return response, done
            if "Location" not in response.headers:
                raise self._error(key, "the server redirects to no location; check region and endpoint")
            target = urljoin(address, response.headers["Location"])
            if origin(target) != origin(address):
                raise self._error(
                    key,
                    f"the server redirects to {origin(target)}, which is another server and is not followed; use the "
                    "final URL or endpoint if you trust it",
                )
            address = target
        raise self._error(key, f"more than {REDIRECTS} redirects; check the URL")

    def _refused(self, key: str, status: int, text: str) -> Exception:
        """Return the exception of an answer that no retry changes. `text`: the server's, which is never quoted."""
        if status == 404:
            return FileNotFoundError(2, "NoSuchBucket" if "NoSuchBucket" in text else "no such object", key)
        if status in (409, 412):
            return FileExistsError(17, "another process wrote it first", key)
        reason = f"HTTP status {status} from the server; check URL, endpoint and credentials"
        return self._error(key, REASONS.get(status, reason))

    def _length(self, key: str, response: HTTPResponse) -> int:
        text = response.headers.get("Content-Length", "")
        if not text.isdecimal() or len(text) > 18:
            raise self._error(key, "cannot be used: the server declares no length; use another server")
        return int(text)

    def _error(self, key: str, reason: str) -> StoreError:
        return StoreError(f"{self._url}/{key}: {reason}")
