"""What docs/ says is so: links, commands, code, and every table that the code knows."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from embedserve import cli, logs
from embedserve.api import middleware, pages, parse
from embedserve.arrays import finishing
from embedserve.arrays.pooling import POOLING
from embedserve.config import models_toml
from embedserve.config.models_toml import Alias, ModelSpec
from embedserve.config.settings import Settings, merge
from embedserve.errors import ERRORS, Exit
from embedserve.http import connection, framing, server
from embedserve.http.readiness import LOST_SECONDS
from embedserve.metrics import METRICS, PARENT_METRICS
from embedserve.model.request import INPUT_TYPES
from embedserve.model.tokenizer import CHARACTERS_PER_TOKEN
from export import add as export_add
from export import cli as export_cli
from tests import programs, tree
from tests.conftest import ROOT
from tests.documents import (
    DOCS,
    PATHS,
    README,
    anchors,
    codes,
    commands,
    links,
    table,
    tables,
    text,
)
from tests.models import table as models_table

# Pages whose every name is held; each of the others has tests of its own.
HELD = (
    README,
    *(DOCS / f"{n}.md" for n in ("api", "configuration", "models", "operating", "migrating")),
)

MAKEFILE = text(ROOT / "Makefile")


def code(cell: str) -> str:
    """What stands between a cell's first backticks."""
    found = re.search(r"`([^`]*)`", cell)
    assert found is not None, cell
    return found[1]


class TestLinks:
    """A reader who follows a link gets where it says."""

    @pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
    def test_targets(self, path: Path) -> None:
        """Files and headings are there."""
        for target in links(path):
            if target.startswith(("https://", "http://")):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors(file), f"{path.name}: {target}"

    def test_every_page_is_listed(self) -> None:
        """README's table names each page of docs/, once."""
        listed = [target for row in table("| page | for |", (README,)) for target in _targets(row)]
        pages = {f"docs/{path.name}" for path in DOCS.glob("*.md")} - {"docs/README.md"}
        assert len(listed) == len(set(listed))
        assert set(listed) == pages


def _targets(row: list[str]) -> list[str]:
    return re.findall(r"\]\(([^)]*)\)", row[0])


class TestCode:
    """What can be copied from a page runs, as far as can be said without running it."""

    def test_shell(self) -> None:
        """Every command is valid shell."""
        blocks = list(codes("bash", "sh", "console"))
        assert len(blocks) > 20
        for path, _, body in blocks:
            done = subprocess.run(["bash", "-n"], input=body, text=True, capture_output=True)
            assert done.returncode == 0, f"{path.name}: {body}{done.stderr}"

    def test_python(self) -> None:
        """Every Python block compiles."""
        blocks = list(codes("python"))
        assert len(blocks) > 5
        for path, _, body in blocks:
            compile(body, path.name, "exec")

    def test_toml(self, tmp_path: Path) -> None:
        """Every block of models.toml is accepted: keys, types and values."""
        own = [block for block in codes("toml") if block.path in HELD]
        assert len(own) > 4
        for number, (_, _, body) in enumerate(own):
            path = tmp_path / f"{number}.toml"
            path.write_text(_with_its_models(body), encoding="utf-8")
            merge(models_toml.read(path), {}, {}, path)

    def test_embedserve(self) -> None:
        """Every command line of embedserve is one that it takes."""
        parser = cli.parser()
        found = [(path, line) for path, line in commands("embedserve") if _is_ours(line)]
        assert len(found) > 10
        for path, line in found:
            _accepts(parser, line, path)

    def test_export(self) -> None:
        """Every command line of the export is one that it takes."""
        found = list(commands("python -m export"))
        assert len(found) > 5
        for path, line in found:
            is_add, rest = line.startswith("add "), line.removeprefix("add ")
            parser = export_add.parser() if is_add else export_cli.parser()
            _accepts(parser, rest, path)

    def test_make(self) -> None:
        """Every target and variable of make exists."""
        known = set(re.findall(r"^([a-z.][\w./-]*):", MAKEFILE, re.MULTILINE))
        locks = (ROOT / "requirements").glob("*.txt")  # each makes an environment
        known |= {f".venv-{path.stem}/.installed" for path in locks}
        variables = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
        lines = [line for path in PATHS for line in re.findall(r"`make ([^`]+)`", text(path))]
        lines += [line for path, line in commands("make") if path in HELD]
        assert len(lines) > 15
        for line in lines:
            for word in shlex.split(" ".join(line.split())):
                name, is_variable, _ = word.partition("=")
                assert name in (variables if is_variable else known), line


