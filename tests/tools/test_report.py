"""`report`: one file with correct figures, which a real browser shows without errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.cache import Cache
from pipeline.codecs.group import open_codec
from pipeline.errors import CacheError, StaleCache
from pipeline.tools.report.bits import count_bits
from pipeline.tools.report.charts import THEME
from pipeline.tools.report.page import write_page
from pipeline.tools.report.rates import estimate_coarser, measure_rate
from pipeline.tools.report.sample import DecodedSample

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def students(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dirs of stage 2: one student of this cache, resumed once, and one of a live teacher."""
    root = tmp_path_factory.mktemp("students")
    content = Cache(made["frs"].parent / "cache").content()
    for name, cache_content in (("mine", content), ("live", None)):
        summary = {
            "mAP": 0.2 if cache_content else 0.1,
            "AP50": 0.4,
            "epochs": 2,
            "images_per_second": 9.0,
            "content": cache_content,
            "work_dir": str(root / name),
            "feature_loss": "frs",
        }
        for run, steps in (("20260101_000000", (1, 2)), ("20260101_000001", (2, 3))):
            folder = root / name / run / "vis_data"
            folder.mkdir(parents=True)
            rows = [{"loss_frs_feature": s / 10, "loss_frs_score": 1.0, "step": s, "iter": s} for s in steps]
            lines = [json.dumps(row) for row in [*rows, {"coco/bbox_mAP": 0.2, "step": 1}]]
            (folder / "scalars.json").write_text("\n".join([*lines, '{"loss_frs_fea']))  # killed during a write
        (root / name / "summary.json").write_text(json.dumps(summary))
        (root / name / "20260101_000000/summary.json").write_text('{"mAP": 1, "of": "another program"}')
    return root


@pytest.fixture(scope="module")
def page(made: dict[str, Path], students: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    folders = [str(students / name) for name in ("mine", "live")]
    compare = [str(made["lossless"].parent / "cache")]
    return write_page(str(made["frs"].parent / "cache"), out, str(made["frs"]), {}, folders, compare, samples=4)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_stands_alone(page: Path, made: dict[str, Path]) -> None:
    text = page.read_text()
    elements = Elements(text).found
    for tag, attributes in elements:
        assert tag != "script" and not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), f"{tag} {name}={target[:60]}"
    assert not re.search(r"url\((?!#)|@import", text)
    images = [attributes["src"] or "" for tag, attributes in elements if tag == "img"]
    assert len(images) == 2 * 2 * 6 + 2 * 4 and len(set(images)) > 20  # two images, two views, five levels; four worst
    for drawn in THEME:  # all colours of matplotlib are replaced
        assert drawn not in text
    charts = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(charts) == 8
    for chart in charts:
        colours = set(re.findall(r"#[0-9a-f]{6}\b", chart))
        assert not colours, colours
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    cache = Cache(made["frs"].parent / "cache")
    assert cache.content() in text and cache.plan["recipe_digest"] in text and cache.plan["teacher_sha256"] in text
    assert re.search(r"<td>mine</td><td>this cache</td>", text) and "<td>live teacher</td>" in text
    assert "exact" in text  # the lossless cache it is compared with


HOSTILE_NAMES = [
    """loss_frs"><script>alert(1)</script><img src=x onerror=alert(2)>""",
    "loss_frs $\\frac{$",
    "loss_frs \\9 \\g<0>",
    "loss_frs_' onload='x",
    "loss_frs&lt;b&gt;\x1b[31m",
]


def write_student(folder: Path, **changes: Any) -> Path:
    summary = {"mAP": 0.2, "AP50": 0.4, "epochs": 2, "images_per_second": 9.0, "content": None, "work_dir": str(folder)}
    (folder / "20260101_000000" / "vis_data").mkdir(parents=True)
    rows = [{**dict.fromkeys(HOSTILE_NAMES, float(step)), "huge": 10**400, "step": step} for step in (1, 2)]
    text = "\n".join(json.dumps(row) for row in [*rows, {"loss_frs_feature": 1.0, "step": 10**400}])
    (folder / "20260101_000000" / "vis_data" / "scalars.json").write_text(text + "\n" + "[" * 100_000)
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    return folder


