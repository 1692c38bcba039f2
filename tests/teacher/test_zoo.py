"""Every name of mmdet's zoo gives a teacher or one line, and a download is complete or absent."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mmdet
import pytest
import torch
import yaml

from pipeline.errors import TeacherError
from pipeline.mmdet_compat.registry import Config
from pipeline.sections import TeacherSection
from pipeline.teacher import zoo
from pipeline.teacher.download import HASH, file_name
from pipeline.teacher.zoo import find_teacher, zoo_entry
from tests.helpers.detectors import detector
from tests.helpers.forks import exit_code, in_child
from tests.helpers.servers import Handler, web_server

NO_CONFIG = "bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17test"  # its _base_ does not exist
ROOT = Path(mmdet.__file__).parent / ".mim"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def entries() -> dict[str, tuple[dict, Path]]:
    """Every model of the index, with the folder of its metafile."""
    found = {}
    for metafile in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]:
        content = yaml.safe_load((ROOT / metafile).read_text())
        models = content["Models"] if isinstance(content, dict) else content
        found |= {model["Name"]: (model, (ROOT / metafile).parent) for model in models or []}
    return found


def test_every_entry_has_a_config(entries: dict) -> None:
    """Without reading the configs, which takes half a minute. Lists and quoted paths are resolved."""
    assert len(entries) > 500
    for name, (model, folder) in entries.items():
        assert zoo._config_file(ROOT, folder, name, zoo._listed(model["Config"])).is_file()
        assert all(url.startswith("https://") for url in zoo._listed(model.get("Weights")))


@pytest.mark.slow
def test_every_name(entries: dict) -> None:
    refused = {}
    for name in entries:
        try:
            spec = find_teacher(TeacherSection(name=name))
            assert spec.checkpoint.name and spec.url
        except TeacherError as error:
            assert "\n" not in str(error) and name in str(error)
            refused[name] = str(error)
    unread = {name for name, text in refused.items() if "cannot be read" in text}
    assert NO_CONFIG in unread and all("convnext" in name for name in unread - {NO_CONFIG})
    assert len(refused) < 70, "only detectors without a neck, trackers and entries without weights"


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_r50_fpn_1x_coco",
        "faster-rcnn_r50_fpn_gn_ws-all_1x_coco",  # Config: configs/gn%2Bws/...
        "faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco",
        "faster-rcnn_s50_fpn_syncbn-backbone%2Bhead_ms-range-1x_coco",
        "rpn_r50_fpn_2x_coco",  # Config without its folder
        "ddq-detr-5scale_r50_8xb2-12e_coco",  # Config in another folder, no hash in the weights' name
        "libra-retinanet_r50_fpn_1x_coco",  # a list of necks
    ],
)
def test_names(name: str) -> None:
    spec = find_teacher(TeacherSection(name=name))
    assert spec.url and spec.checkpoint.name == spec.url.rsplit("/", 1)[-1]


def test_names_that_end_in_one_line() -> None:
    expected = {
        NO_CONFIG: "cannot be read as a config: FileNotFoundError",
        "mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco": "No module named 'mmpretrain'",
        "dino-4scale_r50_8xb2-24e_coco": "lists no weights for 'dino-4scale_r50_8xb2-24e_coco'; set teacher.checkpoint",
        "deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval": "expected a model= with a backbone",
        "retinanet_r50_fpn_1x_cocoo": "did you mean 'retinanet_r50_fpn_1x_coco'",
    }
    for name, message in expected.items():
        with pytest.raises(TeacherError, match=message) as stopped:
            find_teacher(TeacherSection(name=name))
        assert "\n" not in str(stopped.value) and name in str(stopped.value)
    own = TeacherSection(name="dino-4scale_r50_8xb2-24e_coco", checkpoint="mine.pth")
    assert find_teacher(own).checkpoint == Path("mine.pth"), "with a file, the zoo needs no weights"


def test_entries_with_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of one file are that file; of several weights the user chooses one."""
    root = tmp_path / "mmdet" / ".mim"
    (root / "configs" / "a+b").mkdir(parents=True)
    (root / "model-index.yml").write_text("Import: [configs/a+b/metafile.yml, configs/missing.yml]")
    (root / "configs" / "a+b" / "x.py").write_text("")
    metafile = root / "configs" / "a+b" / "metafile.yml"
    monkeypatch.setattr(mmdet, "__file__", str(root.parent / "__init__.py"))
    for config in ("configs/a%2Bb/x.py", "[configs/a%2Bb/x.py]", "x.py", "elsewhere/x.py"):
        metafile.write_text(
            f"Models: [{{Name: x, Config: '{config}', Weights: [u, v]}}]".replace("'[", "[").replace("]'", "]")
        )
        assert zoo_entry("x") == (root / "configs" / "a+b" / "x.py", ["u", "v"])
    for config in ("[]", "{a: 1}", "null", "other.py"):
        metafile.write_text(f"- {{Name: x, Config: {config}}}")
        with pytest.raises(TeacherError, match="does not have the config of 'x'"):
            zoo_entry("x")
    with pytest.raises(TeacherError, match=r"2 weight files for 'x'; set teacher.checkpoint"):
        zoo._zoo_weights("x", ["u", "v"])


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth", "c2398f9e"),
        ("ddq_detr_5scale_coco_1x.pth", None),
        ("model-20200131.pth", None),
        ("model-91234567.pth", "91234567"),
        ("model-abcdef12.3.pth", None),
        ("resnet50-caffe.pth", None),
    ],
)
def test_hashes_in_names(name: str, digits: str | None) -> None:
    found = HASH.search(name)
    assert (found[1] if found else None) == digits


