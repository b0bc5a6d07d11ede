"""The benchmark of the gallery's service: clients read and write on 127.0.0.1 until the service is told to stop."""
from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from processor.gallery import open_gallery
from tools.benchmarks.harness import new_report

TOOL = Path(__file__).resolve().parents[2] / "gallery.py"
CAMERAS, IDENTITY_ROWS, CHUNK = 20, 16, 4096
# What a client asks for next, and how often.
SHARES = {"search": 0.45, "search, one camera": 0.2, "identify": 0.1, "add": 0.15, "assign": 0.04, "remove": 0.03,
          "person": 0.03}


@dataclass(frozen=True)
class ServingOptions:
    """What to measure; the fields are the command line's options."""

    rows: int = 100_000
    dim: int = 512
    clients: int = 32
    seconds: float = 60.0
    k: int = 20
    device: str = "cpu"


@dataclass
class Client:
    """One of those who ask, and what came of it."""

    port: int
    options: ServingOptions
    seed: int
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)  # acknowledged, and not removed since
    removed: list[str] = field(default_factory=list)

    def run(self, stopped: threading.Event) -> None:
        """Ask until the service is gone; what comes after `stopped` is not measured."""
        rng = np.random.default_rng(self.seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while True:
            kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
            path, request = self.request(kind, rng)
            start = time.perf_counter()
            try:
                connection.request("POST" if request else "GET", path, json.dumps(request) if request else None,
                                   {"Content-Type": "application/json"})
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                if not stopped.is_set():
                    self.errors.append(f"{kind}: {type(error).__name__} {error}")
                return
            if answer.status >= 400:
                self.errors.append(f"{kind}: {answer.status} {data[:200]!r}")
            elif kind == "add":
                self.rows += json.loads(data)["ids"]
            if not stopped.is_set():
                self.times[kind].append(time.perf_counter() - start)

    def request(self, kind: str, rng: np.random.Generator) -> tuple[str, dict | None]:
        """A path, and what is posted to it."""
        if kind == "person":
            return f"/v1/people/{rng.integers(self.options.rows // IDENTITY_ROWS)}", None
        if kind in ("assign", "remove") and self.rows:
            row = self.rows.pop() if kind == "remove" else self.rows[-1]
            self.removed += [row] * (kind == "remove")
            return f"/v1/{kind}", {"ids": [row], **({"identity": int(rng.integers(50))} if kind == "assign" else {})}
        vector = draw_rows(rng, 1, self.options)[0][0].tolist()
        if kind == "add":
            return "/v1/add", {"vectors": [vector], "facts": {"camera": int(rng.integers(CAMERAS)), "time": 1}}
        if kind == "identify":
            return "/v1/identify", {"vectors": [vector], "threshold": 0.6}
        where = {"cameras": [int(rng.integers(CAMERAS))]} if kind == "search, one camera" else {}
        return "/v1/search", {"vectors": [vector], "k": self.options.k, "where": where}


def make_options(**others: Any) -> ServingOptions:
    """The options of a command line; None means the default."""
    return ServingOptions(**{name: value for name, value in others.items() if value is not None})


def draw_rows(rng: np.random.Generator, count: int, options: ServingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Rows [count, D] of length 1 and their identities: people of 64 directions with a little noise in all."""
    identities = rng.integers(options.rows // IDENTITY_ROWS, size=count)
    rows = 0.02 * rng.standard_normal((count, options.dim))
    rows[:, : min(64, options.dim)] += np.stack([
        np.random.default_rng(identity).standard_normal(min(64, options.dim)) for identity in identities.tolist()]) / 8
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), identities


@contextlib.contextmanager
def _service(folder: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """The process of tools/gallery.py serve, and its port."""
    command = [sys.executable, str(TOOL), "serve", "--gallery", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line:
                raise ValueError(f"the service did not start, exit code {process.wait()}")
            yield process, int(line.split()[0].rstrip("/").rpartition(":")[2])
        finally:
            if process.poll() is None:
                process.kill()


def run_benchmark(options: ServingOptions) -> dict[str, Any]:
    """Fill a gallery, serve it, ask until `seconds` have gone by, and stop it amid the requests.

    Returns:
        A report that JSON can hold: "machine", "plan" (the options), "rows" (of each kind of request, and of all),
        "memory" (MB of the process that no file backs, each second), and after the stop "exit", "lost" rows, which were
        acknowledged and are not there, and "surplus" ones: the service began to add them, but did not answer.
    """
    report, rng = new_report(options), np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="gallery") as place:
        folder = Path(place) / "gallery"
        with open_gallery(folder, options.dim) as gallery:
            for start in range(0, options.rows, CHUNK):
                vectors, identities = draw_rows(rng, min(CHUNK, options.rows - start), options)
                gallery.add(range(start, start + len(vectors)), vectors, {
                    "camera": rng.integers(CAMERAS, size=len(vectors)), "identity": identities})
        with _service(folder) as (process, port):
            clients = [Client(port, options, seed) for seed in range(options.clients)]
            report["memory"] = _load(process, clients, options.seconds)
            report["exit"] = process.wait(60)
        with open_gallery(folder) as gallery:
            there = {row for batch in gallery.scan() for row in batch.ids.tolist() if row >= options.rows}
    wanted = {int(row) for client in clients for row in client.rows}
    removed = {int(row) for client in clients for row in client.removed}
    report |= {"lost": len(wanted - there), "surplus": len(there - wanted - removed)}
    errors = [error for client in clients for error in client.errors]
    kinds = {kind: np.concatenate([client.times[kind] for client in clients]) for kind in SHARES}
    for title, times in {**kinds, "all": np.concatenate(list(kinds.values()))}.items():
        wrong = [error for error in errors if title == "all" or error.startswith(f"{title}: ")]
        quantiles = np.quantile(times, (0.5, 0.95, 0.99)).tolist() if len(times) else [np.nan] * 3
        report["rows"].append({"title": title, "runs": [{}], "note": "", "count": len(times), "errors": wrong[:20],
                               "wrong": len(wrong), "rate": len(times) / options.seconds,
                               **dict(zip(("p50", "p95", "p99"), quantiles, strict=True))})
    return report


def _load(process: subprocess.Popen, clients: list[Client], seconds: float) -> list[float]:
    """Let the clients ask for so long, then stop the process; its anonymous memory in MB, each second."""
    begun, stopped, memory = time.perf_counter(), threading.Event(), []
    threads = [threading.Thread(target=client.run, args=(stopped,)) for client in clients]
    for thread in threads:
        thread.start()
    while (left := begun + seconds - time.perf_counter()) > 0:
        time.sleep(min(1, left))
        status = Path(f"/proc/{process.pid}/status").read_text()
        memory.append(int(status.split("RssAnon:")[1].split()[0]) / 1024)
    stopped.set()
    process.terminate()
    for thread in threads:
        thread.join()
    return memory
