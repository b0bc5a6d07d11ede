"""The commands that campaigns disturb, each over a tiny demo set, and what of their results must be the same."""
from __future__ import annotations

import itertools
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.campaigns.commands import Ended, fault_of
from tools.campaigns.tool_server import ROOT, Running, import_in_server, run_tool, start_tool
from tools.campaigns.watched import Watcher

SIZES = {"ids": 6, "images": 5, "singles": 1, "shared": 1, "query-ids": 6, "query-images": 2, "gallery-images": 4,
         "distractors": 3, "distractor-images": 2, "cameras": 3, "height": 32, "width": 16}
NET = "resnet18_ibn_b_w32"
Content = dict[str, str | bytes]  # what is in each file, or what a command prints of it
_SECONDS = 900  # a command that takes longer hangs; run.sh takes minutes beside other work


@dataclass(frozen=True)
class Chore:
    """A command that is begun in a folder, and may have to go on there.

    Attributes:
        words: tool and words; {at} is the folder of its results, {base} that of what it reads.
        again: more words for going on after a kill.
        start: copied into {at} before: {name there: place below {base}}.
        processes: how many work together, without torchrun.
        env: put into the environment.
        is_script: False: words are a command's, which is run as it is; it has a new interpreter.
        content: (tool, words) of a command that prints what its files, which hold times or an order of their own, hold.
        begins_others: commands that it begins speak on its stderr, too.
        leaves_gaps: a killed one has taken numbers of identities that nobody gets: they are compared by their order.
        has_stages: one that is killed need not do again what came before its last stage.
        like: another chore whose results it must have; it need not be done undisturbed then.
        imports: modules that take seconds to import, which is done once for all.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    start: dict[str, str] = field(default_factory=dict)
    processes: int = 1
    env: dict[str, str] = field(default_factory=dict)
    is_script: bool = True
    content: tuple[tuple[str, ...], ...] = ()
    begins_others: bool = False
    leaves_gaps: bool = False
    has_stages: bool = False
    like: str = ""
    imports: tuple[str, ...] = ()


def options(**changes: Any) -> tuple[str, ...]:
    """KEY VALUE pairs of a small network on the tiny set; SECTION__KEY=value changes one."""
    pairs = {
        "MODEL.NAME": NET, "MODEL.PRETRAIN_CHOICE": "none", "MODEL.DEVICE": "cpu", "MODEL.POOLING_METHOD": "GeM",
        "MODEL.ID_LOSS_TYPE": "arcface", "MODEL.METRIC_LOSS_TYPE": "triplet_center", "MODEL.IF_WITH_CENTER": "yes",
        "INPUT.SIZE_TRAIN": "[32, 16]", "INPUT.SIZE_TEST": "[32, 16]", "INPUT.PADDING": 2,
        "DATASETS.NAMES": "naic", "DATASETS.ROOT_DIR": "{base}/data", "DATASETS.DERIVED_DIR": "{base}/data/derived",
        "DATALOADER.SAMPLER": "softmax_triplet", "DATALOADER.NUM_INSTANCE": 2, "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.OPTIMIZER_NAME": "Adam", "SOLVER.MAX_EPOCHS": 1, "SOLVER.WARMUP_EPOCHS": 1, "SOLVER.STEPS": "[]",
        "SOLVER.IMS_PER_BATCH": 16, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.EVAL_PERIOD": 1, "SOLVER.LOG_PERIOD": 2,
        "SOLVER.FP16": False, "TEST.RE_RANKING": True,
        "TEST.RE_RANKING_PARAMETER": "[6, 2, 0.5]", "TEST.TOP_K": 10, "TEST.IMS_PER_BATCH": 7, "OUTPUT_DIR": "{at}",
        **{key.replace("__", "."): value for key, value in changes.items()}}
    return tuple(str(word) for pair in pairs.items() for word in pair)


_WEIGHT = "{base}/model/" + f"{NET}_1.pth"
_TEST = "{base}/data/MyDataSet/image_B_v1_1"
_DEMO = ("make_demo_data", "--seed", "3", "--workers", "1",
         *(str(word) for name, size in SIZES.items() for word in (f"--{name}", size)), "--output")
_DOMAINS = ("split_domains", "--data_dir_query", f"{_TEST}/query", "--data_dir_gallery", f"{_TEST}/gallery",
            "--save_dir")
_ADD = ("gallery", "add", "--gallery", "{at}/gallery", "--model", _WEIGHT, f"{_TEST}/query", "--pattern",
        r"(?P<camera>\d)")
_SCAN = (("gallery", "scan", "--gallery", "{at}/gallery", "--json"),
         ("gallery", "verify", "--gallery", "{at}/gallery"))
_UDA = options(SOLVER__EVAL_PERIOD=0, UDA__METHOD="agglomerative", UDA__THRESHOLD=0.7, UDA__ROUNDS=2,
               UDA__RE_RANKING_PARAMETER="[6, 2, 0]", TEST__WEIGHT=_WEIGHT, DATASETS__TRAIN_SETS="[2019_cs, 2020_cs]")

_RECIPE = ("MODEL.NAME", NET, "MODEL.PRETRAIN_CHOICE", "none", "SOLVER.MAX_EPOCHS", "1", "SOLVER.WARMUP_EPOCHS", "0",
           "SOLVER.STEPS", "[]", "SOLVER.IMS_PER_BATCH", "16", "DATALOADER.NUM_INSTANCE", "2")
_PLACES = {"DATA_ROOT": "{base}/data", "OUTPUT_ROOT": "{at}", "PYTHON": sys.executable, "RECIPE": "demo"}
# A campaign that goes over the chores again and again takes these once in so many rounds.
SLOW = {"run.sh": 12, "train, torchrun": 6, "run.sh, forked": 4, "pseudo rounds": 4, "train, 2 processes": 3,
        "train, 2 workers": 3, "export": 3, "train": 2}
CHORES = {chore.name: chore for chore in (
    Chore("run.sh", ("bash", str(ROOT / "run.sh"), *_RECIPE), env=_PLACES, is_script=False, begins_others=True,
          has_stages=True, like="run.sh, forked"),
    Chore("demo", (*_DEMO, "{at}/data")),
    Chore("domains", (*_DOMAINS, "{at}", "--workers", "1")),
    Chore("validation", ("split_validation", "--output", "{at}/validation.json", "--identities", "2", "--distractors",
                         "0", "--green", "0.5", "--workers", "1", *options())),
    Chore("pack", ("pack", "--output", "{at}/pack", "--decoded", "--threads", "1", *options())),
    Chore("doctor", ("doctor", "--root", "{base}/data", "--output", "{at}", "--write-clean-lists", "--near-duplicates",
                     "--workers", "1")),
    Chore("train", ("train", *options()), ("--resume",)),
    Chore("train, 2 workers", ("train", *options(DATALOADER__NUM_WORKERS=2)), ("--resume",)),
    Chore("train, 2 processes", ("train", *options()), ("--resume",), processes=2),
    Chore("train, torchrun", (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
                              "{port}", str(ROOT / "tools" / "train.py"), *options()), ("--resume",),
          is_script=False, begins_others=True),
    Chore("run.sh, forked", (str(ROOT / "tools/campaigns/forked_pipeline.py"), *_RECIPE), env=_PLACES,
          begins_others=True, has_stages=True),
    Chore("test", ("test", "--save-distmat", *options(TEST__WEIGHT=_WEIGHT))),
    Chore("ensemble", ("ensemble", "--inputs", "{base}/tested", "{base}/tested", "--weights", "1", "2", "--output",
                       "{at}/submission.json")),
    Chore("embed", ("embed", "--model", _WEIGHT, "--images", _TEST, "--output", "{at}", "--threads", "1",
                    "--batch-size", "6")),
    Chore("tracks", ("embed", "--model", _WEIGHT, "--boxes", "{base}/boxes.txt", "--frames", f"{_TEST}/query",
                     "--output", "{at}", "--tracklets", "--save-crops", "{at}/crops", "--threads", "1")),
    Chore("tune_rerank", ("tune_rerank", "--inputs", "{base}/tested", "--k1", "4", "6", "--k2", "1", "2", "--lambda",
                          "0.3", "0.6", "--output", "{at}")),
    Chore("pseudo labels", ("pseudo_label", "--data_dir_query", f"{_TEST}/query", "--data_dir_gallery",
                            f"{_TEST}/gallery", "--output", "{at}/labels", *options(
                                TEST__WEIGHT=_WEIGHT, MODEL__THRESH=0.75)), imports=("sklearn.cluster",)),
    Chore("pseudo rounds", ("train_UDA", *_UDA), has_stages=True, imports=("sklearn.cluster",)),
    Chore("export", ("export", "--weight", _WEIGHT, "--output", "{at}/exported", "--format", "onnx"),
          imports=("torch.onnx", "onnx", "onnxruntime")),
    Chore("import", ("import_weights", "{base}/backbone.pth", "--output", "{at}/imported", "--as",
                     "backbone")),
    Chore("calibrate", ("calibrate", "--run", "{base}/tested", "--model", "{at}/exported", "--fpr", "0.5"),
          start={"exported": "exported"}, imports=("sklearn.linear_model",)),
    Chore("visualize", ("visualize", "--run", "{at}/tested"), start={"tested": "tested"}),
    Chore("gallery add", _ADD, start={"gallery": "gallery_empty"}, content=_SCAN),
    Chore("gallery compact", ("gallery", "compact", "--gallery", "{at}/gallery"), start={"gallery": "gallery_full"},
          content=_SCAN),
    Chore("gallery link", ("gallery", "link", "--gallery", "{at}/gallery", "--threshold", "0.7"),
          start={"gallery": "gallery_full"}, content=_SCAN, leaves_gaps=True),
)}


class Household:
    """The folder of what chores read, made once by the commands themselves, and the one that they work in.

    Attributes:
        base: what is read; `at` is the folder of results, at the same place for every run: files hold its name.
        seconds: that the last chore took which was done to its end.
        litter: chores that had come to their end where temporary files of killed ones still lay, which nobody reads.
    """

    def __init__(self, folder: Path):
        self.base, self.at = folder / "base", folder / "at"
        self.temporary, self.litter, self.seconds = folder / "temporary", set[str](), 0.0
        for path in (self.base, self.at, self.temporary):
            path.mkdir()
        self.prepare()

    def prepare(self) -> None:
        """Make the data, which nearly all chores read."""
        data = self.base / "data"
        self._do(*_DEMO, data)
        self._do(*_DOMAINS, data / "derived", "--workers", 1)

    def need(self, chores: Collection[Chore]) -> None:
        """Make what these read, as far as it is not there."""
        import_in_server(*dict.fromkeys(module for chore in chores for module in chore.imports))
        text = " ".join(word for chore in chores for word in (*chore.words, *chore.start.values()))
        gallery = f"{self.base}/gallery_full"
        makers: dict[str, list[tuple]] = {
            "gallery_full": [("gallery", "create", "--gallery", gallery, "--model", _WEIGHT),
                             tuple(word.replace("{at}/gallery", gallery) for word in _ADD),
                             ("gallery", "remove", "--gallery", gallery, "--cameras", "1", "7")],
            "gallery_empty": [("gallery", "create", "--gallery", "{base}/gallery_empty", "--model", _WEIGHT)],
            "exported": [("export", "--weight", _WEIGHT, "--output", "{base}/exported")],
            "tested": [("test", *options(TEST__WEIGHT=_WEIGHT, OUTPUT_DIR="{base}/tested"))],
            "boxes.txt": [], "backbone.pth": []}
        wanted = [name for name in makers if name in text]
        if wanted or "/model/" in text:
            self._make("model", [("train", *options(OUTPUT_DIR="{base}/model"))])
        for name in wanted:
            self._make(name, makers[name])

    def _make(self, name: str, commands: list[tuple]) -> None:
        if (self.base / name).exists():
            return
        if name == "backbone.pth":
            import torch

            from model.backbones import build_backbone

            torch.save(build_backbone(NET).state_dict(), self.base / name)
        if name == "boxes.txt":
            lines = [f"{frame},{person},2,2,8,20,1" for frame in range(1, 5) for person in (1, 2, 3)]
            (self.base / name).write_text("".join(f"{line}\n" for line in lines))
        for words in commands:
            self._do(*words)

    def _do(self, tool: str, *words: object) -> str:
        done = run_tool(tool, *map(self._placed, words), seconds=_SECONDS, env=self.env)
        if done.returncode:
            raise RuntimeError(f"{tool} of the campaign's own needs failed: {done.stderr[-1500:]}")
        return done.stdout

    def _placed(self, word: object) -> str:
        places = {"{at}": self.at, "{base}": self.base, "{port}": free_port()}
        return re.sub(r"\{(at|base|port)\}", lambda match: str(places[match[0]]), str(word))

    @property
    def env(self) -> dict[str, str]:
        return {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}

    def restore(self, chore: Chore) -> None:
        """Empty the folder of results, and put the chore's start there."""
        for path in self.at.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, source in chore.start.items():
            shutil.copytree(self.base / source, self.at / name)

    def begin(self, chore: Chore, watcher: Watcher | None = None, again: bool = False) -> list[Running]:
        """Start the chore's processes, one if they do not work together."""
        tool, *words = map(self._placed, (*chore.words, *(chore.again if again else ())))
        script = tool if "/" in tool else str(ROOT / "tools" / f"{tool}.py")
        if chore.is_script:
            words = watcher.words(script, *words) if watcher else [script, *words]
        else:
            words = (watcher or Watcher(self.at)).words(tool, *words, how="exec" if watcher else "alone")
        own = self.env | {name: self._placed(value) for name, value in chore.env.items()}
        together = {"WORLD_SIZE": chore.processes, "LOCAL_WORLD_SIZE": chore.processes, "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": free_port()} if chore.processes > 1 else {}
        running = []
        for rank in range(chore.processes):
            env = own | together | ({"RANK": rank, "LOCAL_RANK": rank} if together else {})
            running.append(start_tool(words[0], *words[1:], env=env, seconds=_SECONDS))
        return running

    def finish(self, chore: Chore, watcher: Watcher | None = None, again: bool = False) -> subprocess.CompletedProcess:
        """Do the chore to its end; of several processes that of the first."""
        start = time.monotonic()
        done = ended(self.begin(chore, watcher, again))
        self.seconds = time.monotonic() - start
        return done

    def content(self, chore: Chore) -> Content:
        """What the chore has left, by file, without times; of what has times in the middle, what a command prints."""
        found: Content = {}
        for path in sorted(self.at.rglob("*")):
            name = path.relative_to(self.at).as_posix()
            if _LITTER.search(name):
                self.litter.add(chore.name)
            elif name.endswith("training_curve.png"):
                continue  # tool_server's is empty, so that it tells nothing
            elif path.is_file() and not _LOGS.search(name) and not (chore.content and name.startswith("gallery")):
                found[name] = _without_times(name, path.read_bytes())
        for words in chore.content:
            done = run_tool(words[0], *map(self._placed, words[1:]), env=self.env)
            text = _TIME_FIELDS.sub("", f"{done.returncode} {done.stdout}")
            found[" ".join(words[:2])] = without_gaps(text) if chore.leaves_gaps else text
        return found


