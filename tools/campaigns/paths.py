"""Odd paths: every tool, with an oddity in place of an argument of it, or somewhere in what it reads.

What must not be: a traceback, a hang, a crash; something changed that is not the output; a message that is not text, or
that does not name what it is about; and what is fine must give what it gives without the oddity.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from tools.campaigns.commands import ROOT, Ended, fault_of, run_command, tool
from tools.campaigns.materials import Materials
from tools.campaigns.oddities import (
    FINE,
    GB18030_NAMES,
    REFUSED,
    Odd,
    aside,
    odd_argument,
    odd_entry,
    release_mounts,
)
from tools.campaigns.record import Campaign
from tools.campaigns.tool_server import start_tool
from utils.logger import printable

_SECONDS = 120  # after which a command hangs: it takes one or two, on a machine that does other work ten
_SCRIPT_SECONDS = 900
_MEMORY = 8 << 30
_SET = "--config_file {config.yml} DATASETS.ROOT_DIR {data}"


class Trial(NamedTuple):
    """A command: {NAME} in its words is a material, {out} its output (with a suffix: a file).

    changes: materials that it writes into. env: variables, with the same braces.
    """

    tool: str
    words: str
    changes: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    def materials(self) -> list[str]:
        texts = [self.words, *(value for _, value in self.env)]
        names = (name for text in texts for name in re.findall(r"{(.+?)}", text))
        return [name for name in dict.fromkeys(names) if not name.startswith("out")]

    def output(self) -> str:
        """"out", "out.json", … or "" if it has none but what it changes."""
        found = re.search(r"{(out.*?)}", " ".join([self.words, *(value for _, value in self.env)]))
        return found[1] if found else ""


# By name; those of `QUICK` need no trained model.
TRIALS: dict[str, Trial] = {
    "doctor": Trial("doctor", "--root {data} --output {out} --workers 1"),
    "doctor lists": Trial("doctor", "--root {data} --output {out} --write-clean-lists --workers 1"),
    "doctor people": Trial("doctor", "--root {people} --output {out} --workers 1 DATASETS.NAMES tree+csv"),
    "split_domains": Trial("split_domains", "--data_dir_query {pictures} --data_dir_gallery {frames} --save_dir {out}"),
    "split_validation": Trial("split_validation", f"{_SET} --output {{out.json}} --identities 2 --distractors 0"),
    "pack": Trial("pack", f"{_SET} --output {{out}} --threads 1"),
    "pack decoded": Trial("pack", "--config_file {config.yml} DATASETS.ROOT_DIR {people} DATASETS.NAMES csv "
                                  "--output {out} --threads 1 --decoded"),
    "dry run": Trial("train", f"--dry-run {_SET} OUTPUT_DIR {{out}}"),
    "print config": Trial("train", "--print-config --config_file {config.yml}"),
    "pipeline": Trial("pipeline", "--dry-run", env=(("DATA_ROOT", "{data}"), ("OUTPUT_ROOT", "{out}"))),
    "import_weights": Trial("import_weights", "{backbone.pth} --output {out}"),
    "demo": Trial("make_demo_data", "--output {out} --workers 1 --ids 2 --images 2 --singles 0 --shared 0 "
                                    "--query-ids 2 --query-images 1 --gallery-images 2 --distractors 0 "
                                    "--height 16 --width 8"),
    "train": Trial("train", f"{_SET} OUTPUT_DIR {{out}}"),
    "train people": Trial("train", "--config_file {config.yml} DATASETS.NAMES tree DATASETS.ROOT_DIR {people} "
                                   "OUTPUT_DIR {out} SOLVER.EVAL_PERIOD 1 SOLVER.IMS_PER_BATCH 4"),
    "train csv": Trial("train", "--config_file {config.yml} DATASETS.NAMES csv DATASETS.ROOT_DIR {people} "
                                "OUTPUT_DIR {out} SOLVER.IMS_PER_BATCH 4"),
    "train packed": Trial("train", f"{_SET} DATASETS.PACKED {{pack}} OUTPUT_DIR {{out}}"),
    "train on validation": Trial("train", f"{_SET} DATASETS.VALIDATION {{validation.json}} OUTPUT_DIR {{out}}"),
    "train from model": Trial("train", f"{_SET} MODEL.PRETRAIN_PATH {{model}} MODEL.PRETRAIN_CHOICE self "
                                       "OUTPUT_DIR {out}"),
    "test": Trial("test", f"{_SET} TEST.WEIGHT {{weight.pth}} OUTPUT_DIR {{out}}"),
    "test model": Trial("test", f"{_SET} TEST.WEIGHT {{model}} OUTPUT_DIR {{out}}"),
    "embed": Trial("embed", "--model {weight.pth} --images {pictures} --output {out}"),
    "embed list": Trial("embed", "--model {model} --images {pictures}/list.txt --output {out} --skip-bad"),
    "embed csv": Trial("embed", "--model {model} --images {people}/data.csv --output {out}"),
    "embed boxes": Trial("embed", "--model {model} --boxes {boxes.txt} --frames {frames} --output {out} "
                                  "--save-crops {out}_crops"),
    "export": Trial("export", "--weight {weight.pth} --output {out}"),
    "pseudo_label": Trial("pseudo_label", "--config_file {config.yml} TEST.WEIGHT {weight.pth} --output {out} "
                                          "--data_dir_gallery {pictures} OUTPUT_DIR {out}_log"),
    "visualize": Trial("visualize", "--run {run} --data {data}", changes=("run",)),
    "calibrate": Trial("calibrate", "--run {run} --model {model} --fpr 0.9", changes=("model",)),
    "validate": Trial("validate_submission", "{submission.json} --data {data} --top_k 5"),
    "tune": Trial("tune_rerank", "--inputs {run} {run2} --k1 4 --k2 2 --lambda 0.5 --output {out}"),
    "ensemble": Trial("ensemble", "--inputs {run} {run2} --output {out.json}"),
    "compare": Trial("compare", "{run} {run2}"),
    "cross_domain": Trial("cross_domain", "--models {model} --data naic DATASETS.ROOT_DIR {data} OUTPUT_DIR {out}"),
    "gallery create": Trial("gallery", "create --gallery {out} --model {model}"),
    "gallery add": Trial("gallery", "add --gallery {gallery} --model {model} {people}", changes=("gallery",)),
    "gallery add rows": Trial("gallery", "add --gallery {gallery} --model {model} {rows}", changes=("gallery",)),
    "gallery search": Trial("gallery", "search --gallery {gallery} --model {model} {picture.png}",
                            changes=("gallery",)),
    "gallery verify": Trial("gallery", "verify --gallery {gallery}", changes=("gallery",)),
    "gallery compact": Trial("gallery", "compact --gallery {gallery}", changes=("gallery",)),
}
QUICK = ("split_domains", "print config")
_RUN_SH = "run.sh"
_RECIPE = ("MODEL.NAME resnet18_ibn_b_w32 MODEL.PRETRAIN_CHOICE none SOLVER.MAX_EPOCHS 1 SOLVER.WARMUP_EPOCHS 0 "
           "SOLVER.STEPS [] SOLVER.IMS_PER_BATCH 16 DATALOADER.NUM_INSTANCE 2")
_PLACES = (("DATA_ROOT", "{data}"), ("OUTPUT_ROOT", "{out}"))
# By name; once in so many cases one of them is taken, because they take minutes and a minute.
SCRIPTS: dict[str, Trial] = {
    _RUN_SH: Trial(_RUN_SH, _RECIPE, env=_PLACES),
    "run.sh, forked": Trial(str(ROOT / "tools/campaigns/forked_pipeline.py"), _RECIPE, env=_PLACES),
}
_SCRIPT_EVERY = {_RUN_SH: 60, "run.sh, forked": 15}
_NO_POWERS = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")


class Place:
    """A case's own folder: in/ with the materials, out/, a working directory, HOME, TMPDIR, and what lies outside."""

    def __init__(self, folder: Path, materials: Materials, trial: Trial):
        open_doors(folder)
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("in", "out", "cwd", "home", "tmp", "outside/pictures"):
            (folder / name).mkdir(parents=True)
        self.folder, self.trial, self.outside, self.materials = folder, trial, folder / "outside", materials
        self.paths: dict[str, Path] = {}
        for name in trial.materials():
            self.paths[name] = folder / "in" / name
            materials.copy(name, self.paths[name])
        if trial.output():
            self.paths[trial.output()] = folder / "out" / trial.output().replace("out", "result", 1)
        picture = cv2.imencode(".png", np.full((32, 16, 3), 7, np.uint8))[1].tobytes()
        for name in ("secret.png", "pictures/secret.png"):
            (self.outside / name).write_bytes(picture)

    def command(self) -> tuple[str, list[str], dict[str, object]]:
        """The tool, its words, and what is put into its environment."""
        def fill(text: str) -> str:
            return re.sub(r"{(.+?)}", lambda match: str(self.paths[match[1]]), text)

        env = {"HOME": self.folder / "home", "TMPDIR": self.folder / "tmp", "XDG_CACHE_HOME": self.folder / "home",
               **{name: fill(value) for name, value in self.trial.env}}
        return self.trial.tool, [fill(word) for word in self.trial.words.split()], env

    def start(self, odd: Odd | None = None):
        """Begin the command, which is forked."""
        name, words, env = self.command()
        return start_tool(name, *words, cwd=self.folder / "cwd", env=env, seconds=self.seconds,
                          limits={"memory": _MEMORY, "is_root": odd is None or odd.is_root})

    def run(self, odd: Odd | None = None) -> tuple[Ended, str]:
        """Run the command to its end; what it printed on stderr, too."""
        if self.trial.tool == _RUN_SH or (odd is not None and odd.is_chinese):
            return self._run_anew(odd)
        running = self.start(odd)
        return _ended(running, time.monotonic(), self.seconds), running.stderr()

    @property
    def seconds(self) -> int:
        """After which the command hangs."""
        return _SCRIPT_SECONDS if self.trial in SCRIPTS.values() else _SECONDS

    def _run_anew(self, odd: Odd | None) -> tuple[Ended, str]:
        """The same with an interpreter of its own; both streams are one."""
        name, words, env = self.command()
        words = ["bash", str(ROOT / name), *words] if name == _RUN_SH else tool(name, *words)
        env |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        if odd is not None and odd.is_chinese:
            env |= {"LC_ALL": "zh_CN.GB18030", "LOCPATH": self.materials.path("locales"), "PYTHONUTF8": "0"}
        ended = run_command(words, seconds=_SCRIPT_SECONDS, env={key: str(value) for key, value in env.items()},
                            cwd=self.folder / "cwd", wrapper=_NO_POWERS if odd is not None and not odd.is_root else ())
        for cache in ("home/.config/matplotlib", "home/matplotlib", "tmp/torchinductor_*", "tmp/matplotlib-*"):
            for path in self.folder.glob(cache):  # of libraries, which forked commands have loaded before
                shutil.rmtree(path)
        with contextlib.suppress(OSError):
            (self.folder / "home" / ".config").rmdir()
        return ended, ended.output

    def surroundings(self) -> dict[str, tuple]:
        """All that the command may not change, by path: kind, size, time, target."""
        changed = [self.paths[name] for name in self.trial.changes]
        may = [self.folder / "out", *changed, *map(aside, changed)]
        return {str(path): state for path, state in _states(self.folder, may)}

    def results(self) -> dict[str, str]:
        """Path below the output -> digest of its content, if that depends on nothing but the inputs' contents."""
        output = self.trial.output()
        if not output:
            return {}
        place, digests = self.paths[output], {}
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        for path in files:
            name = path.relative_to(place).as_posix() if path != place else output
            if "tensorboard/" not in name:
                is_fixed = path.suffix in (".npy", ".shard", ".png") or re.fullmatch(
                    r"submission.json|(query|gallery)_\w+\.txt|label\.txt|names\.txt", path.name)
                digests[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_fixed else ""
        return digests


def _ended(running, begun: float, seconds: float = _SECONDS) -> Ended:
    try:
        code = running.wait(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        running.kill()
        code = -14
    seconds = time.monotonic() - begun
    return Ended(tuple(running.words), code, running.stdout() + running.stderr(), seconds, code == -14, 0)


def open_doors(folder: Path) -> None:
    """Let what a case has closed be removed by one who is not root; and what it has mounted."""
    release_mounts(folder)
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755)


def _states(folder: Path, left_out: list[Path]) -> Iterable[tuple[Path, tuple]]:
    for path in sorted(folder.iterdir()):
        if path in left_out:
            continue
        state = path.lstat()
        kind = stat.S_IFMT(state.st_mode)
        is_folder = stat.S_ISDIR(kind)
        yield path, (kind, 0 if is_folder else state.st_size, 0 if is_folder else state.st_mtime_ns,
                     os.readlink(path) if stat.S_ISLNK(kind) else "")
        if is_folder:
            yield from _states(path, left_out)


def judge(place: Place, odd: Odd, ended: Ended, errors: str, before: dict[str, tuple],
          plain: tuple[int, dict[str, str]]) -> list[tuple[str, str]]:
    """(fault, detail) of what must not be.

    Args:
        odd, ended, errors: what was put there, how the command ended, and its stderr.
        before: the surroundings before it.
        plain: the exit code and the results without the oddity.
    """
    faults = [fault] if (fault := fault_of(ended)) else []
    after = place.surroundings()
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if changed:
        faults.append(("changed", f"what is not the output has changed: {', '.join(map(printable, changed[:9]))}"))
    strange = sorted({letter for letter in errors if not (letter.isprintable() or letter in "\n\t")})
    if strange:
        faults.append(("unprintable", f"{strange} in {errors[-1500:]!r}"))
    tail = f"exit code {ended.code}: {ended.output[-1200:]}"
    if odd.expected == FINE and not faults:
        if ended.code != plain[0]:
            faults.append(("refused", f"this is fine, and without it the exit code is {plain[0]}; {tail}"))
        elif place.results() != plain[1]:
            results = place.results()
            names = sorted(name for name in results.keys() | plain[1].keys() if results.get(name) != plain[1].get(name))
            faults.append(("differs", f"not as without it: {', '.join(names[:9])}"))
    writes = bool(plain[1])
    if odd.expected == REFUSED and ended.code != 2 and (writes or not odd.what.startswith("{out")):
        faults.append(("accepted", tail))
    if ended.code == 2 and odd.name and printable(odd.name)[:40] not in ended.output:
        faults.append(("nameless", f"the message does not name {printable(odd.name)}; {tail}"))
    if ended.code == 2 and not re.search(r"^(\S+: )?error: .*\S", ended.output, re.MULTILINE):
        faults.append(("exit code", f"no line tells of an error; {tail}"))
    return faults


def run_campaign(campaign: Campaign) -> None:
    """Draw a tool, a place and an oddity; run the tool; judge."""
    materials, plains = Materials(campaign.folder / "materials"), {}
    names = QUICK if campaign.quick else tuple(TRIALS)
    for number, rng in campaign.cases():
        name = rng.choice(names)
        if not campaign.quick:
            name = next((script for script, times in _SCRIPT_EVERY.items() if number % times == times - 1), name)
        trial = (TRIALS | SCRIPTS)[name]
        if name not in plains:
            plains[name] = _run_plain(campaign, materials, trial)
        place = Place(campaign.folder / "case", materials, trial)
        if name in TRIALS and not campaign.quick and rng.random() < 0.05 and trial.output():
            _try_two(campaign, number, name, place, plains[name], rng)
            continue
        odd = _put_oddity(place, rng)
        before = place.surroundings()
        ended, errors = place.run(odd)
        campaign.count(f"an odd path for {name if name in SCRIPTS else trial.tool}")
        campaign.count(kind_of(odd))
        for fault, detail in judge(place, odd, ended, errors, before, plains[name]):
            campaign.found(fault, number, f"{name}: {odd.what}", detail)
    open_doors(campaign.folder)
    shutil.rmtree(campaign.folder / "case", ignore_errors=True)
    shutil.rmtree(materials.folder, ignore_errors=True)


def kind_of(odd: Odd) -> str:
    """What is counted, beside the tool: the kinds of oddities that a table tells of."""
    kinds = {"mounted read-only": "an input mounted read-only", "file system": "an output on another file system",
             "in a locale of GB18030": "a name of GB18030 bytes in its locale"}
    found = next((kind for words, kind in kinds.items() if words in odd.what), "")
    if not found and any(repr(name)[2:-1] in odd.what for name in GB18030_NAMES):
        found = "a name of GB18030 bytes in another locale"
    return f"of all: {found or 'other oddities'}"


def _run_plain(campaign: Campaign, materials: Materials, trial: Trial) -> tuple[int, dict[str, str]]:
    """The exit code and the results of a command without an oddity."""
    place = Place(campaign.folder / "case", materials, trial)
    ended, _ = place.run()
    if ended.code not in (0, 1) or fault_of(ended):
        raise RuntimeError(f"{trial.tool} fails without an oddity: {ended.output[-2000:]}")
    return ended.code, place.results()


def _put_oddity(place: Place, rng: random.Random) -> Odd:
    """Draw which argument is odd, or has something odd in it, and make it so."""
    trial = place.trial
    argument = rng.choice(list(place.paths))
    path, is_input = place.paths[argument], argument in trial.materials()
    if path.is_dir() and rng.random() < 0.6:
        odd = odd_entry(path, place.outside, rng)
        return odd._replace(what=f"{argument}: {odd.what}")
    odd = odd_argument(path, rng, is_input, argument in trial.changes)
    place.paths[argument] = odd.path
    return odd._replace(what=f"{{{argument}}}: {odd.what}")


def _try_two(campaign: Campaign, number: int, name: str, place: Place, plain: tuple[int, dict[str, str]],
             rng: random.Random) -> None:
    """The same command twice at a time, with one output: one may be refused, and the output is as of one alone."""
    begun, first = time.monotonic(), place.start()
    time.sleep(rng.uniform(0, 1))
    ended = [_ended(running, begun) for running in (first, place.start())]
    campaign.count("two commands at once in one output")
    for each in ended:
        if fault := fault_of(each):
            campaign.found(fault[0], number, f"{name}: two at once", fault[1])
    codes = sorted(each.code for each in ended)
    if codes[0] != plain[0] or place.results() != plain[1]:
        results = place.results()
        differing = [key for key in results.keys() | plain[1].keys() if results.get(key) != plain[1].get(key)]
        campaign.found("differs", number, f"{name}: two at once", f"exit codes {codes}, {differing}: " +
                       "\n".join(each.output[-700:] for each in ended))
