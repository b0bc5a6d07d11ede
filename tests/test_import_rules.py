"""Who may import whom, read from the sources."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "datasets", "model", "loss", "solver", "processor", "utils", "tools")
ALLOWED = {
    "configs": set(), "utils": set(),
    "datasets": {"utils"}, "model": {"utils"}, "loss": {"utils"}, "solver": {"utils"},
    "processor": {"configs", "datasets", "model", "loss", "solver", "utils"},
    "processor/retrieval": {"utils"},
    "tools": {"configs", "datasets", "model", "loss", "solver", "processor", "utils"},
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room is meant"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    inside = path.relative_to(ROOT).as_posix()
    room = "processor/retrieval" if inside.startswith("processor/retrieval/") else inside.split("/")[0]
    for name in imported(path):
        top = name.split(".")[0]
        if top not in ROOMS:
            continue
        own = name.startswith(room.replace("/", "."))
        assert own or top in ALLOWED[room], f"{inside} imports {name}"


def test_tools_put_the_repository_first():
    """`datasets` and `utils` are common names elsewhere."""
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if any(name.split(".")[0] in ROOMS for name in imported(path)):
            assert text.index("sys.path.insert(0") < min(text.index(f"from {room}") for room in ROOMS
                                                        if f"\nfrom {room}" in text), path


def test_no_folder_of_tests_shadows_a_room():
    assert not [path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name in ROOMS]
