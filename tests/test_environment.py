"""The serve environment holds no training framework, and its process maps none."""

from __future__ import annotations

import graphlib
import re
import subprocess
from pathlib import Path

import pytest

from tests import tree
from tests.conftest import MINILM, ROOT, SERVE, Server, environment, run_python

# Modules that every start imports, of Python and of others.
PLANTED = ("argparse", "logging", "json", "ctypes", "tomllib", "numpy", "onnxruntime", "orjson")
HEAVY = ("torch", "transformers", "optimum", "onnx", "sentence_transformers", "safetensors")


@pytest.mark.parametrize("name", HEAVY)
def test_not_installed(name: str) -> None:
    """No file of it is in .venv."""
    packages = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    found = [p.name for p in packages.iterdir() if re.split(r"[-.]", p.name.lower())[0] == name]
    assert found == []


def test_only_what_is_locked() -> None:
    """.venv has the lock's packages and embedserve itself, pip and setuptools aside."""
    code = "import importlib.metadata as m; print(*[d.metadata['Name'] for d in m.distributions()])"
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in run_python(code).split()}
    lock = (ROOT / "requirements" / "serve.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    assert installed - locked <= {"embedserve", "pip", "setuptools"}


def test_not_imported() -> None:
    """Importing every module of embedserve imports none of it, nor the export step, nor extras."""
    imports = "; ".join(f"import {name}" for name in tree.importable("cluster"))
    code = f"import sys; {imports}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = set(run_python(code).split())
    assert "embedserve" in loaded
    assert loaded & {*HEAVY, "export", "huggingface_hub", "pyarrow", "ray"} == set()


def test_what_the_image_leaves_out_is_not_imported() -> None:
    """No module of requirements/serve-unused.txt is loaded by any of embedserve's; both locks have
    each of its packages, so that none is left there that no longer is.
    """
    text = (ROOT / "requirements" / "serve-unused.txt").read_text()
    unused = set(re.findall(r"^[a-z0-9-]+", text, re.MULTILINE))
    for lock in ("serve", "serve-cuda"):
        locked = (ROOT / "requirements" / f"{lock}.txt").read_text()
        assert unused <= set(re.findall(r"^([a-z0-9-]+)==", locked, re.MULTILINE))
    imports = "; ".join(f"import {name}" for name in tree.importable("bulk", "cluster"))
    code = (
        f"import sys, importlib.metadata as m; {imports}; "
        "owners = m.packages_distributions(); loaded = {n.split('.')[0] for n in sys.modules}; "
        "print(*{owner for name in loaded for owner in owners.get(name, ())})"
    )
    used = {re.sub(r"[-_.]+", "-", name).lower() for name in run_python(code).split()}
    assert {"onnxruntime", "numpy", "tokenizers"} <= used
    assert used & unused == set()


def test_not_mapped(minilm: Server) -> None:
    """After answering, the process has mapped no file of it."""
    assert minilm.embed(model=MINILM, input="a").status_code == 200
    maps = Path(f"/proc/{minilm.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    mapped = {part for line in maps.splitlines() for part in line.split("/")[1:]}
    assert mapped & set(HEAVY) == set()


def test_the_command_line_imports_little() -> None:
    """What one command needs is imported by that command: all others start without it."""
    loaded = set(run_python("import sys, embedserve.cli; print(*sys.modules)").split())
    assert "embedserve.commands.serve" in loaded
    assert loaded & {"numpy", "onnxruntime", "tokenizers", "uvicorn", "http.client", "ssl"} == set()


def test_imports_point_one_way() -> None:
    """Modules import only modules and folders before them in tree.ORDER.

    Imports inside a folder make no circle.
    """
    modules = tree.modules()
    places = {name.partition(".")[0] for name in modules}
    assert places == set(tree.ORDER)
    inside: dict[str, set[str]] = {}
    for module, path in modules.items():
        inside[module] = set()
        place = module.partition(".")[0]
        for name in tree.imported(path, modules):
            there = name.partition(".")[0]
            if there == place:
                inside[module].add(name)
            else:
                before = tree.ORDER.index(there) < tree.ORDER.index(place)
                assert before, f"{module} imports {name}"
    assert list(graphlib.TopologicalSorter(inside).static_order())


@pytest.mark.parametrize("command", ["doctor", "verify"])
@pytest.mark.parametrize("keys", [{}, {"EMBEDSERVE_API_KEYS": "sk-first-1111111111"}], ids=len)
@pytest.mark.parametrize("start", [[SERVE], [SERVE.with_name("python"), "-m", "embedserve"]])
def test_no_module_of_the_working_directory(
    start: list[str | Path],
    keys: dict[str, str],
    command: str,
    tiny_artifacts: Path,
    tmp_path: Path,
) -> None:
    """Whatever lies where it is started, also where keys make it start itself again."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/ran', 'a').write('{name} ')")
    paths = ("--models", tiny_artifacts.parent / "models.toml", "--artifacts", tiny_artifacts)
    done = subprocess.run(
        [*start, command, *paths, "--skip-missing"],
        cwd=tmp_path,
        env=environment(**keys),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
