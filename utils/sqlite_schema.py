"""Whether an SQLite file has the tables that this program made, and no others that would run what they are asked for.

A view is a query that reading runs, for ever if its author wants that; a trigger is one that writing runs.
"""
from __future__ import annotations

import contextlib
import functools
import sqlite3


def check_schema(db: sqlite3.Connection, schema: str) -> None:
    """Compare the tables and indices of a file with what the statements of a schema make; tables of other names may be
    there, because nothing reads them.

    Raises:
        sqlite3.DatabaseError: one is not there, is another, or there is a view, a trigger, a virtual table or an index
            more.
    """
    expected = _entries(schema)
    names = {name.lower() for name, _ in expected}
    there = db.execute("SELECT name, sql FROM sqlite_master").fetchall()
    wrong = [name for name, _ in expected - set(there)]
    for name, sql in set(there) - expected:
        is_other = isinstance(name, str) and name.lower() not in names and isinstance(sql, str | None)
        if not is_other or not (sql or "CREATE TABLE ").startswith("CREATE TABLE "):
            wrong.append(name)
    if wrong:
        raise sqlite3.DatabaseError("damaged, or of another program: not the tables and indices that were written "
                                    f"({', '.join(sorted(map(str, wrong)))[:100]})")


def find_ill_typed(db: sqlite3.Connection, schema: str) -> str:
    """Where a table of a schema has a value of another type than its column says, in words; "" if nowhere.

    SQLite keeps any value in any column. This reads all of them.
    """
    for table, columns in _columns(schema).items():
        for column, allowed in columns.items():
            quoted = ", ".join(f"'{kind}'" for kind in allowed)
            found = db.execute(f'SELECT typeof("{column}") FROM "{table}" WHERE typeof("{column}") NOT IN ({quoted}) '
                               "LIMIT 1").fetchone()
            if found:
                return f"its table {table} has {found[0]} for {column}"
    return ""


@functools.cache
def _columns(schema: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """{table: {column with a type: names of the types that its values may have}}."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in schema.split(";"):
            if statement.lstrip().startswith("CREATE TABLE "):
                db.execute(statement)
        tables = [name for name, in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")]
        return {table: {name: (kind.lower(), *(() if not_null else ("null",))) for _, name, kind, not_null, *_
                        in db.execute(f'PRAGMA table_info("{table}")') if kind} for table in tables}


@functools.cache
def _entries(schema: str) -> frozenset[tuple[str, str | None]]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in schema.split(";"):
            if statement.lstrip().startswith("CREATE "):
                db.execute(statement)
        return frozenset(db.execute("SELECT name, sql FROM sqlite_master"))
