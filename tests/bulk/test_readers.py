"""Files -> chunks: every row once, in order, wherever reading begins; bad rows with their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.bulk import chunks as bulk_chunks
from embedserve.bulk import delimited, jsonl
from embedserve.bulk.chunks import Selection
from embedserve.errors import Exit, StartupError
from tests.bulk.files import Row, chunks, problems, reader, texts, write

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
# CSV cannot say a carriage return alone, nor a surrogate; anything else goes through every format.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"id": TEXTS, "text": TEXTS}), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.mark.parametrize("suffix", FORMATS)
@settings(deadline=None)  # files
@given(rows=ROWS, chunk_rows=st.integers(1, 50))
def test_every_row_once(place: Path, suffix: str, rows: list[Row], chunk_rows: int) -> None:
    """Chunks have all rows in their order; read from any chunk on, the rest is the same."""
    path = write(place / f"in{suffix}", rows)
    whole = chunks(reader(path, chunk_rows))
    assert texts(whole) == [row["text"] for row in rows]
    assert [chunk.cut.number for chunk in whole] == list(range(len(whole)))
    assert all(chunk.cut.rows == len(chunk.texts) <= chunk_rows for chunk in whole)
    kept = [json.loads(o) for c in whole for o in c.columns.objects(range(len(c.texts)))]
    assert kept == rows
    for i, chunk in enumerate(whole):
        again = reader(path, chunk_rows)
        assert list(again.cuts(chunk.cut)) == [later.cut for later in whole[i + 1 :]]
        assert again.read(chunk.cut).texts == chunk.texts
        assert list(again.read(chunk.cut).lines) == list(chunk.lines)


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing(tmp_path: Path, suffix: str) -> None:
    """A file without rows has no chunks."""
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    else:
        write(tmp_path / f"in{suffix}", [])
    assert chunks(reader(tmp_path / f"in{suffix}")) == []


def test_json_lines(tmp_path: Path) -> None:
    """Each bad line has its number and reason; lines without anything count and are no rows."""
    path = tmp_path / "in.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "a"}',  # 1: with a byte order mark, as Windows writes
        b"",
        b'{"text": ',  # 3
        b'["text"]',
        b'{"Text": "a"}',  # 5
        b'{"text": null}',
        b'{"text": 7}',  # 7
        b'{"text": ""}',
        b'{"text": "\xff"}',  # 9
        b'{"text": "\\ud800"}',
        b"  \t",
        b'{"text": "a", "embedding": []}',  # 12
        b'  {"text": "b", "n": 123456789012345678901234567890, "x": 1.50}  ',
    ]
    path.write_bytes(b"\r\n".join(lines))
    found = chunks(reader(path))
    assert problems(found) == {
        3: "invalid_json",
        4: "invalid_type",
        5: "missing_column",
        6: "missing_column",
        7: "invalid_type",
        8: "empty_input",
        9: "invalid_json",
        10: "invalid_json",
        12: "column_exists",
    }
    assert [text for text in texts(found) if text is not None] == ["a", "b"]
    kept = [o for c in found for o in c.columns.objects(range(len(c.texts)))]
    assert kept[-1] == lines[-1].strip()  # byte for byte
    assert kept[-2] == b'{"text":"a"}'
    assert kept[1] == b"{}"


def test_json_columns(tmp_path: Path) -> None:
    """Columns that are kept have the values they had, however large."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": 12345678901234567890123, "text": "a", "more": {"a": ["é"]}}\n')
    [chunk] = chunks(reader(path, selection=Selection(keep=("id", "more"), drop=("more",))))
    assert chunk.columns.objects([0]) == [b'{"id":12345678901234567890123}']
    [chunk] = chunks(reader(path, selection=Selection(drop=("id", "text"))))
    assert chunk.columns.objects([0]) == ['{"more":{"a":["é"]}}'.encode()]


