"""The catalogue: strict where it is read, honest about what was seen, and in step with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from embedserve.config import models_toml
from embedserve.errors import Exit, StartupError
from export import card, catalogue, table
from export.catalogue import CatalogueEntry

GOOD = """\
[models."a/b"]
shape = "bert-cls-bge"
page = "https://huggingface.co/a/b"
read = true
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[model.x]", "model: unknown key", id="top"),
        pytest.param("models = 1", "models = 1; tables by hub id", id="no tables"),
        pytest.param('[models."ab"]', "[models.ab]; a hub id is OWNER/NAME", id="id"),
        pytest.param('models."a/b" = 1', "[models.a/b] = 1; a table", id="no table"),
        pytest.param(GOOD.replace("shape", "form"), "form: unknown key", id="key"),
        pytest.param(GOOD.replace("read = true", ""), "[models.a/b] read is missing", id="missing"),
        pytest.param(GOOD.replace("true", '"yes"'), 'read = "yes"; true or false', id="read"),
        pytest.param(GOOD.replace("https", "http"), "an https address", id="page"),
        pytest.param(GOOD.replace("bert-cls", "Bert_cls"), "lower-case words", id="shape"),
        pytest.param(GOOD + 'prompts = "query: "', "a table of strings", id="prompts"),
        pytest.param(GOOD + "prompts = { query = 1 }", "a table of strings", id="prompt"),
        pytest.param(GOOD + "prompts = {}", "a table of strings", id="no prompts"),
        pytest.param(GOOD + "matryoshka = [256, 512]", "the largest first", id="order"),
        pytest.param(GOOD + "matryoshka = [256, 256]", "the largest first", id="twice"),
        pytest.param(GOOD + "matryoshka = [true]", "the largest first", id="no dimension"),
        pytest.param(GOOD + 'finishing = ["dense"]', "a list of layer_norm", id="finishing"),
        pytest.param(GOOD + "max_tokens = 0", "an integer from 1", id="max_tokens"),
        pytest.param(GOOD + "max_tokens = true", "an integer from 1", id="no integer"),
        pytest.param(GOOD + "tasks = []", "a list of names", id="tasks"),
        pytest.param(GOOD + 'note = ""', "a sentence", id="note"),
        pytest.param(GOOD + GOOD.replace("a/b", "A/B", 1), "is there twice", id="case"),
        pytest.param(GOOD + '[refused."A/b"]\nreason = "x"', "as well; remove one", id="both"),
        pytest.param('[refused."a/b"]', "reason = None; a sentence", id="no reason"),
        pytest.param('[refused."a/b"]\nwhy = "x"', "why: unknown key", id="why"),
        pytest.param("[", "cannot be read as TOML", id="no TOML"),
    ],
)
def test_refused_with_file_table_and_key(path: Path, text: str, said: str) -> None:
    """Exit 78, and one line with what is accepted."""
    path.write_text(text)
    with pytest.raises(StartupError) as caught:
        catalogue.read(path)
    assert caught.value.status == Exit.CONFIG
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_an_entry_says_what_it_says(path: Path) -> None:
    """What is left out is None: the card adds nothing."""
    path.write_text(GOOD + 'prompts = { query = "q: " }\nmatryoshka = [4, 2]\n')
    entry = catalogue.read(path).entry("A/B")
    page = "https://huggingface.co/a/b"
    expected = CatalogueEntry("bert-cls-bge", page, True, {"query": "q: "}, matryoshka=(4, 2))
    assert entry == expected


# -- the real one ------------------------------------------------------------------------------

ENTRIES = catalogue.read().models


def facts(entry: CatalogueEntry) -> Mapping[str, object]:
    keys = ("prompts", "matryoshka", "finishing", "max_tokens")
    values = {key: getattr(entry, key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def test_it_has_the_models_that_are_used_most() -> None:
    """Sixty at least, and the families that the documentation names."""
    assert len(ENTRIES) >= 60
    shapes = {entry.shape.partition("-")[0] for entry in ENTRIES.values()}
    assert shapes >= {"bert", "xlmr", "mpnet", "roberta", "modernbert", "nomic", "gte", "qwen3"}


@pytest.mark.parametrize("name", ENTRIES)
def test_only_what_was_read_is_a_fact(name: str) -> None:
    """An entry whose page was not seen adds nothing to a table."""
    entry = ENTRIES[name]
    assert entry.read or not facts(entry)


@pytest.mark.parametrize("name", ENTRIES)
def test_its_facts_are_a_table_of_models_toml(name: str, tmp_path: Path) -> None:
    """Every entry can be written, and reads back as itself."""
    wishes = facts(ENTRIES[name])
    path = tmp_path / "models.toml"
    path.write_text(table.appended("", "m", wishes, {}))
    spec = models_toml.read(path).models["m"]
    assert {key: getattr(spec, key) for key in wishes} == wishes


def test_models_toml_agrees_with_it() -> None:
    """What models.toml says of a model's card is what the catalogue says."""
    specs = models_toml.read(Path(__file__).parents[2] / "models.toml").models.values()
    known = [spec for spec in specs if spec.repository in ENTRIES]
    assert len(known) >= 3
    for spec in known:
        entry = ENTRIES[str(spec.repository)]
        assert (spec.prompts, spec.finishing) == (entry.prompts, entry.finishing)
        assert spec.matryoshka == entry.matryoshka


def test_a_task_is_chosen_where_there_are_several() -> None:
    """None and one that is none of them are refused with the list; without tasks, none is asked."""
    name = "jinaai/jina-embeddings-v3"
    for wrong in (None, "search"):
        with pytest.raises(StartupError, match=r"retrieval\.query, retrieval\.passage") as caught:
            card.choose_task(name, ENTRIES[name], wrong)
        assert caught.value.status == Exit.USAGE
    assert card.choose_task(name, ENTRIES[name], "text-matching") == "text-matching"
    assert card.choose_task("a/b", None, None) is None


# -- the text of a table -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('Instruct: x\nQuery: "a"\\b\t', id="escapes"),
        pytest.param("为这个句子生成表示以用于检索相关文章：", id="Chinese"),
        pytest.param("\x00\x1f\x7f", id="control characters"),
    ],
)
def test_any_prompt_comes_back(text: str) -> None:
    """TOML's strings: what is written is what is read."""
    wishes = {"prompts": {"a b": text, "query": text}, "sha256": {"1_Pooling/config.json": "0"}}
    assert '[models."e5.v2"]' in table.appended("", "e5.v2", wishes, {})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("models = { a = {} }", id="inline"),
        pytest.param("[models.m]", id="taken"),
    ],
)
def test_a_file_that_cannot_be_continued_is_refused(text: str) -> None:
    """An inline table ends on its own line, and a table may be there once only."""
    with pytest.raises(ValueError, match=r"already has|not become part"):
        table.appended(text, "m", {}, {})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("# no end of line", id="no end"),
        pytest.param("[server]\r\nport = 1\r\n", id="CRLF"),
    ],
)
def test_the_text_before_stays(text: str) -> None:
    """To the byte, whatever ends its lines."""
    new = table.appended(text, "m", {"revision": "x"}, {"": "one\ntwo"})
    assert new.startswith(text)
    assert ("\r\n" in new) == ("\r\n" in text)
    assert new.count("\n") == new.count("\r\n") or "\r" not in new