_LITTER = re.compile(r"(^|/)\.[^/]+\.\d+\.[0-9a-f]{8}\.tmp(/|$)")  # utils.files.atomic_path's, after a kill
_LOGS = re.compile(r"(^|/)([A-Za-z_]*log\.txt|[^/]*\.log|tensorboard/.*|\.lock|[^/]*\.lock)$")
_TIME_FIELDS = re.compile(r'"(seconds[a-z_]*|images_per_second|data_wait|[a-z_]*_seconds)": ([-\d.e+]+|\{[^}]*\}),?\s*')
_SPEEDS = re.compile(r"^\|.*$", re.MULTILINE)  # of a model folder's card: the table of its files


def _without_times(name: str, data: bytes) -> bytes:
    if name.endswith("card.md"):
        return _SPEEDS.sub("", data.decode()).encode()
    if not name.endswith((".json", ".jsonl")):
        return data
    return _TIME_FIELDS.sub("", data.decode("utf-8", "replace")).encode()


def without_gaps(text: str) -> str:
    """JSON with the numbers of identities 1, 2, ... instead, in the same order."""
    field = re.compile(r'"identity": "(\d+)"')
    ranks = {number: rank for rank, number in enumerate(sorted(set(map(int, field.findall(text)))), 1)}
    return field.sub(lambda match: f'"identity": "{ranks[int(match[1])]}"', text)


