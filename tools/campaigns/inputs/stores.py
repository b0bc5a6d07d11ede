"""Damage to records and programs that leaves them sound: SQLite by SQL, ONNX and OpenVINO with their checksums."""
from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
import tempfile
from pathlib import Path
from random import Random

from processor.export.seal import DIGITS, EMPTY, SEALS
from tools.campaigns.inputs.texts import change_word
from tools.campaigns.inputs.values import NUMBERS, SEALED, Means

_ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT {} FROM c"
_DIMS = ((2**40,), (2**20, 2**20), (0,), (-1,), (1, 1, 1), (2**32, 2**32), (), (1,) * 100)


def change_sqlite(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A row, a table or the schema changed by SQL, so that the file is sound and what it says is not."""
    with tempfile.TemporaryDirectory() as folder:  # Python 3.10 cannot take a database from memory
        file = Path(folder, "database")
        file.write_bytes(data[:18] + b"\1\1" + data[20:])  # without a log, which would be another file
        with contextlib.closing(sqlite3.connect(file)) as db:
            done = _change_rows(db, draw, means)
        changed = file.read_bytes()
    return changed[:18] + data[18:20] + changed[20:], f"SQLite: {done}"


def _change_rows(db: sqlite3.Connection, draw: Random, means: Means) -> str:
    """Make a change and say which.

    Raises:
        ValueError: it cannot be made.
    """
    tables = [name for name, in db.execute("SELECT name FROM sqlite_master WHERE type='table'") if "sqlite" not in name]
    table = draw.choice(sorted(tables))
    columns = [row[1] for row in db.execute(f'PRAGMA table_info("{table}")')]
    column = draw.choice(columns)
    first = f'WHERE "{columns[0]}" IN (SELECT "{columns[0]}" FROM "{table}" LIMIT 1)'
    statements, values = draw.choice((
        *[([f'UPDATE OR IGNORE "{table}" SET "{column}"=?'], (_value(draw, means),))] * 3,
        *[([f'UPDATE OR IGNORE "{table}" SET "{column}"=? {first}'], (_value(draw, means),))] * 3,
        ([f'DROP TABLE "{table}"'], ()), ([f'DELETE FROM "{table}"'], ()),
        ([f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO other'], ()),
        ([f'UPDATE OR IGNORE "{table}" SET "{column}"=zeroblob(?)'], (draw.choice((0, 1, 92, 100_000)),)),
        ([f'UPDATE OR IGNORE "{table}" SET "{column}"=zeroblob(?) {first}'], (draw.choice((0, 92, 50_000_000)),)),
        ([f'INSERT OR IGNORE INTO "{table}" SELECT ' + ", ".join(
            "x" if name == columns[0] else f'"{name}"' for name in columns) + f' FROM "{table}", '
          '(WITH RECURSIVE c(x) AS (SELECT 1000 UNION ALL SELECT x + 1 FROM c LIMIT 20000) SELECT x FROM c) '
          'LIMIT 50000'], ()),
        ([f'ALTER TABLE "{table}" RENAME TO other', f'CREATE VIEW "{table}" AS SELECT * FROM other'], ()),
        *[([f'DROP TABLE "{table}"', f'CREATE VIEW "{table}" AS ' + _ENDLESS.format(
            ", ".join(f'x AS "{name}"' for name in columns))], ())] * 2,
        ([f'CREATE TRIGGER t AFTER {draw.choice(("INSERT", "UPDATE", "DELETE"))} ON "{table}" BEGIN DELETE FROM '
          f'"{table}" WHERE "{column}" IN ({_ENDLESS.format("x")}); END'], ()),
        ([f'CREATE TABLE more AS SELECT * FROM "{table}"'], ()),
        ([f"PRAGMA user_version={draw.choice((0, 1, 2, 99, -1))}"], ()),
        ([f"PRAGMA application_id={draw.choice(NUMBERS) % 2**31}", "PRAGMA encoding='UTF-16'"], ()),
    ))
    try:
        for statement in statements:
            db.execute(statement, values)
        db.commit()
    except (sqlite3.Error, OverflowError) as error:
        raise ValueError from error
    return f"{'; '.join(statements)} {str(values)[:40]}"


def _value(draw: Random, means: Means) -> str | float | int | bytes | None:
    value = draw.choice([value for value in means.values if isinstance(value, (str, float, type(None)))
                         or (isinstance(value, int) and abs(value) < 2**63)])
    return draw.choice((value.encode("utf-8", "replace").decode(), value.encode("utf-8", "replace"))) if isinstance(
        value, str) else value


def change_onnx(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """An ONNX model with an extreme dimension, another operator, or weights that it says are in another file."""
    import onnx

    model = onnx.load_from_string(data)
    what = draw.choice(("external", "dims", "dims", "type", "input", "operator", "loop", "metadata", "opset",
                        "attribute", "repeat", "drop"))
    weights, node = draw.choice(list(model.graph.initializer)), draw.choice(list(model.graph.node))
    if what == "external":
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", draw.choice(("/etc/passwd", "../../../../../../etc/passwd", "x", "."))),
                           ("offset", "0"), ("length", str(draw.choice((0, 64, 2**40))))):
            weights.external_data.add(key=key, value=value)
    elif what == "dims":
        del weights.dims[:]
        weights.dims.extend(dim for dim in draw.choice(_DIMS) if -2**63 <= dim < 2**63)
    elif what == "type":
        weights.data_type = draw.choice((0, 2, 7, 8, 9, 10, 11, 14, 16, 99))
    elif what == "input":
        dims = draw.choice((model.graph.input, model.graph.output))[0].type.tensor_type.shape.dim
        dims[draw.randrange(len(dims))].dim_value = draw.choice((0, 1, -1, 7, 2**20, 2**40))
    elif what == "operator":
        node.op_type = draw.choice(("Relu", "Nothing", "If", "Expand", "Tile", "Reshape"))
    elif what == "loop":
        node.input[0] = node.output[0] if node.input else ""
    elif what == "attribute" and node.attribute:
        attribute = draw.choice(list(node.attribute))
        attribute.i, attribute.f = draw.choice((0, -1, 2**31, 2**62)), draw.choice((0.0, -1e38, float("nan")))
        if attribute.ints:
            attribute.ints[0] = draw.choice((0, -1, 3, 1000, 2**31, 2**62))
    elif what == "metadata":
        entry = draw.choice(list(model.metadata_props))
        entry.value = draw.choice(("", "{}", "[]", json.dumps({"model_id": "x", "format": 1}), entry.value[:50]))
    elif what == "repeat":
        model.graph.node.extend([node] * draw.choice((1, 3000)))
    elif what == "drop":
        part = draw.choice((model.graph.node, model.graph.initializer, model.graph.input, model.graph.output))
        del part[draw.randrange(len(part))]
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


def change_openvino(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """OpenVINO's XML with another word, another dimension, entities that grow, or a layer twice."""
    what = draw.choice(("word", "dimension", "dimension", "entities", "outside", "layer"))
    if what in ("word", "dimension"):
        places = list(re.finditer(rb"<dim>(-?\d+)</dim>|(?:size|offset|shape|element_type|id|to-layer)=\"([^\"]*)\"",
                                  data))
        if what == "word" or not places:
            data, done = change_word(data, draw, means)
            return _sealed(data), f"{SEALED}: {done}"
        match = draw.choice(places)
        start, end = match.span(1 if match[1] is not None else 2)
        new = str(draw.choice((*NUMBERS, "", "x", "1,2,3", "-7", "1099511627776,4", "f64", "string"))).encode()
        return _sealed(data[:start] + new + data[end:]), f"{SEALED}: {new!r} instead of {match[0][:40]!r}"
    start = data.index(b"<net ")
    if what == "layer":
        layer = draw.choice(re.findall(rb"\t*<layer .*?</layer>\n?", data, re.DOTALL))
        made = data.replace(layer, layer * draw.choice((0, 2, 1000)), 1)
        return _sealed(made), f"{SEALED}: layers"
    grown = b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10) for n in range(1, 10))
    kind = b'<!DOCTYPE net [<!ENTITY e0 "xxxxxxxxxx">%s]>' % grown if what == "entities" else \
        b'<!DOCTYPE net [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>'
    made = data[:start] + kind + data[start:].replace(b'name="', b'name="&e9;', 1)
    return _sealed(made), f"{SEALED}: XML with {what}"


def is_sqlite(data: bytes) -> bool:
    return data.startswith(b"SQLite format 3")


def is_onnx(data: bytes) -> bool:
    return b"onnx" in data[:200] or b"tools/export.py" in data[:200]


def is_openvino(data: bytes) -> bool:
    return b"<net " in data[:200]
