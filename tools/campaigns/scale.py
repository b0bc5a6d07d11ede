"""Full size: the doctor, lists, sampler, resume and submissions where there are NAIC's 880,000 images and more.

Each command is measured in a process of its own, in CPU seconds and peak memory. A fault is what must not be seen of
any command, memory over _MEMORY, or a time that grows faster than the data: at an eighth of the size a command may
not take less than 1/_STEEPER of the CPU time.

Images are hard links to a few thousand different small pictures.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.campaigns.commands import Ended, fault_of, run_command, tool
from tools.campaigns.record import Campaign
from utils.process import EXIT_STOPPED

IMAGES, QUERY, GALLERY, TOP_K = 880_000, 40_000, 300_000, 200  # NAIC's, rounded up
_SMALLER = 8          # a size to compare with
_STEEPER = 24         # times the CPU time at _SMALLER times the size; as the data: _SMALLER
_WORTH = 15.0         # CPU seconds from which the growth is looked at
_MEMORY = 4 << 30
_SECONDS = 3600.0    # beside other work
_PICTURES = 2_000     # different ones
_SETS = ("train_2019_cs", "train_2019_fs", "train_2020_cs", "train_2020_fs")
_TEST = "image_B_v1_1"
_MEASURE = """\
import json, resource, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None)  # it is for the command
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024], open(sys.argv[1], "w"))
sys.exit(code if code >= 0 else 128 - code)
"""


class Used(NamedTuple):
    """How a command ended, and what it took: CPU seconds of all its processes, bytes of the largest one."""

    ended: Ended
    cpu: float
    peak: int


# ------------------------------------------------------------------------------------------------------- what is read
class Pictures:
    """Different small pictures, and hard links to them."""

    def __init__(self, folder: Path, count: int) -> None:
        import cv2
        import numpy as np

        folder.mkdir(parents=True)
        self.paths = [folder / f"{number}.png" for number in range(count)]
        draw = np.random.default_rng(0)
        for path in self.paths:
            coarse = draw.integers(0, 256, (8, 4, 3), np.uint8)
            path.write_bytes(cv2.imencode(".png", cv2.resize(coarse, (16, 32), interpolation=cv2.INTER_LINEAR))[1])

    def fill(self, folder: Path, names: Sequence[str], first: int = 0) -> None:
        """Make the files `names` in a folder; name n is picture `first + n`, from the beginning after the last."""
        folder.mkdir(parents=True)
        for number, name in enumerate(names, first):
            os.link(self.paths[number % len(self.paths)], folder / name)


def _write_train(data: Path, set_name: str, names: Sequence[str], pids: Sequence[object], pictures: Pictures,
                 first: int = 0) -> None:
    inner, prefix = ("train", "train/") if "2019" in set_name else ("images", "")
    pictures.fill(data / set_name / inner, names, first)
    separator = " " if prefix else ":"
    (data / set_name / "train_list.txt").write_text("".join(
        f"{prefix}{name}{separator}{pid}\n" for name, pid in zip(names, pids, strict=True)), encoding="utf-8")


def _names(count: int, draw: random.Random) -> list[str]:
    return [f"{number:09d}.png" for number in draw.sample(range(10 ** 9), count)]


def _as_naic(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    """Four sets of identities with 2 … 38 images."""
    for position, set_name in enumerate(_SETS):
        names, pids = _names(images // 4, draw), []
        while len(pids) < len(names):
            pids += [len(pids)] * draw.randint(2, 38)
        _write_train(data, set_name, names, pids[:len(names)], pictures, position)


def _one_identity(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    _write_train(data, _SETS[3], _names(images, draw), [7] * images, pictures)


def _one_picture_each(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    _write_train(data, _SETS[3], _names(images, draw), range(images), pictures)


def _one_against_all(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    """All pictures of an identity stand in another set, too, each as an identity of its own."""
    half = images // 2
    _write_train(data, _SETS[3], _names(half, draw), [7] * half, pictures)
    _write_train(data, _SETS[2], _names(half, draw), range(half), pictures)


def _long_names(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    """Names of 255 bytes, the most that a file system takes."""
    names = [f"{number:09d}{'人' * 80}{'x' * 2}.png" for number in range(images)]
    _write_train(data, _SETS[3], names, [number // 8 for number in range(images)], pictures)


def _nearly_one(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    """Different pictures whose perceptual hashes differ in a few bits, each pair of them a near-duplicate."""
    import cv2
    import numpy as np

    noise = np.random.default_rng(draw.randrange(2**32))
    base = cv2.resize(noise.integers(0, 256, (8, 4, 3), np.uint8), (16, 32), interpolation=cv2.INTER_LINEAR)
    folder, names = data / _SETS[3] / "images", _names(images, draw)
    folder.mkdir(parents=True)
    for name in names:
        image = np.clip(base.astype(np.int16) + noise.integers(-4, 5, base.shape), 0, 255).astype(np.uint8)
        (folder / name).write_bytes(cv2.imencode(".png", image)[1])
    (data / _SETS[3] / "train_list.txt").write_text("".join(
        f"{name}:{number // 8}\n" for number, name in enumerate(names)), encoding="utf-8")


def _absent(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
    """A list of images of which two are there, each in a folder of its own."""
    _write_train(data, _SETS[3], ["1.png", "2.png"], [1, 1], pictures)
    with open(data / _SETS[3] / "train_list.txt", "a", encoding="utf-8") as out:
        out.writelines(f"{number}/{number}.png:{number // 8}\n" for number in range(images))


def _with_line(make: Callable[[int], str]) -> Callable[[Path, int, random.Random, Pictures], None]:
    """A small set, with one line more in its list."""
    def write(data: Path, images: int, draw: random.Random, pictures: Pictures) -> None:
        _write_train(data, _SETS[3], _names(40, draw), [number // 4 for number in range(40)], pictures)
        with open(data / _SETS[3] / "train_list.txt", "a", encoding="utf-8") as out:
            out.write(make(images))
    return write


class Index(NamedTuple):
    """A data set in an odd shape.

    Attributes:
        write: makes it, (MyDataSet/, images, draw, pictures).
        images: how many, of the whole size 1; a line has so many characters.
        looks: True: the doctor looks at the pictures, too.
        pictures: different ones.
        words: more of them for the doctor that looks at the pictures.
    """

    write: Callable[[Path, int, random.Random, Pictures], None]
    images: int = IMAGES
    looks: bool = False
    pictures: int = _PICTURES
    words: tuple[str, ...] = ()


INDICES: dict[str, Index] = {
    "as NAIC's": Index(_as_naic, looks=True),
    "all in one folder, of one identity": Index(_one_identity),
    "identities of one picture each": Index(_one_picture_each),
    "one identity against all others": Index(_one_against_all, images=80_000, looks=True, pictures=40_000),
    "pictures that are nearly one": Index(_nearly_one, images=60_000, looks=True, pictures=1,
                                          words=("--near-duplicates",)),
    "names of 255 bytes": Index(_long_names),
    "images that are not there, each in its folder": Index(_absent),
    "a line without an end": Index(_with_line(lambda size: "x" * size), images=256 << 20),
    "a pid of a billion digits": Index(_with_line(lambda size: f"9.png:{'7' * size}\n"), images=10 ** 9),
    "a line of blanks": Index(_with_line(lambda size: f"a{' ' * size}:: ::\n"), images=1 << 20),
    "a name of folders in folders": Index(_with_line(lambda size: f"{'a/' * (size // 2)}1.png:7\n"), images=1 << 20),
}


QUICK = ["one identity against all others", "a name of folders in folders", "submission", "own ranking"]


# ----------------------------------------------------------------------------------------------------------- commands
def measure(words: Sequence[str], folder: Path, disturb: Callable | None = None) -> Used:
    """Run a command, and what it took."""
    taken = folder / "taken.json"
    taken.unlink(missing_ok=True)
    ended = run_command(words, seconds=_SECONDS, disturb=disturb, env={"OMP_NUM_THREADS": "1"},
                        wrapper=[sys.executable, "-c", _MEASURE, str(taken)])
    cpu, peak = json.loads(taken.read_text()) if taken.exists() else (ended.seconds, 0)
    return Used(ended, cpu, peak)


def judge(used: Used, before: Used | None, allowed: set[int]) -> list[tuple[str, str]]:
    """(fault, detail) of a command; before: the same at 1/_SMALLER of the size."""
    faults = [fault] if (fault := fault_of(used.ended)) else []
    if not faults and used.ended.code not in allowed:
        faults.append(("exit code", f"{used.ended.code}: {used.ended.output[-1000:]}"))
    if used.peak > _MEMORY:
        faults.append(("memory", f"{used.peak / 2**20:,.0f} MiB"))
    if before is not None and used.cpu > max(_WORTH, _STEEPER * before.cpu):
        faults.append(("steep", f"{used.cpu:.1f} CPU seconds, {before.cpu:.1f} at 1/{_SMALLER} of the size"))
    if len(used.ended.output) > 100_000:
        faults.append(("output", f"{len(used.ended.output):,} characters"))
    return faults


def _step(name: str, *words: object) -> list[str]:
    return [sys.executable, "-m", "tools.campaigns.scale", name, *map(str, words)]


def _trial(campaign: Campaign, name: str, images: int, folder: Path, seed: str) -> dict[str, Used]:
    """Make an index and run all over it; {command: what it took}."""
    data, index = folder / "MyDataSet", INDICES[name]
    index.write(data, images, random.Random(seed), Pictures(folder / "pictures", min(images, index.pictures)))
    commands = {"doctor, the lists": tool("doctor", "--root", folder, "--output", folder / "lists", "--lists-only")}
    if not campaign.quick:  # it imports torch
        commands["loading and the sampler"] = _step("lists", folder)
    if index.looks:
        commands["doctor, the pictures"] = tool("doctor", "--root", folder, "--output", folder / "doctor",
                                                "--workers", 2, *index.words)
        commands |= {} if campaign.quick else {"doctor again": commands["doctor, the pictures"]}
    used = {}
    for what, words in commands.items():
        used[what] = measure(words, folder)
        campaign.count(f"{name}: {what}")
        campaign.note(f"{name}, {images:,}: {what}: {used[what].cpu:.1f} CPU s, {used[what].ended.seconds:.1f} s, "
                      f"{used[what].peak / 2**20:,.0f} MiB, exit code {used[what].ended.code}")
    return used


def _try_resume(campaign: Campaign, case: int, folder: Path) -> None:
    """A training on `folder` is stopped at its first step and goes on, twice."""
    output = folder / "run"
    words = tool("train", "DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", folder, "OUTPUT_DIR", output,
                 "MODEL.NAME", "resnet18_ibn_b_w32", "MODEL.PRETRAIN_CHOICE", "none", "MODEL.DEVICE", "cpu",
                 "INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "INPUT.PADDING", 2,
                 "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.LOG_PERIOD", 1,
                 "SOLVER.EVAL_PERIOD", 0)

    def stop(process) -> None:
        log, size = output / "train_log.txt", 0
        size = log.stat().st_size if log.exists() else 0
        while process.poll() is None:
            if log.exists() and "Iteration[" in log.read_text(encoding="utf-8", errors="replace")[size:]:
                os.killpg(process.pid, signal.SIGTERM)
                return
            time.sleep(0.1)

    for turn in ("training to its first step", "resume to its first step", "resume to its first step"):
        used = measure([*words, *["--resume"] * turn.startswith("resume")], folder, stop)
        campaign.count(f"as NAIC's: {turn}")
        campaign.note(f"as NAIC's: {turn}: {used.cpu:.1f} CPU s, {used.ended.seconds:.1f} s, "
                      f"{used.peak / 2**20:,.0f} MiB, exit code {used.ended.code}")
        for fault, detail in judge(used, None, {EXIT_STOPPED}):
            campaign.found(fault, case, turn, detail)


def _try_submission(campaign: Campaign, case: int, folder: Path, size: float) -> None:
    """Write a submission, and validate it and one that is wrong throughout."""
    query, gallery = int(QUERY * size), int(GALLERY * size)
    test = folder / "MyDataSet" / _TEST
    pictures = Pictures(folder / "test pictures", min(_PICTURES, gallery))
    for part, count in (("query", query), ("gallery", gallery)):
        names = [f"{part[0]}{number:08d}.png" for number in range(count)]
        pictures.fill(test / part, names)
        half = count // 4
        for domain, some in (("green", names[:half]), ("normal", names[half:])):
            (test / f"{part}_{domain}.txt").write_text("".join(f"{name}\n" for name in some))
    files = {f"{part}/{part[0]}{number:08d}.png": {"pid": str(number // 5 % 997), "camid": number % 5}
             for part, count in (("query", query), ("gallery", gallery)) for number in range(count)}
    (test / "ground_truth.json").write_text(json.dumps({"files": files}))
    top_k = min(TOP_K, gallery // 4)
    path = folder / "submission.json"
    wrong = folder / "wrong.json"
    check = ["--data", folder, "--top_k", top_k]
    for what, words, code in (
        ("writing a submission", _step("submission", path, query, gallery, top_k), 0),
        ("validating it", tool("validate_submission", path, *check), 0),
        ("writing one of unknown names", _step("wrong", wrong, query, top_k), 0),
        ("refusing that", tool("validate_submission", wrong, *check), 1),
    ):
        used = measure(words, folder)
        campaign.count(what)
        campaign.note(f"{query:,} queries, {gallery:,} images, top {top_k}: {what}: {used.cpu:.1f} CPU s, "
                      f"{used.ended.seconds:.1f} s, {used.peak / 2**20:,.0f} MiB")
        for fault, detail in judge(used, None, {code}):
            campaign.found(fault, case, what, detail)


def _try_own_ranking(campaign: Campaign, case: int, folder: Path, size: float) -> None:
    """Validate a submission for a CSV set of one person: all queries of a camera that half of the gallery is of."""
    query, gallery = int(QUERY * size), int(GALLERY * size)
    pictures = Pictures(folder / "pictures", min(_PICTURES, gallery))
    rows = ["path,pid,camid,split"]
    for part, count in (("query", query), ("gallery", gallery)):
        names = [f"{part[0]}{number:08d}.png" for number in range(count)]
        pictures.fill(folder / part, names, first=int(part == "gallery"))
        rows += [f"{part}/{name},ann,{number % 2 if part == 'gallery' else 0},{part}"
                 for number, name in enumerate(names)]
    (folder / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    top_k, path = min(TOP_K, gallery // 4), folder / "submission.json"
    for what, words in (
        ("writing a ranking of one person", _step("submission", path, query, gallery, top_k)),
        ("scoring it by the set's protocol", tool(
            "validate_submission", path, "--top_k", top_k, "DATASETS.NAMES", "csv", "DATASETS.ROOT_DIR", folder)),
    ):
        used = measure(words, folder)
        campaign.count(what)
        campaign.note(f"{query:,} queries, {gallery:,} images, top {top_k}: {what}: {used.cpu:.1f} CPU s, "
                      f"{used.ended.seconds:.1f} s, {used.peak / 2**20:,.0f} MiB")
        for fault, detail in judge(used, None, {0}):
            campaign.found(fault, case, what, detail)


_SUBMISSIONS = {"submission": _try_submission, "own ranking": _try_own_ranking}


# --------------------------------------------------------------------------------------------------------- the campaign
def run_campaign(campaign: Campaign) -> None:
    """Each index at an eighth of its size and at its size; resume and submissions at full size."""
    shrink = 2_000 if campaign.quick else 1
    names = QUICK if campaign.quick else [*INDICES, *_SUBMISSIONS]
    for case, draw in campaign.cases(len(names)):
        name, seed = names[case], repr(draw.random())
        folder = campaign.folder / f"case{case}"
        folder.mkdir()
        if name in _SUBMISSIONS:
            _SUBMISSIONS[name](campaign, case, folder, 1 / shrink)
            shutil.rmtree(folder)
            continue
        index, before = INDICES[name], {}
        sizes = [index.images // shrink] if campaign.quick else [index.images // _SMALLER, index.images]
        for images in sizes:
            place = folder / str(images)
            place.mkdir()
            used = _trial(campaign, name, images, place, seed)
            for what, taken in used.items():
                for fault, detail in judge(taken, before.get(what), {0, 1, 2}):
                    campaign.found(fault, case, f"{name}, {images:,}: {what}", detail)
            before = used
        if name == "as NAIC's":
            _try_resume(campaign, case, place)
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------- a step in a process of its own
def _load_lists(root: str) -> None:
    import numpy as np

    from datasets.bases import Places, Reference
    from datasets.naic import load_naic
    from datasets.sampler import IdentityBatchSampler

    there = tuple(name.removeprefix("train_") for name in _SETS if (Path(root) / "MyDataSet" / name).is_dir())
    data = load_naic(Reference("naic", "naic"), Places(root, there), ("train",))
    sampler = IdentityBatchSampler(np.array([sample.pid for sample in data.train]), 64, 4, 0)
    sampler.set_epoch(3, len(sampler) - 1)
    print(f"{len(data.train):,} images, {data.num_classes:,} classes, {len(sampler):,} batches, "
          f"{len(next(iter(sampler)))} in the last")


def _write_answer(path: str, query: str, gallery: str, top_k: str) -> None:
    import numpy as np

    from processor.retrieval.submission import write_submission

    queries, images = ([f"{part}{number:08d}.png" for number in range(int(count))]
                       for part, count in (("q", query), ("g", gallery)))
    rows = (np.arange(len(queries))[:, None] * 7 + np.arange(int(top_k))) % len(images)
    write_submission(path, queries, images, rows)


def _write_wrong(path: str, query: str, top_k: str) -> None:
    from utils.files import write_json

    write_json(path, {f"q{number:08d}.png": [f"x{number + rank}.png" for rank in range(int(top_k))]
                      for number in range(int(query))})


STEPS: dict[str, Callable[..., None]] = {"lists": _load_lists, "submission": _write_answer, "wrong": _write_wrong}


def _main() -> None:
    from utils.logger import setup_logger

    setup_logger()
    STEPS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    from utils.logger import run_tool

    run_tool(_main)
