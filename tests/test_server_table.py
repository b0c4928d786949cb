"""[server] of models.toml as text: two keys are set, and nothing else changes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from embedserve.config.server_table import check, edited, write
from embedserve.errors import Exit, StartupError
from tests.conftest import ROOT

VALUES = {"lanes": 2, "tokens_per_pass": 128}
KEYS = st.fixed_dictionaries(
    {}, optional={"port": st.integers(0, 65535), "lanes": st.integers(0, 256),
                  "tokens_per_pass": st.integers(1, 10**6)},
)  # fmt: skip
# What must not be taken for the table or its keys.
DECOYS = (
    "# [server]\n# lanes = 7",
    'prompts = { query = "[server] lanes = 8" }',
    'prompts = { query = """\n[server]\nlanes = 9\n""" }',
    "prompts = { query = '''\n[server]\ntokens_per_pass = 9\n''' }",
    'prompts = { lanes = "1", server = "{ tokens_per_pass = 3 }" }',
)


def _table(keys: dict[str, int]) -> str:
    return "".join(f"{key} = {value}  # {key}\n" for key, value in keys.items())


def _inline(keys: dict[str, int]) -> str:
    inside = ", ".join(f"{key} = {value}" for key, value in keys.items())
    return f"server = {{ {inside} }}  # inline\n"


def _dotted(keys: dict[str, int]) -> str:
    return "".join(f"server.{key} = {value}\n" for key, value in keys.items())


FORMS = {
    "none": lambda _: "",
    "[server]": lambda keys: "[server]\n# the first\n" + _table(keys),
    "quoted": lambda keys: "[ 'server' ]  # mine\n" + _table(keys).replace("lanes =", '"lanes"='),
    "inline": _inline,
    "dotted": _dotted,
}


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A models.toml with [server] in any of its forms, comments and decoys."""
    form = draw(st.sampled_from(sorted(FORMS)))
    server = FORMS[form](draw(KEYS))
    decoys = draw(st.lists(st.sampled_from(DECOYS), max_size=3))
    models = [f"[models.m{i}]\n{decoy}\n" for i, decoy in enumerate(decoys)]
    # Tables of models may stand before a table [server], and not before keys of the root.
    first = draw(st.booleans()) and form in ("[server]", "quoted")
    parts = [*models, server] if first else [server, *models]
    text = "# the list\n" + draw(st.sampled_from(["", "\n"])).join(parts)
    text = text.rstrip("\n") if draw(st.booleans()) else text
    return text.replace("\n", draw(st.sampled_from(["\n", "\r\n"])))


def is_kept(old: str, new: str) -> bool:
    """Whether every character of `old` is in `new`, in order."""
    rest = iter(new)
    return all(character in rest for character in old)


@given(documents(), st.integers(1, 256), st.integers(1, 10**6))
@example((ROOT / "models.toml").read_text(), 2, 256)
def test_nothing_else_changes(text: str, lanes: int, tokens: int) -> None:
    """Parsed it is the old content with these two values; set again, nothing changes."""
    values = {"lanes": lanes, "tokens_per_pass": tokens}
    old = tomllib.loads(text)
    new = edited(text, values)
    assert tomllib.loads(new) == {**old, "server": {**old.get("server", {}), **values}}
    assert edited(new, values) == new


@given(documents())
def test_every_byte_stays(text: str) -> None:
    """Added keys take nothing away; of replaced ones, putting the old values back restores all."""
    before = tomllib.loads(text).get("server", {})
    new = edited(text, VALUES)
    if not before.keys() & VALUES.keys():
        assert is_kept(text, new)
    if before.keys() >= VALUES.keys():
        assert edited(new, {key: before[key] for key in VALUES}) == text
    assert new.count("#") == text.count("#")
    assert new.replace("\r\n", "").count("\n") == 0 or "\r\n" not in text


FRAGMENTS = (
    "[server]\n", '[ "server" ] # c\n', "lanes = 1\n", "# lanes = 2\n", "server.lanes = 3\n",
    "server = { port = 1 }\n", "server = {}\n", "[models.a]\n", 'x = """\n', '"""\n', "'''\n",
    "y = '''", "[server.sub]\n", "\r\n", "tokens_per_pass = 0x10\n", "lanes = +0\n", "]\n",
    "z = [\n", "[server] # lanes = 4\n", "max_lanes = 5\n", "'lanes' = 6\n",
)  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_exact_or_refused(text: str) -> None:
    """Of any TOML, either exactly the two values change or ValueError says that none may."""
    try:
        old = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
    assume(isinstance(old.get("server", {}), dict))
    try:
        new = edited(text, VALUES)
    except ValueError:
        return
    assert tomllib.loads(new) == {**old, "server": {**old.get("server", {}), **VALUES}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[models.a]\n", "[models.a]\n\n[server]\nlanes = 2\ntokens_per_pass = 128\n"),
        (
            "[server]\nport = 80 # x\n",
            "[server]\nlanes = 2\ntokens_per_pass = 128\nport = 80 # x\n",
        ),
        ("[server]\nlanes = 0x10 # y\n", "[server]\ntokens_per_pass = 128\nlanes = 2 # y\n"),
        ("server = {}\n", "server = { lanes = 2, tokens_per_pass = 128}\n"),
    ],
    ids=["no table", "table", "key", "empty inline table"],
)
def test_by_hand(text: str, expected: str) -> None:
    """Keys go right below the header, a new table to the end; comments stay beside values."""
    assert edited(text, VALUES) == expected


class TestWrite:
    """The file changes at once, or not at all."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A models.toml that only its owner may read."""
        path = tmp_path / "models.toml"
        path.write_bytes(b"[models.a]\r\n# \xc3\xa9\r\n")
        path.chmod(0o640)
        return path

    def test_file(self, path: Path) -> None:
        """Mode and line ends stay, and nothing is left beside it."""
        write(path, VALUES)
        expected = b"\r\n[server]\r\nlanes = 2\r\ntokens_per_pass = 128\r\n"
        assert path.read_bytes() == b"[models.a]\r\n# \xc3\xa9\r\n" + expected
        assert path.stat().st_mode & 0o7777 == 0o640
        assert list(path.parent.iterdir()) == [path]

    def test_link(self, path: Path) -> None:
        """A link stays one, and the file that it names changes."""
        link = path.parent / "link.toml"
        link.symlink_to(path.name)
        write(link, VALUES)
        assert link.is_symlink()
        assert tomllib.loads(path.read_text())["server"] == VALUES

    def test_cannot_be_edited(self, path: Path) -> None:
        """A table that is spelled in escapes is left alone, and the values are said."""
        text = '["\\u0073erver"]\n[models.a]\n'
        path.write_text(text)
        with pytest.raises(StartupError, match="lanes = 2, tokens_per_pass = 128") as error:
            write(path, VALUES)
        assert error.value.status == Exit.CONFIG
        assert path.read_text() == text

    def test_no_room(self, tmp_path: Path) -> None:
        """Where no file can be made beside it, it stays as it was, with the reason."""
        path = tmp_path / ("m" * 250 + ".toml")  # no longer name is accepted
        path.write_text("[models.a]\n")
        with pytest.raises(StartupError, match="cannot be written") as error:
            write(path, VALUES)
        assert error.value.status == Exit.CANTCREAT
        assert path.read_text() == "[models.a]\n"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
    def test_not_writable(self, path: Path) -> None:
        """A file that its owner made read-only is left alone."""
        path.chmod(0o440)
        with pytest.raises(StartupError, match="not writable") as error:
            check(path, VALUES)
        assert error.value.status == Exit.CANTCREAT
