"""Damage to texts: other encodings, lines and words, and values of YAML, JSON and CSV that nobody expects."""
from __future__ import annotations

import csv
import io
import json
import re
from random import Random
from typing import Any

import yaml

from tools.campaigns.inputs.values import NUMBERS, Means

_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "gbk", "latin-1", "utf-32")
_ANY_WORD = re.compile(rb"[\w.+-]+|[^\w\s]|\s")


def is_text(data: bytes) -> bool:
    return b"\0" not in data[:256] and not data[:4].startswith((b"\x89PNG", b"\xff\xd8", b"\x93NUM", b"\x80"))


def recode(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    text, name = data.decode("utf-8"), draw.choice(_ENCODINGS)
    place = draw.randrange(len(text) + 1)
    text = text[:place] + draw.choice(("", "", "é", "中", "\x85", " ")) + text[place:]
    return text.encode(name, "replace"), f"saved as {name}"


def change_lines(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    lines, what = data.split(b"\n"), draw.choice(("cr", "comment", "swap", "drop", "double", "join", "blank"))
    place = draw.randrange(len(lines))
    if what == "cr":
        return draw.choice((b"\r", b"\r\n", b"\n\r", b"\x0b")).join(lines), "other line ends"
    if what == "comment":
        lines.insert(draw.choice((0, place)), draw.choice((b"# made by hand", b"#", b"// x", b"%YAML 1.2", b"---")))
    elif what == "swap":
        other = draw.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    elif what == "drop":
        del lines[place]
    elif what == "double":
        lines[place:place] = [lines[place]] * draw.choice((1, 3, 2000))
    elif what == "join":
        lines[place:place + 2] = [b"".join(lines[place:place + 2])]
    else:
        lines.insert(place, b" \t ")
    return b"\n".join(lines), f"lines: {what} at {place + 1}"


def change_word(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A word or a mark between words replaced by an odd one."""
    match = _ANY_WORD.search(data, draw.randrange(len(data)))
    new = draw.choice((draw.choice(means.texts), str(draw.choice(NUMBERS)))).encode("utf-8", "surrogatepass")
    return data[:match.start()] + new + data[match.end():], f"{new[:30]!r} instead of {match[0][:30]!r}"


def nest(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    mark, depth = draw.choice((b"[", b'{"a":', b"- ", b"(", b'"', b"a:\n ")), draw.choice((50, 5000, 200_000))
    return data[:(place := draw.randrange(len(data) + 1))] + mark * depth + data[place:], f"{mark!r} {depth} times"


def put_yaml(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    new = draw.choice((
        f"X: !!python/object/apply:builtins.open ['{means.canary}', 'w']\n",
        f"!!python/object/new:os.system ['touch {means.canary}']\n", bomb,
        "a: &a [*a]\n", "<<: *nothing\n", "? [a, b]\n: c\n", "? {a: b}\n: c\n", "!!binary x\n",
        "<<: [1, 2]\n", "MODEL: &m\n  <<: *m\n", "x: !!timestamp 9999-99-99\n", "!!set {a, b}\n", "&a : *a\n",
        "x: !!int 0b\n", "x: !!float .\n", "--- \n...\n---\n", "%TAG ! tag:x,2000:\n---\n", "x: 2001-99-99\n",
        "1: 2\n", "null: 1\n", "_BASE_: ../../../../../etc/passwd\n", "_BASE_: .\n", "x: !!map [1]\n",
        "? x\n")).encode()
    lines = data.splitlines(keepends=True)
    lines.insert(draw.choice((0, draw.randrange(len(lines) + 1))), new)
    return b"".join(lines), f"YAML {new[:40]!r}"


def put_value(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A key's value in YAML replaced by another, or a key put in, as a writer of YAML writes it."""
    value = yaml.safe_dump(draw.choice(means.values), default_flow_style=draw.choice((True, None)), width=10**6,
                           allow_unicode=draw.random() < 0.5).removesuffix("...\n").rstrip("\n")
    lines = data.decode("utf-8").split("\n")
    place = draw.choice([number for number, line in enumerate(lines) if ":" in line])
    key = lines[place].partition(":")[0]
    blanks = " " * (len(key) - len(key.lstrip()) + 1)
    lines[place] = f"{key}: " + ("\n" + value).replace("\n", "\n" + blanks) if "\n" in value else f"{key}: {value}"
    return "\n".join(lines).encode("utf-8", "surrogatepass"), f"YAML {key.strip()}: {value[:40]!r}"


def put_cells(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """Cells of a CSV replaced, a row or a column too many, quoted as writers of CSV do it."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
    what = draw.choice(("cell", "cell", "cells", "row", "column", "wide", "many"))
    row = draw.choice([row for row in rows if row])
    if what == "cell":
        row[draw.randrange(len(row))] = draw.choice(means.texts)
    elif what == "cells":
        for row in rows:
            row[:] = [draw.choice(means.texts) if draw.random() < 0.2 else cell for cell in row]
    elif what == "row":
        rows.insert(draw.randrange(len(rows) + 1), draw.choices(means.texts, k=draw.randrange(8)))
    elif what == "column":
        for row in rows:
            row.insert(min(len(row), 1), draw.choice(means.texts))
    elif what == "wide":
        row *= 5000
    else:
        rows += [row] * 5000
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=draw.choice(",,,;\t"), quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
               lineterminator=draw.choice(("\n", "\r\n"))).writerows(rows)
    return out.getvalue().encode(), f"CSV: {what}"


def is_csv(data: bytes) -> bool:
    return data[:200].count(b",") > 2 and is_text(data) and not is_json_like(data)


def is_json_like(data: bytes) -> bool:
    return data[:1] in b"{[" and data[:1] != b""


def change_value(root: Any, draw: Random, means: Means) -> str:
    """Change a value somewhere in nested ones; in words."""
    places = [(holder, key) for holder in _holders(root) for key in
              (list(holder) if isinstance(holder, dict) else range(len(holder)))]
    upper = [place for place in places if place[0] is root or draw.random() < 0.2]
    holder, key = draw.choice(upper or places)
    what = draw.choice(("set", "set", "set", "remove", "rename", "swap"))
    if what == "set":
        holder[key] = draw.choice(means.values)
    elif what == "swap":
        other, at = draw.choice(places)
        holder[key], other[at] = other[at], holder[key]
    elif what == "remove" or isinstance(holder, list):
        del holder[key]
    else:
        holder[draw.choice(means.texts)] = holder.pop(key)
    return f"JSON: {what} {str(key)[:40]!r}"


def _holders(value: Any, depth: int = 0):
    if isinstance(value, (dict, list)) and depth < 20:
        yield value
        for inner in (value.values() if isinstance(value, dict) else value):
            yield from _holders(inner, depth + 1)


def change_json(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A value somewhere in a JSON file replaced, removed, exchanged, or given another name."""
    root = json.loads(data)
    if not isinstance(root, (dict, list)) or draw.random() < 0.05:
        return json.dumps(draw.choice(means.values)).encode(), "another JSON value"
    done = change_value(root, draw, means)
    return json.dumps(root, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"), done
