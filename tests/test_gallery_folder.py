"""The gallery in a folder: whole commits whatever happens, and nothing is left of the erased."""
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from processor.gallery import Where, open_gallery

DIM = 8
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def vectors_of(ids, dim=DIM, salt=0):
    """A row for each id, [n, D] of length 1."""
    rows = np.stack([np.random.default_rng([int(row), salt]).standard_normal(dim) for row in ids])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def facts_of(ids, salt=0):
    ids = np.asarray(ids)
    return {"camera": ids % 5, "time": 1000 * ids + salt, "identity": ids % 7 - 1,
            "set": [f"s{row % 3}" for row in ids], "name": [f"picture-{row}-{salt}.jpg" for row in ids],
            "data": [f'{{"salt": {salt}}}'] * len(ids)}


def add(gallery, ids, salt=0, **how):
    gallery.add(ids, vectors_of(ids, salt=salt), facts_of(ids, salt), **how)


def in_process(script, *words, **how):
    """A script in another Python, with the repository's root on its path."""
    return subprocess.run([sys.executable, "-c", script, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, **how)


@pytest.fixture
def gallery(tmp_path):
    with open_gallery(tmp_path / "g", DIM) as opened:
        opened.segment_rows = 16
        yield opened


def test_rows_come_back_to_the_bit_after_reopening(gallery):
    ids = [7, 3, 2**63 - 1, 0]
    add(gallery, ids)
    with open_gallery(gallery.folder) as other:
        batch = other.fetch(ids)
    assert batch.ids.tolist() == ids
    assert batch.vectors.tobytes() == vectors_of(ids).tobytes()
    for name, values in facts_of(ids).items():
        assert batch.facts[name].tolist() == list(values)


def test_half_precision_takes_half_the_disk_and_gives_rows_of_length_1(tmp_path):
    ids = list(range(40))
    with open_gallery(tmp_path / "g", 64, vectors="float16") as gallery:
        gallery.add(ids, vectors_of(ids, 64), {})
        rows = gallery.fetch(ids).vectors
        assert np.abs(rows - vectors_of(ids, 64)).max() < 1e-3
        assert np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 1e-6
        assert gallery.info()["vectors"] == "float16"
        assert (gallery.folder / "vectors-000001.float16").stat().st_size == 40 * 64 * 2
        gallery.remove([0])
        gallery.compact()
        assert gallery.fetch(ids[1:]).vectors.tobytes() == rows[1:].tobytes()


# ------------------------------------------------------------------ against a plain dict
class Model(RuleBasedStateMachine):
    """Random interleavings of what a gallery can do, beside a dict {id: (salt, facts)}."""

    ids = Bundle("ids")

    @initialize()
    def start(self):
        self.place = tempfile.TemporaryDirectory()
        self.rows, self.salt = {}, 0
        self.gallery = open_gallery(self.place.name, DIM)
        self.reader = open_gallery(self.place.name)
        self.gallery.segment_rows = 5

    @rule(target=ids, fresh=st.sets(st.integers(0, 40), min_size=1, max_size=12), replace=st.booleans())
    def add(self, fresh, replace):
        fresh, self.salt = sorted(fresh), self.salt + 1
        known = [row for row in fresh if row in self.rows]
        if known and not replace:
            with pytest.raises(ValueError, match="is in the gallery already"):
                add(self.gallery, fresh, self.salt)
            return multiple()
        add(self.gallery, fresh, self.salt, replace=replace)
        facts = facts_of(fresh, self.salt)
        self.rows |= {row: (self.salt, {name: values[place] for name, values in facts.items()})
                      for place, row in enumerate(fresh)}
        return multiple(*fresh)

    @rule(gone=st.lists(consumes(ids), max_size=4), erase=st.booleans())
    def remove(self, gone, erase):
        assert self.gallery.remove(gone, erase=erase) == len({row for row in gone if row in self.rows})
        for row in gone:
            self.rows.pop(row, None)

    @rule(camera=st.integers(0, 4))
    def remove_a_camera(self, camera):
        gone = [row for row, (_, facts) in self.rows.items() if facts["camera"] == camera]
        assert self.gallery.remove(where=Where(cameras=[camera])) == len(gone)
        for row in gone:
            del self.rows[row]

    @rule(picked=st.lists(ids, max_size=4), identity=st.integers(-1, 9), name=st.sampled_from(["s0", "new"]))
    def assign(self, picked, identity, name):
        assert self.gallery.assign(picked, identity=identity, set=name) == len(set(picked) & set(self.rows))
        for row in set(picked) & set(self.rows):
            self.rows[row][1].update(identity=identity, set=name)

    @rule()
    def compact(self):
        self.gallery.compact()
        assert self.gallery.info()["removed_rows"] == 0

    @rule()
    def reopen(self):
        self.gallery.close()
        self.gallery = open_gallery(self.place.name, DIM)
        self.gallery.segment_rows = 5

    @invariant()
    def both_say_the_same(self):
        for gallery in (self.gallery, self.reader):
            where = Where(cameras=[1, 2, 3], since=3000, sets=["s0", "new"])
            for condition in (None, where):
                kept = sorted(row for row, (_, facts) in self.rows.items() if condition is None or (
                    facts["camera"] in where.cameras and facts["time"] >= 3000 and facts["set"] in where.sets))
                assert gallery.count(condition) == len(kept)
                batches = list(gallery.scan(condition, batch=7))
                assert [row for batch in batches for row in batch.ids] == kept
                for batch in batches:
                    self.check(batch)
            if kept:
                query = vectors_of([99])
                expected = sorted(kept, key=lambda row: (-self.score(query, row), row))[:3]
                found = gallery.candidates(query, 4, where)
                assert found.ids[0, :len(expected)].tolist() == expected
                assert (found.ids[0, len(kept):] == -1).all()

    def score(self, query, row):
        return (vectors_of([row], salt=self.rows[row][0])[0] * query[0]).sum()

    def check(self, batch):
        for place, row in enumerate(batch.ids.tolist()):
            salt, facts = self.rows[row]
            assert batch.vectors[place].tobytes() == vectors_of([row], salt=salt).tobytes()
            assert {name: column[place] for name, column in batch.facts.items()} == facts

    def teardown(self):
        self.gallery.close()
        self.reader.close()
        self.place.cleanup()


TestAgainstADict = Model.TestCase
TestAgainstADict.settings = settings(max_examples=6, stateful_step_count=15, deadline=None,
                                     suppress_health_check=list(HealthCheck))
