"""Damaged and hostile files: every kind that is read, each reading in a process of its own, with limits."""
from __future__ import annotations

import fnmatch
import gc
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.campaigns.inputs.kinds import Kind
    from tools.campaigns.inputs.trial import Outcome
    from tools.campaigns.record import Campaign

_ALIKE = 3  # findings of one place in the code that are kept
_LARGE = 1 << 20  # bytes
_AT_ONCE = 40  # cases of a kind, one after the other in one process


def run_campaign(campaign: Campaign) -> None:
    """Damage a file a case, read it as the commands do, and look for what must not be.

    That is a traceback, more than SECONDS, a death by a signal, more than MOST_MEMORY, code of the file that was run,
    and a file with a checksum that was read as something else.
    """
    import torch

    from tools.campaigns.inputs import further, kinds, specimens, unfinished
    from tools.campaigns.inputs.trial import try_cases
    _import_all(campaign.quick)
    torch.set_num_threads(1)  # of the children: this process never computes, because threads do not survive a fork
    gc.freeze()  # a collection in a child would copy the memory of all modules
    base, scratch = campaign.folder / "specimens", campaign.folder / "work"
    base.mkdir()
    scratch.mkdir()

    def make(_: Callable[[], None]) -> None:
        for some in (specimens.make_specimens, unfinished.make_unfinished, further.make_further):
            some(base, campaign.quick)

    made, = try_cases([make], scratch, seconds=0)
    if made.fault or made.error:
        raise RuntimeError(f"no specimens: {made.fault} {made.detail} {made.error}")
    chosen = [kind for kind in kinds.KINDS if (kind.quick or not campaign.quick) and (
        not campaign.chores or any(word in kind.what for word in campaign.chores))]
    if not chosen:
        raise ValueError(f"no kind has {' or '.join(campaign.chores)} in its name; they are "
                         f"{'; '.join(kind.what for kind in kinds.KINDS)}")
    trials, at_once = [Trials(campaign, kind, base, scratch) for kind in chosen], 1 if campaign.quick else _AT_ONCE
    # What is read fast is tried more often, spread over the round.
    order = trials if campaign.quick else [trial for _, _, trial in sorted(
        ((turn + 0.5) / trial.kind.turns, number, trial) for number, trial in enumerate(trials)
        for turn in range(trial.kind.turns))]
    cases = campaign.cases(at_once * len(trials) if campaign.quick else None)
    while group := list(islice(cases, at_once)):
        order[group[0][0] // at_once % len(order)].run(group)
    outcomes = sum((trial.outcomes for trial in trials), Counter())
    slow, large = (max(trials, key=attrgetter(name)) for name in ("slowest", "largest"))
    campaign.note(f"{outcomes['refused']} refused in one line, {outcomes['read']} read; slowest {slow.slowest:.1f} s "
                  f"({slow.kind.what}), most memory {large.largest / 2**20:,.0f} MiB ({large.kind.what})")
    for trial in trials:
        for (fault, place), times in trial.alike.items():
            campaign.note(f"{times} x {fault}, {trial.kind.what}: {place}")
    shutil.rmtree(scratch)


class Trials:
    """The cases of a kind.

    Args:
        base: the folder of specimens.
        scratch: for the copies.
    """

    def __init__(self, campaign: Campaign, kind: Kind, base: Path, scratch: Path) -> None:
        from tools.campaigns.inputs.kinds import files_of
        from tools.campaigns.inputs.values import means_of

        self.campaign, self.kind, self.base, self.scratch = campaign, kind, base, scratch
        self.files = files_of(kind, base / kind.folder, kind.files)
        if not self.files:
            raise RuntimeError(f"{kind.what}: no specimen")
        self.outcomes, self.alike = Counter(), Counter()
        self.slowest, self.largest = 0.0, 0
        self.undamaged: dict[Path, str] = {}
        self.means = means_of(scratch / "canary", [path.read_bytes() for path in sorted(
            (base / "pictures").iterdir())[:4]], campaign.seed)
        self.damaged: Path | None = None
        self.copied: dict[str, tuple[int, int]] = {}  # the files of the copy that this process has made

    def run(self, cases: list[tuple[int, Random]]) -> None:
        """Damage a file a case and read it; cases: their numbers and draws."""
        from tools.campaigns.inputs.trial import try_cases

        files = [draw.choice(self.files) for _, draw in cases]
        states = [draw.getstate() for _, draw in cases]
        new = [file for file in dict.fromkeys(files) if file not in self.undamaged]
        outcomes = try_cases([*(partial(self._read, file, None) for file in new), *(
            partial(self._read, file, draw) for file, (_, draw) in zip(files, cases, strict=True))], self.scratch)
        for file, outcome in zip(new, islice(outcomes, len(new)), strict=True):
            if outcome.fault or outcome.error:
                raise RuntimeError(f"{self.kind.what}: an undamaged {file} is not read: {outcome}")
            self.undamaged[file] = outcome.value
        for file, (number, draw), state, outcome in zip(files, cases, states, outcomes, strict=True):
            draw.setstate(state)
            self._judge(file, number, draw, outcome)

    def _damage(self, file: Path, draw: Random) -> tuple[bytes, str]:
        from tools.campaigns.inputs.mutate import mutate

        return mutate((self.base / self.kind.folder / file).read_bytes(), draw, self.means)

    def _renewed_copy(self) -> Path:
        """A copy of the kind's folder: that of the case before, where it wrote nothing into it."""
        copy, source = self.scratch / "case", self.base / self.kind.folder
        try:
            if self.damaged:
                (copy / self.damaged).unlink()
                _link_large(str(source / self.damaged), str(copy / self.damaged))
            is_whole = _files_in(copy) == self.copied
        except OSError:
            is_whole = False
        if not is_whole:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, copy_function=_link_large)
            self.copied = _files_in(source)
        self.damaged = None
        return copy

    def _read(self, file: Path, draw: Random | None, begin: Callable[[], None]) -> Any:
        """What is read of a copy whose `file` is damaged, unless there is no draw."""
        copy = self._renewed_copy()
        if draw is not None:
            data, _ = self._damage(file, draw)
            (copy / file).unlink()
            (copy / file).write_bytes(data)
            self.damaged = file
            del data
        begin()
        try:
            return self.kind.read(copy, copy / file, self.base)
        finally:
            if self.means.canary.exists():
                self.means.canary.unlink()
                raise CodeRun

    def _judge(self, file: Path, number: int, draw: Random, outcome: Outcome) -> None:
        fault, detail = outcome.fault, outcome.detail
        from tools.campaigns.inputs.values import SEALED

        state = draw.getstate()
        if CodeRun.__name__ in detail[-200:]:
            fault = "code run"
        checked = any(fnmatch.fnmatch(str(file), pattern) for pattern in self.kind.checked)
        if not fault and checked and outcome.value not in ("", self.undamaged[file]) and SEALED not in self._damage(
                file, draw)[1]:
            fault, detail = "differs", "it was read, as something else, though it has a checksum"
        self.outcomes["read" if outcome.value else "refused"] += 1
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.peak_bytes)
        self.campaign.count(self.kind.what)
        if fault:
            self.alike[signature := (fault, _place(detail))] += 1
            if self.alike[signature] <= _ALIKE:
                draw.setstate(state)
                data, done = self._damage(file, draw)
                kept = self.scratch / file.name
                kept.write_bytes(data)
                self.campaign.found(fault, number, f"{file}: {done}", detail, kept)
                kept.unlink()


