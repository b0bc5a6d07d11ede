"""NAIC's two kinds of test picture: the green/normal rule, and splitting a test folder by it.

One camera system of NAIC gives pictures with a green cast. An image whose B, G and R means are all above 65 is
"green", any other "normal"; each kind is searched only among its own.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from datasets.bases import Problems
from datasets.files.images import BadImage, decode, list_images
from datasets.sets.homes import describe_entries
from utils.files import write_text
from utils.parallel import in_processes
from utils.progress import progress as show_progress

PARTS = ("query", "gallery")
DOMAINS = ("green", "normal")
GREEN_MEAN = 65  # all three channel means must exceed this
Item = TypeVar("Item")


def list_name(part: str, domain: str) -> str:
    """File name of a domain list: part of PARTS, domain of DOMAINS."""
    return f"{part}_{domain}.txt"


def domain_of(image: np.ndarray) -> str:
    """The domain of a picture.

    Args:
        image: uint8 [h, w, 3]; the order of the channels does not matter.
    Returns:
        "green" if the mean of each channel exceeds GREEN_MEAN, else "normal" (a mean of exactly 65 is normal).
    """
    # Sums, not means: a mean by multiplication with 1 / (h * w) can end up a hair above an exact 65.
    sums = cv2.sumElems(image)[:3]
    return "green" if min(sums) > GREEN_MEAN * image.shape[0] * image.shape[1] else "normal"


def split_domains(query_dir: str | os.PathLike, gallery_dir: str | os.PathLike, save_dir: str | os.PathLike,
                  workers: int | None = None, progress: bool = True) -> dict[str, int]:
    """Write the four domain lists of a test set: one image name a line, sorted, the same for any workers.

    Args:
        query_dir, gallery_dir: folders with images; hidden files and those in sub-folders are passed over.
        save_dir: where query_green.txt, query_normal.txt, gallery_green.txt and gallery_normal.txt go.
        workers: processes that decode; None = one a core, eight at most.
        progress: True: a bar on a terminal, now and then a log line elsewhere.
    Returns:
        {"query_green": number of images, "query_normal": …, "gallery_green": …, "gallery_normal": …}.
    Raises:
        OSError: a folder is missing.
        ValueError: a folder holds no image, or images cannot be read (named, and no list is written).
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: it takes at least one process")
    images: list[tuple[str, Path, str]] = []  # part, folder, name
    for part, folder in (("query", Path(query_dir)), ("gallery", Path(gallery_dir))):
        if not folder.is_dir():
            raise NotADirectoryError(f"{part} folder {folder} does not exist or is no folder")
        names = list_images(folder)
        if not names:
            raise ValueError(f"{part} folder {folder} holds no image: it has {describe_entries(folder)}")
        images += [(part, folder, name) for name in names]
    problems = Problems()
    lists: dict[str, list[str]] = {list_name(part, domain): [] for part in PARTS for domain in DOMAINS}
    results = classify([folder / name for _, folder, name in images], Path.read_bytes, workers, progress)
    for (part, folder, name), (domain, problem) in zip(images, results, strict=True):
        problem = problem or unlistable(name)
        if problem:
            problems.add(f"{folder / name}: {problem}")
        else:
            lists[list_name(part, domain)].append(name)
    problems.raise_if_any("images that cannot be split into domains", "Nothing was written.")
    for file, names in lists.items():
        write_text(Path(save_dir) / file, "".join(f"{name}\n" for name in names))
    return {file.removesuffix(".txt"): len(names) for file, names in lists.items()}


def classify(images: list[Item], read: Callable[[Item], bytes], workers: int | None = None,
             progress: bool = True) -> Iterator[tuple[str, str]]:
    """The domain of each image, in order; closing the iterator ends the work.

    Args:
        images: what `read` takes.
        read: the bytes of an image's file; picklable.
        workers, progress: as `split_domains` has them.
    Yields:
        (domain, "") or, of an image that cannot be read, ("", problem).
    Raises:
        LostWorker: a process was killed.
    """
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    with closing(in_processes(partial(_classify_image, read), images, len(images), workers,
                              doing="reads images")) as results:
        yield from show_progress(results, "splitting", "image", total=len(images)) if progress else results


def _classify_image(read: Callable[[Item], bytes], image: Item) -> tuple[str, str]:
    """(domain, problem) of an image; a fault is returned, not raised, so that all of them can be named."""
    try:
        return domain_of(decode(read(image))), ""
    except BadImage as error:
        return "", str(error)
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"


def unlistable(name: str) -> str:
    """Why a file name cannot stand in a list of one name a line, or ""."""
    if name != name.strip() or "\n" in name or "\r" in name:
        return f"the name {name!r} has a line break, or a blank at an end; rename the file"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"the name {name!r} is not UTF-8; rename the file"
    return ""
