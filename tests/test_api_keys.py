"""Keys files: one key a line, and nothing that was meant as a name or a comment becomes one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.config.api_keys import MOST_BYTES, Keys
from embedserve.errors import Exit, StartupError
from tests.conftest import Start, run

KEY, OTHER = "sk-first-1111111111", "sk-other-2222222222"
PLACE = "file"


def keys(directory: Path, content: bytes) -> Keys:
    """Those of a file."""
    path = directory / PLACE
    path.write_bytes(content)
    return Keys(path)


def accepts(found: Keys, key: str) -> bool:
    """Whether it is a key, sent in either scheme."""
    basic = base64.b64encode(f"any:{key}".encode()).decode()
    accepted = {found.accept(f"Bearer {key}"), found.accept(f"Basic {basic}")}
    assert len(accepted) == 1
    return accepted.pop()


FILES = {
    "one a line": f"{KEY}\n{OTHER}\n",
    "no line end": f"{KEY}\n{OTHER}",
    "CRLF": f"{KEY}\r\n{OTHER}\r\n",
    "a byte order mark": f"\ufeff{KEY}\n{OTHER}\n",
    "spaces around": f"  {KEY}\t\n\t{OTHER}  \n",
    "comments": f"# frontend-team\n{KEY}\n  # café, not now: sk-third-3333333333\n\n{OTHER}\n#\n",
    "a key twice": f"{KEY}\n{KEY}\n{OTHER}\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_read(content: str, tmp_path: Path) -> None:
    """The two keys, and no word of a comment."""
    found = keys(tmp_path, content.encode())
    assert accepts(found, KEY)
    assert accepts(found, OTHER)
    for word in ("frontend-team", "#", "", "sk-third-3333333333", KEY[:-1]):
        assert not accepts(found, word)


REFUSED: dict[str, tuple[bytes, str]] = {
    "a name before it": (b"%s\nfrontend-team %s\n", "line 2 holds 2 words"),
    "a comment after it": (b"%s #production\n%s", "line 1 holds 2 words"),
    "a tab between": (b"# keys\n\n%s\tx\n%s", "line 3 holds 2 words"),
    "two with a comma": (b"%s,%s", "line 1 holds 2 words"),
    "an assignment of two": (b"%s\nKEYS = %s", "line 2 holds 3 words"),
    "old line ends": (b"%s\r%s\r", "line 1 holds 2 words"),
    "a form feed": (b"%s\x0c%s", "line 1 holds 2 words"),
    "a NUL": (b"%s\n%s\x00", "line 2 is not a key"),
    "UTF-16": ("\ufeff%s\n%s".encode("utf-16-le"), "line 1 is not a key"),
    "a space that is none of ASCII": ("%s\n%s\u00a0x".encode(), "line 2 is not a key"),
    "another encoding": (b"%s\n%s\xe9", "line 2 is not a key"),
    "a second mark": ("%s\n\ufeff%s".encode(), "line 2 is not a key"),
    "a long line": (b"%s\n%s" + b"x" * 500, "line 2 is not a key"),
    "a short one": (b"%s\n%s\nshort", "line 3 is not a key"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(content: bytes, said: str, tmp_path: Path) -> None:
    """A line that may be meant otherwise is named by its number, and none of its words is said."""
    content = content.replace(b"%s", KEY.encode(), 1).replace(b"%s", OTHER.encode(), 1)
    with pytest.raises(StartupError) as error:
        keys(tmp_path, content)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / PLACE}: {said}")
    assert error.value.status == Exit.CONFIG
    for word in ("sk-", "team", "production", "KEYS", "short"):
        assert word not in message.removeprefix(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# none yet\n", b"\xef\xbb\xbf", b" \t\r\n"])
def test_none(content: bytes, tmp_path: Path) -> None:
    """A file that should hold keys and holds none opens nothing."""
    with pytest.raises(StartupError, match="holds no API key"):
        keys(tmp_path, content)


def test_too_large(tmp_path: Path) -> None:
    """A file past any list of keys is not read."""
    with pytest.raises(StartupError, match="cannot be read") as error:
        keys(tmp_path, b"#" * (MOST_BYTES + 1))
    assert error.value.status == Exit.NOINPUT


@given(st.binary(max_size=80))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Keys or one line: and what is accepted stood alone on its line."""
    try:
        found = keys(tmp_path_factory.mktemp("keys"), content)
    except StartupError:
        return
    lines = {line.strip(b" \t\r") for line in content.split(b"\n")}
    assert any(accepts(found, line.decode("latin-1")) for line in lines if line.isascii())


@pytest.mark.parametrize("text", [f"{KEY},{OTHER}", f" {KEY} ,\n{OTHER}\n", f"{KEY}\r\n{OTHER}"])
def test_variable(text: str, start: Start, tiny_artifacts: Path) -> None:
    """Commas and line ends separate the keys of the environment."""
    models = tiny_artifacts.parent / "models.toml"
    server = start(models, tiny_artifacts, EMBEDSERVE_API_KEYS=text)
    with server.client() as client:
        for key, status in ((KEY, 200), (OTHER, 200), (f"{KEY} ", 200), (text[:9], 401)):
            headers = {"Authorization": f"Bearer {key.strip()}"}
            assert client.get("/v1/models", headers=headers).status_code == status


VARIABLES = {
    "EMBEDSERVE_API_KEYS": (f"frontend-team {KEY}", f"{KEY} #production", f"{KEY},#{OTHER}"),
    "EMBEDSERVE_API_KEYS_FD": ("x", "-1", "99", "1e9", "0", f"{2**70}"),
}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in VARIABLES.items() for t in ts])
def test_refused_variable(name: str, text: str, tiny_artifacts: Path) -> None:
    """Words beside a key, and a descriptor that no start has handed over: one line, no word."""
    models = tiny_artifacts.parent / "models.toml"
    paths = ("--models", models, "--artifacts", tiny_artifacts)
    done = run("serve", "--port", "0", *paths, **{name: text})
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 1
    assert name in done.stderr
    assert "sk-" not in done.stderr
    assert "team" not in done.stderr
