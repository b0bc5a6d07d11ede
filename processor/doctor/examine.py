"""The whole examination, in its order: lists, images, comparisons, cleaned lists, reports."""
from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from datasets.bases import Places
from datasets.naic import TEST_DIR
from datasets.registry import ChosenSets, parse_names
from processor.doctor.checks import check_equal, check_images, check_near
from processor.doctor.clean_lists import EQUAL_BY, apply_equal_list, find_equal, write_clean_lists, write_equal_lists
from processor.doctor.duplicates import MAX_BITS
from processor.doctor.findings import Findings
from processor.doctor.inspection import Inspected, RecordStore, inspect_images
from processor.doctor.inventory import Inventory
from processor.doctor.page import write_page
from processor.doctor.reading import read_inventory
from processor.doctor.report import Report, format_text, report_dict, set_figures
from utils.files import write_json, write_text
from utils.process import RunLock

RECORDS = "doctor_records.sqlite"
_FORMAT = 3  # of the records: those of another number are dropped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DoctorOptions:
    """What the doctor does beside reading the lists and the images.

    Attributes:
        train_sets, test_dir, derived_dir: as DATASETS.TRAIN_SETS, TEST_DIR and DERIVED_DIR, of NAIC alone; no sets =
            those that exist.
        lists_only: True: no image is opened.
        near_bits: most different bits of 256 of near-duplicates, 0 … MAX_BITS; None: they are not looked for.
        write_clean_lists: True: write the cleaned lists and the lists of equal paths, from the sets' own lists.
        equal_lists: existing lists of equal paths; the cleaned lists of their sets are made by them.
        equal_by: of EQUAL_BY, when two images are equal for the cleaned lists.
        least_identities: that a batch of the training takes.
        workers: processes that read images; None = one a core, sixteen at most.
        progress: True: show it.
    """

    train_sets: Sequence[str] = ()
    test_dir: str = TEST_DIR
    derived_dir: Path | None = None
    lists_only: bool = False
    near_bits: int | None = None
    write_clean_lists: bool = False
    equal_lists: Sequence[Path] = ()
    equal_by: str = "bytes"
    least_identities: int = 2
    workers: int | None = None
    progress: bool = True

    def check(self) -> None:
        """Raise ValueError if an option is out of range, or two contradict each other."""
        if self.equal_by not in EQUAL_BY:
            raise ValueError(f"equal_by={self.equal_by!r}: choose from {', '.join(EQUAL_BY)}")
        if self.near_bits is not None and not 0 <= self.near_bits <= MAX_BITS:
            raise ValueError(f"{self.near_bits} bits for near-duplicates: choose from 0 … {MAX_BITS}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers}: it takes at least one process")
        if self.lists_only and (self.write_clean_lists or self.near_bits is not None):
            raise ValueError("equal and nearly equal images cannot be found from the lists only")
        if self.derived_dir and (self.write_clean_lists or self.equal_lists):
            raise ValueError("cleaned lists are made from the sets' own lists; leave out the folder of derived ones")


def examine(data: str | os.PathLike | ChosenSets, output: str | os.PathLike, options: DoctorOptions) -> Report:
    """Examine data sets and write doctor.txt, doctor.json, doctor.html and the lists asked for.

    The images' records stay in doctor_records.sqlite, so that another run reads new and changed images only.

    Args:
        data: the sets that a config names; or, of NAIC alone, the folder that holds MyDataSet/, or MyDataSet itself.
        output: the folder for all that is written.
    Raises:
        ValueError: two options contradict each other, or an existing list cannot be applied.
        OSError: there is no such data, or it cannot be read.
    """
    options.check()
    output = Path(output)
    findings = Findings()
    cleaning = options.write_clean_lists or bool(options.equal_lists)
    inventory = read_inventory(_choose_sets(data, options, output if cleaning else None), findings, cleaning,
                               options.least_identities)
    equal: dict[str, set[str]] = defaultdict(set)
    for path in options.equal_lists:  # before the images are read: a list that does not fit is refused at once
        for name, files in apply_equal_list(inventory, path).items():
            equal[name] |= files
    output.mkdir(parents=True, exist_ok=True)
    with RunLock(output / ".doctor.lock"):
        inspected = None if options.lists_only else _inspect(inventory, output, options)
        report = _compare(inventory, inspected, findings, options)
        if options.write_clean_lists:
            detected = find_equal(inventory, inspected, options.equal_by)
            detected = {name: files for name, files in detected.items() if name not in equal}
            write_equal_lists(inventory, detected, output)
            equal |= detected
        report.clean_lists += write_clean_lists(inventory, inspected, equal, output)
        write_text(output / "doctor.txt", format_text(report))
        write_json(output / "doctor.json", report_dict(report))
        write_page(output / "doctor.html", report, inventory.source)
    return report


def _choose_sets(data: str | os.PathLike | ChosenSets, options: DoctorOptions, derived: Path | None) -> ChosenSets:
    """What is examined; derived: the folder for cleaned lists, None = none are written."""
    naic = parse_names("naic")
    places = Places("", tuple(options.train_sets), options.test_dir, options.derived_dir)
    sets = data if isinstance(data, ChosenSets) else ChosenSets(naic, naic, replace(places, root=data))
    if derived is None:
        return sets
    if naic[0] not in sets.named:
        raise ValueError("cleaned lists are made of NAIC's training sets, and none of them is among the sets here: "
                         f"{', '.join(reference.name for reference in sets.named)}")
    return replace(sets, places=replace(sets.places, derived_dir=derived))


def _inspect(inventory: Inventory, output: Path, options: DoctorOptions) -> Inspected:
    roots = ", ".join(map(os.path.realpath, inventory.source.roots))
    made_for = f"format {_FORMAT}, OpenCV {cv2.__version__}, {roots}"
    workers = min(16, os.cpu_count() or 1) if options.workers is None else options.workers
    with RecordStore(output / RECORDS, made_for) as store:
        return inspect_images(inventory.source, len(inventory), inventory.key, store, workers, options.progress)


def _compare(inventory: Inventory, inspected: Inspected | None, findings: Findings, options: DoctorOptions) -> Report:
    """Check the images and compare them; None: only the lists were read."""
    sets = len(inventory.sets)
    shared, near, uncompared = np.zeros((sets, sets), np.int64), None, None
    if inspected is not None:
        check_images(inventory, inspected, findings)
        shared = check_equal(inventory, inspected, findings)
        if options.near_bits is not None:
            near, uncompared = check_near(inventory, inspected, options.near_bits, findings, options.progress)
    return Report(str(inventory.data), set_figures(inventory, inspected), findings, inspected is not None, shared, near,
                  uncompared)
