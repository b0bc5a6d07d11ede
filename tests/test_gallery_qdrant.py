"""What is Qdrant's own of a gallery: how a collection is made, a request that fails, answers that are approximate."""
import numpy as np
import pytest

qdrant_client = pytest.importorskip("qdrant_client")

from galleries import DIM, draw_rows  # noqa: E402
from qdrant_client import QdrantClient, models  # noqa: E402
from qdrant_client.http.exceptions import ResponseHandlingException  # noqa: E402
from test_gallery_contract import content  # noqa: E402

from processor.gallery import open_gallery, qdrant  # noqa: E402
from processor.gallery.contract import Where  # noqa: E402
from processor.gallery.qdrant import open_qdrant  # noqa: E402
from processor.gallery.service import answers  # noqa: E402
from processor.gallery.service.answers import Answers  # noqa: E402

URL = "qdrant://localhost/people"
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


class RecordingClient(QdrantClient):
    """In memory; it keeps what a collection was made with, and lets upserts fail from one on."""

    def __init__(self):
        super().__init__(":memory:")
        self.made, self.indexes, self.searches, self.upserts_left = {}, {}, [], 10**9

    def create_collection(self, name, **options):
        self.made = options
        return super().create_collection(name, **options)

    def create_payload_index(self, name, field, kind, **options):
        self.indexes[field] = kind
        return super().create_payload_index(name, field, kind, **options)

    def upsert(self, *args, **options):
        self.upserts_left -= 1
        if self.upserts_left == -1:
            raise ResponseHandlingException(OSError("connection\nreset"))
        assert options["wait"]
        return super().upsert(*args, **options)

    def query_batch_points(self, name, requests):
        self.searches += [request.params for request in requests]
        return super().query_batch_points(name, [request.model_copy(update={"params": None}) for request in requests])


def test_a_collection_is_made_with_dot_shards_and_an_index_for_each_condition():
    client = RecordingClient()
    open_qdrant(URL, DIM, "abc", client, shards=6)
    assert client.made["shard_number"] == 6
    assert client.made["vectors_config"].distance == models.Distance.DOT
    assert client.made["metadata"] == {"model": "abc"}
    assert client.indexes == {"camera": "integer", "time": "integer", "identity": "integer", "set": "keyword"}


def test_rows_of_a_request_that_fails_are_taken_back(monkeypatch):
    client = RecordingClient()
    gallery = open_qdrant(URL, DIM, client=client)
    gallery.add([1, 2], draw_rows(2), {"camera": [5, 6]})
    before = content(gallery)
    gallery._rows, client.upserts_left = 2, 1
    with pytest.raises(OSError, match=f"^{URL}: .*connection reset"):
        gallery.add([2, 3, 4, 1], draw_rows(4, seed=1), {}, replace=True)
    assert content(gallery) == before


def test_what_could_not_be_taken_back_is_said(monkeypatch):
    client = RecordingClient()
    gallery = open_qdrant(URL, DIM, client=client)

    def fail(*_, **__):
        raise ResponseHandlingException(OSError("no route"))

    for method in ("upsert", "delete"):
        monkeypatch.setattr(client, method, fail)
    with pytest.raises(OSError, match="from id 3 on, part may have been written: add them again with replace=True"):
        gallery.add([3, 4], draw_rows(2), {})


def test_a_large_collection_answers_approximately_and_says_so():
    client = RecordingClient()
    gallery = open_qdrant(URL, DIM, client=client)
    gallery.add([1, 2, 3], draw_rows(3), {})
    assert gallery.candidates(draw_rows(1), 2).complete
    assert not gallery.candidates(draw_rows(1), 2, exact=False).complete
    gallery = open_gallery(URL, DIM, client=client, exact_up_to=2)
    assert not gallery.candidates(draw_rows(1), 2).complete
    assert [(params.exact, params.hnsw_ef, params.quantization.ignore) for params in client.searches] == [
        (True, None, True), (False, 10, False), (False, 10, False)]


def test_a_number_of_rows_below_none_is_refused():
    with pytest.raises(ValueError, match="exact_up_to=-1: expected a number of rows"):
        open_gallery(URL, DIM, client=QdrantClient(":memory:"), exact_up_to=-1)