class CodeRun(BaseException):
    """A file's code was run."""


def _place(detail: str) -> str:
    """The last places of our code in a traceback, and the kind of error."""
    places = re.findall(r'File ".*?/((?:\w+/)*\w+\.py)", line (\d+)', detail)
    return f"{places[-1:]} {detail.strip().splitlines()[-1][:30] if detail.strip() else ''}"


def _link_large(source: str, target: str) -> None:
    """Copy a file; what nothing writes to in its place is linked: a picture of a data set, a model's weights."""
    is_left = ("MyDataSet" in source and source.endswith(".png")) or os.path.getsize(source) > _LARGE
    (os.link if is_left else shutil.copy2)(source, target)


def _files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """{path below the folder: (bytes, time of its last change; 0 of a folder)}."""
    found, folders = {}, [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                is_folder, of = entry.is_dir(follow_symlinks=False), entry.stat(follow_symlinks=False)
                found[os.path.relpath(entry.path, folder)] = (0, 0) if is_folder else (of.st_size, of.st_mtime_ns)
                if is_folder:
                    folders.append(entry.path)
    return found


def _import_all(quick: bool) -> None:
    """Import and make what takes long once a process, so that no case does; quick: what takes no model."""
    import importlib
    import pkgutil

    if quick:
        return
    import matplotlib.figure  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    import processor

    for module in pkgutil.walk_packages(processor.__path__, "processor."):
        if "service.app" not in module.name:  # which has a requirement of its own
            importlib.import_module(module.name)
    from model.pretrained import BACKBONES, describe_nearest
    from tools.campaigns.inputs.bombs import crc_of_zeros

    describe_nearest({}, BACKBONES)  # keeps the shapes of them all
    for mib in (3, 100, 300, 3000):
        crc_of_zeros(mib)
    for name in ("safetensors.torch", "sklearn.linear_model", "onnx", "onnxruntime", "openvino", "PIL.GifImagePlugin",
                 "processor.gallery.service.app"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
