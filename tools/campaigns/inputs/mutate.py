"""Damage to a file: as disks and networks do it, as other programs' habits do it, and as an attacker would."""
from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from processor.export.seal import DIGITS, EMPTY, SEALS

SEALED = "its checksum made anew"
_NUMBERS = (0, 1, -1, 127, 128, 255, 256, 65535, 2**31 - 1, -2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -2**63, 2**64)
_WORDS = ("", "nan", "inf", "-1", "0", "1e999", "null", "[]", "{}", "..", "../../etc/passwd", "/etc/passwd", "C:\\x",
          "\0", "﻿", "‮", "é", "中文", "a" * 300, "0x41", "1_000", "9" * 400, "%s%n", "~", "*", "&a", "\n", "\t", "'",
          '"', ":", ",", ";", "#", "=1+1", "True")
_VALUES: tuple[Any, ...] = (None, True, False, *_NUMBERS, 0.5, -0.0, 1e308, *_WORDS, [], {}, [[]], {"": None}, [None],
                            [1, [2, [3]]], {"a": {"b": {}}}, ["../x"] * 3, [0] * 1000, "x" * 100_000)
_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "gbk", "latin-1", "utf-32")


class Payload:
    """What unpickling it would do: make the file `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, (str(self.canary), "w")


def mutate(data: bytes, draw: random.Random, canary: Path, others: list[bytes]) -> tuple[bytes, str]:
    """A damaged copy of a file, and what was done in words.

    Args:
        draw: all choices come from it.
        canary: what code in the file would make.
        others: files of other kinds, to take pieces of.
    """
    fitting = [*_BYTES, *(change for fits, changes in _KINDS if fits(data) for change in changes for _ in range(2))]
    words = []
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3, 8))):
        change = draw.choice(fitting)
        try:
            data, done = change(data, draw, canary) if change is not _splice else _splice(data, draw, others)
        except Exception:  # whatever a format's library makes of what an earlier change has left
            continue
        words.append(done)
    if not words:
        data, done = _flip(data, draw, canary)
        words = [done]
    return data, ", ".join(words)


# ------------------------------------------------------------------ bytes
def _span(data: bytes, draw: random.Random, most: int = 4096) -> tuple[int, int]:
    start = draw.randrange(len(data) + 1)
    return start, min(len(data), start + draw.choice((1, 2, 4, 8, 64, draw.randint(1, most))))


def _flip(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    if not data:
        return b"\0", "a byte in an empty file"
    changed, count = bytearray(data), draw.choice((1, 1, 1, 2, 16))
    for _ in range(count):
        place = draw.randrange(min(len(data), draw.choice((16, 64, 512, len(data)))))
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed), f"{count} bits flipped"


def _overwrite(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    start, end = _span(data, draw)
    filler = draw.choice((b"\0", b"\xff", None))
    piece = filler * (end - start) if filler else draw.randbytes(end - start)
    return data[:start] + piece + data[end:], f"bytes {start}..{end} overwritten"


def _number(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A binary number, as a header has them, replaced by an extreme one."""
    width = draw.choice((1, 2, 4, 8))
    start = draw.randrange(min(len(data), draw.choice((32, 128, 1024, len(data) + 1))))
    value = draw.choice(_NUMBERS) % 256**width
    return data[:start] + value.to_bytes(width, draw.choice(("little", "big"))) + data[start + width:], \
        f"{value} in {width} bytes at {start}"


