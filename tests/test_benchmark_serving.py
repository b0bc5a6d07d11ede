"""tools/benchmark.py gallery-serve: clients that read and write, and a stop amid their requests."""
import contextlib
import os
from types import SimpleNamespace

import pytest
from gallery_server import serving as serve_in_thread

from processor.gallery import open_gallery
from tools.benchmarks.gallery import serving
from tools.benchmarks.reports import FORMATS


@contextlib.contextmanager
def service_in_thread(folder):
    with open_gallery(folder) as gallery, serve_in_thread(gallery) as (client, server):
        def stop():
            server.should_exit = True

        yield SimpleNamespace(pid=os.getpid(), terminate=stop, wait=lambda seconds: 0), client.port


def test_nothing_is_wrong_or_lost_when_clients_read_and_write_until_the_service_is_stopped(monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.setattr(serving, "_service", service_in_thread)
    report = serving.run_benchmark(serving.ServingOptions(rows=64, dim=16, clients=4, seconds=0.6, k=3))
    assert [row["title"] for row in report["rows"]] == [*serving.SHARES, "all"]
    assert [row["errors"] for row in report["rows"]] == [[]] * len(report["rows"])
    assert (report["lost"], report["surplus"], report["exit"]) == (0, 0, 0)
    *kinds, total = report["rows"]
    assert total["count"] == sum(row["count"] for row in kinds) > 8
    table = FORMATS["gallery-serve"](report)
    assert "0 acknowledged rows lost, 0 added without an answer" in table
    assert f"| all | 1 | {total['count']} | " in table
