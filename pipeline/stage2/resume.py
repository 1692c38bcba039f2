"""Read the weights that a student starts from as plain data, and check them before training.

mmengine's loader falls back to full unpickling if weights_only=True fails, and runs `meta['config']` of a resumed
checkpoint as Python. `guard_loading` therefore replaces it for local files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.cache.schema import COUNT, find_mismatch
from pipeline.errors import ConfigError, StaleCache, StudentError, TeacherError
from pipeline.mmdet_compat.registry import Config, type_name
from pipeline.stage2.resumable import find_wrong_value, require_optimizer_values
from pipeline.teacher.download import fetch, file_name, hub_file
from pipeline.teacher.fit import find_prefix, matching
from pipeline.teacher.weights import find_state, load_plain, read_checkpoint
from pipeline.text import one_line

# Settings that tell one kind of optimizer from another, in all versions of torch.
OPTIMIZER_KEYS = {"momentum", "betas", "alpha", "rho", "lambd", "lr_decay", "etas", "momentum_decay"}
RESUMABLE = {"state_dict", "optimizer", "frs"}  # required keys of a checkpoint of stage 2


def guard_loading(starts: dict[str, dict[str, Tensor]] | None = None) -> None:
    """Make mmengine load every checkpoint (resume, load_from, Pretrained) as plain data.

    This includes files from http(s), which mmengine also uses for torchvision:// and open-mmlab://.

    starts: for the file that a student starts from, its weights under the student's names.
    """

    @CheckpointLoader.register_scheme(prefixes="", force=True)
    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        path = Path(filename).expanduser()
        content = load_plain(path)
        if isinstance(content.get("meta"), dict):
            content["meta"].pop("config", None)
        if starts and filename in starts:
            return {**content, "state_dict": starts[filename]}
        return content if "state_dict" in content else {**content, "state_dict": find_state(content, path)}

    @CheckpointLoader.register_scheme(prefixes=("http://", "https://"), force=True)
    def load_from_http(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
        path = hub_file(file_name(filename))
        if get_rank() == 0:
            fetch(filename, path, "checkpoint")
        barrier()
        return load_from_local(str(path), map_location)

    checkpoint.load_from_http = load_from_http


def checkpoint_folder(cfg: Config) -> Path:
    """Return the folder that the config's CheckpointHook writes to, as mmengine derives it from `out_dir`."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    work_dir, out_dir = Path(cfg.work_dir), hook.get("out_dir") if isinstance(hook, dict) else None
    return Path(out_dir) / work_dir.name if out_dir and Path(out_dir) != work_dir else work_dir


def find_checkpoint(cfg: Config) -> None:
    """Set load_from to the checkpoint with the most steps of this run, for --resume without a file.

    Neither file times nor mmengine's `last_checkpoint` decide: a copy changes the first, a kill may leave the second
    or the file that it names incomplete. Without any checkpoint the run starts from the beginning. Raise StudentError
    where there are checkpoints and none is complete.
    """
    if not cfg.get("resume") or cfg.get("load_from"):
        return
    folder = checkpoint_folder(cfg)
    files, steps = sorted(folder.glob("*.pth")), dict[Path, int]()
    for path in files:
        try:
            content = load_plain(path, mapped=True)
        except TeacherError as error:
            print_log(f"skipped checkpoint: {error}", "current")
            continue
        if content.keys() >= RESUMABLE and isinstance(content.get("meta"), dict):
            step = content["meta"].get("iter")
            steps[path] = step if type(step) is int else -1
    if steps:
        cfg.load_from = str(max(steps, key=lambda path: (steps[path], path.name)))
    elif files:
        raise StudentError(f"{folder}: none of its {len(files)} .pth files can be resumed; drop --resume")
    else:
        print_log(f"{folder}: contains no checkpoint; starting from the beginning", "current")
        cfg.resume = False  # mmengine would look for one in its own way


