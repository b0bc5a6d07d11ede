"""Rows that were removed come back by undo, from any engine and after a restart, until they are erased."""
import numpy as np
import pytest
from galleries import draw_rows, open_engine

JPEG = b"\xff\xd8" + b"a small picture"
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


@pytest.fixture
def reopen(gallery_engine, gallery_place, tmp_path):
    """reopen() -> the same gallery, opened anew; the one before is closed."""
    opened = []

    def reopen():
        while opened:
            opened.pop().close()
        how = {} if gallery_engine == "folder" else {"state": tmp_path / "state"}
        opened.append(open_engine(gallery_engine, gallery_place, **how))
        return opened[-1]

    gallery = reopen()
    gallery.add(range(8), draw_rows(8), {"identity": [1, 1, 2, 2, 3, 3, -1, -1], "camera": range(8),
                                         "name": [f"{row}.png" for row in range(8)], "data": ['{"a": "é"}'] * 8})
    gallery.ledger.put_thumbnails([0, 1], [JPEG, JPEG + b"!"])
    yield reopen
    reopen().close()


def content(gallery) -> list:
    return [(row, batch.vectors[at].tobytes(), *(batch.facts[name][at] for name in sorted(batch.facts)),
             gallery.ledger.thumbnail(row), bool(gallery.ledger.by_human([row])[0]))
            for batch in gallery.scan() for at, row in enumerate(batch.ids.tolist())]


def test_removed_rows_come_back_after_a_restart_with_all_that_was_known_of_them(reopen):
    gallery = reopen()
    gallery.ledger.assign([0], 3)
    before = content(gallery)
    assert gallery.ledger.remove([0, 1], who="me") == 2
    assert gallery.count() == 6
    gallery = reopen()
    assert [(change.who, change.what) for change in gallery.ledger.history(1)] == [("me", "remove 2 rows")]
    assert gallery.ledger.undo().what == "remove 2 rows"
    assert content(gallery) == before
    assert gallery.ledger.undo().what == "assign 1 row to 3"  # what was done before is undone for such rows, too
    assert gallery.fetch([0]).facts["identity"].tolist() == [1]
    assert not gallery.ledger.by_human([0])[0]


def test_rows_are_removed_by_a_filter_and_what_others_have_added_since_stays(reopen):
    from processor.gallery import Where

    gallery = reopen()
    assert gallery.ledger.remove(where=Where(cameras=[0, 1, 2])) == 3
    gallery.add([1], draw_rows(1, seed=9), {})
    gallery.ledger.undo()
    assert gallery.count() == 8
    np.testing.assert_array_equal(gallery.fetch([1]).vectors, draw_rows(1, seed=9))
    assert [gallery.ledger.thumbnail(row) for row in (0, 1)] == [JPEG, None]


@pytest.mark.parametrize("late", ["erase", "erase another", "compact"])
def test_what_was_erased_or_compacted_away_does_not_come_back_and_undo_says_so(reopen, late):
    gallery = reopen()
    gallery.ledger.assign([7], 3)
    gallery.ledger.remove([0, 1])
    if late == "compact":
        if not hasattr(gallery, "compact"):
            pytest.skip("a cluster does this itself")
        gallery.compact()
    else:
        gallery.remove([0] if late == "erase" else [5], erase=True)
    gallery = reopen()
    with pytest.raises(ValueError, match="undo: remove 2 rows: what was erased, or whose room was freed"):
        gallery.ledger.undo()
    assert gallery.ledger.undo().what == "assign 1 row to 3"


def test_an_erasure_is_in_the_log_and_cannot_be_undone(reopen):
    gallery = reopen()
    gallery.ledger.name(1, "Ada")
    assert gallery.ledger.remove([2, 99], erase=True) == 1
    with pytest.raises(ValueError, match="undo: erase 1 row: what was erased"):
        gallery.ledger.undo()
    assert gallery.ledger.undo().what == "name 1"


def test_a_row_that_is_not_there_is_not_removed_and_leaves_no_entry(reopen):
    gallery = reopen()
    with pytest.raises(KeyError, match="id 99 is not in the gallery"):
        gallery.ledger.remove([0, 99])
    with pytest.raises(ValueError, match="give ids or where"):
        gallery.ledger.remove()
    assert (gallery.count(), gallery.ledger.history()) == (8, [])


@pytest.mark.parametrize("killed", ["remove", "add", "put_thumbnails"])
def test_a_removal_or_its_undoing_that_a_kill_broke_off_is_completed(reopen, monkeypatch, killed):
    gallery = reopen()
    before = content(gallery)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery.ledger if killed == "put_thumbnails" else gallery, killed, fail)
    if killed != "remove":
        gallery.ledger.remove([0, 1])
    with pytest.raises(KeyboardInterrupt):
        gallery.ledger.remove([0, 1]) if killed == "remove" else gallery.ledger.undo()
    gallery = reopen()
    if killed == "remove":
        assert gallery.ledger.undo().what == "remove 2 rows"
    else:
        gallery.ledger.name(2, "Bob")  # the next change completes it
    assert content(gallery) == before


def test_only_the_last_removals_are_kept(reopen, monkeypatch):
    monkeypatch.setattr("processor.gallery.removed.KEPT", 2)
    gallery = reopen()
    for row in range(3):
        gallery.ledger.remove([row])
    for _ in range(2):
        gallery.ledger.undo()
    with pytest.raises(ValueError, match="cannot come back"):
        gallery.ledger.undo()
    assert [row for batch in gallery.scan() for row in batch.ids.tolist()] == list(range(1, 8))


def test_erasing_leaves_no_byte_of_rows_that_were_removed_before(tmp_path):
    with open_engine("folder", tmp_path / "g") as gallery:
        gallery.add(range(4), draw_rows(4), {"name": [f"secret-{row}" for row in range(4)]})
        gallery.ledger.put_thumbnails([0], [JPEG])
        secrets = (draw_rows(4)[0].tobytes(), b"secret-0", JPEG)

        def left() -> list[bytes]:
            held = b"".join(path.read_bytes() for path in gallery.folder.iterdir())
            return [secret for secret in secrets if secret in held]

        gallery.ledger.remove([0])
        assert left() == list(secrets)
        gallery.ledger.remove([0], erase=True)  # nothing but its copies is left of it
        assert left() == []
        assert gallery.verify() == []
