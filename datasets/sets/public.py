"""The public re-ID sets: a reader for all layouts of `datasets.sets.layouts`.

**Trials.** VehicleID's test list is divided at random: a picture of each vehicle is the gallery and all others are
queries, so that each query has one match. Ten divisions are measured, each as an evaluation of its own; they have
equally many queries, so that the figures of all queries together are the mean of the ten. What is drawn is a function
of trial and vehicle, and the same on every machine.
"""
from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.bases import UNKNOWN_CAMID, Places, Problems, Reference, ReIDData, trial_name
from datasets.files.images import is_safe_path, report_others, scan_images
from datasets.sets.homes import describe_entries, find_home, public_folder
from datasets.sets.layouts import LAYOUTS, Counts, Layout, Split
from datasets.sets.list_files import OUTSIDE, ImageFolder, quoted, read_lines
from datasets.sets.numbering import JUNK, SetImage, to_data, wanted_splits
from utils.files import read_json

__all__ = ["LAYOUTS", "Counts", "load_public", "public_folder"]

_PID_DIGITS = 18  # of a list: what an array holds

logger = logging.getLogger(__name__)


def load_public(reference: Reference, places: Places, parts: Collection[str] = ("train", "test")) -> ReIDData:
    """Read the file names or lists of a public set and compare its counts with the published ones.

    No image is opened. Counts that differ are a warning: a part of a set may be all that a user has.

    Args:
        reference: its kind is of LAYOUTS.
        places: the set's root: the folder that holds the set's own, or that folder itself. `skip`: if parts are "train"
            alone, leave out, with a warning, files and lines that are none of the set's.
        parts: of "train" and "test"; only what is asked for is looked at.
    Raises:
        FileNotFoundError: the set, one of its folders or one of its lists is missing.
        ValueError: two folders hold the set; a file or a line of a list is none of the set's, or leaves its folder (all
            faults).
    """
    name, (home, layout) = reference.kind, find_home(reference, places)
    splits = {split: layout.splits[split] for split in wanted_splits(parts)}
    folders = _find_folders(name, home, splits)
    problems = Problems()
    images = {split: list(_read_split(layout, split, home, folders[split], problems)) for split in splits}
    problems.raise_or_skip(f"{name} in {home}", f"A right name is {layout.example}. Rename or remove what does not "
                           "belong there; complete what is missing. tree:FOLDER and csv:FILE take pictures of any name "
                           "(docs/data.md).", parts, places.skip)
    trials = _draw_trials(images["query"], layout.trials) if layout.trials and "query" in images else []
    for split, rule in splits.items():
        _compare(name, split, (trials[0] if trials else images).get(split, images[split]), rule.published, home)
    if not trials:
        return to_data(name, images)
    return replace(to_data(name, {"train": images.get("train", [])}), eval_sets={
        trial_name(name, number): pair for number, trial in enumerate(trials, 1)
        for pair in to_data(name, trial).eval_sets.values()})


def _draw_trials(images: Sequence[SetImage], count: int) -> list[dict[str, list[SetImage]]]:
    """Divisions of test images, each {"query": …, "gallery": …}."""
    from utils.seed import uniform  # torch takes seconds to import

    by_pid: dict[str, list[SetImage]] = defaultdict(list)
    for image in sorted(set(images)):
        by_pid[image.pid].append(image)
    trials = []
    for trial in range(count):
        draws = uniform(0, trial, np.array([int(pid) for pid in by_pid]), "gallery of a trial", 1)[:, 0]
        gallery = [members[int(share * len(members))] for share, members in zip(draws, by_pid.values(), strict=True)]
        queries = set(images).difference(gallery)
        trials.append({"query": sorted(queries), "gallery": gallery})
    return trials


