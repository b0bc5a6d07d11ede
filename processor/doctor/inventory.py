"""The images of data sets, and which NAIC has by its lists and folders; what is wrong there goes to the findings.

NAIC's lists are read by the same code as in a training, which refuses them at their faults; here what is good stays.
"""
from __future__ import annotations

import codecs
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.bases import Places
from datasets.files.images import FileSource, is_safe_path, scan_images
from datasets.naic import TRAIN_SETS, UNLABEL, TrainSet, cleaned_lists, list_label, raw_list
from datasets.sets import naic_lists
from datasets.sets.domains import PARTS, unlistable
from datasets.sets.list_files import quoted, read_list_file
from datasets.sets.naic_test import read_domains, read_truth
from processor.doctor.findings import Findings, Picture

NO_IDENTITY = -1
_KIND_OF_FAULT = {
    naic_lists.NOT_TEXT: "not text", naic_lists.MALFORMED: "malformed line", naic_lists.OUTSIDE: "outside",
    naic_lists.MISSING: "missing image", naic_lists.TWO_PIDS: "two pids", naic_lists.REPEATED: "repeated line",
}
logger = logging.getLogger(__name__)


@dataclass
class ImageSet:
    """One set of images.

    Attributes:
        name: 2019_cs … 2020_fs, unlabel, query, gallery; of another set with the set's name, "market1501 query".
        folder: what its keys begin with: NAIC's image folder, another set's name.
        is_test: query and gallery.
        files: below the folder, without those that the lists name wrongly.
        identities: [n] int32, index into Inventory.identities, or NO_IDENTITY.
        list: the training list that was read, or None.
        lines: [n] int32, the files' lines in it.
        two_pids: the files that it names under several identities.
        reference: the set's name, or that of the set whose part it is.
        cameras: how many there are, 0 = unknown.
    """

    name: str
    folder: str
    is_test: bool
    files: list[str]
    identities: np.ndarray
    list: Path | None = None
    lines: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    two_pids: set[str] = field(default_factory=set)
    reference: str = "naic"
    cameras: int = 0

    @property
    def numbering(self) -> str:
        """What its identities are numbered with: each of NAIC's training sets by itself, its test sets together."""
        if self.reference != "naic":
            return self.reference
        return "test" if self.is_test else self.name


class Inventory:
    """All images of the data sets, numbered through their parts.

    Attributes:
        data: MyDataSet/; without NAIC, the folder that holds the sets.
        sets: NAIC's in the order of TRAIN_SETS, then unlabel, query, gallery; of others train, query, gallery; those
            that are there.
        identities: their names, such as "2020_cs 17" or, of a test folder with known truth, "test 17".
        source: where the images are read.
        numberings: of the sets, see ImageSet.numbering.
        set_of: [N] uint8, index into sets.
        identity_of: [N] int32, index into identities, or NO_IDENTITY.
        in_test: [N] bool, the images of query and gallery.
    """

    def __init__(self, data: Path, sets: list[ImageSet], identities: list[str], source: FileSource) -> None:
        self.data, self.sets, self.identities, self.source = data, sets, identities, source
        self.numberings = [image_set.numbering for image_set in sets]
        self._starts = np.cumsum([0, *(len(image_set.files) for image_set in sets)])
        self.set_of = np.repeat(np.arange(len(sets), dtype=np.uint8), np.diff(self._starts))
        self.in_test = np.array([image_set.is_test for image_set in sets], bool)[self.set_of]
        self.identity_of = np.concatenate([np.zeros(0, np.int32), *(image_set.identities for image_set in sets)])

    def __len__(self) -> int:
        return len(self.set_of)

    def span(self, position: int) -> slice:
        """The images of the set at a position."""
        return slice(*map(int, self._starts[position:position + 2]))

    def numbering(self, index: int) -> str:
        """What an image's identity is numbered with, see ImageSet.numbering."""
        return self.numberings[self.set_of[index]]

    def key(self, index: int) -> str:
        """What `ImageSource.read` takes."""
        position = self.set_of[index]
        image_set = self.sets[position]
        return f"{image_set.folder}/{image_set.files[index - self._starts[position]]}"

    def label(self, index: int) -> str:
        """An image's set and, if it is known, identity, such as "2020_cs 17" or "gallery person3"."""
        image_set, identity = self.sets[self.set_of[index]], self.identity_of[index]
        name = "" if identity == NO_IDENTITY else self.identities[identity]
        if image_set.is_test:
            return f"{image_set.name} {name.removeprefix('test ').removeprefix(f'{image_set.reference}/')}".strip()
        return name or image_set.name

    def picture(self, index: int) -> Picture:
        """An image for the pictures of a finding."""
        return Picture(self.key(index), self.label(index))


