"""The benchmark of the gallery's search: its table has every row, and its slow search sees a wrong answer."""
import numpy as np
import pytest

from processor.gallery import Found, open_gallery, search
from tools.benchmarks.gallery.search import (
    FILTERS,
    GalleryOptions,
    build,
    check_found,
    decided_set,
    draw_queries,
    run_benchmark,
)
from tools.campaigns.tool_server import run_tool


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> GalleryOptions:
    setting = GalleryOptions(rows=9000, dim=16, k=5, batch=3, repeats=1, checked=2,
                             folder=str(tmp_path_factory.mktemp("gallery") / "g"))
    build(setting)
    return setting


def test_the_table_has_every_row_and_all_answers_are_equal(setting):
    arguments = [f"--{name}={getattr(setting, name)}" for name in ("rows", "dim", "k", "batch", "repeats", "folder")]
    answer = run_tool("benchmark", "gallery", *arguments)
    assert answer.returncode == 0, answer.stderr
    table = [line for line in answer.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(table) == len(FILTERS) + 2
    assert sum("1 of 1 | 1 of 1" in line or "3 of 3 | 3 of 3" in line for line in table) == len(FILTERS) + 1
    assert "memory of a process that only searches" in answer.stdout


def test_the_slow_search_sees_a_wrong_answer(setting):
    with open_gallery(setting.folder) as gallery:
        queries = draw_queries(gallery, setting)
        found = search(gallery, queries, 5)
        assert check_found(gallery, queries, found, None, 3) == ("3 of 3", "3 of 3")
        wrong = Found(np.roll(found.ids, 1, axis=1), found.similarities, found.certified)
        assert check_found(gallery, queries, wrong, None, 3) == ("0 of 3", "3 of 3")
        others = Found(found.ids + 1, found.similarities, found.certified)
        assert check_found(gallery, queries, others, None, 3) == ("0 of 3", "0 of 3")


def test_a_set_that_float32_cannot_decide_is_none():
    ids = np.array([7, 8, 9])
    assert decided_set(ids, np.array([0.5, 0.1, 0.3]), 2, 512) == {8, 9}
    assert decided_set(ids, np.array([0.3 + 1e-8, 0.1, 0.3]), 2, 512) is None
    assert decided_set(ids, np.array([0.3 + 1e-8, 0.1, 0.3]), 3, 512) == {7, 8, 9}


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        run_benchmark(GalleryOptions(rows=0))