def check_starting_weights(cfg: Config, student: nn.Module, provenance: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Check load_from, --resume and Pretrained files. provenance: that of the teacher's outputs (TeacherData).

    Return the weights of load_from, by its path, under the student's names. Raise ConfigError, StudentError (not
    resumable, foreign keys) or StaleCache (resumed from another cache).
    """
    _check_pretrained(student, cfg.model)
    path = cfg.get("load_from")
    if not cfg.get("resume"):
        return {path: _start(student, Path(path).expanduser())} if path and "://" not in path else {}
    if not path:
        return {}
    found = load_plain(Path(path))
    wrong = find_wrong_value(found)
    if wrong is not None:
        raise StudentError(f"{path}: not a checkpoint of stage 2 (no valid {one_line(wrong)}); drop --resume")
    _require_same_teacher(path, found["frs"], provenance)
    return {}


def _require_same_teacher(path: str, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise StaleCache where a checkpoint learned from other outputs. The cache may have grown by a pass since."""
    wanted, used = current.get("passes") or {}, saved.get("passes") or {}
    common = sorted(wanted.keys() & used.keys())
    if common:
        other = next((number for number in common if wanted[number] != used[number]), None)
        where, there, here = f" of pass {other}", used.get(other), wanted.get(other)
    else:  # a live teacher, or a checkpoint from before passes were recorded
        other = saved.get("content") != current["content"] or None
        where, there, here = "", saved.get("content"), current["content"]
    if other is not None:
        raise StaleCache(
            f"{path}: trained from cache content {str(there)[:16]}{where}, this config's cache has {str(here)[:16]}; "
            "resume with the same cache, or start a new run in another --work-dir"
        )


def require_same_optimizer(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Raise StudentError where the state of an optimizer is that of another kind or of other groups of parameters."""
    groups: Any = saved.get("param_groups")
    own = optimizer.param_groups
    if find_mismatch(groups, [{"params": [COUNT]}]) is not None or [len(g["params"]) for g in groups] != [
        len(g["params"]) for g in own
    ]:
        raise StudentError(
            "checkpoint: its optimizer has other groups of parameters than this config's; resume with the same "
            "optim_wrapper, or start a new run with load_from"
        )
    kinds = [sorted(OPTIMIZER_KEYS & one.keys()) for one in (groups[0], own[0])]
    if kinds[0] != kinds[1]:
        raise StudentError(
            f"checkpoint: was saved with another optimizer (its settings: {', '.join(kinds[0]) or 'none'}) than this "
            f"config's {type(optimizer).__name__} ({', '.join(kinds[1]) or 'none'}); resume with the same "
            "optim_wrapper, or start a new run with load_from"
        )
    require_optimizer_values(saved, optimizer)


def _start(student: nn.Module, path: Path) -> dict[str, Tensor]:
    """Return the weights of load_from under the student's names. Raise StudentError where they do not fit it."""
    state, _ = read_checkpoint(path)
    found, report = matching(student, state, path)
    if str(report):
        raise StudentError(
            f"load_from: {path} does not fit the student: {report}; use a checkpoint of the config's model"
        )
    return found


def _check_pretrained(student: nn.Module, model: dict[str, Any]) -> None:
    """Raise ConfigError where no name of a backbone file matches; mmengine would only warn and keep random weights."""
    init = (model.get("backbone") or {}).get("init_cfg") or {}
    path = init.get("checkpoint", "") if isinstance(init, dict) and type_name(init.get("type")) == "Pretrained" else ""
    if not path or "://" in path:
        return
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"model.backbone.init_cfg.checkpoint: {path} not found; check the path")
    state, _ = read_checkpoint(file)
    backbone: Any = student.backbone
    if getattr(backbone, "convert_weights", False):  # Swin and PVT convert the names of the original code
        return
    prefix = f"{init.get('prefix') or 'module'}".rstrip(".") + "."
    names = {key.removeprefix(prefix) for key in state if key.startswith(prefix) or not init.get("prefix")}
    if names & backbone.state_dict().keys():
        return
    own = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    better = find_prefix(own, state, file)
    hint = f"set init_cfg.prefix={better!r}" if better else f"use another file; its first key is {next(iter(state))}"
    raise ConfigError(f"model.backbone.init_cfg.checkpoint: {path} has no weight of this backbone; {hint}")
