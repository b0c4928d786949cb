"""pyarrow, imported where it is needed, and tables made of rows that have no types."""

from __future__ import annotations

import importlib
import json  # and not orjson: integers have any number of digits
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from embedserve.errors import Exit, StartupError

# A table of one column of objects says so; which kinds of values each key has stands there, too.
OBJECTS, KINDS = "objects", b"embedserve.kinds"
# The types of more keys than this are no columns any more.
MOST_COLUMNS = 2000
# What a column of JSON becomes, by the kinds of its values beside null.
_TYPES: Mapping[frozenset[str], str] = {
    frozenset(): "string",
    frozenset({"boolean"}): "bool_",
    frozenset({"integer"}): "int64",
    frozenset({"number"}): "float64",
    frozenset({"integer", "number"}): "float64",
}
_INT64 = range(-(2**63), 2**63)


def load(module: str = "pyarrow") -> Any:
    """Import pyarrow or a part of it. StartupError says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StartupError(
            f"Parquet needs pyarrow ({error}): pip install 'embedserve[bulk]'", Exit.UNAVAILABLE
        ) from error


def table_of_objects(objects: Sequence[bytes]) -> Any:
    """One column of JSON objects, with the kinds of each key's values.

    Types are not known before the last row: `typed` gives them when all parts are joined.
    """
    pa = load()
    kinds: dict[str, set[str]] = {}
    for content in objects:
        for name, value in json.loads(content).items():
            kinds.setdefault(name, set()).add(_kind(value))
    listed = {name: sorted(found) for name, found in kinds.items()}
    unite([listed])  # too many are said before the whole file is embedded
    schema = pa.schema([(OBJECTS, pa.binary())], {KINDS: json.dumps(listed)})
    return pa.table([pa.array(objects, pa.binary())], schema=schema)


def table_of_strings(columns: Mapping[str, Sequence[str]], rows: int) -> Any:
    """Columns of strings."""
    pa = load()
    if not columns:
        return without_columns(rows)
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})


def without_columns(rows: int) -> Any:
    """A table of so many rows and no column."""
    pa = load()
    return pa.table({"": pa.nulls(rows)}).select([])


def unite(found: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Name -> type of pyarrow, by the kinds that all parts have, in the order of first appearance.

    StartupError past MOST_COLUMNS.
    """
    kinds: dict[str, set[str]] = {}
    for part in found:
        for name, of_part in part.items():
            kinds.setdefault(name, set()).update(of_part)
        if len(kinds) > MOST_COLUMNS:
            raise StartupError(
                f"the rows have more than {MOST_COLUMNS} keys, too many for columns of Parquet; "
                "name those to keep with --keep",
                Exit.DATAERR,
            )
    return {name: _TYPES.get(frozenset(k - {"null"}), "string") for name, k in kinds.items()}


def typed(objects: Any, types: Mapping[str, str]) -> dict[str, Any]:
    """Columns of a column of JSON objects: name -> pyarrow.Array."""
    pa = load()
    rows = [json.loads(content) for content in objects.to_pylist()]
    return {
        name: pa.array([_cast(row.get(name), kind) for row in rows], getattr(pa, kind)())
        for name, kind in types.items()
    }


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if value in _INT64 else "other"
    return {float: "number", str: "string"}.get(type(value), "other")


def _cast(value: Any, kind: str) -> Any:
    """A string stays as it is among other values; these become JSON."""
    if value is None or (kind != "string" and kind != "float64"):
        return value
    if kind == "float64":
        return float(value)
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    )