def _cut(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    length = draw.choice((0, 1, draw.randrange(len(data) + 1), max(0, len(data) - draw.randint(1, 32))))
    return data[:length], f"cut to {length} bytes"


def _remove(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    start, end = _span(data, draw)
    return data[:start] + data[end:], f"bytes {start}..{end} removed"


def _insert(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    start = draw.randrange(len(data) + 1)
    piece = draw.choice((draw.randbytes(draw.randint(1, 64)), bytes(draw.randint(1, 64)), b"\n" * 3,
                         draw.choice(_WORDS).encode("utf-8")))
    return data[:start] + piece + data[start:], f"{len(piece)} bytes put in at {start}"


def _repeat(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    start, end = _span(data, draw)
    place, times = draw.choice((end, draw.randrange(len(data) + 1))), draw.choice((1, 2, 50))
    return data[:place] + data[start:end] * times + data[place:], f"bytes {start}..{end} repeated {times} times"


def _append(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    return data + draw.choice((data, bytes(4096), draw.randbytes(100))), "something behind the end"


def _pickled(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    return pickle.dumps(Payload(canary), protocol=draw.choice((0, 2, 4))), "a pickle that runs code"


def _splice(data: bytes, draw: random.Random, others: list[bytes]) -> tuple[bytes, str]:
    other = draw.choice(others)
    start, end = _span(other, draw, 65536)
    place = draw.choice((0, draw.randrange(len(data) + 1)))
    rest = data[place:] if draw.random() < 0.5 else data[place + end - start:]
    return data[:place] + other[start:end] + rest, "a piece of another kind of file"


# ------------------------------------------------------------------ texts
def _text(data: bytes) -> bool:
    return b"\0" not in data[:256] and not data[:4].startswith((b"\x89PNG", b"\xff\xd8", b"\x93NUM", b"\x80"))


def _recode(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    text, name = data.decode("utf-8"), draw.choice(_ENCODINGS)
    place = draw.randrange(len(text) + 1)
    text = text[:place] + draw.choice(("", "", "é", "中", "\x85", " ")) + text[place:]
    return text.encode(name, "replace"), f"saved as {name}"


def _lines(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
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


def _word(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A word or a mark between words replaced by an odd one."""
    match = draw.choice(list(re.finditer(rb"[\w.+-]+|[^\w\s]|\s", data[:200_000])))
    new = draw.choice((draw.choice(_WORDS), str(draw.choice(_NUMBERS)))).encode("utf-8", "surrogatepass")
    return data[:match.start()] + new + data[match.end():], f"{new[:30]!r} instead of {match[0][:30]!r}"


def _nest(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    mark, depth = draw.choice((b"[", b'{"a":', b"- ", b"(", b'"', b"a:\n ")), draw.choice((50, 5000, 200_000))
    return data[:(place := draw.randrange(len(data) + 1))] + mark * depth + data[place:], f"{mark!r} {depth} times"


def _yaml(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    new = draw.choice((
        f"X: !!python/object/apply:builtins.open ['{canary}', 'w']\n",
        f"!!python/object/new:os.system ['touch {canary}']\n", bomb,
        "a: &a [*a]\n", "<<: *nothing\n", "? [a, b]\n: c\n", "? {a: b}\n: c\n", "!!binary x\n",
        "<<: [1, 2]\n", "MODEL: &m\n  <<: *m\n", "x: !!timestamp 9999-99-99\n", "!!set {a, b}\n", "&a : *a\n",
        "x: !!int 0b\n", "x: !!float .\n", "--- \n...\n---\n", "%TAG ! tag:x,2000:\n---\n", "x: 2001-99-99\n",
        "1: 2\n", "null: 1\n", "_BASE_: ../../../../../etc/passwd\n", "_BASE_: .\n", "x: !!map [1]\n",
        "? x\n")).encode()
    lines = data.splitlines(keepends=True)
    lines.insert(draw.choice((0, draw.randrange(len(lines) + 1))), new)
    return b"".join(lines), f"YAML {new[:40]!r}"


# ------------------------------------------------------------------ formats
def _json_like(data: bytes) -> bool:
    return data[:1] in b"{[" and data[:1] != b""


def _change(root: Any, draw: random.Random) -> str:
    places = [(holder, key) for holder in _holders(root) for key in
              (list(holder) if isinstance(holder, dict) else range(len(holder)))]
    upper = [place for place in places if place[0] is root or draw.random() < 0.2]
    holder, key = draw.choice(upper or places)
    what = draw.choice(("set", "set", "set", "remove", "rename", "swap"))
    if what == "set":
        holder[key] = draw.choice(_VALUES)
    elif what == "swap":
        other, at = draw.choice(places)
        holder[key], other[at] = other[at], holder[key]
    elif what == "remove" or isinstance(holder, list):
        del holder[key]
    else:
        holder[draw.choice(_WORDS)] = holder.pop(key)
    return f"JSON: {what} {str(key)[:40]!r}"


def _holders(value: Any, depth: int = 0):
    if isinstance(value, (dict, list)) and depth < 20:
        yield value
        for inner in (value.values() if isinstance(value, dict) else value):
            yield from _holders(inner, depth + 1)


def _json_file(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A value somewhere in a JSON file replaced, removed, exchanged, or given another name."""
    root = json.loads(data)
    if not isinstance(root, (dict, list)) or draw.random() < 0.05:
        return json.dumps(draw.choice(_VALUES)).encode(), "another JSON value"
    done = _change(root, draw)
    return json.dumps(root, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass"), done


def _npy(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A header that promises another shape or type, or an array of objects."""
    if draw.random() < 0.15:
        out = io.BytesIO()
        np.lib.format.write_array(out, np.array([Payload(canary)], object), allow_pickle=True)
        return out.getvalue(), "an array of objects that run code"
    length = int.from_bytes(data[8:10], "little")
    header, size = data[10:10 + length].decode("latin-1"), draw.choice(_NUMBERS)
    shape = draw.choice((f"({size},)", f"({size}, {size})", "()", "(0,)", "(-1, 4)", "(3, 0)", "(True,)", "'x'", "None",
                         f"(1,{'1,' * 70})", "(2, 2.5)"))
    kind = draw.choice(("'<f4'", "'<f8'", "'|O'", "'<U4000000000'", "'V8'", "'<i8'", "[('a', '<f4')]", "'M8[s]'", "''",
                        "'<c16'", "None", "'>f4'", "'<f2'", "'|S1'", "'?'"))
    key, value = draw.choice((("shape", shape), ("shape", shape), ("descr", kind), ("fortran_order", "True")))
    header = re.sub(rf"'{key}': (?:\([^)]*\)|'[^']*'|\w+|\[.*?\])", lambda _: f"'{key}': {value}", header)
    return data[:8] + struct.pack("<H", len(header)) + header.encode("latin-1") + data[10 + length:], \
        f".npy with {key} {value[:40]}"


def _zip(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """An archive with a member changed, made huge, renamed, repeated or left out; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw.randrange(len(members))
    what = draw.choice(("change", "change", "bomb", "rename", "drop", "repeat", "pickle"))
    name, content = members[place]
    compression = zipfile.ZIP_STORED
    if what == "change":
        content, _ = draw.choice((_flip, _number, _cut, _overwrite))(content, draw, canary)
        members[place] = name, content
    elif what == "bomb":
        members[place], compression = (name, bytes(draw.choice((10**8, 3 * 10**8)))), zipfile.ZIP_DEFLATED
    elif what == "rename":
        members[place] = draw.choice(("../x", "/tmp/x", "a" * 300, "archive/data.pkl", "x/constants.pkl")), content
    elif what == "drop":
        del members[place]
    elif what == "repeat":
        members.append(members[place])
    else:
        members = [(name, pickle.dumps(Payload(canary), protocol=2) if name.endswith("data.pkl") else content)
                   for name, content in members]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue(), f"archive: {what} {name[-40:]}"


def _png(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A PNG chunk changed, with the right checksum: a header that promises gigabytes, rows that inflate to them."""
    what = draw.choice(("size", "size", "header", "bomb", "text bomb", "chunk"))
    if what in ("size", "header"):
        header = bytearray(data[16:29])
        if what == "size":
            width, height = (draw.choice((0, 1, 30_000, 65_535, 1_000_000, 2**31 - 1)) for _ in range(2))
            header[:8] = struct.pack(">II", width, height)
        else:
            header[draw.randrange(8, 13)] = draw.randrange(256)
        return data[:8] + _chunk(b"IHDR", bytes(header)) + data[33:], f"PNG {what} {bytes(header).hex()}"
    if what == "bomb":
        rows = zlib.compress(bytes(draw.choice((10**7, 3 * 10**8))), 9)
        return data[:33] + _chunk(b"IDAT", rows) + draw.choice((b"", _chunk(b"IEND", b""))), "PNG rows that inflate"
    if what == "text bomb":
        content = b"a\0\0" + zlib.compress(bytes(10**8), 9)
        return data[:33] + _chunk(draw.choice((b"zTXt", b"iCCP")), content) + data[33:], "PNG text that inflates"
    kind = draw.choice((b"PLTE", b"tRNS", b"gAMA", b"IHDR", b"IEND", b"IDAT", b"acTL", b"fdAT", b"eXIf", b"abcd",
                        b"ABCD"))
    return data[:33] + _chunk(kind, draw.randbytes(draw.choice((0, 1, 3, 6, 768)))) + data[33:], f"PNG chunk {kind!r}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _jpeg(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A JPEG frame header with another size, depth or sampling, or a segment too many."""
    frame = re.search(rb"\xff[\xc0-\xc2]\0.", data, re.DOTALL)
    what = draw.choice(("size", "frame", "segment", "restart"))
    if what == "segment" or frame is None:
        marker = bytes([0xFF, draw.choice((0xC4, 0xDB, 0xDD, 0xE1, 0xFE, 0xD8, 0xDA, 0xC2))])
        content = draw.randbytes(draw.choice((0, 2, 20, 600)))
        segment = marker + struct.pack(">H", len(content) + 2) + content
        return data[:2] + segment + data[2:], f"JPEG segment {marker.hex()}"
    at = frame.start()
    if what == "size":
        size = struct.pack(">HH", *(draw.choice((0, 1, 64, 8000, 65_500, 65_535)) for _ in range(2)))
        return data[:at + 5] + size + data[at + 9:], f"JPEG size {size.hex()}"
    if what == "frame":
        place = at + draw.choice((1, 4, 9, 10, 11, 12, 14))
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1:], f"JPEG frame header at {place}"
    place = draw.randrange(at, len(data))
    return data[:place] + bytes([0xFF, draw.randrange(0xC0, 0x100)]) + data[place:], f"JPEG marker at {place}"


def _safetensors(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    length = int.from_bytes(data[:8], "little")
    root = json.loads(data[8:8 + length])
    done = _change(root, draw)
    header = json.dumps(root).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length:], f"safetensors header, {done}"


def _sqlite(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """A row, a table or the schema changed by SQL, so that the file is sound and what it says is not."""
    import sqlite3

    db = sqlite3.connect(":memory:")
    db.deserialize(data[:18] + b"\1\1" + data[20:])  # without a log, which memory has not
    tables = [name for name, in db.execute("SELECT name FROM sqlite_master WHERE type='table'") if "sqlite" not in name]
    table = draw.choice(sorted(tables))
    columns = [row[1] for row in db.execute(f'PRAGMA table_info("{table}")')]
    column = draw.choice(columns)
    what = draw.choice(("set", "set", "set", "set one", "drop", "empty", "column", "blob"))
    value = draw.choice([value for value in _VALUES if isinstance(value, (str, float, type(None)))
                         or (isinstance(value, int) and abs(value) < 2**63)])
    value = value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    statement, values = {
        "set": (f'UPDATE OR IGNORE "{table}" SET "{column}"=?', (value,)),
        "set one": (f'UPDATE OR IGNORE "{table}" SET "{column}"=? WHERE "{columns[0]}" IN '
                    f'(SELECT "{columns[0]}" FROM "{table}" LIMIT 1)', (value,)),
        "drop": (f'DROP TABLE "{table}"', ()), "empty": (f'DELETE FROM "{table}"', ()),
        "column": (f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO other', ()),
        "blob": (f'UPDATE OR IGNORE "{table}" SET "{column}"=zeroblob(?)', (draw.choice((0, 1, 92, 100_000_000)),)),
    }[what]
    try:
        db.execute(statement, values)
        db.commit()
    except sqlite3.Error as error:
        raise ValueError from error
    changed = db.serialize()
    db.close()
    return changed[:18] + data[18:20] + changed[20:], f"SQLite: {statement} {str(values)[:40]}"


def _external(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """An ONNX model with an extreme dimension, another operator, or weights that it says are in another file."""
    import onnx

    model = onnx.load_from_string(data)
    what = draw.choice(("external", "dims", "operator", "loop", "metadata", "opset"))
    weights = draw.choice(list(model.graph.initializer))
    if what == "external":
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", draw.choice(("/etc/passwd", "../../../../../../etc/passwd", "x", "."))),
                           ("offset", "0"), ("length", str(draw.choice((0, 64, 2**40))))):
            weights.external_data.add(key=key, value=value)
    elif what == "dims":
        del weights.dims[:]
        weights.dims.extend(draw.choice(((2**40,), (2**20, 2**20), (0,), (-1,), (1, 1, 1))))
    elif what == "operator":
        kind = draw.choice(("Relu", "Nothing", "If", "Expand", "Tile", "Reshape"))
        draw.choice(list(model.graph.node)).op_type = kind
    elif what == "loop":
        node = draw.choice(list(model.graph.node))
        node.input[0] = node.output[0] if node.input else ""
    elif what == "metadata":
        entry = draw.choice(list(model.metadata_props))
        entry.value = draw.choice(("", "{}", "[]", json.dumps({"model_id": "x", "format": 1}), entry.value[:50]))
    else:
        model.opset_import[0].version = draw.choice((0, 1, 999))
    return _sealed(model.SerializeToString()), f"ONNX, {SEALED}: {what}"


def _sealed(data: bytes) -> bytes:
    """An exported file with the checksum that it should have, as an attacker would make it."""
    mark = SEALS[".xml" if data[:200].lstrip().startswith(b"<") else ".onnx"].encode()
    place = data.rfind(mark) + len(mark)
    if place < len(mark) or place + DIGITS > len(data):
        return data
    before, after = data[:place], data[place + DIGITS:]
    return before + hashlib.sha256(before + EMPTY.encode() + after).hexdigest().encode() + after


def _openvino(data: bytes, draw: random.Random, canary: Path) -> tuple[bytes, str]:
    """OpenVINO's XML with another word in it."""
    data, done = _word(data, draw, canary)
    return _sealed(data), f"{SEALED}: {done}"


def _is_onnx(data: bytes) -> bool:
    return b"onnx" in data[:200] or b"tools/export.py" in data[:200]


_BYTES = (_flip, _flip, _overwrite, _number, _cut, _remove, _insert, _repeat, _append, _splice, _pickled)
_KINDS: tuple[tuple[Callable[[bytes], bool], tuple[Callable, ...]], ...] = (
    (_text, (_recode, _lines, _lines, _word, _word, _nest)),
    (_json_like, (_json_file, _json_file, _json_file)),
    (lambda data: b"MODEL:" in data[:400] or b"_BASE_" in data[:400], (_yaml, _yaml)),
    (lambda data: data.startswith(b"\x93NUMPY"), (_npy, _npy, _npy)),
    (lambda data: data.startswith(b"PK\3\4"), (_zip, _zip, _zip)),
    (lambda data: data.startswith(b"\x89PNG"), (_png, _png, _png)),
    (lambda data: data.startswith(b"\xff\xd8\xff"), (_jpeg, _jpeg, _jpeg)),
    (lambda data: data[8:10] == b'{"', (_safetensors, _safetensors)),
    (lambda data: data.startswith(b"SQLite format 3"), (_sqlite, _sqlite, _sqlite, _sqlite)),
    (_is_onnx, (_external, _external)),
    (lambda data: b"<net " in data[:200], (_openvino, _openvino)),
)