def test_csv(tmp_path: Path) -> None:
    """Quotes, line breaks in fields, and each bad row with the line it begins on."""
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text\r\n"
        b'1,"two\nlines, ""quoted"""\r\n'  # lines 2 and 3
        b"\r\n"
        b"2\r\n"  # 5
        b"3,a,b\r\n"
        b'4,"a"b\r\n'  # 7
        b"5,\r\n"
        b"6,\xff\r\n"  # 9
        b"7,end\r\n"
        b'8,"open'
    )
    found = chunks(reader(path))
    assert problems(found) == {
        5: "invalid_csv",
        6: "invalid_csv",
        7: "invalid_csv",
        8: "empty_input",
        9: "invalid_utf8",
        11: "invalid_csv",
    }
    good = [text for text in texts(found) if text is not None]
    assert good == ['two\nlines, "quoted"', "end"]
    assert found[0].columns.objects([0]) == [b'{"id":"1","text":"two\\nlines, \\"quoted\\""}']


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_long_lines(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line past the limit is a bad row, never in memory as a whole; the next is read."""
    for module in (jsonl, delimited):
        monkeypatch.setattr(module, "MAX_LINE", 100)
    rows = [{"text": "a"}, {"text": "b" * 1000}, {"text": "c"}]
    found = chunks(reader(write(tmp_path / f"in{suffix}", rows)))
    assert texts(found) == ["a", None, "c"]
    assert list(problems(found).values()) == ["line_too_long"]


def test_an_open_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that nobody closes takes no more than the limit of what follows."""
    monkeypatch.setattr(delimited, "MAX_LINE", 100)
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,"open\n' + "2,a\n" * 100)
    found = chunks(reader(path))
    assert problems(found) == {2: "line_too_long"}
    assert 70 < len([text for text in texts(found) if text == "a"]) < 80


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_large_rows(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks have fewer rows where these are large."""
    for module in (bulk_chunks, __import__("embedserve.bulk.parquet", fromlist=["x"])):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    # No two alike: Parquet stores equal values once.
    rows = [{"text": f"{i:03}" * 100} for i in range(20)]
    found = chunks(reader(write(tmp_path / f"in{suffix}", rows), 100))
    assert 5 <= len(found) <= 20
    assert texts(found) == [row["text"] for row in rows]


class TestParquet:
    """What is particular to Parquet."""

    def test_texts(self, tmp_path: Path) -> None:
        """Null and empty texts are bad rows; large and dictionary strings are read."""
        path = tmp_path / "in.parquet"
        for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
            column = pa.array(["a", None, "", "b"]).cast(kind)
            pq.write_table(pa.table({"text": column}), path)
            found = chunks(reader(path))
            assert texts(found) == ["a", None, None, "b"]
            assert problems(found) == {2: "missing_column", 3: "empty_input"}

    def test_resume_in_the_middle(self, tmp_path: Path) -> None:
        """Any chunk is read alone, also from the middle of a row group."""
        rows = [{"text": f"t{i}"} for i in range(30)]
        path = write(tmp_path / "in.parquet", rows)
        cuts = list(reader(path, 5).cuts(None))
        for cut in reversed(cuts):
            assert texts([reader(path, 5).read(cut)]) == [
                row["text"] for row in rows[cut.start : cut.end]
            ]

    def test_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet"
        path.write_bytes(b"PAR1 no Parquet PAR1")
        with pytest.raises(StartupError, match="cannot be read as Parquet") as refused:
            reader(path)
        assert refused.value.status == Exit.DATAERR


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection(text="body"), "--text-column body: no such column; one of id, text"),
        (Selection(keep=("name",)), "--keep name: no such column"),
        (Selection(vector="id"), "already has a column id;"),
    ],
    ids=["no text", "no column to keep", "the vector's name is taken"],
)
def test_columns(tmp_path: Path, suffix: str, selection: Selection, said: str) -> None:
    """A file whose columns are not those asked for is refused before anything is embedded."""
    path = write(tmp_path / f"in{suffix}", [{"id": "1", "text": "a"}])
    with pytest.raises(StartupError, match=said):
        reader(path, selection=selection)


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("in.txt", b"", Exit.USAGE),
        ("absent.jsonl", None, Exit.NOINPUT),
        ("absent.parquet", None, Exit.NOINPUT),
        ("in.csv", b"", Exit.DATAERR),
        ("in.csv", b"text,text\n", Exit.DATAERR),
    ],
)
def test_refused(tmp_path: Path, name: str, content: bytes | None, status: Exit) -> None:
    """What is no input is said at once."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StartupError, match=name) as refused:
        reader(tmp_path / name)
    assert refused.value.status == status
