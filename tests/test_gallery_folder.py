"""The gallery in a folder: whole commits whatever happens, and nothing is left of the erased."""
import contextlib
import os
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gallery_killing import DIM, content, vectors_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from processor.gallery import Where, open_gallery
from processor.gallery.nearest import best_rows
from processor.gallery.segments import append_bytes

ROOT = Path(__file__).resolve().parent.parent


def facts_of(ids, salt=0):
    ids = np.asarray(ids)
    return {"camera": ids % 5, "time": 1000 * ids + salt, "identity": ids % 7 - 1,
            "set": [f"s{row % 3}" for row in ids], "name": [f"picture-{row}-{salt}.jpg" for row in ids],
            "data": [f'{{"salt": {salt}}}'] * len(ids)}


def add(gallery, ids, salt=0, **how):
    gallery.add(ids, vectors_of(ids, salt=salt), facts_of(ids, salt), **how)


def start(script, *words, **how):
    """A script in another Python that finds the sources and the tests."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def output_of(process):
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out


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
TestAgainstADict.settings = settings(max_examples=4, stateful_step_count=12, deadline=None,
                                     suppress_health_check=list(HealthCheck))


# ------------------------------------------------------------------ erased rows
def bytes_of(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def secrets(row, salt=0):
    """What of a row must not be found: its vector, name and data, and the middle and end of its thumbnail."""
    return (vectors_of([row], salt=salt).tobytes(), f"picture-{row}-{salt}.jpg".encode(), f"secret-{row}".encode(),
            f"thumb-{row}".encode(), f"Person {row}".encode())


def fill_with_secrets(gallery, ids):
    facts = {**facts_of(ids), "identity": ids, "data": [f'{{"note": "secret-{row}"}}' for row in ids]}
    gallery.add(ids, vectors_of(ids), facts)
    gallery.ledger.put_thumbnails(ids, [b"\xff\xd8" + b"." * 5000 + f"thumb-{row}".encode() for row in ids])
    for row in ids:
        gallery.ledger.name(row, f"Person {row}")


def test_nothing_of_an_erased_person_remains_in_the_files(gallery):
    fill_with_secrets(gallery, list(range(20)))
    gallery.ledger.merge(4, 5)
    gallery.ledger.name(5, "Person 5")
    add(gallery, [4], replace=True)
    reader = open_gallery(gallery.folder)
    assert reader.count() == 20
    assert all(secret in bytes_of(gallery.folder) for secret in secrets(5))
    assert gallery.remove([3, 4, 5], erase=True) == 3
    for row in (3, 4, 5):
        assert [secret for secret in secrets(row) if secret in bytes_of(gallery.folder)] == []
    for row in (0, 7, 19):
        assert all(secret in bytes_of(gallery.folder) for secret in secrets(row))
    assert reader.count() == 17
    reader.close()
    assert gallery.verify() == []


@pytest.mark.parametrize("late", ["remove", "compact"])
def test_erasing_takes_what_was_left_of_rows_removed_or_replaced_before(gallery, late):
    add(gallery, range(20))
    gallery.remove([2])
    add(gallery, [3], salt=1, replace=True)
    assert secrets(2)[0] in bytes_of(gallery.folder)
    if late == "compact":
        gallery.compact()
    gallery.remove([3], erase=True)
    left = bytes_of(gallery.folder)
    assert [secret for secret in (*secrets(2), *secrets(3), *secrets(3, 1)) if secret in left] == []


def test_nothing_of_purged_rows_remains_in_the_files(gallery):
    gallery.add(range(2), vectors_of(range(2)), {"time": [0, -1]})
    assert gallery.purge(30) == 1
    assert vectors_of([0]).tobytes() not in bytes_of(gallery.folder)


def test_an_erasure_that_a_kill_broke_off_is_completed_when_the_gallery_is_opened(gallery, monkeypatch):
    fill_with_secrets(gallery, [0, 1, 2])
    monkeypatch.setattr(gallery, "_finish", lambda **_: None)
    gallery.remove([1], erase=True)
    gallery.close()
    # What compactions and additions that were killed left behind.
    for name in ("vectors-000009.float32", "thumbnails.9.jpegs", ".codes-000001.int8.4194305.0123abcd.tmp"):
        (gallery.folder / name).write_bytes(b"".join(secrets(1)))
    for name in ("vectors-000001.float32", "thumbnails.1.jpegs"):
        with open(gallery.folder / name, "ab") as file:
            file.write(b"".join(secrets(1)))
    assert secrets(1)[0] in bytes_of(gallery.folder)
    with open_gallery(gallery.folder):
        assert [secret for secret in secrets(1) if secret in bytes_of(gallery.folder)] == []


def test_a_scan_under_way_is_told_of_when_it_keeps_erased_rows_on_the_disk(gallery, monkeypatch):
    monkeypatch.setattr("processor.gallery.database.WAIT", 0.1)
    with open_gallery(gallery.folder) as impatient:
        add(impatient, range(20))
        scan = impatient.scan(batch=8)
        next(scan)
        with pytest.raises(TimeoutError, match="a scan that is under way"):
            impatient.remove([3, 9], erase=True)
        add(impatient, [30])  # goes on
        assert [row for batch in scan for row in batch.ids] == [8, *range(10, 20)]
        impatient.remove([], erase=True)
        assert [secret for secret in (*secrets(3), *secrets(9)) if secret in bytes_of(gallery.folder)] == []


# ------------------------------------------------------------------ kills, processes, disks
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_loses_nothing_that_was_acknowledged_and_leaves_no_half(tmp_path, kills):
    killing = "import sys, gallery_killing; gallery_killing.main(sys.argv[1], 1, int(sys.argv[2]))"
    assert output_of(start(killing, tmp_path / "g", kills)).startswith(f"{kills} kills")


def test_two_processes_write_in_turns(gallery):
    script = """if True:
        import sys
        from gallery_killing import vectors_of
        from processor.gallery import open_gallery
        with open_gallery(sys.argv[1]) as gallery:
            for row in range(int(sys.argv[2]), int(sys.argv[2]) + 50, 5):
                gallery.add(range(row, row + 5), vectors_of(range(row, row + 5)), {})
                gallery.remove([row], erase=row % 2 == 0)"""
    for writer in [start(script, gallery.folder, first) for first in (0, 50)]:
        output_of(writer)
    ids = [row for row in range(100) if row % 5]
    assert list(content(gallery)) == ids
    assert gallery.fetch(ids).vectors.tobytes() == vectors_of(ids).tobytes()
    assert gallery.verify() == []


def test_a_reader_goes_on_while_another_process_compacts_and_sees_whole_commits_only(gallery):
    add(gallery, range(30))
    script = """if True:
        import sys
        from gallery_killing import vectors_of
        from processor.gallery import open_gallery
        with open_gallery(sys.argv[1]) as gallery:
            gallery.segment_rows = 16
            for first in range(15):
                gallery.add([first], vectors_of([first], salt=first), {}, replace=True)
                gallery.compact()"""
    writer, rounds = start(script, gallery.folder), 0
    query, scan = vectors_of([3]), gallery.scan(batch=1)
    next(scan)
    while writer.poll() is None or not rounds:
        assert gallery.count() == 30
        assert sorted(gallery.candidates(query, 30).ids[0]) == list(range(30))
        rows, = gallery.scan()
        assert rows.ids.tolist() == list(range(30))
        salts = [row for row in range(30) if rows.vectors[row].tobytes() != vectors_of([row]).tobytes()]
        assert salts in (list(range(len(salts))), list(range(1, len(salts) + 1)))
        rounds += 1
    output_of(writer)
    rest = list(scan)  # as it was when it began, from files that are long unlinked
    assert [batch.vectors.tobytes() for batch in rest] == [vectors_of([row]).tobytes() for row in range(1, 30)]


def test_processes_that_make_the_same_gallery_share_it(tmp_path):
    script = """if True:
        import os, sys
        from gallery_killing import vectors_of
        from processor.gallery import folder, open_gallery
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                children = []
                break
            children.append(child)
        with open_gallery(sys.argv[1], 8) as gallery:
            gallery.add([os.getpid()], vectors_of([1]), {})
        assert not any(os.waitpid(child, 0)[1] for child in children)"""
    for place in (tmp_path / "a", tmp_path / "b"):
        output_of(start(script, place))
        with open_gallery(place) as gallery:
            assert gallery.count() == 4


def test_rows_that_come_while_a_search_is_under_way_do_not_disturb_it(gallery):
    add(gallery, range(4))
    lives = gallery.live(Where(cameras=[0, 1, 2]))
    add(gallery, range(4, 8))
    assert gallery.count() == 8
    ids, _ = best_rows(lives, vectors_of([2, 6]), 3)
    assert np.sort(ids).tolist() == [[0, 1, 2]] * 2


def test_threads_share_a_gallery(gallery):
    faults = []

    def work(first):
        try:
            for row in range(first, first + 20, 4):
                add(gallery, range(row, row + 4))
                assert gallery.candidates(vectors_of([row]), 1).ids.tolist() == [[row]]
                gallery.assign([row], camera=9)
                gallery.remove([row + 1], erase=row % 8 == 0)
                gallery.count(Where(cameras=[9]))
        except Exception as error:
            faults.append(error)
    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert list(content(gallery)) == [row for row in range(80) if row % 4 != 1]
    assert gallery.count(Where(cameras=[9])) == 20


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_full_disk_is_an_error_and_leaves_what_was(gallery):
    add(gallery, range(20))
    before = content(gallery)
    script = """if True:
        import signal, sys
        from gallery_killing import content, vectors_of
        from processor.gallery import open_gallery
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open_gallery(sys.argv[1]) as gallery:
            before = content(gallery)
            for name in ("x", "x" * 400_000):  # the vectors do not fit, and SQLite's log does not
                ids = range(100, 12_000 if name == "x" else 110)
                try:
                    gallery.add(ids, vectors_of(ids), {"name": [name] * len(ids)})
                except OSError as error:
                    print(str(error).count("\\n"), error)
                assert content(gallery) == before
            gallery.add([50], vectors_of([50]), {})
            gallery.remove([50], erase=True)"""
    lines = output_of(start(script, gallery.folder, preexec_fn=limit_files)).splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"0 .*/vectors-00000\d\.float32: nothing was added: File too large", lines[0])
    assert re.fullmatch(r"0 .*/gallery\.sqlite: .*", lines[1])
    assert content(gallery) == before
    assert gallery.verify() == []


def test_a_folder_that_may_not_be_written_is_an_error_and_stays_as_it_is():
    script = """if True:
        import os, sys
        from processor.gallery import folder, open_gallery
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            open_gallery(sys.argv[1])
        except OSError as error:
            print(error)"""
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        os.chmod(place, 0o755)
        with open_gallery(Path(place, "g"), DIM) as gallery:
            add(gallery, range(20))
        names = sorted(path.name for path in gallery.folder.iterdir())
        gallery.folder.chmod(0o555)
        assert f"{gallery.folder}/gallery.sqlite: " in output_of(start(script, gallery.folder))
        gallery.folder.chmod(0o755)
        assert sorted(path.name for path in gallery.folder.iterdir()) == names
        with open_gallery(gallery.folder) as again:
            assert again.count() == 20


# ------------------------------------------------------------------ what is no gallery, or another
@pytest.mark.parametrize(("words", "reason"), [
    ({"dim": 9}, "dimension 8, not 9"), ({"vectors": "float16"}, "dtype float32, not float16"),
    ({"vectors": "int8"}, "expected float32 or float16")])
def test_another_kind_of_vectors_is_refused(gallery, words, reason):
    with pytest.raises(ValueError, match=reason):
        open_gallery(gallery.folder, **words)


def test_a_folder_of_other_files_does_not_become_a_gallery(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        open_gallery(tmp_path, DIM)
    with pytest.raises(ValueError, match="its dimension is needed"):
        open_gallery(tmp_path / "new")
    with pytest.raises(ValueError, match="expected a folder, or qdrant://"):
        open_gallery("redis://localhost", DIM)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("name", "reason"), [("vectors-000001.float32", "damaged: 100 bytes where 512 were written"),
                                              ("gallery.sqlite", "not a database|malformed")])
def test_a_damaged_file_is_named(gallery, name, reason):
    add(gallery, range(20))
    gallery.close()
    content_was = (gallery.folder / name).read_bytes()
    (gallery.folder / name).write_bytes(b"rubbish" * 20 if "sqlite" in name else content_was[:100])
    with pytest.raises(OSError, match=f"{name}.*({reason})"), open_gallery(gallery.folder) as again:
        again.count()


def test_rows_without_vectors_of_their_own_are_named(gallery):
    add(gallery, range(20))
    assert gallery.verify() == []
    with gallery._db.writing() as db:
        db.execute("UPDATE rows SET place = place + 1 WHERE id IN (4, 19)")
    assert gallery.verify() == [f"gallery.sqlite: row {row} has no vector of its own" for row in (4, 5, 19)]


def test_a_compaction_that_the_disk_breaks_off_leaves_what_was(gallery, monkeypatch):
    add(gallery, range(40))
    gallery.remove([0, 20])
    before, names = content(gallery), sorted(path.name for path in gallery.folder.glob("vectors*"))
    written = []

    def fill_up(path, size, data):
        if len(written) > 1:
            raise OSError("no room")
        written.append(append_bytes(path, size, data))
    monkeypatch.setattr("processor.gallery.folder.append_bytes", fill_up)
    with pytest.raises(OSError, match="no room"):
        gallery.compact()
    monkeypatch.undo()
    assert sorted(path.name for path in gallery.folder.glob("vectors*")) == names
    assert content(gallery) == before
    assert gallery.compact() == 2 * DIM * 4


@pytest.mark.parametrize("statements", [
    ["DROP TABLE segments", "CREATE VIEW segments AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
                            "SELECT x AS slot, x AS count FROM c"],
    ["CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM rows; END"],
    ["CREATE INDEX i ON rows (name || data)"], ["ALTER TABLE rows ADD COLUMN more GENERATED ALWAYS AS (id) VIRTUAL"],
    ["CREATE VIRTUAL TABLE more USING fts4(x)"], ["DROP INDEX rows_changed"]])
def test_tables_that_are_not_as_they_were_made_are_named_and_never_read(gallery, statements):
    add(gallery, range(4))
    with gallery._db.writing() as db:
        db.execute("CREATE TABLE mine (x)")  # which nothing reads
    with open_gallery(gallery.folder) as again:
        assert again.count() == 4
    with gallery._db.writing() as db:
        for statement in statements:
            db.execute(statement)
    with pytest.raises(OSError, match=r"gallery.sqlite: damaged, or of another program: not the tables and indices"):
        open_gallery(gallery.folder)


@pytest.mark.parametrize(("name", "statement"), [
    ("gallery", "UPDATE setting SET value='x' WHERE key='dim'"), ("gallery", "UPDATE setting SET value=-4e16"),
    ("gallery", "DELETE FROM setting"), ("ledger", "DELETE FROM setting"), ("ledger", "UPDATE setting SET value=NULL"),
    ("gallery", "UPDATE segments SET count=x'00'"), ("gallery", "UPDATE rows SET place='x'"),
    ("gallery", "UPDATE rows SET place=1 << 40"), ("gallery", "UPDATE rows SET camera=x'ff'"),
    ("gallery", "INSERT INTO dead VALUES (-1, NULL, NULL, 0, 9)"),
    ("ledger", "UPDATE thumbnails SET start=x'00'"), ("removed", "UPDATE removed SET facts='[1'"),
    ("removed", "UPDATE removed SET vector=x'00'"), ("removed", "UPDATE removed SET said='[0, [\"x\"]]'")])
def test_values_that_nobody_wrote_are_told_with_the_file(gallery, name, statement):
    add(gallery, range(4))
    gallery.ledger.put_thumbnails([1], [b"\xff\xd8 a JPEG"])
    gallery.ledger.remove([2])
    gallery.close()
    with contextlib.closing(sqlite3.connect(gallery.folder / f"{name}.sqlite", isolation_level=None)) as db:
        db.execute(statement)

    def read():
        with open_gallery(gallery.folder) as again:
            again.ledger.thumbnail(1)
            again.ledger.undo()
            again.count()

    with pytest.raises(OSError, match=f"{name}.sqlite: damaged"):
        read()


@pytest.mark.parametrize("statement", ["UPDATE segments SET count=zeroblob(20000000)",
                                       "UPDATE setting SET value=zeroblob(20000000) WHERE key='commit'"])
def test_a_long_value_in_the_place_of_a_number_is_not_written_into_the_message(gallery, statement):
    add(gallery, range(4))
    with gallery._db.writing() as db:
        db.execute(statement)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=r"gallery\.sqlite: damaged: .*a bytes of 20000000"):
            gallery.count()
        with pytest.raises(OSError, match=r"gallery\.sqlite: damaged: .*a bytes of 20000000"):
            list(gallery.scan())
        with pytest.raises(OSError, match=r"gallery\.sqlite: damaged: "):
            add(gallery, [9])
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("start", "length"), [(0, 1 << 50), (1 << 50, 4), (-1, 4), (2, 100)])
def test_a_thumbnail_that_lies_outside_its_file_is_told_and_nothing_is_written_there(gallery, start, length):
    add(gallery, range(2))
    gallery.ledger.put_thumbnails([1], [b"\xff\xd8 a JPEG"])
    with gallery.ledger._db.writing() as db:
        db.execute("UPDATE thumbnails SET start=?, length=?", (start, length))
    for step in (lambda: gallery.ledger.thumbnail(1), lambda: gallery.ledger.remove([1])):
        with pytest.raises(OSError, match=r"thumbnails.1.jpegs: damaged: 9 bytes"):
            step()
    assert (gallery.folder / "thumbnails.1.jpegs").stat().st_size == 9


def test_a_later_versions_gallery_is_refused(gallery):
    with gallery._db.writing() as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(ValueError, match="a later version"):
        open_gallery(gallery.folder)


def test_a_row_of_a_set_that_is_not_there_is_damage_and_no_row_that_is_missing(gallery):
    add(gallery, range(4))
    with gallery._db.writing() as db:
        db.execute("DELETE FROM sets")
    assert gallery.verify() == [f"gallery.sqlite: row {row} is of a set that is not there" for row in range(4)]
    for read in (lambda: list(gallery.scan()), lambda: gallery.fetch([2])):
        with pytest.raises(OSError, match=r"gallery\.sqlite: damaged: row \d is of a set that is not there"):
            read()


def test_a_long_name_of_a_set_is_in_memory_once_however_many_rows_it_has(gallery):
    add(gallery, range(40))
    with gallery._db.writing() as db:
        db.execute('UPDATE sets SET name=CAST(zeroblob(5000000) AS TEXT) WHERE code=(SELECT "set" FROM rows)')
    tracemalloc.start()
    try:
        assert sum(len(batch.ids) for batch in gallery.scan()) == 40
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
