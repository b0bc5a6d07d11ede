"""The service of a gallery over HTTP: what it answers, what it refuses, and what it survives."""
import json
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from galleries import DIM, draw_rows
from gallery_server import Client, make_form, make_vision, png, serving

from processor.gallery import open_gallery
from processor.gallery.contract import Where
from processor.gallery.service.answers import Answers

Limits = pytest.importorskip("processor.gallery.service.guard", reason="needs requirements-serve.txt").Limits


@pytest.fixture
def folder(tmp_path):
    with open_gallery(tmp_path / "gallery", DIM) as gallery:
        yield gallery


@pytest.fixture
def client(folder):
    with serving(folder, make_vision()) as (client, _):
        yield client


def add(client, *colours, **facts) -> list[str]:
    """The ids of rows, a crop of a colour each."""
    boxes = [[24 * i, 0, 24 * i + 24, 48] for i in range(len(colours))]
    status, answer = client.post("/v1/add", {"boxes": boxes, "facts": facts}, picture=png(*colours))
    assert status == 201, answer
    return answer["ids"]


def find(client, colour: str, **request) -> list[dict]:
    status, answer = client.post("/v1/search", request, picture=png(colour))
    assert status == 200, answer
    return answer["queries"][0]


# ------------------------------------------------------------------------------------------------------------- answers
def test_a_crop_the_boxes_of_a_frame_and_a_vector_are_added_and_found(client):
    crop, = client.post("/v1/add", {"facts": {"camera": 1, "name": "c.png"}}, picture=png("red"))[1]["ids"]
    green, blue = add(client, "green", "blue", camera=2, time=1000, data={"track": 7})
    vector = draw_rows(1)[0].tolist()
    status, answer = client.post("/v1/add", {"vectors": [vector], "ids": [2**53 + 1], "facts": [{"set": "s"}]})
    assert (status, answer) == (201, {"ids": [str(2**53 + 1)]})  # as text: a browser would round it
    nearest = find(client, "blue", k=2)
    assert nearest[0]["id"] == blue
    assert {**nearest[0], "similarity": 0, "probability": 0, "name": ""} == {
        "id": blue, "similarity": 0, "probability": 0, "same": True, "certified": True, "camera": 2, "time": 1000,
        "identity": None, "person": "", "set": "", "name": "", "data": {"track": 7}}
    boxes = client.post("/v1/search", {"boxes": [[0, 0, 24, 48], [24, 0, 48, 48]], "k": 1}, picture=png("green", "red"))
    assert [[row["id"] for row in rows] for rows in boxes[1]["queries"]] == [[green], [crop]]
    assert client.post("/v1/search", {"vectors": [vector], "k": 1})[1]["queries"][0][0]["id"] == str(2**53 + 1)
    assert {row["id"] for row in find(client, "red", where={"cameras": [2], "until": 2000})} == {green, blue}
    assert client.get(f"/v1/thumbnails/{green}")[1].startswith(b"\xff\xd8")


def test_people_are_named_merged_split_and_removed_and_each_change_can_be_undone(client):
    ada = add(client, "red", "red", camera=1, time=5)
    bob = add(client, "blue", camera=2, time=9)
    for ids, name in ((ada, "Ada"), (bob, "Bob")):
        assert client.post("/v1/assign", {"ids": ids, "person": name})[0] == 200
    people = client.get("/v1/people")[1]["people"]
    assert [(person["person"], person["rows"], person["cameras"]) for person in people] == [
        ("Bob", 1, [2]), ("Ada", 2, [1])]
    first, second = (person["identity"] for person in people)
    for path, request in (
            ("merge", {"into": second, "other": first}), ("split", {"ids": ada[:1]}), ("remove", {"ids": ada[:1]}),
            ("name", {"identity": first, "name": "Robert"}), ("assign", {"ids": ada, "identity": None})):
        before = describe(client)
        assert client.post(f"/v1/{path}", request)[0] == 200
        assert describe(client) != before
        assert client.post("/v1/undo", {})[0] == 200
        assert describe(client) == before
    assert find(client, "red", k=1)[0]["person"] == "Ada"
    found, = client.post("/v1/identify", {}, picture=png("blue"))[1]["queries"]
    assert (found["person"], found["same"], found["rows"]) == ("Bob", True, bob)
    nobody, = client.post("/v1/identify", {"threshold": 0.999999}, picture=png("green"))[1]["queries"]
    assert (nobody["identity"], nobody["nearest_person"] in ("Ada", "Bob")) == (None, True)


def describe(client) -> list:
    people = client.get("/v1/people")[1]["people"]
    return [client.get(f"/v1/people/{person['identity']}")[1] for person in people]


