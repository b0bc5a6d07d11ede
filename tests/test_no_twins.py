"""No function body stands twice in the sources: whatever its variables are called, knowledge is written once."""
import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "datasets", "model", "loss", "solver", "processor", "utils", "tools")
STATEMENTS = 3  # bodies with fewer are not compared


def normalised(function):
    """The body as text, without its docstring, v0, v1, ... its arguments and variables; None if it is short."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    nodes = [node for statement in body for node in ast.walk(statement)]
    if sum(isinstance(node, ast.stmt) for node in nodes) < STATEMENTS:
        return None
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in numbers:
            node.id = f"v{numbers[node.id]}"
    return "\n".join(map(ast.dump, body))


def twins(sources):
    """The places of each body that is in {place: source} more than once."""
    places = defaultdict(list)
    for place, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := normalised(node)):
                places[text].append(f"{place}: {node.name}")
    return [same for same in places.values() if len(same) > 1]


def test_bodies_that_differ_in_the_names_of_variables_only_are_twins():
    add = "def add(a, b):\n    '''Sum.'''\n    c = a + b\n    if c:\n        return round(c)\n"
    total = "def total(x, y):\n    z = x + y\n    if z:\n        return round(z)\n"
    assert twins({"p": add, "q": total}) == [["p: add", "q: total"]]
    assert twins({"p": add, "q": total.replace("round", "int"), "r": total.replace("x + y", "y + x")}) == []
    assert twins({"p": "def f():\n    return 1\n", "q": "def f():\n    return 1\n"}) == []


def test_no_function_body_stands_twice():
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert twins({path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in files}) == []
