"""Following people: decisions on a stream of tracklets, in memory and over every engine of a gallery."""
import contextlib

import numpy as np
import pytest
from galleries import DIM, open_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.gallery.contract import UNKNOWN, Where
from processor.gallery.linking.linker import Decision, Linker, Tracklet
from processor.gallery.linking.rows import WHO, GalleryLinker

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")
EAST, NORTH = 0.0, 90.0


def towards(angle: float) -> np.ndarray:
    """A vector in a plane, by degrees: two are alike as the cosine of the angle between them."""
    vector = np.zeros(DIM)
    vector[:2] = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return vector.astype(np.float32)


def feed(linker, angles, **options) -> list[Decision]:
    """Tracklets 0, 1, ... of these angles."""
    return [decision for number, angle in enumerate(angles) for decision in
            linker.add(Tracklet(number, towards(angle), **options))]


def draw_stream(seed: int, people: int = 12, count: int = 120, noise: float = 0.22):
    """Tracklets of people in random order, each with some that are not the same; whose they are."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:people]
    whose = rng.integers(0, people, count)
    rows = centres[whose] + noise * rng.standard_normal((count, DIM))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    apart = [[int(j) for j in rng.integers(max(0, i - 8), min(count, i + 8), 2) if whose[j] != whose[i]]
             for i in range(count)]
    return [Tracklet(i, rows[i], i % 3, 100 * i, apart[i]) for i in range(count)], whose


def labels_after(linker, decisions, count: int, labels=None) -> np.ndarray:
    """[count] whose each tracklet is, by the decisions."""
    labels = {} if labels is None else labels
    for decision in decisions:
        if decision.tracklet >= 0:
            labels[decision.tracklet] = decision.identity
    return np.array([linker.current(labels.get(number, UNKNOWN)) for number in range(count)])


# ------------------------------------------------------------------------------------------------------- one decision
def test_a_tracklet_joins_the_identity_that_it_is_like_and_another_is_new():
    decisions = feed(Linker(DIM, 0.8), [EAST, 10, NORTH, 95, 5])
    assert [(decision.kind, decision.identity) for decision in decisions] == [
        ("new", 0), ("join", 0), ("new", 1), ("join", 1), ("join", 0)]
    # The mean cosine to both tracklets of identity 0.
    assert decisions[-1].similarity == pytest.approx(np.cos(np.radians(5)))


def test_one_like_nobody_enough_waits_and_joins_when_more_is_seen():
    linker = Linker(DIM, 0.8, doubt=0.2)
    decisions = feed(linker, [EAST, 45, 20])
    assert [(decision.kind, decision.tracklet, decision.identity) for decision in decisions] == [
        ("new", 0, 0), ("wait", 1, UNKNOWN), ("join", 2, 0), ("join", 1, 0)]


def test_one_between_two_identities_waits_until_one_of_them_is_nearer():
    linker = Linker(DIM, 0.6, margin=0.05)
    decisions = feed(linker, [EAST, 84, 42])
    assert decisions[-1] == Decision("wait", UNKNOWN, 2)
    decisions = linker.add(Tracklet(3, towards(70)))
    assert [(decision.kind, decision.tracklet, decision.identity) for decision in decisions] == [
        ("join", 3, 1), ("join", 2, 1)]


def test_patience_ends_and_so_does_the_stream():
    linker = Linker(DIM, 0.8, doubt=0.2, patience=2)
    decisions = feed(linker, [EAST, 45, 180, 181, 182])
    assert [decision.kind for decision in decisions if decision.tracklet == 1] == ["wait", "new"]
    linker = Linker(DIM, 0.8, doubt=0.2)
    feed(linker, [EAST, 45])
    assert [(decision.kind, decision.tracklet) for decision in linker.finish()] == [("new", 1)]
    assert linker.finish() == []


def test_two_that_wait_become_one_identity():
    linker = Linker(DIM, 0.9, doubt=0.5)
    decisions = feed(linker, [EAST, 45, 50])
    assert [(decision.kind, decision.tracklet, decision.identity) for decision in decisions] == [
        ("new", 0, 0), ("wait", 1, UNKNOWN), ("new", 1, 1), ("join", 2, 1)]


def test_people_in_a_frame_are_never_one_whoever_of_them_says_so_and_whenever():
    for first, second in (({1}, ()), ((), {0})):
        linker = Linker(DIM, 0.5, patience=0, window=1)
        linker.add(Tracklet(0, towards(EAST), apart=first))
        linker.add(Tracklet(1, towards(EAST), apart=second))
        decisions = feed(linker, [])
        for number in range(2, 9):  # both have left the window by then
            decisions += linker.add(Tracklet(number, towards(EAST)))
        assert not [decision for decision in decisions if decision.kind == "merge"]
        assert linker.identities() == [0, 1]


# ----------------------------------------------------------------------------------------------- what is seen later
def test_later_evidence_merges_two_identities_and_the_merge_can_be_undone():
    linker = Linker(DIM, 0.75, doubt=0, margin=0)
    decisions = feed(linker, [EAST, 50, 25])
    assert decisions[-1] == Decision("merge", 0, other=1, similarity=pytest.approx(decisions[-1].similarity))
    assert linker.current(1) == 0
    linker.undo(1)
    assert linker.current(1) == 1
    assert linker.identities() == [0, 1]
    decisions = [decision for number in range(3, 9) for decision in linker.add(Tracklet(number, towards(25)))]
    assert {decision.kind for decision in decisions} <= {"join", "move"}  # never merged again
    with pytest.raises(KeyError, match="identity 1 is not among the last merges"):
        linker.undo(1)


def test_a_tracklet_moves_to_an_identity_that_has_become_nearer():
    linker = Linker(DIM, 0.6, doubt=0, margin=0.02)
    decisions = feed(linker, [EAST, 45, 100, 60])
    moves = [decision for decision in decisions if decision.kind == "move"]
    assert [(move.tracklet, move.other, move.identity) for move in moves] == [(1, 0, 1)]


def test_memory_is_bounded_by_the_identities_and_the_window():
    linker = Linker(DIM, 0.5, patience=4, window=10, memory=2)
    for number in range(400):
        linker.add(Tracklet(number, towards(90 * (number % 4))))
    assert linker.identities() == [0, 1, 2, 3]
    assert len(list(linker.recent())) == 10
    assert len(linker._profiles.counts) == 64


@pytest.mark.parametrize("wrong", [{"patience": 9, "window": 9}, {"patience": -1}])
def test_a_window_that_is_shorter_than_the_patience_is_refused(wrong):
    with pytest.raises(ValueError, match="window must be longer"):
        Linker(DIM, 0.5, **wrong)


def test_a_wrong_tracklet_is_refused_and_changes_nothing():
    linker = Linker(DIM, 0.5)
    feed(linker, [EAST])
    for tracklet in (Tracklet(0, towards(EAST)), Tracklet(1, 2 * towards(EAST)), Tracklet(1, np.eye(1, DIM + 1)[0])):
        with pytest.raises(ValueError, match=r"comes twice|length 2|expected \[n, 16\]"):
            linker.add(tracklet)
    assert feed(linker, [])  == []
    assert linker.add(Tracklet(1, towards(EAST)))[0].kind == "join"


# ------------------------------------------------------------------------------------------------------ whole streams
@pytest.mark.parametrize("seed", range(3))
def test_well_separated_people_are_found(seed):
    tracklets, whose = draw_stream(seed, noise=0.1)
    linker = Linker(DIM, 0.5)
    decisions = [decision for tracklet in tracklets for decision in linker.add(tracklet)] + linker.finish()
    labels = labels_after(linker, decisions, len(tracklets))
    assert len(np.unique(labels)) == len(np.unique(whose)) == len({(a, b) for a, b in zip(labels, whose, strict=True)})


def test_the_same_stream_gives_the_same_decisions():
    tracklets, _ = draw_stream(4)
    first, second = ([decision for tracklet in tracklets for decision in linker.add(tracklet)]
                     for linker in (Linker(DIM, 0.55), Linker(DIM, 0.55)))
    assert first == second


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.3, 0.5, 0.7]), margin=st.sampled_from([0, 0.05]),
       window=st.sampled_from([4, 40, 200]), undo=st.booleans())
def test_the_profiles_are_the_sums_of_what_the_decisions_say(seed, threshold, margin, window, undo):
    tracklets, _ = draw_stream(seed, people=8, count=60, noise=0.25)
    linker, labels = Linker(DIM, threshold, margin=margin, window=window, patience=3), {}
    rows = np.array([tracklet.vector for tracklet in tracklets], np.float64)
    for number, tracklet in enumerate(tracklets):
        decisions = linker.add(tracklet)
        now = labels_after(linker, decisions, number + 1, labels)
        if undo and number % 9 == 8 and linker._merges:
            with contextlib.suppress(KeyError):  # all others have moved away since
                linker.undo(linker._merges[number % len(linker._merges)].other)
            now = labels_after(linker, [], number + 1, labels)
        assert set(now[now != UNKNOWN]) == set(linker.identities())
        for identity in linker.identities():
            slot = linker._slots[identity]
            assert linker._profiles.counts[slot] == (now == identity).sum()
            total = rows[: number + 1][now == identity].sum(0)
            np.testing.assert_allclose(linker._profiles.sums[slot], total, atol=1e-9)
        for first, second in ((i, j) for i in range(number + 1) for j in tracklets[i].apart if j <= number):
            assert abs(first - second) > window or now[first] != now[second] or now[first] == UNKNOWN


# ---------------------------------------------------------------------------------------------------- over a gallery
@pytest.fixture
def linked(gallery_engine, gallery_place, tmp_path):
    """A gallery with a ledger."""
    options = {} if gallery_engine == "folder" else {"state": tmp_path / "state"}
    with open_engine(gallery_engine, gallery_place, **options) as gallery:
        yield gallery


def identities_of(gallery, ids) -> list[int]:
    return gallery.fetch(ids).facts["identity"].tolist()


def test_the_rows_have_the_identities_of_the_decisions(linked):
    tracklets, _ = draw_stream(6, count=40, noise=0.25)
    linker, memory = GalleryLinker(linked, 0.55, window=50), Linker(DIM, 0.55, window=50)
    decisions = [decision for tracklet in tracklets for decision in linker.add(tracklet, {"set": "hall"})]
    decisions += linker.finish()
    expected = labels_after(memory, [decision for tracklet in tracklets for decision in memory.add(tracklet)]
                            + memory.finish(), 40)
    assert [decision.kind for decision in decisions].count("merge") > 0
    batch = next(linked.scan())
    # Numbered from 1 on, but the same people.
    assert len(set(zip(batch.facts["identity"], expected, strict=True))) == len(set(expected))
    assert batch.facts["camera"].tolist() == [number % 3 for number in range(40)]
    assert batch.facts["time"][7] == 700
    assert set(batch.facts["set"]) == {"hall"}
    assert {change.who for change in linked.ledger.history()} == {WHO}


def test_a_person_that_comes_back_after_a_restart_has_the_same_identity(linked):
    linker = GalleryLinker(linked, 0.8)
    feed(linker, [EAST, NORTH])
    again = GalleryLinker(linked, 0.8)
    assert [again.add(Tracklet(9, towards(5)))[0].identity, again.add(Tracklet(8, towards(95)))[0].identity] \
        == identities_of(linked, [0, 1])


def test_rows_that_are_there_are_linked_in_the_order_given(linked):
    rows = np.array([towards(angle) for angle in (EAST, 3, NORTH, 93)])
    linked.add([5, 6, 7, 8], rows, {"identity": [-1, -1, 4, -1]})
    linker = GalleryLinker(linked, 0.8)
    assert [decision.tracklet for decision in linker.link([8, 7, 6, 5])] == [8, 6, 5]
    identities = identities_of(linked, [5, 6, 7, 8])
    assert identities[2:] == [4, 4]
    assert identities[0] == identities[1] not in (4, -1)


def test_rows_of_which_a_person_has_spoken_stay(linked):
    linker = GalleryLinker(linked, 0.6, doubt=0, margin=0.02)
    feed(linker, [EAST, 45])
    first = identities_of(linked, [0])[0]
    linked.ledger.assign([1], first, who="Ann")
    for number, angle in enumerate((120, 80, 60), 2):  # would draw it away
        linker.add(Tracklet(number, towards(angle)))
    assert identities_of(linked, [1]) == [first]
    linked.ledger.assign([0], UNKNOWN, who="Ann")  # nobody known
    linker.add(Tracklet(7, towards(EAST)))
    linker.finish()
    assert identities_of(linked, [0]) == [UNKNOWN]
    assert linker.link([0]) == []


@pytest.mark.parametrize("word", ["assign", "split", "name"])
def test_identities_that_a_person_holds_apart_are_never_merged(linked, word):
    linker = GalleryLinker(linked, 0.7)
    linked.add([100, 101, 102], np.array([towards(EAST)] * 3), {"identity": [50, 50, 50]})
    if word == "split":
        linked.ledger.split([101], who="Ann")
    elif word == "assign":
        linked.ledger.assign([100, 102], 50)
        linked.ledger.assign([101], 51)
    else:
        linked.assign([101], identity=51)
        linked.ledger.name(50, "Berta")
        linked.ledger.name(51, "Clara")
    held = identities_of(linked, [100, 101])
    assert held[0] != held[1]
    decisions = feed(linker, [3, -3, 2])
    assert {decision.identity for decision in decisions if decision.kind != "wait"} <= set(held)
    assert identities_of(linked, [100, 101]) == held
    assert linker.finish()  # both are as near: it is one of theirs in the end


def test_what_a_person_has_spoken_of_takes_in_what_a_machine_made(linked):
    linker = GalleryLinker(linked, 0.75, doubt=0, margin=0)
    feed(linker, [EAST, 50])
    first, second = identities_of(linked, [0, 1])
    linked.ledger.assign([1], second, who="Ann")
    decisions = linker.add(Tracklet(2, towards(25)))
    assert [(decision.kind, decision.identity, decision.other) for decision in decisions[1:]] == [
        ("merge", second, first)]
    assert identities_of(linked, [0, 1, 2]) == [second] * 3


def test_a_merge_that_a_person_undid_is_not_made_again(linked):
    linker = GalleryLinker(linked, 0.75, doubt=0, margin=0)
    feed(linker, [EAST, 50, 25])
    assert len(set(identities_of(linked, [0, 1, 2]))) == 1
    linked.ledger.undo()
    first, second = identities_of(linked, [0, 1])
    assert first != second
    for start in (10, 20):
        for number in range(start, start + 4):
            linker.add(Tracklet(number, towards(25)))
        assert len(set(identities_of(linked, [0, 1]))) == 2
        linker = GalleryLinker(linked, 0.75, doubt=0, margin=0)


def test_a_merge_that_a_person_forestalls_is_left_out(linked, monkeypatch):
    linker = GalleryLinker(linked, 0.75, doubt=0, margin=0)
    feed(linker, [EAST, 50])
    before = identities_of(linked, [0, 1])
    monkeypatch.setattr(linker, "_see_changes", lambda: None)  # the word falls after it has looked
    for row, identity in enumerate(before):
        linked.ledger.assign([row], identity, who="Ann")
    assert [decision.kind for decision in linker.add(Tracklet(2, towards(25)))] == ["join"]
    assert identities_of(linked, [0, 1]) == before


def test_people_of_one_frame_stay_apart_after_a_restart_and_after_a_persons_word(linked):
    linker = GalleryLinker(linked, 0.7, patience=0, window=1)
    linker.add(Tracklet(1, towards(EAST), apart={2, 99}), {"data": '{"shop": "李"}'})
    linker.add(Tracklet(2, towards(3)))
    first, second = identities_of(linked, [1, 2])
    assert first != second
    assert linked.fetch([1]).facts["data"].tolist() == ['{"shop": "李", "apart": [2, 99]}']
    linked.ledger.name(second, "Berta")  # read again
    for start, follower in ((10, linker), (20, GalleryLinker(linked, 0.7, patience=0, window=1))):
        for number in range(start, start + 4):
            follower.add(Tracklet(number, towards(1)))
        assert identities_of(linked, [1, 2]) == [first, second]


@pytest.mark.parametrize("data", [
    '{"apart": "1, 2"}', '{"apart": {"a": 1}}', '{"apart": null}', '["apart"]', '{"x": {"apart": [1]}}',
    '{"apart": [1.5, "x", -1, 99999999999999999999]}'])
def test_what_another_program_keeps_under_the_same_name_is_left_alone(linked, data):
    linked.add([1, 2], np.stack([towards(EAST), towards(EAST)]), {"data": [data, "{}"]})
    GalleryLinker(linked, 0.7).link_all()
    first, second = identities_of(linked, [1, 2])
    assert first == second != UNKNOWN
    GalleryLinker(linked, 0.7).add(Tracklet(3, towards(EAST)))  # all rows are read again
    assert identities_of(linked, [1, 2, 3]) == [first] * 3
    assert linked.fetch([1]).facts["data"].tolist() == [data]


def test_what_other_writers_add_and_remove_is_seen_after_a_reload(linked):
    linker = GalleryLinker(linked, 0.8)
    feed(linker, [EAST])
    linked.remove([0])
    linked.add([100], towards(NORTH)[None], {"identity": [50]})
    linker.reload()
    assert linker.add(Tracklet(1, towards(95)))[0].identity == 50
    assert linker.add(Tracklet(2, towards(EAST)))[0].kind == "new"


def test_rows_that_a_kill_left_undecided_are_linked_again(linked, monkeypatch):
    linker = GalleryLinker(linked, 0.8)
    feed(linker, [EAST])
    monkeypatch.setattr(linker, "_decide", lambda tracklet: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        linker.add(Tracklet(5, towards(3), apart=[7]))
    assert identities_of(linked, [5]) == [UNKNOWN]
    again = GalleryLinker(linked, 0.8, doubt=0.2)
    assert [decision.identity for decision in again.link([5])] == identities_of(linked, [0])
    again.add(Tracklet(6, towards(45)))
    assert again.link([6]) == []  # it waits


def test_only_rows_that_take_part_are_joined(linked):
    linked.add([100], towards(EAST)[None], {"identity": [50], "set": ["old"]})
    linker = GalleryLinker(linked, 0.7, Where(sets=["new"]))
    assert linker.add(Tracklet(1, towards(EAST)), {"set": "new"})[0].kind == "new"
    assert identities_of(linked, [1])[0] != 50


def test_a_row_that_was_removed_may_come_again(linked):
    linker = GalleryLinker(linked, 0.7)
    feed(linker, [EAST, NORTH])
    linked.remove([0])
    assert linker.add(Tracklet(0, towards(NORTH)))[0].identity == identities_of(linked, [1])[0]
    with pytest.raises(ValueError, match="0"):
        linker.add(Tracklet(0, towards(NORTH)))
    assert linked.count() == 2


def test_a_cluster_without_a_ledger_is_refused():
    pytest.importorskip("qdrant_client")
    from qdrant_client import QdrantClient
    with pytest.raises(ValueError, match="state=FOLDER"):
        GalleryLinker(open_engine("qdrant", QdrantClient(":memory:")), 0.5)