def _with_its_models(body: str) -> str:
    """A block that shows an alias alone, with the model that it names."""
    named = set(re.findall(r'^model = "(.*)"', body, re.MULTILINE))
    missing = "".join(f'[models."{name}"]\n' for name in named if f"[models.{name}]" not in body)
    return body + ("" if "[models" in body else missing or "[models.any]\n")


def _is_ours(line: str) -> bool:
    """Not another program that has embedserve as an argument: its commands alone."""
    return line.split(" ")[0] in (*cli.COMMANDS, "--help", "--version")


def _accepts(parser: argparse.ArgumentParser, line: str, path: Path) -> None:
    words = [word for word in shlex.split(line.replace("%i", "5001")) if word != "…"]
    if words[0:1] in (["--help"], ["--version"]):
        return
    try:
        parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"{path.name}: {line}")


class TestApi:
    """docs/api.md."""

    PATH = (DOCS / "api.md",)

    def test_routes(self) -> None:
        """Each route with its methods, as the OpenAPI document has them."""
        documented = {
            (method, path)
            for row in table("| route | answer |", self.PATH)
            for method, path in re.findall(r"`(GET|POST) ([^`]+)`", row[0])
        }
        described = {
            (method.upper(), path)
            for path, methods in pages.openapi(1)["paths"].items()
            for method in methods.keys() & {"get", "post"}
        }
        assert documented == described | {("GET", path) for path in middleware.PAGES}

    def test_fields(self) -> None:
        """Each field of a request, and those of POST tokenize."""
        rows = table("| field | value |", self.PATH)
        assert {code(row[0]) for row in rows} == set(parse._FIELDS)
        line = re.search(r"`POST /v1/tokenize` takes (.*):", text(self.PATH[0]))
        assert line is not None
        assert set(re.findall(r"`(\w+)`", line[1])) == set(parse._TOKENIZE_FIELDS)


class TestConfiguration:
    """docs/configuration.md."""

    PATH = (DOCS / "configuration.md",)

    def test_model_keys(self) -> None:
        """Each key of a model's and an alias's table."""
        rows = table("| key | read by |", self.PATH)
        assert [code(row[0]) for row in rows] == _names(ModelSpec, "name")
        rows = table("| key of `[aliases.NAME]` |", self.PATH)
        assert [code(row[0]) for row in rows] == _names(Alias, "name")

    def test_places(self) -> None:
        """A setting's key, variable and flag, as the three examples have them."""
        file, environment, line = table("| place |", self.PATH)
        parser = cli.parser()
        for name, *cells in zip(
            ("max_wait", "access_log", "cors_origins"), file[1:], environment[1:], line[1:],
            strict=True,
        ):  # fmt: skip
            key, variable, flag = map(code, cells)
            assert key.startswith(f"{name} = ")
            assert variable.startswith(f"EMBEDSERVE_{name.upper()}=")
            assert getattr(parser.parse_args(["serve", *flag.split()]), name) is not None


def _names(kind: type, *less: str) -> list[str]:
    return [f.name for f in fields(kind) if f.name not in less]


