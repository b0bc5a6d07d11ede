"""tools/train.py in processes that die where a test says, and what it compares of two trainings.

As a script it is a server: it imports torch once, then forks a process for each line of its input,
{"words": the tool's, "at": [function of processor.trainer, its integers ...], "what": one of _DEEDS, "log": a file},
and answers with the exit code.
"""
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
TINY_BACKBONE = "tiny_with_dropout"  # its checkpoints are written in no time, and its forward pass draws
_SPEEDS = ("images_per_second", "data_wait", "gpu_gib")
_LONGEST = 100  # seconds; a training that hangs is killed


class TrainingServer:
    """Starts trainings; `train` returns when one has ended."""

    def __init__(self, folder):
        self._log = folder / "stderr.txt"
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def train(self, words, what="", at=()):
        """Exit code (negative: killed by that signal) and stderr of tools/train.py with these words.

        what, at: what befalls it when the function at[0] of processor.trainer is called with the integers at[1:].
        """
        request = {"words": [*map(str, words)], "what": what, "at": list(at), "log": str(self._log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), self._log.read_text()

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=_LONGEST)
        self._process.stdout.close()


# ------------------------------------------------------------------ what befalls a training
def _send(number, group=False):
    os.kill(0 if group else os.getpid(), number)


def _interrupt_twice():
    _send(signal.SIGINT)
    _send(signal.SIGINT)


def _die_in_the_next_write():
    save = torch.save

    def save_half(data, path):
        whole = io.BytesIO()
        save(data, whole)
        with open(path, "wb", buffering=0) as out:
            out.write(whole.getvalue()[: whole.tell() // 2])
            _send(signal.SIGKILL)

    torch.save = save_half


def _be_told_to_stop_in_long_work():
    _send(signal.SIGTERM)
    time.sleep(_LONGEST)


_DEEDS = {
    "kill": lambda: _send(signal.SIGKILL),
    "kill in the next write": _die_in_the_next_write,
    "SIGTERM to the group": lambda: _send(signal.SIGTERM, group=True),
    "SIGINT to the group": lambda: _send(signal.SIGINT, group=True),
    "SIGINT twice": _interrupt_twice,
    "SIGTERM, then nothing": _be_told_to_stop_in_long_work,
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


def _run(request):
    os.setsid()  # a group of its own, for signals to all of it
    signal.alarm(_LONGEST)
    with open(request["log"], "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.close(0)
    torch.set_num_threads(1)
    if request["what"]:
        _befall(request["what"], request["at"])
    sys.argv = ["train.py", *request["words"]]
    runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")


def _serve():
    sys.path.insert(0, str(ROOT))
    import matplotlib.figure  # noqa: F401 - what trainings import late, and would each import again
    import torch.utils.tensorboard  # noqa: F401

    import processor.trainer  # noqa: F401
    from model.backbones import BACKBONES

    add_tiny_backbone(BACKBONES)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


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


def record_of(folder):
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
    _serve()