# ------------------------------------------------------------------------------------------------------------ NAIC
def read_naic(data: Path, places: Places, parts: Sequence[str], ignore_cleaned: bool, identities: list[str],
              findings: Findings) -> list[ImageSet]:
    """NAIC's sets that are there.

    Args:
        data: MyDataSet/.
        places: no train_sets are those that are there; one that is named and is not there would stop a training.
        parts: of "train" and "test".
        ignore_cleaned: True: read train_list.txt even if there is a cleaned list.
        identities: new ones are appended.
        findings: takes all that is wrong with lists and names.
    Raises:
        ValueError: train_sets or test_dir cannot be.
    """
    train_sets, derived = places.train_sets, places.derived_dir and Path(places.derived_dir)
    unknown = [name for name in train_sets if name not in TRAIN_SETS]
    if unknown:
        raise ValueError(f"unknown training set {', '.join(map(repr, unknown))}; choose from {', '.join(TRAIN_SETS)}")
    if not is_safe_path(places.test_dir):
        raise ValueError(f"the test folder {places.test_dir!r} must be the name of a folder inside {data}")
    sets: list[ImageSet] = []
    for name, train_set in {**TRAIN_SETS, "unlabel": UNLABEL}.items() if "train" in parts else ():
        if train_sets and name not in (*train_sets, "unlabel"):
            continue
        if (data / train_set.folder).is_dir():
            image_set = _find_train_set(data, name, train_set, derived, ignore_cleaned, identities, findings)
            sets += [image_set] if image_set else []
        elif train_set != UNLABEL:
            findings.add("incomplete set" if train_sets else "absent", f"no folder {data / train_set.folder}")
    return [*sets, *(_read_test(data, places.test_dir, derived, identities, findings) if "test" in parts else ())]


def _find_train_set(data: Path, name: str, train_set: TrainSet, derived: Path | None, ignore_cleaned: bool,
                    identities: list[str], findings: Findings) -> ImageSet | None:
    """A training set, None if its list or image folder is missing; new identities are appended."""
    folder = data / train_set.folder
    key_folder = f"{train_set.folder}/{train_set.images}"
    if not (folder / train_set.images).is_dir():
        findings.add("incomplete set", f"no image folder {folder / train_set.images}")
        return None
    cleaned = [] if ignore_cleaned else cleaned_lists(data, train_set, derived)
    path = cleaned[0] if cleaned else raw_list(folder, train_set)
    if cleaned:
        findings.add("list in use", f"{name}: {list_label(data, path)}")
    elif not path.is_file():
        if train_set == UNLABEL:
            findings.add("absent", f"no list {path}: its images are looked at without identities")
            return _read_folder(data, name, key_folder, findings, is_test=False)
        findings.add("incomplete set", f"no list {path}")
        return None
    return _read_train_set(data, name, train_set, path, identities, findings)


