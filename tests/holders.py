"""What classes keep: attributes that hold collections, buffers or threads, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# What makes something that grows, or that has a stack.
MAKERS = frozenset(
    {
        *("dict", "list", "set", "bytearray", "deque", "OrderedDict", "defaultdict", "Counter"),
        *("BytesIO", "Queue", "SimpleQueue", "PriorityQueue", "LifoQueue", "WeakSet"),
        *("WeakKeyDictionary", "WeakValueDictionary", "Thread", "ThreadPoolExecutor", "field"),
        *("ProcessPoolExecutor", "mmap"),
    }
)
CACHES = frozenset({"cache", "lru_cache", "cached_property"})
DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)


def found(directory: Path) -> Iterator[str]:
    """Name every holder of the modules in a directory: module.Class.attribute, or module.function.

    Tables of a module are constants: what changes is in instances, and functions keep caches.
    """
    for path in sorted(directory.rglob("*.py")):
        module = ".".join(path.relative_to(directory).with_suffix("").parts)
        names: dict[str, None] = {}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names |= dict.fromkeys(f"{module}.{node.name}.{n}" for n in _attributes(node))
            elif _is_cached(node):
                names[f"{module}.{node.name}"] = None  # type: ignore[attr-defined]  # a function
        yield from names


def _is_cached(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return any(_name(each) in CACHES for each in node.decorator_list)


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    for statement in ast.walk(node):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target, value in (pair for each in targets for pair in _pairs(each, statement.value)):
            if not any(_holds(part) for part in ast.walk(value)):
                continue
            if isinstance(target, ast.Attribute) and _name(target.value) == "self":
                yield target.attr
            elif isinstance(target, ast.Name) and statement in node.body:
                yield target.id


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each target with its value: of `a, b = 1, []` two."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value


def _holds(node: ast.AST) -> bool:
    return isinstance(node, DISPLAYS) or (isinstance(node, ast.Call) and _name(node) in MAKERS)


def _name(node: ast.expr) -> str:
    """The last part of what is named, called or subscripted."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return getattr(node, "attr", getattr(node, "id", ""))