_OF_TORCHRUN = re.compile(r"Traceback \(most recent call last\):\n(?: .*\n)+torch\.distributed\.elastic\.")  # its own


def named(chores: Collection[str], wanted: Collection[str]) -> list[Chore]:
    """Of the chores of these names those that are wanted, or all.

    Raises:
        ValueError: a wanted one is not among them; the message lists them.
    """
    unknown = sorted(set(wanted) - set(chores))
    if unknown:
        raise ValueError(f"--chores {', '.join(unknown)}: not of this campaign, which has {'; '.join(chores)}")
    return [CHORES[name] for name in chores if name in wanted or not wanted]


def ended(processes: list[Running]) -> subprocess.CompletedProcess:
    """Wait for all; code and output are of the first that failed, or the first."""
    codes = [process.wait(timeout=2 * _SECONDS) for process in processes]
    which = next((number for number, code in enumerate(codes) if code), 0)
    worst = processes[which]
    return subprocess.CompletedProcess(worst.words, codes[which], worst.stdout(), worst.stderr())


def fault_of_chore(done: subprocess.CompletedProcess) -> tuple[str, str] | None:
    """As fault_of."""
    is_hung = done.returncode == -signal.SIGALRM
    output = _OF_TORCHRUN.sub("", done.stdout + done.stderr)
    return fault_of(Ended(tuple(done.args), done.returncode, output, _SECONDS, is_hung, 0))