def test_a_row_that_was_removed_comes_back_with_its_picture_but_an_erased_one_never(client, folder):
    row, = add(client, "red")
    vector = folder.fetch([int(row)]).vectors.tobytes()
    picture = client.get(f"/v1/thumbnails/{row}")
    client.post("/v1/remove", {"ids": [row]})
    assert client.get(f"/v1/thumbnails/{row}")[0] == 404
    client.post("/v1/undo", {})
    assert client.get(f"/v1/thumbnails/{row}") == picture
    assert folder.fetch([int(row)]).vectors.tobytes() == vector
    client.post("/v1/remove", {"ids": [row]})
    client.post("/v1/undo", {})
    client.post("/v1/remove", {"ids": [row], "erase": True})
    assert client.post("/v1/undo", {})[0] == 400
    assert folder.count() == 0


def test_searches_that_arrive_together_share_one_product(folder, monkeypatch):
    folder.add(range(50), draw_rows(50), {"camera": [i % 2 for i in range(50)]})
    calls, plain = [], Answers.search

    def search(self, queries, k, *key):
        calls.append((len(queries), k, key))
        if len(calls) == 1:
            time.sleep(0.2)  # all others arrive meanwhile
        return plain(self, queries, k, *key)

    monkeypatch.setattr(Answers, "search", search)
    queries = draw_rows(12, seed=5).tolist()
    with serving(folder) as (client, _), ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: client.post("/v1/search", {
            "vectors": [queries[i]], "k": i + 1, "where": {"cameras": [1]} if i % 3 == 0 else {}}), range(12)))
    monkeypatch.undo()
    for i, (status, answer) in enumerate(answers):
        where = Where(cameras=[1]) if i % 3 == 0 else Where()
        alone = Answers(folder).search(np.float32([queries[i]]), i + 1, where)
        assert (status, answer["queries"]) == (200, alone)
    assert len(calls) <= 6
    assert sum(count for count, _, _ in calls) == 12


def test_without_a_model_pictures_are_refused_and_vectors_are_not(folder):
    with serving(folder) as (client, _):
        assert client.post("/v1/search", {}, picture=png("red"))[0] == 501
        assert client.post("/v1/search", {"vectors": draw_rows(1).tolist()}) == (200, {"queries": [[]]})
        status, answer = client.post("/v1/identify", {"vectors": draw_rows(1).tolist()})
        assert (status, answer["error"][:16]) == (400, "give a threshold")


def test_machines_are_told_how_it_is(client, folder):
    add(client, "red", "blue")
    client.get("/v1/people/99")
    assert client.get("/healthz") == (200, {"status": "ok"})
    assert client.get("/readyz") == (200, {"status": "ready"})
    text = client.get("/metrics")[1].decode()
    assert 'gallery_requests_total{method="POST",route="/v1/add",status="201"} 1\n' in text
    assert 'gallery_requests_total{method="GET",route="/v1/people/{identity}",status="404"} 1\n' in text
    assert "gallery_rows 2\n" in text
    line = r'(# TYPE \w+ \w+|\w+(\{(\w+="[^"]*",?)+\})? [\d.]+)\n'
    assert re.fullmatch(f"({line})+", text)
    description = json.dumps(client.get("/openapi.json")[1])
    schemas = json.loads(description)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', description)) <= set(schemas)
    folder.close()
    assert client.get("/readyz")[0] == 503


# ------------------------------------------------------------------------------------------------------------- refusals
def test_with_a_token_nothing_of_the_gallery_is_answered_without_it(folder):
    with serving(folder, make_vision(), token="secret") as (client, _):
        for wrong in ("", "secre", "secret2", "é"):
            stranger = Client(client.port)
            headers = {"Authorization": f"Bearer {wrong}".encode()} if wrong else {}
            for path in ("/v1/info", "/v1/people", "/metrics", "/openapi.json", "/nothing", "//healthz"):
                assert stranger.ask("GET", path, headers=headers)[0] == 401
        assert [stranger.get(path)[0] for path in ("/", "/page.js", "/page.css", "/healthz", "/readyz")] == [200] * 5
        assert client.get("/v1/info")[0] == 200
        assert client.ask("GET", "/v1/info", headers={"Host": "any.example"})[0] == 200


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "localhost:80@evil.example"}, {"Host": ""},
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}])
def test_without_a_token_no_page_of_another_site_can_ask(client, headers):
    assert client.ask("GET", "/v1/info", headers=headers)[0] == 403


def test_the_page_itself_may_ask_under_each_name_of_this_machine(client):
    for host in ("127.0.0.1", "localhost", "[::1]"):
        headers = {"Host": f"{host}:{client.port}", "Origin": f"http://{host}:{client.port}"}
        assert client.ask("GET", "/v1/info", headers=headers)[0] == 200


