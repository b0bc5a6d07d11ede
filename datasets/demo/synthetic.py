"""The demo set: drawn pedestrians, stored exactly as NAIC stores its photographs.

A person has attributes (build, clothes, textures, hair, bag), a camera has a scene, a viewpoint and a colour
cast, and a shot is a person before a camera in a pose. Matching across cameras means to see the clothes
through cast, light, pose, background and occlusion, so pixels and random features do badly and a small network
learns it in a minute. `domain` is NAIC's: a picture whose B, G and R means all exceed 65 is "green", any other
"normal".

Read it from the bottom up: `make_demo_data` plans the shots and has workers `render` them.
"""
from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets.demo.cast import PERSON, SHOT, cameras_of, random_stream, sample_person
from datasets.demo.figure import draw_person
from datasets.demo.plan import TEST_FOLDER, TRAIN_SETS, Shot, Sizes, plan_demo
from datasets.demo.scene import apply_camera, draw_background, draw_occluder
from datasets.sets.domains import domain_of
from utils.files import atomic_path, new_folder, read_json, write_json, write_text
from utils.parallel import in_processes
from utils.progress import progress as show_progress

FOLDER = "MyDataSet"
MANIFEST = "demo.json"
VERSION = 1  # raise it whenever the same seed gives other bytes

_SUPERSAMPLE = 2  # drawn this many times larger, then averaged down: smooth edges at any angle
_COST = 20  # of a picture; see in_processes


def render(seed: int, sizes: Sizes, shot: Shot) -> np.ndarray:
    """The picture of a shot: [sizes.height, sizes.width, 3] uint8 BGR; a function of the arguments alone."""
    height, width = sizes.height, sizes.width
    person = sample_person(random_stream(seed, PERSON, shot.person))
    camera = cameras_of(seed, sizes.cameras)[shot.camid - 1]
    rng = random_stream(seed, SHOT, shot.person, shot.number)
    large = (height * _SUPERSAMPLE, width * _SUPERSAMPLE)
    image = draw_background(seed, shot.camid, camera, large, rng)
    draw_person(image, person, camera, rng)
    if rng.random() < 0.12:
        draw_occluder(image, rng)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    image = apply_camera(image, camera, shot.domain, rng)
    assert domain_of(image) == shot.domain, shot
    return image


def _store_shot(root: Path, seed: int, sizes: Sizes, shot: Shot) -> None:
    """Render a shot and write its files."""
    ok, data = cv2.imencode(".png", render(seed, sizes, shot), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert ok, shot
    for path in shot.paths:
        (root / path).write_bytes(data.tobytes())


def _write_set(root: Path, seed: int, sizes: Sizes, workers: int, progress: bool) -> None:
    """Write a whole MyDataSet/ into the new folder `root`."""
    plan = plan_demo(seed, sizes)
    paths = [path for shot in plan.shots for path in shot.paths]
    assert len(set(paths)) == len(paths), "two pictures of one name"
    for folder in {Path(path).parent for path in paths}:
        (root / folder).mkdir(parents=True)
    stored = in_processes(partial(_store_shot, root, seed, sizes), plan.shots, len(plan.shots), workers,
                          doing="draws pictures", batch=16, cost=_COST)
    for _ in show_progress(stored, "rendering", "image", total=len(plan.shots)) if progress else stored:
        pass
    for name, lines in plan.lists.items():
        _, prefix, separator = TRAIN_SETS[name]
        write_text(root / name / "train_list.txt", "".join(f"{prefix}{n}{separator}{pid}\n" for n, pid in lines))
    note = "Matches have the same pid; cross-camera matches also have another camid. Distractors match no query."
    write_json(root / TEST_FOLDER / "ground_truth.json", {"note": note, "files": plan.truth})
    write_json(root / MANIFEST, _manifest(seed, sizes))


def _manifest(seed: int, sizes: Sizes) -> dict:
    return {"what": "synthetic re-identification demo set", "version": VERSION, "seed": seed, "sizes": asdict(sizes)}


def _already_there(target: Path, manifest: dict, force: bool) -> bool:
    """True if `target` is this very demo set.

    Raises:
        FileExistsError: it holds anything else, and `force` is not set or it is no demo set at all.
    """
    if not target.exists() and not target.is_symlink():
        return False
    there = None
    if (target / MANIFEST).is_file():
        with contextlib.suppress(ValueError):
            there = read_json(target / MANIFEST)
    if not isinstance(there, dict) or there.get("what") != manifest["what"]:
        raise FileExistsError(f"{target} exists and is no demo set (it has no {MANIFEST} of ours); it stays as it is: "
                              "choose another output folder")
    if there == manifest:
        return True
    if not force:
        raise FileExistsError(f"{target} holds another demo set (seed {there.get('seed')!s:.20}, version "
                              f"{there.get('version')!s:.20}); choose another output folder, or --force to replace it")
    return False


def make_demo_data(output: str | os.PathLike, seed: int = 0, sizes: Sizes | None = None,
                   workers: int | None = None, force: bool = False, progress: bool = True) -> Path:
    """Render the demo set as `output`/MyDataSet, in NAIC's on-disk format.

    The files are a function of seed and sizes, whatever the number of workers. They appear all at once: the set
    is written beside its place and renamed. If the same set is there already, nothing is done. With more than
    one worker, processes are spawned: a script that calls this needs an `if __name__ == "__main__":`.

    Args:
        output: the folder to make MyDataSet/ in; made if missing.
        seed: which demo set, a non-negative integer.
        sizes: how much of it; None means the defaults.
        workers: processes that render; None means one a core, four at most.
        force: replace another demo set that stands there (never a folder that is no demo set).
        progress: True: a bar on a terminal, now and then a log line elsewhere.
    Returns:
        The path of MyDataSet.
    Raises:
        FileExistsError: MyDataSet is there and holds something else.
        LostWorker: a process was killed.
        ValueError: seed or workers is out of range.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; use 0 or more")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} is not positive; use 1 or more, or None for one a core")
    sizes = sizes or Sizes()
    workers = workers or min(4, os.cpu_count() or 1)
    target = Path(output) / FOLDER
    if not _already_there(target, _manifest(seed, sizes), force):
        with new_folder(target) as folder:
            _write_set(folder, seed, sizes, workers, progress)
    return target


def sample_sheet(path: str | os.PathLike, seed: int = 0, sizes: Sizes | None = None, rows: int = 4) -> None:
    """Write a contact sheet: test persons in rows, cameras in columns; normal on the left, green on the right."""
    sizes = sizes or Sizes()
    gap = max(2, sizes.width // 16)
    plan = plan_demo(seed, sizes)
    tested = {shot.person: shot.domain for shot in plan.shots if shot.paths[0].startswith(TEST_FOLDER)}
    halves = []
    for domain in ("normal", "green"):
        persons = [person for person, of in tested.items() if of == domain][:rows]
        lines = []
        for person in persons:
            pictures = [render(seed, sizes, Shot(person, domain, camid, 1000 + camid, ()))
                        for camid in range(1, sizes.cameras + 1)]
            lines.append(np.hstack([np.pad(p, ((0, gap), (0, gap), (0, 0)), constant_values=255) for p in pictures]))
        halves.append(np.vstack(lines))
    ok, data = cv2.imencode(".png", np.hstack([halves[0], np.full_like(halves[0][:, :3 * gap], 255), halves[1]]))
    assert ok
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