def _find_folders(name: str, home: Path, splits: dict[str, Split]) -> dict[str, str]:
    """The image folder of each split.

    Raises:
        FileNotFoundError: folders or lists are missing; all of them are named.
    """
    folder_of, missing = {}, []
    for split, rule in splits.items():
        there = [folder for folder in rule.folders if (home / folder).is_dir()]
        folder_of[split] = there[0] if there else ""
        missing += [] if there else [f"{' or '.join(rule.folders)}/"]
        missing += [file for file in rule.lists if not (home / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{name} in {home} is incomplete: no {', no '.join(dict.fromkeys(missing))}; it has "
                                f"{describe_entries(home)}; complete it")
    return folder_of


def _read_split(layout: Layout, split: str, home: Path, folder: str, problems: Problems) -> Iterator[SetImage]:
    """The images of a split; what is none of the set's is added to `problems`."""
    rule = layout.splits[split]
    if not rule.lists:
        others: list[str] = []
        for file, problem in sorted(scan_images(home / folder, others=others)):
            match = layout.name.fullmatch(file)
            if problem:
                problems.add(f"{folder}/{file}: {problem}")
            elif match is None:
                problems.add(f"{folder}/{file}: not a name of this set")
            else:
                yield SetImage(f"{folder}/{file}", rule.prefix + _number(match["pid"]), int(match["camid"]))
        report_others(str(home / folder), others)
        return
    images, pid_of = ImageFolder(home / folder), {}
    for place, path, pid, text in _read_lists(layout, split, home, problems):
        match = layout.name.fullmatch(path.rpartition("/")[2])
        groups = match.groupdict() if match else {}
        pid = groups.get("pid", pid if pid.isascii() and pid.isdigit() and len(pid) <= _PID_DIGITS else "")
        if match is None or not pid:
            problems.add(f"{place}: expected 'PATH PID' with a name of this set, got {quoted(text)}")
        elif fault := images.problem(path) if is_safe_path(path) else OUTSIDE:
            problems.add(f"{place}: {fault}: {quoted(path)} in {images.path}")
        elif pid_of.setdefault(path, pid) != pid:
            problems.add(f"{place}: {quoted(path)} is {pid} here and {pid_of[path]} above")
        else:
            yield SetImage(f"{folder}/{path}", rule.prefix + _number(pid), int(groups.get("camid", UNKNOWN_CAMID)))


def _read_lists(layout: Layout, split: str, home: Path, problems: Problems) -> Iterator[tuple[str, str, str, str]]:
    """(place, path, pid, text) of each line of a split's lists."""
    for file in layout.splits[split].lists:
        if file.endswith(".json"):
            yield from _read_json_list(home / file, split)
            continue
        for number, line in read_lines(home / file, file, problems):
            path, _, pid = line.replace("\t", " ").rpartition(" ")
            path = path.strip()
            yield f"{file}:{number}", path if path.endswith(layout.suffix) else path + layout.suffix, pid, line


def _read_json_list(path: Path, split: str) -> Iterator[tuple[str, str, str, str]]:
    """The images of a split in torchreid's JSON of splits, [{"train": [[PATH, LABEL, CAMERA], …], …}].

    PATH is absolute on the machine that wrote it, and LABEL counts anew in each split: file names say who it is.
    """
    content = read_json(path)
    try:
        files = [row[0].replace("\\", "/").rpartition("/")[2] for row in content[0][split]]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"{path}: not torchreid's list of splits, [{{\"{split}\": [[PATH, LABEL, CAMERA], …], …}}]"
                         ) from None
    for number, file in enumerate(files):
        yield f"{path.name}: {split} {number}", file, "", file


def _number(pid: str) -> str:
    """A pid without leading zeros; JUNK stays."""
    return pid.lstrip("0") or "0"


def _compare(name: str, split: str, images: list[SetImage], published: Counts, home: Path) -> None:
    """Warn if a split is not as large as it was published."""
    used = [image for image in images if image.pid != JUNK]
    cameras = {image.camid for image in used} - {UNKNOWN_CAMID}
    counts = Counts(len(used), len({image.pid for image in used}), len(cameras) or None)
    if all(wanted in (count, None) for count, wanted in zip(counts, published, strict=True)):
        return
    less = any(wanted is not None and (count or 0) < wanted for count, wanted in zip(counts, published, strict=True))
    verdict = "the download is incomplete" if less else "it holds more than the published set"
    logger.warning("%s: %s in %s has %s, published are %s: %s", name, split, home, _describe(counts),
                   _describe(published), verdict)


def _describe(counts: Counts) -> str:
    images = "" if counts.images is None else f"{counts.images:,} images of "
    cameras = "" if counts.cameras is None else f" from {counts.cameras} cameras"
    return f"{images}{counts.identities:,} identities{cameras}"
