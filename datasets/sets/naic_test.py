"""NAIC's test folder: its domains and its ground truth."""
from __future__ import annotations

import logging
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

from datasets.bases import Problems, format_names
from datasets.sets.domains import DOMAINS, PARTS, list_name
from datasets.sets.list_files import read_lines
from utils.files import read_json

logger = logging.getLogger(__name__)

TRUTH = "ground_truth.json"


def read_domains(folder: Path, images: dict[str, list[str]],
                 derived: Path | None) -> dict[tuple[str, str], list[str]]:
    """(part, domain) -> sorted names of its images.

    Raises:
        FileNotFoundError: no place holds all four lists; the command that makes them is given.
        ValueError: the lists do not cover the folders exactly.
    """
    places = [place for place in (folder, derived) if place is not None]
    files = [list_name(part, domain) for part in PARTS for domain in DOMAINS]
    place = next((place for place in places if all((place / file).is_file() for file in files)), None)
    command = shlex.join(["python", "tools/split_domains.py", "--data_dir_query", str(folder / "query"),
                          "--data_dir_gallery", str(folder / "gallery"), "--save_dir", str(place or places[-1])])
    if place is None:
        lacking = [f"{folder} lacks {', '.join(file for file in files if not (folder / file).is_file())}"
                   for folder in places]
        raise FileNotFoundError(f"the domain lists are missing ({'; '.join(lacking)}). Make them with\n    {command}")
    logger.info("domain lists: %s", place)
    problems = Problems()
    domains = {}
    for part in PARTS:
        there = set(images[part])
        listed: dict[str, list[str]] = defaultdict(list)
        for domain in DOMAINS:
            file = list_name(part, domain)
            names = {name for _, name in read_lines(place / file, file, problems)}
            domains[part, domain] = sorted(names)
            for name in names:
                listed[name].append(domain)
        for fault, names in (
            (f"listed, but not in {folder / part}", [name for name in listed if name not in there]),
            ("in both lists", [name for name in listed if len(listed[name]) > 1]),
            ("in neither list", [name for name in there if name not in listed]),
        ):
            if names:
                problems.add(f"{part}: {len(names)} image{'s' * (len(names) > 1)} {fault}: {format_names(names)}")
    problems.raise_if_any(f"the domain lists in {place} do not fit {folder}", f"Make them anew with\n    {command}")
    return domains


def read_truth(data: Path, folder: Path, images: dict[str, list[str]]) -> dict[str, tuple[str, int]]:
    """`query/NAME` or `gallery/NAME` -> (pid name, camid), for each test image; empty without a truth file.

    Raises:
        ValueError: the file is malformed, or an image is not in it.
    """
    path = next((place / TRUTH for place in (folder, data) if (place / TRUTH).is_file()), None)
    if path is None:
        return {}
    content = read_json(path)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f'{path}: expected {{"files": {{"query/NAME": {{"pid": "…", "camid": 1}}, …}}}}')
    problems = Problems()
    truth: dict[str, tuple[str, int]] = {}
    missing = []
    for key in (f"{part}/{name}" for part in PARTS for name in images[part]):
        if key not in files:
            missing.append(key)
        elif (known := _parse_truth(files[key])) is None:
            problems.add(f'{key}: expected {{"pid": "…", "camid": a number from 0}}, got {files[key]!r}')
        else:
            truth[key] = known
    if missing:
        problems.add(f"{len(missing)} test image{'s' * (len(missing) > 1)} not in it: {format_names(missing)}")
    problems.raise_if_any(str(path), f"If this truth belongs to another test folder, move it there from {path.parent}.")
    return truth


def _parse_truth(entry: Any) -> tuple[str, int] | None:
    """(pid, camid) of a truth file's entry, None if it is malformed. A pid may be written as a number."""
    if not isinstance(entry, dict):
        return None
    pid, camid = entry.get("pid"), entry.get("camid")
    if isinstance(pid, bool) or not isinstance(pid, int | str) or pid == "":
        return None
    if isinstance(camid, bool) or not isinstance(camid, int) or camid < 0:
        return None
    return str(pid), camid
