"""NAIC's two kinds of test picture: the green/normal rule, and splitting a test folder by it.

One camera system of NAIC gives pictures with a green cast. An image whose B, G and R means are all above 65 is
"green", any other "normal"; each kind is searched only among its own.
"""
from __future__ import annotations

import functools
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.bases import Problems
from datasets.images import FolderSource, decode, list_images
from utils.files import write_text

DOMAINS = ("green", "normal")
GREEN_MEAN = 65  # all three channel means must exceed this

logger = logging.getLogger(__name__)


def list_name(part: str, domain: str) -> str:
    """File name of a domain list: part "query" or "gallery", domain of DOMAINS."""
    return f"{part}_{domain}.txt"


def domain_of(image: np.ndarray) -> str:
    """The domain of a picture.

    Args:
        image: uint8 [h, w, 3]; the order of the channels does not matter.
    Returns:
        "green" where the mean of each channel exceeds GREEN_MEAN, else "normal" (a mean of exactly 65 is normal).
    """
    # Sums, not means: a mean by multiplication with 1 / (h * w) can end up a hair above an exact 65.
    sums = cv2.sumElems(image)[:3]
    return "green" if min(sums) > GREEN_MEAN * image.shape[0] * image.shape[1] else "normal"


def split_domains(query_dir: str | os.PathLike, gallery_dir: str | os.PathLike, save_dir: str | os.PathLike,
                  workers: int | None = None, progress: bool = True) -> dict[str, int]:
    """Write the four domain lists of a test set: one image name a line, sorted, the same for any workers.

    Args:
        query_dir, gallery_dir: folders with images (.png .jpg .jpeg .bmp .webp); hidden files are passed over.
        save_dir: where query_green.txt, query_normal.txt, gallery_green.txt and gallery_normal.txt go.
        workers: processes that decode; None = one a core, eight at most.
        progress: True: a bar on stderr.
    Returns:
        {"query_green": number of images, "query_normal": …, "gallery_green": …, "gallery_normal": …}.
    Raises:
        OSError: a folder is missing.
        ValueError: a folder holds no image, or images cannot be read (named, and no list is written).
    """
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    if workers < 1:
        raise ValueError(f"workers={workers}: it takes at least one process")
    problems = Problems()
    lists: dict[str, list[str]] = {}
    for part, folder in (("query", Path(query_dir)), ("gallery", Path(gallery_dir))):
        if not folder.is_dir():
            raise NotADirectoryError(f"{part} folder {folder} does not exist or is no folder")
        names = list_images(folder)
        if not names:
            raise ValueError(f"{part} folder {folder} holds no image")
        for domain in DOMAINS:
            lists[f"{part}_{domain}"] = []
        for name, (domain, problem) in zip(names, _classify(folder, names, workers, part, progress), strict=True):
            problem = problem or _unlistable(name)
            if problem:
                problems.add(f"{folder / name!s}: {problem}")
            else:
                lists[f"{part}_{domain}"].append(name)
    problems.raise_if_any("images that cannot be split into domains", "Nothing was written.")
    for name, images in lists.items():
        write_text(Path(save_dir) / f"{name}.txt", "".join(f"{image}\n" for image in images))
    return {name: len(images) for name, images in lists.items()}


def _classify(folder: Path, names: list[str], workers: int, part: str, progress: bool) -> Iterator[tuple[str, str]]:
    """(domain, "") or ("", problem) of each image, in order."""
    classify = functools.partial(_classify_one, FolderSource(folder))
    bar = functools.partial(tqdm, total=len(names), desc=part, unit="image", disable=not progress)
    if workers == 1 or len(names) < 64:  # a process takes longer to start than 64 images to decode
        yield from bar(map(classify, names))
        return
    # Spawned, not forked: the caller may hold threads (OpenCV's, torch's), and a fork of those can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (0,)) as pool:
        yield from bar(pool.map(classify, names, chunksize=32))


def _classify_one(source: FolderSource, name: str) -> tuple[str, str]:
    """A worker's unit of work; a fault is returned, not raised, so that all of them can be named."""
    try:
        return domain_of(decode(source.read(name), name="")), ""
    except ValueError as error:
        return "", str(error).removeprefix(": ")
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"


def _unlistable(name: str) -> str:
    """Why a file name cannot stand in a list of one name a line, or ""."""
    if name != name.strip() or "\n" in name or "\r" in name:
        return f"the name {name!r} has a line break, or a blank at an end; rename the file"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"the name {name!r} is not UTF-8; rename the file"
    return ""