def test_foreign_names_are_text(made: dict[str, Path], tmp_path: Path) -> None:
    """A scalar's or a folder's name may be markup, mathematics, or a regular expression's group."""
    named = tmp_path / "$x_{$ <script>alert(3)<"
    students = [str(write_student(named))]
    out = write_page(str(made["frs"].parent / "cache"), tmp_path / "report.html", students=students, samples=2)
    text = out.read_text()
    elements = Elements(text).found
    assert not any(tag == "script" or any(name.startswith("on") for name in attributes) for tag, attributes in elements)
    assert "alert(1)" in text and "alert(3)" in text and "frac{$" in text, "the names are shown as they are"
    policy = [a["content"] for tag, a in elements if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[\w.-]+", one) for one in ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mAP": "0.2"}, "mAP: expected a number, found '0.2'"),
        ({"mAP": 10**400}, "mAP: expected a number, found another"),
        ({"epochs": None}, "epochs: expected a number, found None"),
        ({"content": ["x"]}, "content: expected a digest or null"),
        ({"feature_loss": {"a": 1}}, "feature_loss: expected a name"),
    ],
)
def test_a_summary_of_other_types(made: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    students = [str(write_student(tmp_path / "student", **changes))]
    with pytest.raises(CacheError, match=re.escape(message)):
        write_page(str(made["frs"].parent / "cache"), tmp_path / "report.html", students=students)
    assert not (tmp_path / "report.html").exists()


def test_bits_add_up(made: dict[str, Path]) -> None:
    """The bytes of all levels, and of all tenths, add up to the bytes of the tensor on disk."""
    cache = Cache(made["frs"].parent / "cache")
    codec = open_codec(cache)
    sample = DecodedSample(cache, codec, [ref for shard in cache.references(0) for ref in shard])
    views = [stored for _, stored in sample.stored]
    found = count_bits(codec, views)
    on_disk = cache.manifest(0)["bytes_by_array"]
    for name in ("features", "scores", "frs"):
        mean = on_disk[name] / len(views)
        assert sum(found.by_level[name]) == pytest.approx(mean)
        if name != "frs":
            assert sum(found.by_tenth[name]) == pytest.approx(mean)
            assert sum(found.by_tenth[name][5:]) > sum(found.by_tenth[name][:5])  # richer blocks cost more
    curve = estimate_coarser(codec, cache.version, measure_rate(cache), views[:4])
    sizes, errors = [p.kilobytes for p in curve], [p.errors["score"] for p in curve]
    assert sizes[0] == pytest.approx(measure_rate(cache).kilobytes)
    assert np.all(np.diff(sizes) < 0) and np.all(np.diff(errors) > 0)


def test_a_lossless_cache_without_its_config(made: dict[str, Path], tmp_path: Path) -> None:
    text = write_page(str(made["lossless"].parent / "cache"), tmp_path / "r.html", samples=2).read_text()
    assert "This cache is lossless" in text and "thumbnails are shown" in text and text.count("<svg") == 3


def test_what_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    root, out = str(made["frs"].parent / "cache"), tmp_path / "r.html"
    with pytest.raises(CacheError, match="expected the work dir of a student"):
        write_page(root, out, students=[str(tmp_path)])
    with pytest.raises(CacheError, match="no cache here"):
        write_page(root, out, compare=[str(tmp_path)])
    with pytest.raises(StaleCache, match="not the cache of this config"):
        write_page(root, out, str(made["frs"]), {"views.seed": 1})
    assert not out.exists()


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not opened in a browser")
@pytest.mark.parametrize("sample", ["light", "dark", "phone"])
def test_in_a_browser(page: Path, tmp_path: Path, sample: str) -> None:
    """Every picture loads, nothing is wider than the window, the console is empty, and screenshots show the theme."""
    ask = """<script>addEventListener('load', () => {
        const bad = [...document.images].filter(i => !i.complete || !i.naturalWidth).length;
        const flat = [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height < 80).length;
        const dark = matchMedia('(prefers-color-scheme: dark)').matches;
        document.title = JSON.stringify({images: document.images.length, bad, flat, dark, width: innerWidth,
            wide: document.documentElement.scrollWidth - innerWidth, ink: getComputedStyle(document.body).color});
        parent.postMessage(document.title, '*');
    })</script>"""
    (tmp_path / "page.html").write_text(page.read_text().replace("</head>", f"{ask}</head>"))
    frame = "<script>addEventListener('message', e => document.title = e.data)</script>"
    (tmp_path / "phone.html").write_text(f"{frame}<iframe src='page.html' width='390' height='800'></iframe>")
    target = tmp_path / ("phone.html" if sample == "phone" else "page.html")
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--window-size=1200,900", "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--blink-settings=preferredColorScheme=0"] if sample == "dark" else []
    done = subprocess.run([*command, "--dump-dom", f"file://{target}"], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (title,) = re.findall(r"<title>(\{.*?\})</title>", done.stdout)
    found = json.loads(title)
    assert found["images"] == 32 and found["bad"] == found["flat"] == 0 and found["wide"] <= 0
    assert found["dark"] == (sample == "dark") and (found["width"] == 390) == (sample == "phone")
    bright = np.mean([int(x) for x in re.findall(r"\d+", found["ink"])[:3]]) > 128
    assert bright == (sample == "dark")
