"""The ledger of a gallery: names, a person's word and its undoing, thumbnails, the model."""
import numpy as np
import pytest
from gallery_killing import DIM, vectors_of

from processor.gallery import Where, open_gallery

JPEG = b"\xff\xd8" + bytes(range(200))


@pytest.fixture
def gallery(tmp_path):
    """Rows 0 .. 8: three of identity 1, three of 2, three of nobody known."""
    with open_gallery(tmp_path / "g", DIM) as opened:
        opened.add(range(9), vectors_of(range(9)), {"identity": [1, 1, 1, 2, 2, 2, -1, -1, -1]})
        yield opened


def rows_of(gallery, identity):
    return [row for batch in gallery.scan(Where(identities=[identity])) for row in batch.ids.tolist()]


def failing(error):
    def fail(*_, **__):
        raise error
    return fail


def test_a_merge_keeps_a_name_and_is_undone(gallery):
    gallery.ledger.name(2, "Ann")
    gallery.ledger.merge(1, 2, who="me")
    assert rows_of(gallery, 1) == [0, 1, 2, 3, 4, 5]
    assert gallery.ledger.names() == {1: "Ann"}
    assert gallery.ledger.by_human(range(9)).tolist() == [True] * 6 + [False] * 3
    change = gallery.ledger.undo()
    assert (change.who, change.what) == ("me", "merge 2 into 1")
    assert rows_of(gallery, 2) == [3, 4, 5]
    assert gallery.ledger.names() == {2: "Ann"}
    assert not gallery.ledger.by_human(range(9)).any()
    assert gallery.ledger.undo().what == "name 2"
    assert gallery.ledger.names() == {}
    with pytest.raises(ValueError, match="nothing is left to undo"):
        gallery.ledger.undo()
    assert [change.undone for change in gallery.ledger.history(undone=True)] == [True, True]


def test_a_split_gives_a_new_identity_and_marks_both_sides(gallery):
    new = gallery.ledger.split([0, 1])
    assert new not in (-1, 1, 2)
    assert rows_of(gallery, new) == [0, 1]
    assert gallery.ledger.by_human([0, 1, 2, 3]).tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="rows of identities 1, 2"):
        gallery.ledger.split([2, 3])
    gallery.assign([8], identity=-1)
    with pytest.raises(ValueError, match="split: these rows are of nobody yet"):
        gallery.ledger.split([8])
    gallery.ledger.undo()
    assert rows_of(gallery, 1) == [0, 1, 2]


def test_rows_that_changed_since_stay_when_an_older_change_is_undone(gallery):
    gallery.ledger.assign([6, 7], 1)
    gallery.assign([7], identity=2)
    gallery.ledger.undo()
    assert gallery.fetch([6, 7]).facts["identity"].tolist() == [-1, 2]


def test_a_machine_may_not_merge_what_a_person_has_spoken_of(gallery):
    gallery.ledger.assign([3], 2)
    with pytest.raises(ValueError, match="a person has said"):
        gallery.ledger.merge(1, 2, who="linker", human=False)
    gallery.ledger.merge(2, 1, who="linker", human=False)
    assert gallery.ledger.by_human(range(6)).tolist() == [False, False, False, True, False, False]


def test_a_name_is_of_one_identity(gallery):
    gallery.ledger.name(1, "Ann")
    with pytest.raises(ValueError, match="'Ann' is the name of identity 1; merge the two"):
        gallery.ledger.name(2, "Ann")
    assert gallery.ledger.history()[0].what == "name 1"
    ann, bob, again = gallery.ledger.identities(["Ann", "Bob", "Bob"])
    assert (ann, bob) == (1, again)
    assert bob not in (1, 2)
    assert len(set(gallery.ledger.identities([f"person {number}" for number in range(100)])) - {1, 2, bob}) == 100


@pytest.mark.parametrize("words", [("merge", 1, 1), ("merge", 1, 8), ("merge", 8, 1), ("merge", -1, 1),
                                   ("merge", 1, -1), ("name", -1, "x"), ("split", [6]), ("undo", 99)])
def test_a_change_that_makes_no_sense_is_refused_and_leaves_no_entry(gallery, words):
    with pytest.raises(ValueError):
        getattr(gallery.ledger, words[0])(*words[1:])
    assert gallery.ledger.history(undone=True) == []


