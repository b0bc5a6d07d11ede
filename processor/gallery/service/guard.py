"""Who may ask, how much at a time, and what is counted: before and around every request."""
from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections import Counter
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
OPEN = {"/", "/page.css", "/page.js", "/healthz", "/readyz"}  # without a token: nothing of the gallery is in them
LOCAL = {"127.0.0.1", "localhost", "[::1]"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Limits(NamedTuple):
    """How much one request may bring.

    Attributes:
        body: bytes.
        pixels: of a picture; a larger one is refused by its header.
        boxes: of a frame, or vectors.
        k: neighbours.
        waiting: requests under way; more are asked to come back later.
        seconds: for a body to arrive.
    """

    body: int = 32 * 2**20
    pixels: int = 40_000_000
    boxes: int = 64
    k: int = 1000
    waiting: int = 256
    seconds: float = 30


class Meters:
    """Counts for Prometheus."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: Counter[float] = Counter()
        self.total_seconds, self.under_way = 0.0, 0
        self.searches = self.searched = 0

    def format(self, rows: int) -> str:
        """The text format 0.0.4."""
        lines = ["# TYPE gallery_requests_total counter"]
        lines += [f'gallery_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
                  for (method, route, status), count in sorted(self.requests.items())]
        lines.append("# TYPE gallery_request_seconds histogram")
        total = sum(self.seconds.values())
        for limit in _SECONDS:
            below = sum(count for bucket, count in self.seconds.items() if bucket <= limit)
            lines.append(f'gallery_request_seconds_bucket{{le="{limit}"}} {below}')
        lines += [f'gallery_request_seconds_bucket{{le="+Inf"}} {total}', f"gallery_request_seconds_count {total}",
                  f"gallery_request_seconds_sum {self.total_seconds:.6f}"]
        for name, kind, value in (("requests_under_way", "gauge", self.under_way), ("rows", "gauge", rows),
                                  ("searches_total", "counter", self.searches),
                                  ("searched_vectors_total", "counter", self.searched)):
            lines += [f"# TYPE gallery_{name} {kind}", f"gallery_{name} {value}"]
        return "\n".join(lines) + "\n"

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """A request has been answered. Routes and known methods only: their number is bounded."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self.requests[method, route, status] += 1
        self.seconds[next((limit for limit in _SECONDS if seconds <= limit), float("inf"))] += 1
        self.total_seconds += seconds


class Guard:
    """Middleware: refuses, counts, and turns what nobody foresaw into JSON.

    Args:
        token: that a request must bear; None: only this machine may ask, and no page of another site through its
            browser.
    """

    def __init__(self, app: ASGIApp, token: str | None, limits: Limits, meters: Meters):
        self.app, self.token, self.limits, self.meters = app, token, limits, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        self.meters.under_way += 1
        try:
            code, reason = self._refusal(scope)
            if reason:
                await refuse(watch, code, reason)
            else:
                await self.app(scope, _Body(receive, self.limits), watch)
        except ClientDisconnect:
            status = status or 499  # nobody is there to be answered
        except Exception:
            logger.exception("%s %s", scope["method"], scope["path"])
            if not status:
                await refuse(watch, 500, "the service failed; its log says where")
        finally:
            self.meters.under_way -= 1
            self.meters.count(scope, status, time.perf_counter() - begun)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        headers = dict(reversed(scope["headers"]))  # the first of a name counts
        if self.token is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if re.sub(r":\d*$", "", host) not in LOCAL:  # a name of another site that leads here, too
                return 403, "only 127.0.0.1 and localhost are answered without a token"
            origin = headers.get(b"origin", b"").decode("latin-1")
            if origin and origin.partition("://")[2] != host:
                return 403, "a page of another site asks"
        elif scope["path"] not in OPEN and not self._bears_token(headers):
            return 401, "expected the header Authorization: Bearer TOKEN, with the token of this service"
        if scope["path"] not in OPEN and self.meters.under_way > self.limits.waiting:
            return 503, f"{self.limits.waiting} requests are under way; come back in a second"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:18]) > self.limits.body:
            return 413, _too_large(self.limits)
        return 200, ""

    def _bears_token(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(token.strip(), self.token.encode()) and kind.lower() == b"bearer"


# The page runs its own script alone, and no other site shows it in a frame.
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
            (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'")]


class _Body:
    """`receive` with an end: of bytes and of patience."""

    def __init__(self, receive: Receive, limits: Limits):
        self.receive, self.limits, self.left, self.whole = receive, limits, limits.body, False
        self.deadline = time.monotonic() + limits.seconds

    async def __call__(self) -> Message:
        if self.whole:  # waiting for the client to go away
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), max(0.01, self.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self.limits.seconds:g} s") from None
        self.left -= len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self.left < 0:
            raise HTTPException(413, _too_large(self.limits))
        return message


def _too_large(limits: Limits) -> str:
    return f"the body has more than {limits.body} bytes"


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer without the app."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += {401: [(b"www-authenticate", b"Bearer")], 503: [(b"retry-after", b"1")]}.get(status, [])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
