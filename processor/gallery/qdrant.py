"""A gallery in a Qdrant server or cluster, for those who outgrow one machine; needs qdrant-client.

Rows lie over many nodes, so three promises are weaker than a folder's. An add that takes several requests is undone if
one fails, but a kill between them leaves part of it. A scan sees changes made while it runs. Above `exact_up_to` rows
an answer is approximate, and marked so.
"""
from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException
except ImportError:  # optional: `open_qdrant` says so
    QdrantClient = None

from processor.gallery.contract import (
    FACTS,
    UNKNOWN,
    Batch,
    Candidates,
    Where,
    check_facts,
    check_rows,
    check_vectors,
    older_than,
)

KEY = "QDRANT_API_KEY"  # the environment's variable; a key never stands in a URL
EXACT_UP_TO = 5_000_000  # by default: rows that an exact search may read; it asks every shard for all of them
INDEXED = {"camera": "integer", "time": "integer", "identity": "integer", "set": "keyword"}
_REQUEST = 2**24  # bytes of a request; a server takes 32 MiB
_IDS = 10_000  # of a request without vectors
_EF = 5  # neighbours that an approximate search looks at for each that it gives; finds 0.99 of them in 50,000 rows


def open_qdrant(url: str, dim: int, model: str = "", client: QdrantClient | None = None,
                shards: int | None = None, exact_up_to: int | None = None) -> QdrantGallery:
    """Open a collection, or make it.

    Args:
        url: qdrant://HOST:PORT/COLLECTION (port 6333 if there is none).
        dim: D.
        model: the model_id of the vectors; "" = not known.
        client: to use instead of a connection to HOST, such as QdrantClient(":memory:"); the caller closes it.
        shards: of a new collection; it cannot be changed later.
        exact_up_to: rows up to which an exact search is exact; None: EXACT_UP_TO.
    Raises:
        ValueError: the URL is none of these, the collection was made for other vectors, models or shards, or
            exact_up_to is below 0.
        OSError: the server cannot be reached or refuses.
        ImportError: qdrant-client is not installed.
    """
    if QdrantClient is None:
        raise ImportError("a qdrant:// gallery needs qdrant-client: pip install 'qdrant-client>=1.16'")
    if exact_up_to is not None and exact_up_to < 0:
        raise ValueError(f"exact_up_to={exact_up_to}: expected a number of rows, 0 or more")
    place = urlsplit(url)
    name = place.path.strip("/")
    if place.scheme != "qdrant" or not place.hostname or not name or "/" in name or place.query or place.password:
        raise ValueError(f"{url}: expected qdrant://HOST:PORT/COLLECTION; a key is read from {KEY}")
    with _plain_errors(url):
        gallery_client = client or _connect(place.hostname, place.port or 6333)
        if not gallery_client.collection_exists(name):
            _create(gallery_client, name, dim, model, shards)
        try:
            model = _check_collection(gallery_client.get_collection(name), url, dim, model, shards)
        except ValueError:
            if client is None:
                gallery_client.close()
            raise
    gallery = QdrantGallery(gallery_client, name, url, dim, model, closes=client is None)
    gallery.exact_up_to = EXACT_UP_TO if exact_up_to is None else exact_up_to
    return gallery


def _connect(host: str, port: int) -> QdrantClient:
    key = os.environ.get(KEY) or None
    # A key goes over the network encrypted or not at all.
    https = key is not None and host not in ("localhost", "127.0.0.1", "::1")
    # Nobody there is told by the first request, as an error.
    return QdrantClient(host=host, port=port, api_key=key, https=https, timeout=60, check_compatibility=False)


def _create(client: QdrantClient, name: str, dim: int, model: str, shards: int | None) -> None:
    client.create_collection(
        name, shard_number=shards, metadata={"model": model},
        # Dot: Cosine would scale vectors again and change their bits. Float32 on disk is for exact answers, the bytes
        # in memory find the candidates of approximate ones.
        vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT, on_disk=True),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)))
    for field, kind in INDEXED.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Payload indexes have no effect")  # in a client's own memory
            client.create_payload_index(name, field, kind, wait=True)


def _check_collection(info: models.CollectionInfo, url: str, dim: int, model: str, shards: int | None) -> str:
    """The model_id of a collection's vectors."""
    vectors = info.config.params.vectors
    if not isinstance(vectors, models.VectorParams) or vectors.distance != models.Distance.DOT:
        raise ValueError(f"{url}: not a gallery's collection: it needs one vector a row with distance Dot")
    if vectors.size != dim:
        raise ValueError(f"{url}: holds vectors of {vectors.size} numbers, these have {dim}")
    held = (info.config.metadata or {}).get("model", "")
    if held and model and held != model:
        raise ValueError(f"{url}: holds vectors of model {held}, these are of {model}; vectors of two models cannot be "
                         "compared: embed the pictures again into a new collection")
    number = info.config.params.shard_number
    if shards and number and number != shards:
        raise ValueError(f"{url}: has {number} shards, not {shards}; their number is chosen when it is made: copy the "
                         "rows into a new collection")
    return held or model