@pytest.mark.parametrize("change", ["merge", "undo"])
def test_a_change_whose_process_was_killed_is_completed(gallery, monkeypatch, change):
    if change == "undo":
        gallery.ledger.merge(1, 2)
    monkeypatch.setattr(gallery, "assign", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        gallery.ledger.merge(1, 2) if change == "merge" else gallery.ledger.undo()
    gallery.close()
    with open_gallery(gallery.folder) as again:
        again.ledger.name(5, "next")
        assert len(rows_of(again, 1)) == (6 if change == "merge" else 3)


def test_a_change_that_the_disk_refuses_leaves_what_was(gallery, monkeypatch):
    gallery.ledger.name(2, "Ann")
    monkeypatch.setattr(gallery, "assign", failing(OSError("full")))
    with pytest.raises(OSError, match="full"):
        gallery.ledger.merge(1, 2)
    monkeypatch.undo()
    assert gallery.ledger.names() == {2: "Ann"}
    assert gallery.ledger.undo().what == "name 2"
    assert not gallery.ledger.by_human(range(9)).any()


def test_thumbnails_come_back_and_go_with_their_row(gallery):
    gallery.ledger.put_thumbnails([1, 2], [JPEG, JPEG[:50]])
    gallery.ledger.put_thumbnails([2], [JPEG[:70]])
    assert (gallery.ledger.thumbnail(1), gallery.ledger.thumbnail(2)) == (JPEG, JPEG[:70])
    assert gallery.ledger.thumbnail(3) is None
    gallery.remove([1])
    assert gallery.ledger.thumbnail(1) is None
    gallery.add([2], vectors_of([2]), {}, replace=True)
    assert gallery.ledger.thumbnail(2) is None
    with pytest.raises(ValueError, match="that of 3 is no JPEG"):
        gallery.ledger.put_thumbnails([3], [b"GIF89a"])


def test_a_thumbnail_whose_file_somebody_removed_is_none(gallery):
    gallery.ledger.put_thumbnails([1], [JPEG])
    for path in gallery.ledger.folder.glob("thumbnails.*.jpegs"):
        path.unlink()
    assert gallery.ledger.thumbnail(1) is None


def test_a_compaction_frees_the_room_of_removed_thumbnails(gallery):
    gallery.ledger.put_thumbnails(range(6), [JPEG + bytes([row]) * 1000 for row in range(6)])
    with open_gallery(gallery.folder) as reader:
        assert reader.ledger.thumbnail(5) == JPEG + b"\5" * 1000
        gallery.remove([0, 1, 4])
        assert gallery.compact() == 3 * (len(JPEG) + 1000 + DIM * 4)
        assert gallery.compact() == 0
        assert reader.ledger.thumbnail(5) == JPEG + b"\5" * 1000
        assert reader.ledger.thumbnail(4) is None
    assert sum(path.stat().st_size for path in gallery.folder.glob("thumbnails*")) == 3 * (len(JPEG) + 1000)


def test_another_models_vectors_are_refused(gallery, tmp_path):
    with pytest.raises(ValueError, match="of an unknown model, these are of abc"):
        open_gallery(gallery.folder, DIM, model="abc")
    open_gallery(tmp_path / "h", DIM, model="abc").close()
    with pytest.raises(ValueError, match="vectors of model abc, these are of def; re-embed"):
        open_gallery(tmp_path / "h", DIM, model="def")
    with open_gallery(tmp_path / "h") as again:
        assert again.model == "abc"
    assert np.array_equal(rows_of(gallery, 1), [0, 1, 2])


def test_a_ledger_stands_beside_a_cluster(tmp_path):
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    with open_gallery("qdrant://localhost/people", DIM, client=client, state=tmp_path / "state") as gallery:
        gallery.add(range(4), vectors_of(range(4)), {"identity": [1, 1, 2, 2]})
        gallery.ledger.name(2, "Ann")
        gallery.ledger.merge(1, 2)
        assert rows_of(gallery, 1) == [0, 1, 2, 3]
        gallery.ledger.undo()
        assert rows_of(gallery, 2) == [2, 3]
        gallery.ledger.put_thumbnails([2], [JPEG])
        assert gallery.remove([2, 3], erase=True) == 2
        assert gallery.ledger.thumbnail(2) is None
        assert gallery.ledger.names() == {}
