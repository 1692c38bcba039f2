"""A JSON file of many values, and passes without end, cost little and end in one line."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.budget import BUDGET, parse_json
from pipeline.cache.cache import Cache
from pipeline.cache.canonical import read_json, write_json
from pipeline.errors import CacheError, CorruptCache
from pipeline.tools.report.students import load_curves
from tests.helpers.memory import cost_of, cost_of_verb, refused

FILES = ("plan.json", "codec.json", "gate.json", "summary.json", "pass-0/plan.json", "pass-0/manifest.json")
SHARD = "pass-0/shard-00000.json"


@pytest.fixture
def cache(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["frs"].parent / "cache", tmp_path / "cache"))


def fill(path: Path, values: int) -> None:
    """Write many small values into a JSON file, under a right seal: nothing in it is damaged."""
    body = '{"a":[' + ",".join(["{}"] * values) + "]"
    seal = sha256(f"{body}}}\n".encode()).hexdigest()
    path.write_text(f'{body},"seal":"{seal}"}}\n')


def test_as_many_values_as_the_budget_allows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for values, most in ((90, 200), (100, 200), (101, 200)):
        fill(path, values)  # two marks for each, and few for the rest
        if values < 100:
            assert len(read_json(path, values=most)["a"]) == values
        else:
            with pytest.raises(CorruptCache, match=f"a.json: JSON values: expected at most {most}, found 20"):
                read_json(path, values=most)


@pytest.mark.parametrize("name", [*FILES, SHARD])
def test_a_file_of_many_values(cache: Path, tmp_path: Path, name: str) -> None:
    """10 million objects in 30 MB would be 1 GB in Python."""
    fill(cache / name, 10_000_000)
    large = name in (SHARD, "pass-0/plan.json")
    verb = ("verify", cache) if large or name in ("gate.json", "summary.json") else ("info", cache)
    refused(cost_of_verb(*verb, log=tmp_path / "log"), f"{name}: (JSON values|expected a JSON|size or sha256 differs)")
    if large:  # with the right digests above it
        manifest = read_json(cache / "pass-0/manifest.json")
        entry = {"bytes": (cache / name).stat().st_size, "sha256": sha256((cache / name).read_bytes()).hexdigest()}
        manifest["files"][name.removeprefix("pass-0/")] = entry
        write_json(cache / "pass-0/manifest.json", manifest)
        page = ("report", cache, "-o", tmp_path / "page.html")
        refused(cost_of_verb(*page, log=tmp_path / "log"), f"{name}: JSON values: expected at most")


def test_a_file_that_is_too_large_is_not_read(cache: Path, tmp_path: Path) -> None:
    with open(cache / "pass-0/manifest.json", "wb") as file:
        file.truncate(BUDGET.json_bytes + 1)
    refused(cost_of_verb("info", cache, log=tmp_path / "log"), "manifest.json: expected at most .* bytes", 64)


def test_numbers_of_more_than_64_bits() -> None:
    assert parse_json(b"[9223372036854775807, -9223372036854775808, 1.5, 12345678901234567890123456789e0]")[0] > 0
    for text in ("9" * 400, "-" + "9" * 400, str(2**63), "9" * 5000):
        with pytest.raises(ValueError, match="64 bits"):
            parse_json(f"[{text}]".encode())


def test_the_log_of_a_student(tmp_path: Path) -> None:
    path = tmp_path / "1/vis_data/scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps({"step": n, "loss": 0.5}) for n in range(50)))
    assert load_curves(tmp_path)["loss"] == ([*range(50)], [0.5] * 50)
    path.write_text("\n".join(f'{{"step":{n},"a":1}}' for n in range(1_500_000)))

    def read() -> None:
        with pytest.raises(CacheError, match=r"scalars\.json: JSON values: expected at most"):
            load_curves(tmp_path)

    cost = cost_of(read, log=tmp_path / "log")
    assert cost.code == 0 and cost.grown < 128, cost


def test_passes_beyond_the_budget(cache: Path, tmp_path: Path) -> None:
    summary = json.loads((cache / "summary.json").read_text())
    (cache / "summary.json").write_text(json.dumps({**summary, "passes": 10**12}))
    refused(cost_of_verb("verify", cache, log=tmp_path / "log"), "summary.json: expected a JSON object", 64)
    (cache / "summary.json").unlink()
    plan = read_json(cache / "plan.json")
    plan["recipe"]["views"]["finite"] = 10**12
    write_json(cache / "plan.json", plan)
    refused(cost_of_verb("verify", cache, log=tmp_path / "log"), "of 1000000000000 passes are complete", 64)
    (cache / f"pass-{10**12}").mkdir()
    refused(cost_of_verb("info", cache, log=tmp_path / "log"), "passes: expected at most 1000, found", 64)


@contextmanager
def obliging_server(root: Path, answered: list[str]) -> Iterator[str]:
    """A server that answers 200 to every name: with a file of the cache, or with the manifest of pass 0."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            answered.append(self.path)
            path = root / self.path.lstrip("/")
            body = path.read_bytes() if path.is_file() else (root / "pass-0/manifest.json").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("finite", [None, 2, 10**9])
def test_a_server_that_answers_every_name(cache: Path, finite: int | None) -> None:
    plan = read_json(cache / "plan.json")
    plan["recipe"]["views"]["finite"] = finite
    write_json(cache / "plan.json", plan)
    answered: list[str] = []
    with obliging_server(cache, answered) as url:
        if finite == 2:
            assert Cache(url).passes() == [0, 1]  # the second one is refused when it is read
        else:
            with pytest.raises(CorruptCache, match="passes: expected at most 1000, found 1001; check"):
                Cache(url).passes()
    assert len(answered) < 100
