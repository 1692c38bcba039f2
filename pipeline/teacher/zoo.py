"""Which config and which weights: mmdet's zoo by name (model-index.yml inside the mmdet package), or two files."""

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
    """`label` for people and the recipe, `cfg` the detector's own config, `checkpoint` where its weights are or go."""

    label: str
    cfg: Config
    checkpoint: Path
    url: str | None = None
    zoo: bool = True

    def weights(self) -> Path:
        """The weight file, fetched from the zoo if it is not there. Raises TeacherError: which file goes where."""
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
                f"{self.label}: no weights at {self.checkpoint} and {self.url} cannot be fetched ({error}); download "
                "that file elsewhere and put it there, or set teacher.checkpoint"
            ) from error
        return self.checkpoint

    def weights_sha256(self) -> str:
        """Return the digest of the weight file, fetched if it is not there. Raises TeacherError."""
        return sha256_file(self.weights())

    def known_sha256(self) -> str | None:
        """Return the digest of the weight file if it is there; stage 2 does without the file."""
        return sha256_file(self.checkpoint) if self.checkpoint.is_file() else None


def find_teacher(section: TeacherSection) -> TeacherSpec:
    """Resolve `teacher=` of a config. Raises TeacherError: unknown name, no such config file."""
    if section.name is not None:
        config, url = zoo_entry(section.name)
        default = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        checkpoint = Path(section.checkpoint) if section.checkpoint else default
        return TeacherSpec(section.name, Config.fromfile(config), checkpoint, None if section.checkpoint else url)
    assert section.config is not None
    if section.checkpoint is None:
        raise TeacherError("teacher.checkpoint: missing; teacher.config needs a weight file beside it")
    path = Path(section.config)
    if not path.is_file():
        raise TeacherError(f"{path}: teacher.config not found")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program
        raise TeacherError(f"{path}: cannot be read as a config: {brief(error)}") from error
    model = cfg.get("model")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("backbone", "neck")):
        raise TeacherError(f"{path}: teacher.config has no model= that is a detector with backbone and neck")
    if not isinstance(model.get("data_preprocessor"), dict):
        raise TeacherError(f"{path}: the teacher's model= has no data_preprocessor, so its mean and std are unknown")
    return TeacherSpec(path.stem, cfg, Path(section.checkpoint), zoo=False)


def zoo_entry(name: str) -> tuple[Path, str]:
    """(config file, weights' URL) of a model of mmdet's zoo."""
    root = Path(mmdet.__file__).parent / ".mim"
    names: dict[str, dict[str, Any]] = {}
    for metafile in yaml.safe_load((root / "model-index.yml").read_text())["Import"]:
        # Parsing all of them takes seconds; a file whose text lacks the name cannot define it.
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
