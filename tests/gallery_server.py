"""A gallery's service in a thread, and a client of it that needs nothing but Python."""
import contextlib
import http.client
import json
import threading
import time
import uuid

import cv2
import numpy as np

from processor.embedding.gallery_files import decode_picture
from processor.embedding.pictures import crop_boxes

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "grey": (128, 128, 128)}


def embed_colours(pictures) -> np.ndarray:
    """[N, 16] of length 1: pictures of alike colours are alike."""
    means = np.array([[*picture.reshape(-1, 3).mean(0), 40] for picture in pictures])
    rows = np.zeros((len(means), 16))
    rows[:, :4] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return rows.astype(np.float32)


def draw(*colours: str) -> np.ndarray:
    """uint8 [48, 24 * n, 3]: stripes of 24 pixels, with a little noise."""
    stripes = [np.full((48, 24, 3), COLOURS[colour]) for colour in colours]
    noise = np.random.default_rng(len(colours)).integers(-9, 10, (48, 24 * len(colours), 3))
    return np.clip(np.hstack(stripes) + noise, 0, 255).astype(np.uint8)


def png(*colours: str) -> bytes:
    return cv2.imencode(".png", draw(*colours)[:, :, ::-1])[1].tobytes()


def make_vision(**changes):
    from processor.gallery.service.answers import Vision

    return Vision(**{"decode": lambda data: decode_picture(data, 10**6), "crop": crop_boxes, "embed": embed_colours,
                     "probability": lambda similarities: np.clip(similarities, 0, 1), "threshold": 0.98, **changes})


class Client:
    """Requests to 127.0.0.1:port; an answer is (status, what its JSON is, or bytes)."""

    def __init__(self, port: int, token: str = ""):
        self.port, self.token = port, token

    def ask(self, method: str, path: str, body=None, headers=None):
        headers = {**({"Authorization": f"Bearer {self.token}"} if self.token else {}), **(headers or {})}
        if body is not None and not isinstance(body, (bytes, list)):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers, encode_chunked=isinstance(body, list))
            answer = connection.getresponse()
            data = answer.read()
        is_json = data and answer.getheader("content-type") == "application/json"
        return answer.status, json.loads(data) if is_json else data

    def get(self, path: str):
        return self.ask("GET", path)

    def post(self, path: str, body=None, **fields):
        """JSON, or with `picture` (bytes) a form."""
        if "picture" not in fields:
            return self.ask("POST", path, body)
        data, content = make_form(fields["picture"], body, fields.get("filename", "a.png"))
        return self.ask("POST", path, data, {"Content-Type": content})


def make_form(picture: bytes, request=None, filename: str = "a.png") -> tuple[bytes, str]:
    """(body, content type)."""
    mark = uuid.uuid4().hex
    parts = [f'Content-Disposition: form-data; name="picture"; filename="{filename}"\r\nContent-Type: image/png\r\n\r\n'
             .encode("utf-8", "surrogateescape") + picture]
    if request is not None:
        parts.append(b'Content-Disposition: form-data; name="request"\r\n\r\n' + json.dumps(request).encode())
    body = b"".join(f"--{mark}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{mark}--\r\n".encode()
    return body, f"multipart/form-data; boundary={mark}"


@contextlib.contextmanager
def serving(gallery, vision=None, **how):
    """(client, server) of a service that runs until the block ends."""
    import uvicorn

    from processor.gallery.service.app import make_app

    app = make_app(gallery, vision, **how)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.002)
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1], how.get("token") or ""), server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