def test_what_is_too_much_is_refused_with_a_reason(folder):
    limits = Limits(body=20_000, boxes=2, k=5, seconds=0.3)
    with serving(folder, make_vision(), limits=limits) as (client, _):
        boxes, vectors = [[0, 0, 9, 9]] * 3, draw_rows(3).tolist()
        for answer in (client.post("/v1/search", {"boxes": boxes}, picture=png("red")),
                       client.post("/v1/search", {"vectors": vectors}),
                       client.post("/v1/search", {"vectors": vectors[:1], "k": 6}),
                       client.post("/v1/add", picture=b"x" * 20_001),
                       client.ask("POST", "/v1/add", [b"x" * 3000] * 9, {"Content-Type": "application/json"}),
                       client.ask("POST", "/v1/assign", [b" " * 3000] * 9, {"Content-Type": "application/json"})):
            assert answer[0] == 413
            assert "more than" in answer[1]["error"]
        with socket.create_connection(("127.0.0.1", client.port), timeout=5) as slow:
            slow.sendall(b"POST /v1/assign HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"Content-Length: 9\r\n\r\n{")
            assert b" 408 " in slow.recv(4096).splitlines()[0]


def test_what_is_no_json_is_refused_with_the_reason_alone(folder):
    with serving(folder, make_vision()) as (client, _):
        status, answer = client.ask("POST", "/v1/search", b"{", {"Content-Type": "application/json"})
        assert (status, answer["error"][:13]) == (422, "Invalid JSON:")


def test_more_requests_than_may_wait_are_asked_to_come_back(folder):
    calm = threading.Event()
    vision = make_vision(embed=lambda pictures: (calm.wait(10), make_vision().embed(pictures))[1])
    with serving(folder, vision, limits=Limits(waiting=3)) as (client, _), ThreadPoolExecutor(4) as pool:
        running = [pool.submit(client.post, "/v1/search", {}, picture=png("red")) for _ in range(4)]
        refused, waiting = wait(running, 10, "FIRST_COMPLETED")
        assert [answer.result()[0] for answer in refused] == [503]
        assert client.get("/healthz")[0] == 200
        calm.set()
        assert [answer.result()[0] for answer in waiting] == [200] * 3


def test_a_failure_that_nobody_foresaw_is_json_without_a_traceback(client, monkeypatch, caplog):
    monkeypatch.setattr(Answers, "info", lambda self: 1 / 0)
    with caplog.at_level(logging.CRITICAL):
        assert client.get("/v1/info") == (500, {"error": "the service failed; its log says where"})
    assert client.get("/healthz")[0] == 200


def test_what_was_accepted_is_finished_when_it_is_told_to_stop(folder):
    begun = threading.Event()
    vision = make_vision(embed=lambda pictures: (begun.set(), time.sleep(0.3), make_vision().embed(pictures))[2])
    with serving(folder, vision) as (client, server), ThreadPoolExecutor(4) as pool:
        running = [pool.submit(client.post, "/v1/add", {}, picture=png("red")) for _ in range(4)]
        begun.wait(5)
        time.sleep(0.1)
        server.should_exit = True
        assert [answer.result()[0] for answer in running] == [201] * 4
    assert folder.count() == 4


# ----------------------------------------------------------------------------------------------------------- mutations
NASTY = ["../../etc/passwd", "..\\..\\a", "/tmp/evil.png", "a\0b", "%2e%2e%2f", "\ud800", "<script>",
         "'; DROP TABLE rows", "名", "a" * 300, "", ".", "CON", "a\r\nX-Evil: 1", "\x1b[31m"]
HEADERS = ["Content-Type", "Host", "Origin", "Authorization", "Expect", "Content-Encoding", "Accept"]
VALUES = ["", "x", "application/json; charset=utf-7", "multipart/form-data", "a" * 5000, "text/plain",
          "multipart/form-data; boundary=" + "b" * 300, "é".encode().decode("latin-1")]
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1", "0", str(2**63), str(2**64), "9" * 5000, "1.5", "null",
           "true", '"1"', "[]", "{}", '"' + "x" * 1000 + '"', "[[[[1]]]]"]


def mutated(rng: np.random.Generator) -> tuple[str, str, bytes, dict]:
    """A request that is nearly right: (method, path, body, headers)."""
    vectors = draw_rows(1, int(rng.integers(99)))[:, : rng.choice([DIM, DIM, DIM - 1])].tolist()
    requests = {"search": {"vectors": vectors, "k": 3, "where": {"cameras": [1], "since": 5}},
                "identify": {"vectors": vectors, "threshold": 0.5}, "add": {"vectors": vectors, "facts": {
                    "camera": 1, "time": 7, "identity": 3, "set": "a", "name": "b", "data": {"c": 1}}},
                "assign": {"ids": [1], "identity": 4}, "name": {"identity": 4, "name": "Ada"},
                "split": {"ids": [1]},
                "merge": {"into": 4, "other": 5}, "remove": {"ids": [1]}, "undo": {}}
    word = str(rng.choice(list(requests)))
    body = json.dumps(requests[word]).encode()
    method, path, headers = "POST", f"/v1/{word}", {"Content-Type": "application/json"}
    if word in ("search", "identify", "add") and rng.random() < 0.5:
        request = {key: value for key, value in requests[word].items() if key != "vectors"}
        body, content = make_form(mutate_bytes(png("red", "blue"), rng) if rng.random() < 0.5 else png("red", "blue"),
                                  {**request, "boxes": rng.normal(20, 20, (2, 4)).tolist()},
                                  str(rng.choice(NASTY)).encode("utf-8", "surrogatepass").decode("latin-1"))
        headers["Content-Type"] = content
    kind = rng.integers(8)
    if kind == 0:
        body = mutate_bytes(body, rng)
    elif kind == 1:
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", body))
        place = numbers[rng.integers(len(numbers))] if numbers else re.search(b"", body)
        body = body[: place.start()] + str(rng.choice(NUMBERS)).encode() + body[place.end() :]
    elif kind == 2:
        texts = list(re.finditer(rb'"\w*"', body))
        place = texts[rng.integers(len(texts))] if texts else re.search(b"", body)
        body = body[: place.start()] + json.dumps(str(rng.choice(NASTY))).encode() + body[place.end() :]
    elif kind == 3:
        headers[str(rng.choice(HEADERS))] = str(rng.choice(VALUES))
    elif kind == 4:
        path = str(rng.choice(["/v1/thumbnails/", "/v1/people/", "/", "/v1/", "/page.css/"])) + str(rng.choice(
            ["../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "%00", "-1", str(2**63), "9" * 400, "a", "1?limit=0",
             "?limit=99999999999999999999", "?offset=-1", "%ff%fe"]))
        method = str(rng.choice(["GET", "HEAD", "POST", "DELETE", "BREW"]))
    elif kind == 5:
        body = b'{"vectors":' + b"[" * int(rng.integers(1, 100_000))
    elif kind == 6:
        body = json.dumps({"vectors": np.ones((int(rng.integers(1, 60)), int(rng.integers(1, 600)))).tolist()}).encode()
    return method, path, body, headers


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        place = int(rng.integers(len(data) + 1))
        change = rng.integers(3)
        if change == 0:
            data[place:place] = bytes(rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8))
        elif change == 1:
            del data[place : place + int(rng.integers(1, 40))]
        elif place < len(data):
            data[place] = int(rng.integers(256))
    return bytes(data)