def test_people_of_a_cluster_are_listed_as_of_a_folder_and_of_a_large_one_those_with_a_name(tmp_path, monkeypatch):
    facts = {"identity": [4, -1, 4, 7], "time": [5, 6, 9, 7], "camera": [1, 1, 2, 3]}
    lists = []
    for url, how in (("qdrant://localhost/people", {"client": QdrantClient(":memory:"), "state": tmp_path / "state"}),
                     (tmp_path / "folder", {})):
        with open_gallery(url, DIM, **how) as gallery:
            gallery.add([10, 11, 12, 13], draw_rows(4), facts)
            gallery.ledger.name(7, "Ada")
            lists.append(Answers(gallery).list_people(9))
            monkeypatch.setattr(answers, "_LISTED", 3)
            lists.append(Answers(gallery).list_people(9))
            monkeypatch.setattr(answers, "_LISTED", 200_000)
    assert lists[0] == lists[2] == lists[3]
    assert [(person["identity"], person["person"], person["rows"]) for person in lists[0]["people"]] == [
        ("4", "", 2), ("7", "Ada", 1)]
    assert (lists[0]["nobody"], lists[0]["whole"]) == (1, True)
    assert lists[1] == {"people": lists[0]["people"][1:], "total": 1, "nobody": 1, "whole": False}


def test_many_requests_give_what_one_gives():
    gallery = open_qdrant(URL, DIM, client=QdrantClient(":memory:"))
    gallery._rows = 3
    gallery.add(range(10), draw_rows(10), {"camera": range(10)})
    np.testing.assert_array_equal(gallery.fetch(range(10)).vectors, draw_rows(10))
    assert [batch.ids.tolist() for batch in gallery.scan(Where(since=-1))] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    np.testing.assert_array_equal(gallery.candidates(draw_rows(10), 1).ids[:, 0], np.arange(10))


@pytest.mark.parametrize("url", ["qdrant://localhost", "qdrant:///people", "qdrant://localhost/a/b", "http://x/people",
                                 "qdrant://me:secret@host/people", "qdrant://host/people?api-key=1"])
def test_another_url_is_refused(url):
    with pytest.raises(ValueError, match="expected qdrant://HOST:PORT/COLLECTION; a key is read from QDRANT_API_KEY"):
        open_qdrant(url, DIM, client=QdrantClient(":memory:"))


@pytest.mark.parametrize(("size", "distance", "reason"), [
    (DIM + 1, models.Distance.DOT, "holds vectors of 17 numbers, these have 16"),
    (DIM, models.Distance.COSINE, "one vector a row with distance Dot")])
def test_a_collection_of_other_vectors_is_refused(size, distance, reason):
    client = QdrantClient(":memory:")
    client.create_collection("people", vectors_config=models.VectorParams(size=size, distance=distance))
    with pytest.raises(ValueError, match=reason):
        open_qdrant(URL, DIM, client=client)


@pytest.mark.parametrize(("host", "key", "scheme"), [("host", "k", "https"), ("host", None, "http"),
                                                     ("127.0.0.1", "k", "http")])
def test_a_key_comes_from_the_environment_and_leaves_the_machine_encrypted(monkeypatch, host, key, scheme):
    monkeypatch.setenv("QDRANT_API_KEY", key or "")
    seen = {}
    monkeypatch.setattr(qdrant, "QdrantClient", lambda **options: seen.update(options))
    qdrant._connect(host, 6333)
    assert (seen["api_key"], seen["https"]) == (key, scheme == "https")


def test_a_server_that_is_not_there_is_an_error_of_one_line(monkeypatch):
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    with pytest.raises(OSError, match=r"^qdrant://127.0.0.1:9/people: .*") as error:
        open_qdrant("qdrant://127.0.0.1:9/people", DIM)
    assert "\n" not in str(error.value)


def test_a_missing_client_is_said_when_it_is_needed(monkeypatch):
    monkeypatch.setattr(qdrant, "QdrantClient", None)
    with pytest.raises(ImportError, match=r"pip install 'qdrant-client>=1\.16'"):
        open_qdrant(URL, DIM)
