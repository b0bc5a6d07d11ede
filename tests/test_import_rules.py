"""Who may import whom, read from the sources."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "datasets", "model", "loss", "solver", "processor", "utils", "tools")
# Folder -> what it may import of ours beside itself; the longest folder that holds a file decides.
ALLOWED = {
    "configs": (), "utils": (),
    "datasets": ("utils",), "model": ("utils",), "loss": ("utils",), "solver": ("utils",),
    "processor": ("configs", "datasets", "model", "loss", "solver", "utils"),
    "processor/retrieval": ("utils",), "processor/gallery": ("processor.retrieval", "utils"),
    "tools": ("configs", "datasets", "model", "loss", "solver", "processor", "utils"),
}
# Folder -> the only siblings that it may import, where the room above would allow them all.
SIBLINGS = {
    "datasets/sets": ("datasets.bases", "datasets.files"),
    "datasets/files": ("datasets.bases",),
    "datasets/augment": ("datasets.bases", "datasets.files"),
    "processor/retrieval/search": (),
}
# Who may take the whole config, beside make_*.py and the files of processor/ itself; all else takes what it needs.
# (stages/facts.py is about the config: what of it a stage depends on.)
TAKES_CFG = ("configs/", "tools/", "processor/training/build.py", "processor/stages/facts.py")
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


def inside(name: str, folders: tuple[str, ...]) -> bool:
    return any(name == folder or name.startswith(f"{folder}.") for folder in (f.replace("/", ".") for f in folders))


def longest(place: str, folders: dict) -> str:
    return max((folder for folder in folders if place.startswith(f"{folder}/")), key=len, default="")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    place = path.relative_to(ROOT).as_posix()
    room, folder = longest(place, ALLOWED), longest(place, SIBLINGS)
    for name in imported(path):
        if name.split(".")[0] not in ROOMS:
            continue
        assert inside(name, (room, *ALLOWED[room])), f"{place} imports {name}"
        if folder and inside(name, (place.split("/")[0],)):
            assert inside(name, (folder, *SIBLINGS[folder])), f"{place} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_builders_and_what_a_tool_calls_take_the_config(path):
    place = path.relative_to(ROOT).as_posix()
    takes = [node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.FunctionDef) and "cfg" in {arg.arg for arg in node.args.args}]
    may = path.name.startswith("make_") or path.parent == ROOT / "processor" or place.startswith(TAKES_CFG)
    assert may or not takes, f"{place}: {takes}"


def test_every_folder_says_in_one_line_what_belongs_there():
    for folder in {path.parent for path in FILES} - {ROOT / "tools"}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, folder


def test_tools_put_the_repository_first():
    """`datasets` and `utils` are common names elsewhere."""
    for path in (ROOT / "tools").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "__main__" in text and any(name.split(".")[0] in ROOMS for name in imported(path)):
            assert text.index("sys.path.insert(0") < min(text.index(f"from {room}") for room in ROOMS
                                                        if f"\nfrom {room}" in text), path


def test_no_folder_of_tests_shadows_a_room():
    assert not [path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name in ROOMS]
