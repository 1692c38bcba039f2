"""What a student starts from: read as plain data, and refused before training where it does not fit.

mmengine's loader falls back to full unpickling where weights_only=True fails, and runs `meta['config']` of a resumed
checkpoint as Python. So it never opens a local file here: `guard_loading` puts our reader in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from pipeline.errors import ConfigError, StaleCache, StudentError, TeacherError
from pipeline.mmdet_compat.registry import Config
from pipeline.teacher.weights import load_plain, read_checkpoint

RESUMABLE = {"state_dict", "optimizer", "frs"}  # what a checkpoint of stage 2 has beside numbers


def guard_loading() -> None:
    """Every local checkpoint that mmengine loads from now on (resume, load_from, Pretrained) is plain data."""

    @CheckpointLoader.register_scheme(prefixes="", force=True)
    def _load(filename: str, map_location: Any = None) -> dict[str, Any]:
        content = load_plain(Path(filename))
        if isinstance(content.get("meta"), dict):
            content["meta"].pop("config", None)
        return content


def find_checkpoint(cfg: Config) -> None:
    """--resume without a file: set load_from to the newest whole checkpoint of the work dir, if there is one.

    mmengine's `last_checkpoint` and the file it names are written in place: a kill may leave either empty or torn.
    Raises StudentError where there are checkpoints and none is whole.
    """
    if not cfg.get("resume") or cfg.get("load_from"):
        return
    found = sorted(Path(cfg.work_dir).glob("*.pth"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        try:
            if load_plain(path).keys() >= RESUMABLE:
                cfg.load_from = str(path)
                return
        except TeacherError as error:
            print_log(f"left aside: {error}", "current")
    if found:
        raise StudentError(f"{cfg.work_dir}: none of its {len(found)} .pth files can be resumed; drop --resume")


def check_starting_weights(cfg: Config, student: nn.Module, content: str | None) -> None:
    """Check load_from, --resume and Pretrained files. `content`: digest of the cache, None where the teacher is live.

    Raises ConfigError, StudentError (not resumable, foreign keys) or StaleCache (resumed from another cache).
    """
    for hook in cfg.get("custom_hooks") or []:
        if hook.get("type") == "EMAHook":
            raise ConfigError("custom_hooks: EMAHook keeps a second copy under other names and is not supported yet")
    _check_pretrained(student, cfg.model)
    path = cfg.get("load_from")
    if not cfg.get("resume"):
        if path and "://" not in path:
            read_checkpoint(Path(path))
        return
    if not path:
        return
    found = load_plain(Path(path))
    missing = sorted(RESUMABLE - found.keys())
    if missing or "epoch" not in found.get("meta", {}):
        raise StudentError(f"{path}: not a checkpoint of stage 2 (no {(missing or ['meta.epoch'])[0]}); drop --resume")
    learned_from = found["frs"].get("content")
    if learned_from != content:
        raise StaleCache(
            f"{path}: learned from cache content {str(learned_from)[:16]}, this config's is {str(content)[:16]}; "
            "resume with the same cache, or start anew in another --work-dir"
        )


def _check_pretrained(student: nn.Module, model: dict[str, Any]) -> None:
    """A backbone file with foreign names would leave random weights and only warn."""
    init = (model.get("backbone") or {}).get("init_cfg") or {}
    path = init.get("checkpoint", "") if isinstance(init, dict) and init.get("type") == "Pretrained" else ""
    if not path or "://" in path:
        return
    if not Path(path).is_file():
        raise ConfigError(f"model.backbone.init_cfg.checkpoint: {path} not found")
    state, _ = read_checkpoint(Path(path))
    prefix = init.get("prefix") or ""
    names = {key.removeprefix(prefix).lstrip(".") for key in state if key.startswith(prefix)}
    backbone: Any = student.backbone
    if not names & backbone.state_dict().keys():
        raise ConfigError(f"model.backbone.init_cfg.checkpoint: {path} has no weight under a name of the backbone")
