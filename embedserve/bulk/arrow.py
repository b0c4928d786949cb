"""Imports pyarrow only when it is needed, and makes tables from rows without types."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json  # not orjson: integers may have any number of digits
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from embedserve.errors import Exit, StartupError

# The only column of a table of JSON objects, and the metadata that lists each key's kinds of value.
OBJECTS, KINDS = "objects", b"embedserve.kinds"
# Rows with more keys than this are refused: too many columns.
MOST_COLUMNS = 2000
# The pyarrow type of a column of JSON, by the kinds of its values other than null.
_TYPES: Mapping[frozenset[str], str] = {
    frozenset(): "string",
    frozenset({"boolean"}): "bool_",
    frozenset({"integer"}): "int64",
    frozenset({"number"}): "float64",
    frozenset({"integer", "number"}): "float64",
}
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# What pyarrow raises for a value that Python cannot represent. Its own errors are subclasses of
# these, except its MemoryError.
_NO_VALUE = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, OSError)
_NO_TEXT = "<value out of range"  # pyarrow's text for a date that it cannot write out
_INT64 = range(-(2**63), 2**63)


def load(module: str = "pyarrow") -> Any:
    """Import pyarrow or a part of it. StartupError says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StartupError(
            f"Parquet needs pyarrow ({error}): pip install 'embedserve[bulk]'", Exit.UNAVAILABLE
        ) from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what pyarrow raises for a bad file or value into one line (65); disk errors pass."""
    try:
        yield
    except (StartupError, MemoryError):
        raise
    except Exception as error:  # pyarrow's own, or any of Python's
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise StartupError(f"{what}: cannot be read or written: {error}", Exit.DATAERR) from error


def table_of_objects(objects: Sequence[bytes]) -> Any:
    """One column of JSON objects, with the kinds of each key's values.

    Types are known only after the last row: `typed` applies them when all parts are joined.
    """
    pa = load()
    kinds: dict[str, set[str]] = {}
    for content in objects:
        for name, value in json.loads(content).items():
            kinds.setdefault(name, set()).add(_kind(value))
    listed = {name: sorted(found) for name, found in kinds.items()}
    unite([listed])  # refuse too many keys now, not after the whole file is embedded
    schema = pa.schema([(OBJECTS, pa.binary())], {KINDS: json.dumps(listed)})
    return pa.table([pa.array(objects, pa.binary())], schema=schema)


def table_of_strings(columns: Mapping[str, Sequence[str]], rows: int) -> Any:
    """Columns of strings."""
    pa = load()
    if not columns:
        return without_columns(rows)
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})


def without_columns(rows: int) -> Any:
    """A table of `rows` rows and no columns."""
    pa = load()
    return pa.table({"": pa.nulls(rows)}).select([])


def unite(found: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Each key's pyarrow type, from the kinds in all parts; keys in order of first appearance.

    StartupError (65) for more than MOST_COLUMNS keys.
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
    """Turn a column of JSON objects into columns: name -> pyarrow.Array."""
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
    """In a column of strings, strings stay as they are and other values become JSON."""
    if value is None or (kind != "string" and kind != "float64"):
        return value
    if kind == "float64":
        return float(value)
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    )


# -- values of any type -------------------------------------------------------------------------


def depth(kind: Any) -> int:
    """How deeply a type is nested: 1 for a number."""
    level, found = [kind], 0
    while level and found < 1000:
        level = [of.field(i).type for of in level for i in range(of.num_fields)]
        found += 1
    return found


def decoded(column: Any) -> Any:
    """Undo a column's dictionary encoding: each row then has its own value."""
    types = load("pyarrow.types")
    kind = column.type
    return column.cast(kind.value_type) if types.is_dictionary(kind) else column


def unsound(column: Any) -> dict[int, str]:
    """The rows whose value is invalid (text that is not UTF-8), each with the reason."""
    pa = load()
    try:
        column.validate(full=True)
        return {}
    except pa.ArrowInvalid:
        column = decoded(column)
    found: dict[int, str] = {}
    for row in range(len(column)):
        try:
            column.slice(row, 1).combine_chunks().validate(full=True)
        except pa.ArrowInvalid as error:
            found[row] = str(error)
    return found


def values(column: Any) -> list[Any]:
    """A column's values as Python objects, or as text where Python has no such value.

    Times are always text: Python's have no nanoseconds.
    """
    pa, types = load(), load("pyarrow.types")
    try:
        if types.is_timestamp(column.type) or types.is_time(column.type):
            column = column.cast(pa.string())
        listed: list[Any] = column.to_pylist()
        return listed
    except _NO_VALUE:  # a date of the year 5,000,000, an unknown time zone, ...
        return [_value(scalar) for chunk in column.chunks for scalar in chunk]


def _value(scalar: Any) -> Any:
    """Convert one value part by part; what pyarrow cannot convert becomes its text or number."""
    pa, types = load(), load("pyarrow.types")
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if types.is_struct(kind):
        fields = range(kind.num_fields)
        # By position: two fields may have the same name.
        return {kind.field(i).name: _value(scalar[i]) for i in fields}
    if types.is_nested(kind) and hasattr(scalar, "values"):
        return [_value(part) for part in scalar.values]
    if types.is_dictionary(kind):
        return _value(scalar.dictionary[scalar.index.as_py()])
    with contextlib.suppress(*_NO_VALUE):
        return scalar.as_py()
    with contextlib.suppress(*_NO_VALUE):
        if not (text := scalar.cast(pa.string()).as_py()).startswith(_NO_TEXT):
            return text
    value = getattr(scalar, "value", None)
    return None if value is None else str(value)
