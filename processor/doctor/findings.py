"""The kinds of findings about a data set, and a collector that counts all and keeps the first of each kind."""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

STOPS, SPOILS, NOTE = SEVERITIES = ("stops a training", "spoils a result", "worth knowing")


class Kind(NamedTuple):
    """severity: of SEVERITIES; title: of a count, in the plural; advice: what it means and what to do."""

    severity: str
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    # ------------------------------------------------------------------------------------------ stops a training
    "incomplete set": Kind(STOPS, "sets without their list or image folder", "Complete the set's folder."),
    "unreadable set": Kind(STOPS, "sets or parts of sets that are not as their layout says", "So a training would end; "
                           "what can be read of them was examined all the same."),
    "not text": Kind(STOPS, "list lines that are not UTF-8, or far too long",
                     "Save the list as UTF-8, an image a line."),
    "malformed line": Kind(STOPS, "malformed list lines", "A line is NAME:PID or NAME PID, with a PID of digits."),
    "outside": Kind(STOPS, "names that leave their folder", "A name may not climb out of its image folder, by .., an "
                    "absolute path or a link. They are refused everywhere: put the images themselves there."),
    "missing image": Kind(STOPS, "listed images that are not there", "Complete the image folder, or take the lines "
                          "out of the list."),
    "two pids": Kind(STOPS, "images listed under two identities", "One of the lines is wrong, and only a person can "
                     "tell which: correct the list, or take both lines out."),
    "bad name": Kind(STOPS, "files whose names cannot be used", "Rename them: a list of one name a line cannot hold "
                     "them, or another system would take them for a path."),
    "truncated image": Kind(STOPS, "images that are cut off", "The download or the copy was interrupted: get them "
                            "again, or take them out of the list."),
    "unreadable image": Kind(STOPS, "images that cannot be read", "Damaged, empty, of a kind that is not read, or far "
                             "too large: get them again, or take them out of the list."),
    "nothing to train on": Kind(STOPS, "data sets without an identity of two images", "Training needs two images of an "
                                "identity: an identity with one is dropped. Here is what was looked for and what lies "
                                "there."),
    "too few identities": Kind(STOPS, "trainings with fewer identities than a batch takes", "A training tells people "
                               "apart, so that it takes two at least. Lower SOLVER.IMS_PER_BATCH, or raise "
                               "DATALOADER.NUM_INSTANCE."),
    "wrong truth": Kind(STOPS, "test files that do not fit the test folder", "The ground truth and the domain lists "
                        "must name the images of query/ and gallery/ exactly."),
    # ------------------------------------------------------------------------------------------- spoils a result
    "test picture in training": Kind(SPOILS, "pictures that are in the test and in a training set", "What is measured "
                                     "on them says nothing: take them out of the training lists."),
    "picture of two identities": Kind(SPOILS, "pictures under two identities of one set", "At least one of the labels "
                                      "is wrong, or the two identities are one person."),
    "contradiction": Kind(SPOILS, "pairs of identities that share pictures and cannot be one person",
                          "By most of the pictures that two sets share, an identity of one is a certain identity of "
                          "the other; these pictures say otherwise. A label is wrong (two swapped ones show as two "
                          "such pairs), or one person has two identities in a set."),
    "same person": Kind(SPOILS, "pairs of identities of two sets that are one person", "They share pictures. A "
                        "training pushes one person apart as two; --write-clean-lists takes the shared pictures out of "
                        "one set, while what only one set has stays under two identities."),
    "picture in two sets": Kind(SPOILS, "pictures that stand in several training sets", "Each has an identity in every "
                                "set, so that a training is told to tell a picture from itself. --write-clean-lists "
                                "keeps them in one set only."),
    "near-duplicate": Kind(SPOILS, "nearly equal pictures of two identities, or of training and test", "The same "
                           "picture in another size, compression or brightness, by its perceptual hash: look at them. "
                           "If they are one picture, a label is wrong or the test is in the training."),
    "no match": Kind(SPOILS, "queries without a match in the gallery", "They are in no figure. Where a person was seen "
                     "by the query's own camera only, TEST.DROP_SAME_CAMERA false lets these pictures count."),
    "damaged image": Kind(SPOILS, "JPEG files that are damaged in their middle", "They can be read, but from the "
                          "damage on rows may be grey, shifted or of other colours: look at them, and get them again. "
                          "A JPEG has no checksum, so that one in which a few bits are wrong may look whole."),
    "odd size": Kind(SPOILS, "images of an odd size", "A side below 16 pixels, four times as large or as small as "
                     "usual in their set, or of quite another shape: often a wrong file or a failed crop."),
    "odd mode": Kind(SPOILS, "images that are not 8-bit RGB", "They are converted when they are read; transparency and "
                     "the lower bits are lost. Grey pictures among coloured ones are learned as a trait."),
    # -------------------------------------------------------------------------------------------- worth knowing
    "misnamed format": Kind(NOTE, "images whose suffix names another format", "They are read by their content here; "
                            "other programs may refuse them."),
    "copies in a set": Kind(NOTE, "pictures that stand several times in a set, under one identity", "They weigh more "
                            "than others, and count as several images of an identity that has fewer."),
    "query in gallery": Kind(NOTE, "pictures that are both in query and in gallery", "Such a match is found by any "
                             "model."),
    "one image": Kind(NOTE, "identities with one image", "They are dropped: a triplet needs two images of a person."),
    "mislabelled": Kind(NOTE, "images known to be mislabelled", "They are passed over, as DMT and NAIC-ReID do: "
                        "their labels are wrong."),
    "repeated line": Kind(NOTE, "list lines that repeat another", "An image counts once."),
    "unlisted image": Kind(NOTE, "images that no list names", "They are not used, and were not looked at."),
    "list format": Kind(NOTE, "lists with a byte-order mark, CRLF or blank lines", "They are read all the same; other "
                        "programs may stumble."),
    "foreign name": Kind(NOTE, "names that are not ASCII", "They are read all the same; on systems with another "
                         "encoding, and in archives, such names break."),
    "list in use": Kind(NOTE, "cleaned lists in use", "They are read instead of train_list.txt."),
    "absent": Kind(NOTE, "parts that are not there", "Training reads all four sets unless DATASETS.TRAIN_SETS names "
                   "those that you have; testing needs the test folder and its domain lists."),
}