def difference(first: Content, other: Content) -> str:
    """What another folder has not, has more, or has otherwise; empty if they are the same."""
    lines = [f"lacks {name}" for name in first.keys() - other.keys()]
    lines += [f"has {name}, too" for name in other.keys() - first.keys()]
    lines += [f"{name} differs" for name in first.keys() & other.keys() if first[name] != other[name]]
    return "; ".join(sorted(lines))


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def undisturbed(household: Household, chore: Chore, watcher: Watcher | None = None) -> Content:
    """What the chore leaves in an empty folder.

    Raises:
        RuntimeError: it fails.
    """
    household.need([chore])
    household.restore(chore)
    done = household.finish(chore, watcher)
    if done.returncode:
        raise RuntimeError(f"{chore.name} fails undisturbed: {done.stderr[-1500:]}")
    return household.content(chore)


def stable(household: Household, chore: Chore, watcher: Watcher | None = None) -> tuple[Content, str]:
    """The content of an undisturbed run, and in what a second one differs from it (it should not)."""
    first = undisturbed(household, chore, watcher)
    return first, difference(first, undisturbed(household, chore, watcher))


def chore_of(number: int, chores: Sequence[Chore], seldom: Mapping[str, int]) -> tuple[Chore, int]:
    """The chore of a case, and its round.

    Each round goes over the chores from the last to the first, and then over those of seldom; the first round has all
    of these, the others each of them once in so many rounds.
    """
    for count in itertools.count():
        here = sorted((chore for chore in reversed(chores) if count % seldom.get(chore.name, 1) == 0),
                      key=lambda chore: seldom.get(chore.name, 0))
        if number < len(here):
            return here[number], count
        number -= len(here)