def _read_train_set(data: Path, name: str, train_set: TrainSet, path: Path, identities: list[str],
                    findings: Findings) -> ImageSet:
    title = list_label(data, path)
    _check_format(path, title, findings)
    image_set = ImageSet(name, f"{train_set.folder}/{train_set.images}", False, [], np.zeros(0), path)
    identity_of: dict[str, int] = {}
    lines, chosen = [], []
    named = set()
    for line in naic_lists.read_list(path, train_set.prefix, data / image_set.folder):
        named.add(line.file)
        place = f"{title}:{line.number}"
        if line.file in train_set.mislabelled:
            findings.add("mislabelled", f"{place}: {line.file}")
            continue
        if line.fault:
            pictures = (Picture(f"{image_set.folder}/{line.file}", f"{name} {line.pid}"),)
            findings.add(_KIND_OF_FAULT[line.fault], f"{place}: {line.text}",
                         pictures if line.fault in _LISTED_AGAIN else ())
            if line.fault == naic_lists.TWO_PIDS:
                image_set.two_pids.add(line.file)
            continue
        if line.pid not in identity_of:
            identity_of[line.pid] = len(identities)
            identities.append(f"{name} {line.pid}")
        image_set.files.append(line.file)
        lines.append(line.number)
        chosen.append(identity_of[line.pid])
    image_set.lines, image_set.identities = np.array(lines, np.int32), np.array(chosen, np.int32)
    logger.info("%s: %d images of %d identities", title, len(lines), len(identity_of))
    for file, problem in _sorted_scan(data / image_set.folder):
        # A cleaned list leaves images out on purpose.
        if not problem and file not in named and path.name != train_set.cleaned:
            findings.add("unlisted image", f"{image_set.folder}/{file}")
    return image_set


_LISTED_AGAIN = (naic_lists.TWO_PIDS, naic_lists.REPEATED)


def _check_format(path: Path, title: str, findings: Findings) -> None:
    """Check a list for what other programs may stumble over."""
    content = read_list_file(path)
    marks = []
    if content.startswith(codecs.BOM_UTF8):
        marks.append("a byte-order mark")
    if b"\r\n" in content:
        marks.append("CRLF line ends")
    if b"\n\n" in content or b"\n\r\n" in content or content.startswith((b"\n", b"\r\n")):
        marks.append("blank lines")
    if marks:
        findings.add("list format", f"{title}: {' and '.join(marks)}")


# ------------------------------------------------------------------------------------------------------------ test
def _read_test(data: Path, test_dir: str, derived: Path | None, identities: list[str],
               findings: Findings) -> list[ImageSet]:
    """query and gallery, with their identities if the truth is known."""
    folder = data / test_dir
    if not any((folder / part).is_dir() for part in PARTS):
        findings.add("absent", f"no test folder {folder}")
        return []
    sets = []
    for part in PARTS:
        if (folder / part).is_dir():
            sets.append(_read_folder(data, part, f"{test_dir}/{part}", findings, is_test=True))
        else:
            findings.add("incomplete set", f"no folder {folder / part}")
    if len(sets) < len(PARTS):
        return sets
    images = {image_set.name: image_set.files for image_set in sets}
    try:
        truth = read_truth(data, folder, images)
    except ValueError as error:
        findings.add("wrong truth", str(error))
        truth = {}
    try:
        read_domains(folder, images, derived)
    except FileNotFoundError as error:
        findings.add("absent", str(error))
    except ValueError as error:
        findings.add("wrong truth", str(error))
    if truth:
        pids = sorted({pid for pid, _ in truth.values()})
        numbers = {pid: number for number, pid in enumerate(pids, len(identities))}
        identities += [f"test {pid}" for pid in numbers]
        for image_set in sets:
            known = [truth[f"{image_set.name}/{file}"] for file in image_set.files]
            image_set.identities = np.array([numbers[pid] for pid, _ in known], np.int32)
            image_set.cameras = len({camid for _, camid in known})
        query, gallery = sets
        for file, has_match in zip(query.files, np.isin(query.identities, gallery.identities), strict=True):
            if not has_match:
                key = f"{query.folder}/{file}"
                findings.add("no match", f"{key}: its person is not in the gallery", (Picture(key, "query"),))
    return sets


def _read_folder(data: Path, name: str, folder: str, findings: Findings, is_test: bool) -> ImageSet:
    """All images of a folder that has no list."""
    files = []
    for file, problem in _sorted_scan(data / folder):
        if problem:
            findings.add("outside" if "leads out" in problem else "bad name", f"{folder}: {quoted(file)}: {problem}")
        else:
            files.append(file)
    return ImageSet(name, folder, is_test, files, np.full(len(files), NO_IDENTITY, np.int32))


def _sorted_scan(folder: Path) -> list[tuple[str, str]]:
    """(name, problem or "") of image_set image file, sorted by name."""
    return sorted((name, problem or unlistable(name)) for name, problem in scan_images(folder))
