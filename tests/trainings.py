"""tools/train.py in processes that die where a test says, and what it compares of two trainings.

As a script it is tools/train.py: its first word, {"what": one of _DEEDS, "at": [function of processor.trainer, its
integers ...], "rank": in which process} in JSON, says what befalls it, the others are the tool's.
"""
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import threading
import time

import torch
from processes import run_together
from torch import nn

from tools.campaigns.tool_server import ROOT, run_tool

TINY_BACKBONE = "tiny_with_dropout"  # its checkpoints are written in no time, and its forward pass draws
_SPEEDS = ("images_per_second", "data_wait", "gpu_gib")
_LONGEST = 100  # seconds; a training that hangs is killed


def train(words, what="", at=()):
    """Exit code (negative: killed by that signal) and stderr of tools/train.py with these words.

    what, at: what befalls it when the function at[0] of processor.trainer is called with the integers at[1:].
    """
    done = run_tool(__file__, _befalls(what, at), *words, seconds=_LONGEST)
    return done.returncode, done.stderr


def train_together(processes, words, what="", at=(), rank=0):
    """The exit code and stderr of each of the processes that train together; what befalls, befalls this rank."""
    codes, _, errors = run_together(processes, __file__, _befalls(what, at, rank), *words, seconds=_LONGEST)
    return codes, errors


def _befalls(what, at, rank=0):
    return json.dumps({"what": what, "at": list(at), "rank": rank})


# ------------------------------------------------------------------ what befalls a training
def _send(number, group=False):
    os.kill(0 if group else os.getpid(), number)


def _interrupt_twice():
    _send(signal.SIGINT)
    _send(signal.SIGINT)


def _die_in_the_next_write():
    save = torch.save

    def save_half(data, file):
        whole = io.BytesIO()
        save(data, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        _send(signal.SIGKILL)

    torch.save = save_half


def _be_told_to_stop_in_long_work():
    _send(signal.SIGTERM)
    time.sleep(_LONGEST)


def _be_told_to_stop_while_no_batch_comes():
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    threading.Timer(0.8, _send, [signal.SIGTERM]).start()


_DEEDS = {
    "kill": lambda: _send(signal.SIGKILL),
    "kill in the next write": _die_in_the_next_write,
    "SIGTERM to the group": lambda: _send(signal.SIGTERM, group=True),
    "SIGINT to the group": lambda: _send(signal.SIGINT, group=True),
    "SIGINT twice": _interrupt_twice,
    "SIGTERM, then nothing": _be_told_to_stop_in_long_work,
    "no batch, then SIGTERM": _be_told_to_stop_while_no_batch_comes,
}


def _befall(what, at):
    """Let a function of processor.trainer do it before its work, when it is called with these integers."""
    from processor import trainer

    name, *integers = at
    original = getattr(trainer, name)

    def replaced(*args, **kwargs):
        if [arg for arg in args if type(arg) is int] == integers:
            _DEEDS[what]()
        return original(*args, **kwargs)

    setattr(trainer, name, replaced)


def add_tiny_backbone(backbones):
    """Put TINY_BACKBONE into model.backbones.BACKBONES."""
    from model.backbones import Backbone

    class Tiny(Backbone):
        feat_dim = 32

        def __init__(self, last_stride=1):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 32, 4, 4, bias=False), nn.BatchNorm2d(32)
            self.layer1 = nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(32, 32, 3, padding=1, bias=False),
                                        nn.BatchNorm2d(32))

        def forward(self, x):
            return self.layer1(self.bn1(self.conv1(x)))

    backbones[TINY_BACKBONE] = Tiny


# ------------------------------------------------------------------ what two trainings have in common
def flat(value, prefix=""):
    """Every tensor and number of a checkpoint by path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for n, inner in enumerate(value) for k, v in flat(inner, f"{prefix}/{n}").items()}
    return {prefix: value}


def assert_same_state(first, second, but=("/config", "/checksum")):
    """Two checkpoints hold the same to the bit; their configs name different folders."""
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys()
    for name in first.keys() - set(but):
        one, other = first[name], second[name]
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other, name


def log_lines(folder):
    """The lines of metrics.jsonl without the speeds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _SPEEDS} for line in lines]


def board_of(folder, copies):
    """{name: [(step, value) ...]} of the board's scalars, and its pictures {name: [(step, PNG) ...]}.

    copies: a new folder. The board's files are read in the order in which they were written; TensorBoard itself goes
    by their names, which tell the order of seconds.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    copies.mkdir()
    for number, path in enumerate(sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        shutil.copyfile(path, copies / f"events.out.tfevents.{number:03d}")
    board = EventAccumulator(str(copies), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    tags = board.Tags()
    scalars = {name: [(event.step, event.value) for event in board.Scalars(name)] for name in tags["scalars"]}
    pictures = {name: [(event.step, event.encoded_image_string) for event in board.Images(name)]
                for name in tags["images"]}
    return scalars, pictures


if __name__ == "__main__":
    from model.backbones import BACKBONES

    add_tiny_backbone(BACKBONES)
    befalls = json.loads(sys.argv.pop(1))
    if befalls["what"] and befalls.pop("rank") == int(os.environ.get("RANK", "0")):
        _befall(**befalls)
    runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
