"""Find the teacher's config and weights, by name in mmdet's zoo (model-index.yml in its package) or as two files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mmdet
import yaml

from pipeline.errors import TeacherError, brief
from pipeline.mmdet_compat.registry import Config
from pipeline.sections import TeacherSection
from pipeline.storage.local import sha256_file
from pipeline.teacher.backbones import timm_config
from pipeline.teacher.download import fetch, file_name, hub_file, is_url


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher: `label` for messages and the recipe, `cfg` the detector's config, `checkpoint` its weights.

    url: where the weights are downloaded from. class_names: `teacher.class_names`.
    """

    label: str
    cfg: Config
    checkpoint: Path
    url: str | None = None
    zoo: bool = True
    class_names: str = "same"

    def weights(self) -> Path:
        """Return the weight file. Download it if it is missing. Raise TeacherError that says where to put it."""
        if self.checkpoint.is_file():
            return self.checkpoint
        if self.url is None:
            raise TeacherError(f"{self.checkpoint}: teacher.checkpoint not found; put the teacher's weights there")
        return fetch(self.url, self.checkpoint, self.label)

    def weights_sha256(self) -> str:
        """Return the sha256 of the weight file, downloaded if it is missing. Raise TeacherError."""
        return sha256_file(self.weights())

    def known_sha256(self) -> str | None:
        """Return the sha256 of the weight file; None if it is missing. Stage 2 does not need the file."""
        return sha256_file(self.checkpoint) if self.checkpoint.is_file() else None


def find_teacher(section: TeacherSection) -> TeacherSpec:
    """Resolve the section `teacher` of a config. Raise TeacherError for an unknown name or a missing file."""
    if section.type == "timm":
        assert section.name is not None and section.checkpoint is not None
        cfg = Config({"model": timm_config(section.name, section.out_indices or (-1,))})
        return TeacherSpec(section.name, cfg, *locate_weights(section.checkpoint))
    spec = find_detector(section)
    return spec if section.features == "neck" else replace(spec, cfg=backbone_of(spec.cfg, section.out_indices))


def backbone_of(cfg: Config, out_indices: Sequence[int] | None) -> Config:
    """Return the config of a FeatureExtractor around the backbone of a detector's config."""
    backbone = {**cfg.model.backbone, **({} if out_indices is None else {"out_indices": tuple(out_indices)})}
    preprocess = cfg.model.data_preprocessor
    return Config({"model": {"type": "FeatureExtractor", "backbone": backbone, "data_preprocessor": preprocess}})


def find_detector(section: TeacherSection) -> TeacherSpec:
    """Find the config and weights of a detector, by name or by files. Raise TeacherError."""
    if section.name is not None:
        path, urls = zoo_entry(section.name)
        cfg = read_detector(path, f"teacher.name: {section.name!r} of mmdet's zoo ({path.name})")
        checkpoint, url = locate_weights(section.checkpoint) if section.checkpoint else _zoo_weights(section.name, urls)
        return TeacherSpec(section.name, cfg, checkpoint, url, class_names=section.class_names)
    assert section.config is not None
    if section.checkpoint is None:
        raise TeacherError("teacher.checkpoint: missing; teacher.config needs a weight file")
    path = Path(section.config)
    if not path.is_file():
        raise TeacherError(f"{path}: teacher.config not found")
    cfg = read_detector(path, str(path))
    return TeacherSpec(path.stem, cfg, *locate_weights(section.checkpoint), zoo=False, class_names=section.class_names)


def read_detector(path: Path, where: str) -> Config:
    """Read the config of a detector. `where` begins the message of a TeacherError."""
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program, so it can raise any exception
        cause: BaseException = error
        while isinstance(cause.__context__, ImportError):  # mmengine hides which package is missing
            cause = cause.__context__
        raise TeacherError(
            f"{where}: cannot be read as a config: {brief(cause)}; correct it, or set another teacher.config"
        ) from error
    model = cfg.get("model")
    model = model if isinstance(model, dict) else {}
    if not isinstance(model.get("backbone"), dict):
        raise TeacherError(f"{where}: expected a model= with a backbone, found {model.get('type')!r:.60}")
    if not isinstance(model.get("data_preprocessor"), dict):
        raise TeacherError(f"{where}: model= has no data_preprocessor; add it, with the teacher's mean and std")
    return cfg


def locate_weights(checkpoint: str) -> tuple[Path, str | None]:
    """Return (local file, URL or None) of teacher.checkpoint. Raise TeacherError for a URL that is not supported."""
    if not is_url(checkpoint):
        return Path(checkpoint).expanduser(), None
    parts = urlsplit(checkpoint)
    if parts.scheme not in ("http", "https") or not Path(parts.path).name or "@" in parts.netloc:
        raise TeacherError(
            f"teacher.checkpoint: expected a file or an http(s) URL of one without a password, found a "
            f"{parts.scheme}:// URL; download it and set teacher.checkpoint to the file"
        )
    return hub_file(file_name(checkpoint)), checkpoint


def _zoo_weights(name: str, urls: list[str]) -> tuple[Path, str]:
    if len(urls) != 1:
        found = f"{len(urls)} weight files" if urls else "no weights"
        raise TeacherError(f"teacher.name: mmdet's zoo lists {found} for {name!r}; set teacher.checkpoint to one file")
    path = hub_file(Path(urlsplit(urls[0]).path).name)
    plain = path.with_name(unquote(path.name))  # a browser saves gn%2Bws as gn+ws
    return (plain if plain.is_file() and not path.is_file() else path), urls[0]


def zoo_entry(name: str) -> tuple[Path, list[str]]:
    """Return (config file, URLs of the weights) of a model of mmdet's zoo. Raise TeacherError for an unknown name."""
    root, name = Path(mmdet.__file__).parent / ".mim", unquote(name)
    names: dict[str, tuple[Path, dict[str, Any]]] = {}
    for metafile in yaml.safe_load((root / "model-index.yml").read_text())["Import"]:
        # Parsing all files takes seconds, so parse only those whose text contains the name.
        text = (root / metafile).read_text() if (root / metafile).is_file() else ""
        if name in text:
            names |= {model["Name"]: ((root / metafile).parent, model) for model in _models(text)}
    if name not in names:
        close = difflib.get_close_matches(name, list(names) or _all_names(root), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TeacherError(f"teacher.name: {name!r} is not in mmdet's zoo{hint}")
    folder, model = names[name]
    return _config_file(root, folder, name, _listed(model.get("Config"))), _listed(model.get("Weights"))


def _listed(value: Any) -> list[str]:
    """Return the strings of an entry of the zoo, which has a string, a list of them, or none."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str) and one]


def _config_file(root: Path, folder: Path, name: str, listed: list[str]) -> Path:
    """Return the config of an entry. Some entries quote its path, or name another folder than their own."""
    for path in [unquote(one) for one in listed[:1]]:
        for candidate in (root / path, folder / Path(path).name):
            if candidate.is_file():
                return candidate
    found = ", ".join(listed) or "none"
    raise TeacherError(
        f"teacher.name: this mmdet does not have the config of {name!r} ({found}); set teacher.config and "
        "teacher.checkpoint"
    )


def _models(text: str) -> list[dict[str, Any]]:
    content = yaml.safe_load(text)
    return (content.get("Models") if isinstance(content, dict) else content) or []


def _all_names(root: Path) -> list[str]:
    lines = (line for path in root.glob("configs/*/metafile.yml") for line in path.read_text().splitlines())
    return [line.split("Name:")[1].strip() for line in lines if line.strip().startswith("- Name:")]
