"""Find the teacher's config and weights, by name in mmdet's zoo (model-index.yml in its package) or as two files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import torch
import yaml

from pipeline.config import TeacherSection
from pipeline.errors import TeacherError, brief
from pipeline.mmdet_compat.registry import Config
from pipeline.storage.local import sha256_file


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher: `label` for messages and the recipe, `cfg` the detector's config, `checkpoint` its weights."""

    label: str
    cfg: Config
    checkpoint: Path
    url: str | None = None
    zoo: bool = True

    def weights(self) -> Path:
        """Return the weight file. Download it if it is missing. Raise TeacherError that says where to put it."""
        if self.checkpoint.is_file():
            return self.checkpoint
        if self.url is None:
            raise TeacherError(f"{self.checkpoint}: teacher.checkpoint not found; put the teacher's weights there")
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            prefix = self.checkpoint.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(self.url, str(self.checkpoint), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise TeacherError(
                f"{self.label}: {self.checkpoint} is missing, {self.url} cannot be downloaded ({error}); download it "
                "on another machine and copy it to that path, or set teacher.checkpoint"
            ) from error
        return self.checkpoint

    def weights_sha256(self) -> str:
        """Return the sha256 of the weight file, downloaded if it is missing. Raise TeacherError."""
        return sha256_file(self.weights())

    def known_sha256(self) -> str | None:
        """Return the sha256 of the weight file; None if it is missing. Stage 2 does not need the file."""
        return sha256_file(self.checkpoint) if self.checkpoint.is_file() else None


def find_teacher(section: TeacherSection) -> TeacherSpec:
    """Resolve the section `teacher` of a config. Raise TeacherError for an unknown name or a missing file."""
    if section.name is not None:
        config, url = zoo_entry(section.name)
        default = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        checkpoint = Path(section.checkpoint) if section.checkpoint else default
        return TeacherSpec(section.name, Config.fromfile(config), checkpoint, None if section.checkpoint else url)
    assert section.config is not None
    if section.checkpoint is None:
        raise TeacherError("teacher.checkpoint: missing; teacher.config needs a weight file")
    path = Path(section.config)
    if not path.is_file():
        raise TeacherError(f"{path}: teacher.config not found")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program, so it can raise any exception
        raise TeacherError(f"{path}: cannot be read as a config: {brief(error)}") from error
    model = cfg.get("model")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("backbone", "neck")):
        raise TeacherError(f"{path}: teacher.config: expected a model= with backbone and neck")
    if not isinstance(model.get("data_preprocessor"), dict):
        raise TeacherError(
            f"{path}: teacher.config: model= has no data_preprocessor; add it, with the teacher's mean and std"
        )
    return TeacherSpec(path.stem, cfg, Path(section.checkpoint), zoo=False)


def zoo_entry(name: str) -> tuple[Path, str]:
    """Return (config file, weights' URL) of a model of mmdet's zoo. Raise TeacherError for an unknown name."""
    root = Path(mmdet.__file__).parent / ".mim"
    names: dict[str, dict[str, Any]] = {}
    for metafile in yaml.safe_load((root / "model-index.yml").read_text())["Import"]:
        # Parsing all files takes seconds, so parse only those whose text contains the name.
        text = (root / metafile).read_text() if (root / metafile).is_file() else ""
        if name in text:
            names |= {model["Name"]: model for model in _models(text)}
    if name not in names:
        close = difflib.get_close_matches(name, list(names) or _all_names(root), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TeacherError(f"teacher.name: {name!r} is not in mmdet's zoo{hint}")
    model = names[name]
    if "Weights" not in model:
        raise TeacherError(f"teacher.name: mmdet's zoo lists no weights for {name!r}; set config and checkpoint")
    return root / model["Config"], model["Weights"]


def _models(text: str) -> list[dict[str, Any]]:
    content = yaml.safe_load(text)
    return (content.get("Models") if isinstance(content, dict) else content) or []


def _all_names(root: Path) -> list[str]:
    lines = (line for path in root.glob("configs/*/metafile.yml") for line in path.read_text().splitlines())
    return [line.split("Name:")[1].strip() for line in lines if line.strip().startswith("- Name:")]
