"""Commands that are killed and run again, until they end as an undisturbed run does."""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from tests.helpers.stages import stage1, stage2, tree


class Job(ABC):
    """A command in a folder of its own. `root`: the folder that it writes. Runs in a fork."""

    name: ClassVar[str]

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self.folder, self.root = config, folder, folder / "made"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.prepare()

    def prepare(self) -> None:  # noqa: B027 (most commands begin with nothing)
        """Make what the command begins with."""

    @abstractmethod
    def run(self) -> None:
        """Run the command, or run it again."""

    def result(self) -> dict[str, str]:
        """Return the digests of what the command made."""
        return tree(self.root) if self.root.exists() else {}

    def lost(self, wanted: dict[str, str]) -> list[str]:
        """Return the files of a killed run that are visible and are not those of an undisturbed one."""
        found = {n: sha for n, sha in self.result().items() if ".tmp" not in n and n != "repair.json"}
        return [name for name, sha in found.items() if wanted.get(name) != sha]


class Stage1(Job):
    name = "stage1"

    def run(self) -> None:
        stage1(self.config, **{"cache.dir": str(self.root)})


class Repair(Job):
    """Repairs a cache whose gate, plan, manifest, one table of the codec and two shards are damaged."""

    name = "repair"
    DAMAGED = (
        *("gate.json", "pass-0/plan.json", "pass-1/manifest.json"),
        *("pass-0/shard-00001.tar", "pass-1/shard-00000.tar"),
    )

    def prepare(self) -> None:
        shutil.copytree(self.config.parent / "cache", self.root)
        for name in self.DAMAGED:
            raw = bytearray((self.root / name).read_bytes())
            raw[len(raw) // 2] ^= 1
            (self.root / name).write_bytes(raw)
        self._damaged = tree(self.root)

    def run(self) -> None:
        from pipeline.config import load_config
        from pipeline.integrity.repair import repair
        from pipeline.progress import Silent

        repair(*load_config(str(self.config), {"cache.dir": str(self.root)}), lambda text: None, Silent())

    def lost(self, wanted: dict[str, str]) -> list[str]:
        """An intact file is never touched, and a damaged one is there as it was, absent, or whole again."""
        found = self.result()
        gone = [n for n in wanted if n not in found and not n.endswith(".json") and n not in self.DAMAGED]
        return gone + [name for name in super().lost(wanted) if found[name] != self._damaged.get(name)]


class Reencode(Job):
    """Makes an frs cache from the lossless one, with the codec of a finished frs cache of the same recipe."""

    name = "reencode"

    def run(self) -> None:
        from pipeline.progress import Silent
        from pipeline.tools.reencode.run import reencode

        like = str(self.config.parent.parent / "frs/cache")
        source = str(self.config.parent / "cache")
        reencode(source, str(self.root), {"type": "frs"}, None, {}, like, 1, lambda text: None, Silent())


class Stage2(Job):
    """Trains two epochs with a checkpoint at each step, and resumes from the latest."""

    name = "stage2"

    def run(self) -> None:
        self.root.mkdir(exist_ok=True)
        hook = {"type": "CheckpointHook", "by_epoch": False, "interval": 1, "max_keep_ckpts": 2}
        options = {"work_dir": str(self.root), "train_cfg.max_epochs": 2, "default_hooks.checkpoint": hook}
        stage2(self.config, "auto", **options)

    def steps(self) -> int:
        """Return the steps of the best complete checkpoint; 0 without any."""
        from pipeline.errors import TeacherError
        from pipeline.teacher.weights import load_plain

        found = [0]
        for path in self.root.glob("*.pth"):
            try:
                found.append(load_plain(path)["meta"]["iter"])
            except (TeacherError, KeyError):
                continue
        return max(found)

    def result(self) -> dict[str, str]:
        """Return the digests of the last checkpoint's weights and optimizer."""
        from pipeline.teacher.weights import load_plain

        paths = sorted(self.root.glob("iter_*.pth"), key=lambda path: int(path.stem.split("_")[1]))
        if not paths:
            return {}
        content = load_plain(paths[-1])
        state = {**content["state_dict"], **content["frs"]["adapters"]}
        values = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}
        return {**values, "optimizer": hashlib.sha256(repr(content["optimizer"]).encode()).hexdigest()}

    def lost(self, wanted: dict[str, str]) -> list[str]:
        """A run that has made a complete checkpoint always has one of as many steps."""
        before, self._best = getattr(self, "_best", 0), self.steps()
        return [f"{before} steps, then {self._best}"] if self._best < before else []


JOBS = {job.name: job for job in (Stage1, Repair, Reencode, Stage2)}
SOURCE = {"stage1": "frs", "repair": "frs", "reencode": "lossless", "stage2": "frs"}


def phase(job: Job) -> str:
    """How far the killed run had come."""
    if list(job.root.glob("**/*.tmp")):
        return "in a write"
    return "before a write" if not job.root.exists() or not os.listdir(job.root) else "between writes"