class QdrantGallery:
    """See `contract.Gallery` and this file's head; `open_qdrant` makes one."""

    def __init__(self, client: QdrantClient, collection: str, url: str, dim: int, model: str, closes: bool):
        self.client, self.collection, self.url, self.dim, self.model = client, collection, url, dim, model
        self._closes, self.ledger, self.exact_up_to = closes, None, EXACT_UP_TO
        self._rows = max(1, _REQUEST // (24 * dim))  # of a request with vectors, as JSON

    # -------------------------------------------------------------- write
    def add(self, ids: Sequence[int], vectors: np.ndarray, facts: Mapping[str, Sequence], *,
            replace: bool = False) -> None:
        """See `contract.Gallery`.

        Raises:
            OSError: a request failed; what was written is taken back, or the message says that it could not be.
        """
        ids, vectors, facts = check_rows(ids, vectors, facts, self.dim)
        known = self._known_ids(ids)
        if len(known) and not replace:
            raise ValueError(f"ids: {known[0]} is in the gallery already; replace=True puts the new row in its place")
        before = self.fetch(known)
        try:
            self._write(ids, vectors, facts)
        except BaseException as error:
            try:
                self._delete(ids[~np.isin(ids, known)])
                self._write(before.ids, before.vectors, before.facts)
            except OSError as failure:
                raise OSError(f"{failure}; of the {len(ids)} rows from id {ids[0]} on, part may have been written: add "
                              "them again with replace=True") from error
            raise

    def _write(self, ids: np.ndarray, vectors: np.ndarray, facts: dict[str, np.ndarray]) -> None:
        for part in _parts(len(ids), self._rows):
            columns = [facts[name][part].tolist() for name in FACTS]
            rows = models.Batch(ids=ids[part].tolist(), vectors=vectors[part].tolist(),
                                payloads=[dict(zip(FACTS, row, strict=True)) for row in zip(*columns, strict=True)])
            with _plain_errors(self.url):
                self.client.upsert(self.collection, rows, wait=True)

    def remove(self, ids: Sequence[int] | None = None, where: Where | None = None, *, erase: bool = False) -> int:
        """See `contract.Gallery`; what a server leaves of deleted rows on its disk is its own affair."""
        if (ids is None) == (where is None):
            raise ValueError("remove: give ids or where, one of them")
        records = self._known(ids) if where is None else itertools.chain.from_iterable(self._scroll(where, _IDS, False))
        rows = {record.id: record.payload.get("identity", UNKNOWN) for record in records}
        self._delete(np.array(list(rows), np.int64))
        if self.ledger:
            self.ledger.forget(rows, set(rows.values()), erase)
        return len(rows)

    def purge(self, older_than_days: float) -> int:
        """See `contract.Gallery`."""
        return self.remove(where=older_than(older_than_days), erase=True)

    def _delete(self, ids: np.ndarray) -> None:
        for part in _parts(len(ids), _IDS):
            with _plain_errors(self.url):
                self.client.delete(self.collection, models.PointIdsList(points=ids[part].tolist()), wait=True)

    def assign(self, ids: Sequence[int], **facts: Any) -> int:
        """See `contract.Gallery`."""
        payload = {name: values.tolist()[0] for name, values in
                   check_facts({name: [value] for name, value in facts.items()}, 1).items() if name in facts}
        known = self._known_ids(ids)
        for part in _parts(len(known), _IDS):
            with _plain_errors(self.url):
                self.client.set_payload(self.collection, payload, points=known[part].tolist(), wait=True)
        return len(known)

    # -------------------------------------------------------------- read
    def candidates(self, queries: np.ndarray, n: int, where: Where | None = None, exact: bool = True) -> Candidates:
        """See `contract.Gallery`; with more than `exact_up_to` rows, `exact` is not kept, and `complete` says so."""
        queries = check_vectors(queries, self.dim)
        ids, scores = np.full((len(queries), n), -1, np.int64), np.full((len(queries), n), -np.inf, np.float32)
        with _plain_errors(self.url):
            if exact:
                exact = self.client.count(self.collection, exact=False).count <= self.exact_up_to
            # Approximate scores are computed again from float32, so that `error` holds for both.
            params = models.SearchParams(
                exact=exact, hnsw_ef=None if exact else _EF * n,
                quantization=models.QuantizationSearchParams(ignore=exact, rescore=True))
            requests = [models.QueryRequest(query=query, limit=n, filter=_make_filter(where), params=params)
                        for query in queries.tolist()] if n else []
            for part in _parts(len(requests), self._rows):
                answers = self.client.query_batch_points(self.collection, requests[part])
                for row, answer in enumerate(answers, part.start):
                    best = sorted(answer.points, key=lambda point: (-point.score, point.id))
                    ids[row, : len(best)] = [point.id for point in best]
                    scores[row, : len(best)] = [point.score for point in best]
        return Candidates(ids, scores, self.dim * 2.0**-24, complete=exact)

    def fetch(self, ids: Sequence[int], with_facts: bool = True) -> Batch:
        """See `contract.Gallery`."""
        ids, records = np.asarray(ids, np.int64), {}
        for part in _parts(len(ids), self._rows):
            with _plain_errors(self.url):
                records |= {record.id: record for record in self.client.retrieve(
                    self.collection, ids[part].tolist(), with_payload=with_facts, with_vectors=True)}
        for number in ids.tolist():
            if number not in records:
                raise KeyError(f"id {number} is not in the gallery")
        batch = self._batch([records[number] for number in ids.tolist()])
        return batch if with_facts else Batch(batch.ids, batch.vectors, {})

    def scan(self, where: Where | None = None, batch: int = 8192) -> Iterator[Batch]:
        """See `contract.Gallery`, but rows that change while it runs are seen as they are when it comes to them."""
        for records in self._scroll(where, min(batch, self._rows), True):
            yield self._batch(records)

    def columns(self, names: Sequence[str], where: Where | None = None) -> dict[str, np.ndarray]:
        """{"id": [n] int64, name: [n]} of the rows that fulfil `where`, for facts that are numbers; without vectors."""
        rows = [(record.id, *((record.payload or {}).get(name, UNKNOWN) for name in names))
                for records in self._scroll(where, _IDS, False, names) for record in records]
        table = np.array(rows, np.int64).reshape(-1, 1 + len(names))
        return dict(zip(("id", *names), table.T, strict=True))

    def _scroll(self, where: Where | None, batch: int, vectors: bool,
                names: Sequence[str] = ("identity",)) -> Iterator[list[models.Record]]:
        offset, first = None, True
        while first or offset is not None:
            with _plain_errors(self.url):
                records, offset = self.client.scroll(
                    self.collection, scroll_filter=_make_filter(where), limit=batch, offset=offset,
                    with_payload=vectors or list(names), with_vectors=vectors)
            first = False
            if records:
                yield records

    def count(self, where: Where | None = None) -> int:
        """See `contract.Gallery`."""
        with _plain_errors(self.url):
            return self.client.count(self.collection, count_filter=_make_filter(where), exact=True).count

    def _known(self, ids: Sequence[int]) -> list[models.Record]:
        """Those of the ids that are there, with their identities."""
        ids, known = np.unique(np.asarray(ids, np.int64)), []
        for part in _parts(len(ids), _IDS):
            with _plain_errors(self.url):
                known += self.client.retrieve(self.collection, ids[part].tolist(), with_payload=["identity"])
        return known

    def _known_ids(self, ids: Sequence[int]) -> np.ndarray:
        """The same ids, ascending."""
        return np.sort(np.array([record.id for record in self._known(ids)], np.int64))

    def _batch(self, records: Sequence[models.Record]) -> Batch:
        facts = {name: np.array([(record.payload or {}).get(name, default) for record in records],
                                np.int64 if isinstance(default, int) else object) for name, default in FACTS.items()}
        vectors = np.array([record.vector for record in records], np.float32).reshape(len(records), self.dim)
        return Batch(np.array([record.id for record in records], np.int64), vectors, facts)

    def close(self) -> None:
        """See `contract.Gallery`."""
        if self.ledger:
            self.ledger.close()
        if self._closes:
            self.client.close()

    def __enter__(self) -> QdrantGallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ the client's words
def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _make_filter(where: Where | None) -> models.Filter | None:
    """The server's filter; None: every row."""
    if where is None or where.is_open:
        return None
    conditions = []
    for key, values in (("camera", where.cameras), ("identity", where.identities), ("set", where.sets)):
        if values is not None:
            values = [value.item() if isinstance(value, np.generic) else value for value in values]
            # One of no values: a range that holds nothing.
            kind = {"match": models.MatchAny(any=values)} if values else {"range": models.Range(gt=0, lt=0)}
            conditions.append(models.FieldCondition(key=key if values else "time", **kind))
    if where.since is not None or where.until is not None:
        conditions.append(models.FieldCondition(key="time", range=models.Range(gte=where.since, lt=where.until)))
    return models.Filter(must=conditions)


@contextlib.contextmanager
def _plain_errors(url: str) -> Iterator[None]:
    """The client's errors as OSError of one line."""
    try:
        yield
    except (ApiException, QdrantException) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{url}: {reason[:300]}") from error