def outside(place, folder) -> set:
    """The files below `place` that are not the gallery's."""
    return {path for path in place.rglob("*") if path.parent != folder.folder}


def send_bytes(port: int, data: bytes) -> int:
    """The status of the answer to bytes that may be no request; 0: none, and the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        answer = re.match(rb"HTTP/1.1 (\d+) ", raw.recv(4096))
    return int(answer[1]) if answer else 0


def hammer(folder, place, count: int, seed: int) -> dict[int, int]:
    """{status: how often} of so many mutated requests; the gallery stays whole, and nothing lies beside it."""
    statuses, rng = {}, np.random.default_rng(seed)
    folder.add([1], draw_rows(1), {})
    before = outside(place, folder)
    with serving(folder, make_vision(), limits=Limits(body=200_000, seconds=0.2)) as (client, _):
        for _ in range(count):
            method, path, body, headers = mutated(rng)
            if rng.random() < 0.1:
                status = send_bytes(client.port, mutate_bytes(
                    f"{method} {path.split('?')[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                    "Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body, rng))
                assert status < 500
                statuses[status] = statuses.get(status, 0) + 1
                continue
            status, answer = client.ask(method, path, body, headers)
            assert status < 500, (method, path, body[:200], headers, answer)
            assert status < 400 or method == "HEAD" or set(answer) == {"error"} or b"Invalid HTTP" in answer
            statuses[status] = statuses.get(status, 0) + 1
        assert client.get("/readyz")[0] == 200
    assert outside(place, folder) == before
    assert folder.verify() == []
    return statuses


def test_mutated_requests_are_refused_with_a_reason_and_leave_the_gallery_whole(folder, tmp_path):
    statuses = hammer(folder, tmp_path, 200, seed=0)
    assert sum(count for status, count in statuses.items() if status < 400) > 20  # some are still right
    assert len(statuses) > 4


@pytest.mark.slow
def test_two_thousand_mutated_requests_leave_the_gallery_whole(folder, tmp_path):
    hammer(folder, tmp_path, 2000, seed=1)