class TestModels:
    """docs/models.md."""

    PATH = (DOCS / "models.md",)

    def test_input_types(self) -> None:
        """The prompts that an input_type looks for."""
        rows = table("| `input_type` | names |", self.PATH)
        assert {code(t): tuple(names.split(", ")) for t, names in rows} == INPUT_TYPES

    def test_supported(self) -> None:
        """Pooling modes and activations are those of the code."""
        rows = dict(table("| part | supported |", self.PATH))
        assert rows["pooling"].split(";")[0].split(", ") == list(POOLING)
        named = rows["Dense"].split(";")[0].removeprefix("activations ").split(", ")
        assert named == [name.rpartition(".")[2] for name in finishing.ACTIVATIONS]

    def test_well_known(self) -> None:
        """The tables of families and well-known models are those of the last runs."""
        assert text(self.PATH[0]) == models_table.current(), "run python -m tests.models.table"


class TestOperating:
    """docs/operating.md."""

    PATH = (DOCS / "operating.md",)

    def test_limits(self) -> None:
        """Each limit that is no setting has the code's value, each other names a setting."""
        rows = {row[0]: row[1] for row in table("| what | limit |", self.PATH)}
        fixed = {
            "request line and header": f"{framing.MAX_HEAD_BYTES >> 10} KiB, "
            f"{framing.MAX_FIELDS} fields",
            "URL": f"{framing.MAX_URL_BYTES >> 10} KiB",
            "time for a head": f"{connection.HEAD_SECONDS:g} s",
            "characters of a text, prompt included": f"{CHARACTERS_PER_TOKEN} for each token of "
            "the model's limit",
            "an idle connection": f"{server.KEEP_ALIVE_SECONDS} s",
            "a client that does not read its answer": f"{connection.WRITE_SECONDS:g} s",
            "log lines of one kind": f"{logs.BURST} in {logs.WINDOW:g} s",
        }
        assert fixed.items() <= rows.items()
        settings = [re.findall(r"`(\w+)`", limit) for limit in rows.values()]
        assert {name for names in settings for name in names} <= set(_names(Settings))

    def test_refusals(self) -> None:
        """What is past a limit gets the code's own status."""
        found = re.findall(r"(\d{3}) (\w+_\w+)", " ".join(
            row[2] for row in table("| what | limit |", self.PATH)))  # fmt: skip
        assert len(found) > 12
        for status, name in found:
            assert ERRORS[name][0] == int(status)

    def test_probes(self) -> None:
        """Each probe, and how long a lane may be away."""
        rows = table("| probe | fails when |", self.PATH)
        assert {path for row in rows for path in re.findall(r"`(/\w+)`", row[0])} == {
            *middleware.PROBES
        }
        assert f"for {LOST_SECONDS:g} s" in rows[0][1]

    def test_log_lines(self) -> None:
        """Each line is one that the server writes."""
        written = [template for path in tree.modules().values() for template in
                   _strings(path)]  # fmt: skip
        rows = table("| line | level |", self.PATH)
        assert len(rows) > 10
        for row in rows:
            line = code(row[0])
            assert any(_says(line, template) for template in written), line

    def test_unit(self, tmp_path: Path) -> None:
        """The unit's numbers fit the settings, and systemd understands it."""
        (unit,) = [body for path, _, body in codes("ini") if path in self.PATH]
        values = dict(re.findall(r"^(\w+)=(.+)$", unit, re.MULTILINE))
        settings = Settings()
        assert int(values["TimeoutStopSec"]) >= settings.drain_seconds + 10
        assert int(values["LimitNOFILE"]) > settings.max_connections
        refused = set(map(int, values["RestartPreventExitStatus"].split()))
        assert refused == {Exit.USAGE, Exit.DATAERR, Exit.NOINPUT, Exit.CONFIG}
        analyze = programs.need("systemd-analyze", package="systemd")
        path = tmp_path / "embedserve@.service"
        path.write_text(unit.replace("/opt/embedserve/bin/embedserve", "/bin/true"))
        command = [analyze, "verify", "--man=no", "--recursive-errors=no", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        ours = [line for line in done.stderr.splitlines() if path.name in line]
        assert (done.returncode, ours) == (0, [])

    def test_haproxy(self, tmp_path: Path) -> None:
        """HAProxy takes the configuration, and waits for longer than the server does."""
        (body,) = [body for _, _, body in codes("haproxy")]
        seconds = dict(re.findall(r"timeout (\w+) (\d+)s", body))
        assert int(seconds["server"]) > Settings().request_timeout
        haproxy = programs.need("haproxy", package="haproxy")
        path = tmp_path / "haproxy.cfg"
        path.write_text(body)
        done = subprocess.run([haproxy, "-c", "-f", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_names() -> None:
    """Metrics, variables and exit statuses that a page names exist."""
    metrics = {f"embedserve_{row.name}" for row in (*METRICS, *PARENT_METRICS)}
    variables = {f"EMBEDSERVE_{f.name.upper()}" for f in fields(Settings)}
    variables |= {"EMBEDSERVE_MODELS", "EMBEDSERVE_ARTIFACTS", "EMBEDSERVE_API_KEYS"}
    for path in HELD:
        content = text(path)
        for name in re.findall(r"\bembedserve_\w+", content):
            assert name in metrics or name.endswith("_"), f"{path.name}: {name}"
        for name in re.findall(r"\bEMBEDSERVE_\w+", content):
            assert name in variables, f"{path.name}: {name}"


# -- every error of a start or an export ---------------------------------------------------------

# Modules whose errors docs/models.md and docs/configuration.md list.
LISTED = (
    *(f"embedserve/{name}.py" for name in (
        "artifact", "cli", "commands/context", "commands/embed", "commands/serve", "commands/tune",
        "config/api_keys", "config/models_toml", "config/server_table", "config/settings",
        "diagnose/sample_texts", "diagnose/tuning", "http/listener", "http/server", "model/cuda",
        "model/loading", "model/onnx_backend", "model/registry", "model/tokenizer",
        "processes/member", "processes/parent",
    )),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "export").rglob("*.py")),
)  # fmt: skip
# What makes an error, and the status it has unless it says another.
MAKERS = {
    "StartupError": Exit.CONFIG,
    "refused": Exit.DATAERR,
    "UnusableError": Exit.UNAVAILABLE,
    "_unavailable": Exit.UNAVAILABLE,
    "_altered": Exit.CONFIG,
    "_failed": Exit.SOFTWARE,
}


class Raised(NamedTuple):
    """A message with … for what is put in, its status (None: more than one), and its place."""

    message: str
    status: int | None
    place: str


def test_every_error_is_listed() -> None:
    """Each message that ends a start or an export is a row, with its status."""
    rows = [(code(row[0]), int(row[1])) for found in tables("| says | status |") for row in found]
    raised = [error for name in LISTED for error in _raised(ROOT / name)]
    assert len(raised) > 100
    for message, status, place in raised:
        listed = [row for row in rows if _says(row[0], message) or _says(message, row[0])]
        assert listed, f"{place}: {message}"
        assert status is None or status in [row[1] for row in listed], f"{place}: {status} {listed}"
    for says, _ in rows:
        assert any(_says(says, e.message) or _says(e.message, says) for e in raised), says


def _says(pattern: str, message: str) -> bool:
    """Whether the words of the pattern, … apart, stand in the message in their order."""
    parts = [part.strip() for part in pattern.split("…")]
    return re.search(".*".join(map(re.escape, parts)), message) is not None


def _raised(path: Path) -> Iterator[Raised]:
    """The errors that a module makes, as far as they have words of their own."""
    for node in ast.walk(ast.parse(text(path))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
            continue
        maker = node.func.id
        if maker not in MAKERS:
            continue
        last = maker in ("_altered", "_failed")
        message = _template(node.args[-1 if last else 0])
        if not re.search("[a-z]{3}", message):
            continue
        status: int | None = MAKERS[maker]
        if len(node.args) > 1 and not last:
            given = re.fullmatch(r"Exit\.(\w+)", ast.unparse(node.args[1]))
            status = Exit[given[1]] if given else None
        yield Raised(message, status, f"{path.name}:{node.lineno}")


def _strings(path: Path) -> Iterator[str]:
    """Every string of a module, with … for what is put in."""
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield re.sub(r"%[-.\d]*[a-z]", "…", _template(node))


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(value) for value in node.values)
    return "…"