class Picture(NamedTuple):
    """An image of a finding: its key, and a label such as "2020_cs 17"."""

    key: str
    label: str


class Item(NamedTuple):
    """A finding: place and fact, and its pictures."""

    text: str
    pictures: tuple[Picture, ...] = ()


class Findings:
    """Counts every finding, and keeps the first `kept` of each kind, so that memory is bounded."""

    def __init__(self, kept: int = 1000) -> None:
        self.kept = kept
        self.counts: dict[str, int] = {}
        self._items: dict[str, list[Item]] = {}

    def add(self, kind: str, text: str, pictures: tuple[Picture, ...] = ()) -> None:
        """Count a finding of a kind of KINDS, and keep it if there is room."""
        assert kind in KINDS, kind
        self.counts[kind] = self.counts.get(kind, 0) + 1
        items = self._items.setdefault(kind, [])
        if len(items) < self.kept:
            items.append(Item(text, pictures))

    def wants(self, kind: str) -> bool:
        """False: no more text and pictures of this kind are kept, so that `count_more` is enough."""
        return len(self._items.get(kind, ())) < self.kept

    def count_more(self, kind: str, number: int) -> None:
        """Count findings without text and pictures."""
        if number:
            self.counts[kind] = self.counts.get(kind, 0) + number

    def items(self, kind: str) -> list[Item]:
        """The findings of a kind that were kept."""
        return self._items.get(kind, [])

    def kinds(self, severity: str | None = None) -> Iterator[str]:
        """The kinds with findings, in KINDS' order; all or those of a severity."""
        return (kind for kind in KINDS if kind in self.counts and severity in (None, KINDS[kind].severity))

    def total(self, severity: str) -> int:
        """Findings of a severity."""
        return sum(self.counts[kind] for kind in self.kinds(severity))
