"""No request and no credential goes to a server that the user did not name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest

from pipeline.cache.cache import Cache
from pipeline.errors import StoreError, TeacherError
from pipeline.storage import s3_client
from pipeline.storage.files import discard, file_size, read_small
from pipeline.storage.place import key_of, storage_of
from pipeline.storage.urls import place
from pipeline.teacher.download import SafeRedirects, fetch
from tests.helpers.servers import Redirecting, redirecting_server, web_server

STATUS = (301, 302, 303, 307, 308)
TOKEN = "never-to-travel"
QUICK = {"timeout": 2.0, "max_retries": 1, "retry_timeout": 2.0}


@pytest.fixture
def other() -> Iterator[type[Redirecting]]:
    with redirecting_server() as handler:
        yield handler


@pytest.fixture(params=STATUS)
def first(request: pytest.FixtureRequest, other: type[Redirecting]) -> Iterator[type[Redirecting]]:
    with redirecting_server(other.address, request.param) as handler:
        yield handler


def put_large(path: Any) -> None:
    """Write an object that obstore would send in parts."""
    storage_of(path).put(key_of(path), BytesIO(bytes(8)))


CALLS: dict[str, Callable[[Any], Any]] = {
    "size": file_size,
    "read": read_small,
    "range": lambda path: storage_of(path).read_range(key_of(path), 0, 9),
    "open": lambda path: Cache(path.parent),
    "put": lambda path: storage_of(path).put(key_of(path), b"x"),
    "create": lambda path: storage_of(path).put(key_of(path), b"x", "create"),
    "parts": put_large,
    "delete": discard,
}
READS = ("size", "read", "range", "open")


@pytest.mark.parametrize("call", CALLS)
def test_s3(first: type[Redirecting], other: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "SESSION_TOKEN": TOKEN}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3_client, "SINGLE", 4)
    path = place("s3://bucket/cache/plan.json", {**QUICK, "endpoint": first.address, "region": "x"})
    refused(path, CALLS[call], other)
    assert first.seen and not any(TOKEN in str(headers) for _, headers in first.seen)  # it is in the signed URL


def test_s3_with_a_header_of_obstore(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "SESSION_TOKEN": TOKEN}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    options: dict[str, Any] = {**QUICK, "region": "x"}
    with redirecting_server(other.address) as first:
        for call in CALLS.values():
            refused(place("s3://bucket/cache/plan.json", options | {"endpoint": first.address}), call, other)
        assert {method for method, _ in first.seen} == {"HEAD"}
    found = place("s3://bucket/cache/plan.json", options | {"endpoint": other.address})
    assert read_small(found) == b"ok" and other.seen[-1][1]["x-amz-request-payer"] == "requester"


@pytest.mark.parametrize("call", READS)
def test_web(first: type[Redirecting], other: type[Redirecting], call: str) -> None:
    refused(place(f"{first.address}/cache/plan.json", QUICK), CALLS[call], other)


def refused(path: Any, call: Callable[[Any], Any], other: type[Redirecting]) -> None:
    with pytest.raises(StoreError) as raised:
        call(path)
    message = str(raised.value)
    assert f"plan.json: the server redirects to {other.address}, which is another server" in message
    assert TOKEN not in message and "\n" not in message and not other.seen


def test_a_redirect_within_a_server_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.json").write_bytes(b"content")
    with web_server(tmp_path) as web:
        get = web.do_GET

        def moved(self: Any) -> None:
            if self.path.startswith("/old"):
                self.asked.append((self.command, self.path, None))
                self.answer(302, Location=self.path.replace("/old", "/new" if "loop" not in self.path else "/old"))
            else:
                get(self)

        monkeypatch.setattr(web, "do_GET", moved)
        assert read_small(place(f"{web.address}/old/a.json")) == b"content"
        with pytest.raises(StoreError, match="loop: more than 3 redirects; check the URL"):
            read_small(place(f"{web.address}/old/loop"))


@pytest.mark.parametrize("status", STATUS)
def test_a_download_follows_https_only(other: Any, tmp_path: Path, status: int) -> None:
    """A browser refuses to leave https, and a zoo never does. The test servers have no https, so it is called."""
    words = f"redirects to {other.address}, which is another server without https"
    with redirecting_server(other.address, status) as first, pytest.raises(TeacherError, match=words):
        fetch(f"{first.address}/a.pth", tmp_path / "a.pth", "teacher.checkpoint")
    assert not other.seen and not list(tmp_path.iterdir())
    asked = Request("https://zoo.example/a.pth", headers={"User-Agent": "x"})
    follow = SafeRedirects().redirect_request
    found = follow(asked, BytesIO(), status, "", {}, "https://content.example/a.pth")
    assert found is not None and found.headers == {"User-agent": "x"} and "content.example" in found.full_url
    for target in ("http://zoo.example/a.pth", "ftp://zoo.example/a.pth", "http://169.254.169.254/"):
        with pytest.raises(OSError, match="another server without https"):
            follow(asked, BytesIO(), status, "", {}, target)


def test_a_body_that_comes_slowly_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the limit of one read; the limit is that of the whole body."""
    with web_server(tmp_path) as web:

        def slow(self: Any) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.02)
            self.close_connection = True

        monkeypatch.setattr(web, "do_GET", slow)
        monkeypatch.setattr("pipeline.storage.connection.BODY_RETRIES", 1)
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"a\.json: connection interrupted after all retries"):
            read_small(place(f"{web.address}/a.json", {**QUICK, "timeout": 0.2}))
        assert time.monotonic() - begun < 5