CONTENT = b"PK\x03\x04" + bytes(range(256)) * 400
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[type[Handler]]:
    folder = tmp_path / "served"
    folder.mkdir()
    names = (f"named-{DIGITS}.pth", "plain.pth")
    for name in (*names, *(f"{name}?signature=secret" for name in names), "wrong-00000000.pth"):
        (folder / name).write_bytes(CONTENT)
    (folder / "page.pth").write_text("<html>please log in")
    with web_server(folder) as handler:
        yield handler


@pytest.fixture
def config(tmp_path: Path) -> str:
    Config({"model": detector("retinanet")}).dump(tmp_path / "teacher.py")
    return str(tmp_path / "teacher.py")


@pytest.mark.parametrize("name", [f"named-{DIGITS}.pth", "plain.pth"])
def test_a_checkpoint_may_be_a_url(
    name: str, server: type[Handler], config: str, hub: Path, capsys: pytest.CaptureFixture
) -> None:
    """It is downloaded once. Files of two servers without a hash in their name stay apart."""
    url = f"{server.address}/{name}"
    spec = find_teacher(TeacherSection(config=config, checkpoint=f"{url}?signature=secret"))
    path = spec.weights()
    assert path.parent == hub and path.read_bytes() == CONTENT and path.suffix == ".pth"
    assert spec.weights_sha256() == hashlib.sha256(CONTENT).hexdigest() and len(server.asked) == 1
    assert capsys.readouterr().err == f"teacher  downloading {url} to {path}\n"
    assert (file_name(url) == file_name(f"http://elsewhere/{name}")) == (DIGITS in name)


@pytest.mark.parametrize("name", [f"named-{DIGITS}.pth", "plain.pth"])
@pytest.mark.parametrize("fault", ["cut", "drop", "404", "flip"])
def test_a_failed_download_leaves_nothing(fault: str, name: str, server: type[Handler], config: str, hub: Path) -> None:
    spec = find_teacher(TeacherSection(config=config, checkpoint=f"{server.address}/{name}"))
    server.faults.append(fault)
    with pytest.raises(TeacherError, match=r"cannot be downloaded .*; download it on another machine") as stopped:
        spec.weights()
    assert "\n" not in str(stopped.value) and str(spec.checkpoint) in str(stopped.value)
    assert list(hub.iterdir()) == [] and spec.known_sha256() is None
    assert spec.weights().read_bytes() == CONTENT, "the next try succeeds"


@pytest.mark.parametrize("fault", ["", "drop"])
def test_processes_download_a_file_once(fault: str, server: type[Handler], config: str, hub: Path) -> None:
    """Where the first download fails, the process that waited downloads it."""
    server.delay = 0.3  # both processes start before the first answer
    server.faults.extend([fault] if fault else [])
    spec = find_teacher(TeacherSection(config=config, checkpoint=f"{server.address}/named-{DIGITS}.pth"))
    codes = [exit_code(child) for child in [in_child(quietly, spec.weights) for _ in range(2)]]
    assert sorted(codes) == ([0, 2] if fault else [0, 0])
    assert len(server.asked) == (2 if fault else 1)
    assert list(hub.iterdir()) == [spec.checkpoint] and spec.checkpoint.read_bytes() == CONTENT


def quietly(download: Callable[[], Path]) -> None:
    """Exit with code 2 where a download fails, as the command does."""
    try:
        download()
    except TeacherError:
        raise SystemExit(2) from None


def test_a_killed_download_does_not_stop_others(server: type[Handler], config: str, hub: Path) -> None:
    spec = find_teacher(TeacherSection(config=config, checkpoint=f"{server.address}/named-{DIGITS}.pth"))
    server.delay = 5.0
    child = in_child(quietly, spec.weights)
    while not server.asked:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    server.delay = 0.0
    assert spec.weights().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "message"),
    [("wrong-00000000.pth", f"sha256 starts with {DIGITS}, its name says 00000000"), ("page.pth", "not a checkpoint")],
)
def test_another_file(name: str, message: str, server: type[Handler], config: str, hub: Path) -> None:
    spec = find_teacher(TeacherSection(config=config, checkpoint=f"{server.address}/{name}"))
    with pytest.raises(TeacherError, match=message):
        spec.weights()
    assert list(hub.iterdir()) == []


def test_no_network(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    """The message says what to download and where to put it."""
    monkeypatch.setattr("pipeline.teacher.download.urlopen", lambda *a, **b: (_ for _ in ()).throw(OSError("no route")))
    spec = find_teacher(TeacherSection(name="retinanet_r50_fpn_1x_coco"))
    with pytest.raises(
        TeacherError, match=rf"{spec.checkpoint} is missing, https://download.*no route.*copy it to that"
    ):
        spec.weights()
    hub.mkdir(parents=True, exist_ok=True)
    spec.checkpoint.write_bytes(CONTENT)
    assert spec.weights() == spec.checkpoint


def test_a_file_that_a_browser_saved(hub: Path) -> None:
    name = "reppoints-moment_r50_fpn-gn_head-gn_1x_coco"
    quoted = find_teacher(TeacherSection(name=name)).checkpoint
    assert "%2B" in quoted.name
    hub.mkdir(parents=True)
    (hub / quoted.name.replace("%2B", "+")).write_bytes(CONTENT)
    assert find_teacher(TeacherSection(name=name)).known_sha256() is not None


@pytest.mark.parametrize(
    "url", ["s3://b/x.pth", "open-mmlab://x", "https://u:p@host/x.pth", "https://host/", "file:///x"]
)
def test_other_urls_are_refused(url: str, config: str) -> None:
    with pytest.raises(TeacherError, match=r"teacher.checkpoint: expected a file or an http\(s\) URL") as stopped:
        find_teacher(TeacherSection(config=config, checkpoint=url))
    assert "u:p" not in str(stopped.value)
