"""The wire: exact types, errors that name the offender, floats that come back bit for bit."""

from __future__ import annotations

import base64
import json
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embedserve.api.parse import WireRequest, parse_embeddings, parse_tokenize
from embedserve.api.render import (
    embeddings_parts,
    render,
    render_octets,
    render_tokens,
    tokens_answer,
)
from embedserve.arrays.types import Floats
from embedserve.errors import ERRORS, RequestError
from embedserve.http.refusals import render_error
from embedserve.model.tokenizer import Tokens

MAX_INPUTS = 4


def rendered(*arguments: Any) -> bytes:
    """The whole answer, whose parts `embeddings_parts` gives."""
    return b"".join(embeddings_parts(*arguments))


def refused(body: bytes) -> RequestError:
    """Parsing is refused with the error that is returned."""
    with pytest.raises(RequestError) as error:
        parse_embeddings(body, MAX_INPUTS)
    return error.value


def body(**fields: object) -> bytes:
    """A request's body."""
    return json.dumps(fields).encode()


class TestNotJson:
    """What is not JSON in UTF-8."""

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b" ",
            b"input=a",
            b'{"input": "a"',
            b'{"input": "a"} x',
            b'{"input": "a"}{"input": "b"}',
            b'{"input": "a",}',
            b"{'input': 'a'}",
            b'{"input": "a" /* comment */}',
            b'{"input": NaN}',
            b'{"input": "a", "dimensions": NaN}',
            b'{"input": "a", "dimensions": Infinity}',
            b'{"input": "a", "dimensions": -Infinity}',
            b'{"input": "a", "dimensions": 01}',
            b'{"input": "a", "dimensions": +1}',
            b'\xef\xbb\xbf{"input": "a"}',
            '{"input": "a"}'.encode("utf-16"),
            '{"input": "a"}'.encode("utf-16-le"),
            '{"input": "a"}'.encode("utf-32"),
            '{"input": "é"}'.encode("latin-1"),
            b'{"input": "\\ud800"}',
            b'{"input": "\\udc00\\ud800"}',
            b'{"input": ["a", "\\ud83d"]}',
            b'{"\\ud800": 1, "input": "a"}',
            b'{"input": "\xed\xa0\x80"}',
            b'{"input": "\xc0\x80"}',
            b'{"input": "a\nb"}',
            b'{"input": "\\x41"}',
            b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b"[" * 5_000_000,
        ],
        ids=[
            "empty",
            "space",
            "form",
            "unclosed",
            "trailing text",
            "two objects",
            "trailing comma",
            "single quotes",
            "comment",
            "NaN input",
            "NaN",
            "Infinity",
            "-Infinity",
            "leading zero",
            "plus",
            "BOM",
            "UTF-16",
            "UTF-16 without BOM",
            "UTF-32",
            "Latin-1",
            "lone surrogate",
            "surrogates in the wrong order",
            "lone surrogate in a list",
            "lone surrogate in a key",
            "surrogate in UTF-8",
            "overlong UTF-8",
            "raw line break",
            "unknown escape",
            "deep arrays",
            "deep objects",
            "deep and unclosed",
        ],
    )
    def test_is_invalid_json(self, content: bytes) -> None:
        """One code for all of it, and no library's words in the message."""
        error = refused(content)
        assert (error.code, error.status, error.param) == ("invalid_json", 400, None)
        assert "column" not in error.message

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"[]", "array"),
            (b'"a"', "string"),
            (b"1", "integer"),
            (b"1.5", "number"),
            (b"null", "null"),
            (b"true", "boolean"),
            (b'["a"]', "array"),
        ],
    )
    def test_json_that_is_no_object(self, content: bytes, kind: str) -> None:
        """The message says what was found."""
        error = refused(content)
        assert (error.code, error.param) == ("invalid_type", None)
        assert kind in error.message


BAD: dict[str, tuple[dict[str, object], str, str]] = {
    "no input": ({"model": "m"}, "missing_parameter", "input"),
    "nothing": ({}, "missing_parameter", "input"),
    "input null": ({"input": None}, "invalid_type", "input"),
    "input a number": ({"input": 1}, "invalid_type", "input"),
    "input a boolean": ({"input": True}, "invalid_type", "input"),
    "input an object": ({"input": {"text": "a"}}, "invalid_type", "input"),
    "input empty": ({"input": []}, "empty_input", "input"),
    "input too many": ({"input": ["a"] * 5}, "too_many_inputs", "input"),
    "too many before their types": ({"input": [None] * 5}, "too_many_inputs", "input"),
    "an empty string": ({"input": ""}, "empty_input", "input[0]"),
    "a later empty string": ({"input": ["a", ""]}, "empty_input", "input[1]"),
    "null among texts": ({"input": ["a", None]}, "invalid_type", "input[1]"),
    "a number among texts": ({"input": ["a", "b", 1]}, "invalid_type", "input[2]"),
    "a boolean first": ({"input": [True]}, "invalid_type", "input[0]"),
    "a float first": ({"input": [3.0]}, "invalid_type", "input[0]"),
    "an object first": ({"input": [{}]}, "invalid_type", "input[0]"),
    "the first of two": ({"input": ["a", 1, ""]}, "invalid_type", "input[1]"),
    "ids among texts": ({"input": ["a", [1]]}, "invalid_type", "input[1]"),
    "texts among ids": ({"input": [[1], "a"]}, "invalid_type", "input[1]"),
    "true among ids": ({"input": [[1], [2, True]]}, "invalid_type", "input[1]"),
    "3.0 among ids": ({"input": [[1, 3.0]]}, "invalid_type", "input[0]"),
    "true in one text's ids": ({"input": [1, True]}, "invalid_type", "input[0]"),
    "no ids": ({"input": [[1], []]}, "empty_input", "input[1]"),
    "no ids first": ({"input": [[]]}, "empty_input", "input[0]"),
    "too many lists of ids": ({"input": [[1]] * 5}, "too_many_inputs", "input"),
    "model a number": ({"input": "a", "model": 1}, "invalid_type", "model"),
    "encoding a number": ({"input": "a", "encoding_format": 1}, "invalid_type", "encoding_format"),
    "another encoding": (
        {"input": "a", "encoding_format": "int8"},
        "invalid_value",
        "encoding_format",
    ),
    "dimensions true": ({"input": "a", "dimensions": True}, "invalid_type", "dimensions"),
    "dimensions 3.0": ({"input": "a", "dimensions": 3.0}, "invalid_type", "dimensions"),
    "dimensions a string": ({"input": "a", "dimensions": "3"}, "invalid_type", "dimensions"),
    "dimensions past 64 bits": ({"input": "a", "dimensions": 2**70}, "invalid_type", "dimensions"),
    "dimensions 0": ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
    "dimensions negative": ({"input": "a", "dimensions": -1}, "invalid_value", "dimensions"),
    "user a number": ({"input": "a", "user": 1}, "invalid_type", "user"),
    "another input type": ({"input": "a", "input_type": "search"}, "invalid_value", "input_type"),
    "input type a list": ({"input": "a", "input_type": ["query"]}, "invalid_type", "input_type"),
    "prompt a list": ({"input": "a", "prompt_name": ["query"]}, "invalid_type", "prompt_name"),
    "both prompts": (
        {"input": "a", "prompt_name": "x", "input_type": "query"},
        "invalid_value",
        "input_type",
    ),
    "another truncate": ({"input": "a", "truncate": "END"}, "invalid_value", "truncate"),
    "truncate a boolean": ({"input": "a", "truncate": True}, "invalid_type", "truncate"),
    "an unknown field": ({"input": "a", "inputs": "b"}, "unknown_parameter", "inputs"),
    "an unknown field and no input": ({"texts": ["a"]}, "unknown_parameter", "texts"),
    "case matters": ({"Input": "a"}, "unknown_parameter", "Input"),
}


class TestRefused:
    """JSON objects that are no request."""

    @pytest.mark.parametrize("case", BAD)
    def test_code_and_param(self, case: str) -> None:
        """The code says what, the param where, the message both."""
        fields, code, param = BAD[case]
        error = refused(body(**fields))
        assert (error.code, error.param) == (code, param)
        assert error.status == 400
        assert param in error.message

    @pytest.mark.parametrize(
        ("fields", "accepted"),
        [
            ({"input": "a", "encoding_format": "x"}, '"float", "base64"'),
            ({"input": "a", "input_type": "x"}, '"query", "document"'),
            ({"input": "a", "truncate": "x"}, '"error", "end", "start"'),
            ({"input": ["a"] * 5}, "at most 4"),
            ({"input": "a", "x": 1}, "input, model, encoding_format, dimensions"),
        ],
        ids=["encoding", "input type", "truncate", "too many", "unknown"],
    )
    def test_says_what_is_accepted(self, fields: dict[str, object], accepted: str) -> None:
        """A client's author can mend the request from the message."""
        assert accepted in refused(body(**fields)).message

    @pytest.mark.parametrize(
        "fields",
        [
            {"input": "a", "x" * 1_000_000: 1},
            {"input": "a", "encoding_format": "x" * 1_000_000},
            {"input": "a", "truncate": "x" * 1_000_000},
            {"input": "a", "model": ["x" * 1_000_000]},
        ],
        ids=["field", "encoding", "truncate", "model"],
    )
    def test_does_not_send_back_what_it_was_sent(self, fields: dict[str, object]) -> None:
        """A megabyte in a field is no megabyte in the answer."""
        error = refused(body(**fields))
        assert len(render_error(error)) < 500


class TestAccepted:
    """Requests as clients send them."""

    def test_the_least_request(self) -> None:
        """A string is one text; everything else has its default."""
        assert parse_embeddings(b'{"input": "a"}', 1) == WireRequest(
            model=None,
            texts=["a"],
            token_ids=None,
            encoding_format="float",
            dimensions=None,
            input_type=None,
            prompt_name=None,
            truncate="end",
        )

    def test_as_many_as_are_accepted(self) -> None:
        """The limit itself is within it."""
        assert parse_embeddings(body(input=["a"] * 4), 4).texts == ["a"] * 4

    def test_null_is_absent(self) -> None:
        """OpenAI's clients send null for what their user left out."""
        names = ["model", "encoding_format", "dimensions", "user", "input_type", "prompt_name"]
        fields = dict.fromkeys([*names, "truncate"])
        assert parse_embeddings(body(input="a", **fields), 1) == parse_embeddings(
            body(input="a"), 1
        )

    def test_null_beside_a_prompt_is_absent(self) -> None:
        """input_type null does not exclude prompt_name."""
        request = parse_embeddings(body(input="a", input_type=None, prompt_name="x"), 1)
        assert request.prompt_name == "x"

    @pytest.mark.parametrize(
        ("value", "ids"),
        [([1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, 6]]), ([[1], [2, 3]], [[1], [2, 3]])],
        ids=["one text", "several"],
    )
    def test_token_ids(self, value: list[Any], ids: list[list[int]]) -> None:
        """An array of integers is one text's ids, however many there are."""
        request = parse_embeddings(body(input=value), MAX_INPUTS)
        assert request.token_ids == ids
        assert request.texts is None

    @pytest.mark.parametrize(
        "text",
        [" ", "\n", "\u0000", "\ufeff", "\u200b", "😀", "\U0010ffff", "e\u0301", "a" * 10_000],
        ids=lambda text: ascii(text)[:12],
    )
    def test_unusual_text_is_text(self, text: str) -> None:
        """Whitespace and unusual Unicode arrive as they are, escaped or not."""
        for ensure_ascii in (True, False):
            content = json.dumps({"input": [text]}, ensure_ascii=ensure_ascii).encode()
            assert parse_embeddings(content, 1).texts == [text]

    def test_the_last_of_two_equal_keys_counts(self) -> None:
        """As in every JSON parser a client may have tested with."""
        assert parse_embeddings(b'{"input": 1, "input": "b"}', 1).texts == ["b"]


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A well-formed request's fields; optional ones may be missing."""
    ids = st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4)
    fields: dict[str, Any] = {
        "input": draw(
            st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=MAX_INPUTS)
            | st.lists(ids, min_size=1, max_size=MAX_INPUTS)
        )
    }
    optional: dict[str, st.SearchStrategy[Any]] = {
        "model": st.text(max_size=8),
        "encoding_format": st.sampled_from(["float", "base64"]),
        "dimensions": st.integers(1, 2**63),
        "user": st.text(max_size=8),
        "truncate": st.sampled_from(["error", "end", "start"]),
        draw(st.sampled_from(["input_type", "prompt_name"])): st.sampled_from(
            ["query", "document"]
        ),
    }
    for key, values in optional.items():
        if draw(st.booleans()):
            fields[key] = draw(values)
    return fields


@given(fields=requests())
@settings(deadline=None)
def test_a_request_arrives_as_it_was_rendered(fields: dict[str, Any]) -> None:
    """parse(render(x)) == x, field by field."""
    request = parse_embeddings(body(**fields), MAX_INPUTS)
    found = request.texts if request.texts is not None else request.token_ids
    assert found == fields["input"]
    assert (request.texts is None) != (request.token_ids is None)
    defaults = {"encoding_format": "float", "truncate": "end"}
    for key in ("model", "encoding_format", "dimensions", "input_type", "prompt_name", "truncate"):
        assert getattr(request, key) == fields.get(key, defaults.get(key))


def well_formed(request: WireRequest) -> bool:
    """Whether every field is of its type, exactly."""
    if request.texts is not None:
        items: list[Any] = list(request.texts)
        typed = all(type(text) is str and text for text in items)
    else:
        items = list(request.token_ids or [])
        typed = all(ids and all(type(i) is int for i in ids) for ids in items)
    return (
        typed
        and 1 <= len(items) <= MAX_INPUTS
        and (request.texts is None) != (request.token_ids is None)
        and (request.model is None or type(request.model) is str)
        and request.encoding_format in ("float", "base64")
        and (request.dimensions is None or type(request.dimensions) is int)
        and (request.dimensions is None or request.dimensions > 0)
        and request.input_type in (None, "query", "document")
        and (request.prompt_name is None or type(request.prompt_name) is str)
        and request.truncate in ("error", "end", "start")
    )


def answered(content: bytes) -> None:
    """The body is a well-formed request, or is refused by a RequestError that can be rendered."""
    try:
        assert well_formed(parse_embeddings(content, MAX_INPUTS))
    except RequestError as error:
        rendered = json.loads(render_error(error))["error"]
        assert rendered["code"] in ERRORS
        assert error.status == 400


KEYS = ["input", "model", "encoding_format", "dimensions", "user", "input_type", "prompt_name"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["query", "base64", "end", "float"]),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.sampled_from([*KEYS, "truncate"]) | st.text(max_size=6), inner)
    ),
    max_leaves=12,
)


@given(value=st.dictionaries(st.sampled_from([*KEYS, "truncate"]), VALUES) | VALUES)
@settings(deadline=None, max_examples=300)
def test_any_json_is_a_request_or_is_refused(value: object) -> None:
    """No value of any shape raises anything but RequestError, or comes through half-checked."""
    answered(json.dumps(value).encode())


@given(content=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@example(content=b'{"input": ' + b"1" * 5_000 + b"}")
@example(content=b'{"input": [' + b"1" * 5_000 + b"]}")
@example(content=b'{"input": 1e999}')
@example(content=b'{"input": [-0]}')
@example(content=b'{"input": "a", "dimensions": 1e0}')
@settings(deadline=None)
def test_any_bytes_are_a_request_or_are_refused(content: bytes) -> None:
    """The same for bytes of all kinds."""
    answered(content)


@given(fields=requests(), data=st.data())
@settings(deadline=None)
def test_a_damaged_request_is_a_request_or_is_refused(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    """The same for a good body with one byte replaced, or cut."""
    content = bytearray(body(**fields))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] = data.draw(st.integers(0, 255))
    else:
        del content[place:]
    answered(bytes(content))


def matrices() -> st.SearchStrategy[Floats]:
    """(1..4, 1..8) float32, finite: zeros of both signs and subnormal numbers too."""
    shape = st.tuples(st.integers(1, 4), st.integers(1, 8))
    values = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return shape.flatmap(lambda s: npst.arrays(np.float32, s, elements=values))


class TestEmbeddings:
    """The answer."""

    def test_by_hand(self) -> None:
        """The whole of a small answer."""
        rows = np.array([[0.5, -1.0], [2.0, 0.1]], np.float32)
        answer = json.loads(rendered("m", rows, 7, [], "float"))
        assert answer == {
            "object": "list",
            "model": "m",
            "data": [
                {"object": "embedding", "index": 0, "dims": 2, "embedding": [0.5, -1.0]},
                {"object": "embedding", "index": 1, "dims": 2, "embedding": [2.0, 0.1]},
            ],
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }

    @pytest.mark.parametrize("encoding", ["float", "base64"])
    def test_says_which_texts_were_cut(self, encoding: Any) -> None:
        """usage.truncated lists the indexes."""
        rows = np.ones((3, 2), np.float32)
        answer = json.loads(rendered("m", rows, 7, [0, 2], encoding))
        assert answer["usage"]["truncated"] == [0, 2]

    @given(rows=matrices())
    @settings(deadline=None)
    def test_decimals_give_back_the_same_float32(self, rows: Floats) -> None:
        """Every bit comes back, the sign of zero too."""
        answer = json.loads(rendered("m", rows, 1, [], "float"))
        found = np.array([item["embedding"] for item in answer["data"]], np.float32)
        assert found.tobytes() == rows.tobytes()
        assert [item["index"] for item in answer["data"]] == list(range(len(rows)))
        assert all(item["dims"] == rows.shape[1] for item in answer["data"])

    @given(rows=matrices())
    @settings(deadline=None)
    def test_decimals_are_the_shortest(self, rows: Floats) -> None:
        """numpy's shortest digits of a float32, not the 17 of its double."""
        content = rendered("m", rows, 1, [], "float")
        answer = json.loads(content, parse_float=Decimal)
        for item, row in zip(answer["data"], rows, strict=True):
            shortest = [Decimal(np.format_float_scientific(x, unique=True)) for x in row]
            assert [Decimal(x) for x in item["embedding"]] == shortest

    @given(rows=matrices())
    @settings(deadline=None)
    def test_base64_is_little_endian_float32(self, rows: Floats) -> None:
        """Four bytes a number, the least significant first, as the OpenAI clients read it."""
        answer = json.loads(rendered("m", rows, 1, [], "base64"))
        for item, row in zip(answer["data"], rows, strict=True):
            raw = base64.b64decode(item["embedding"], validate=True)
            values = struct.unpack(f"<{len(row)}f", raw)
            assert np.array(values, np.float32).tobytes() == row.tobytes()

    @pytest.mark.parametrize("encoding", ["float", "base64"])
    @pytest.mark.parametrize("layout", ["columns first", "every other column", "a cut"])
    def test_any_layout_in_memory(self, layout: str, encoding: Any) -> None:
        """A view of a larger matrix is rendered like its copy."""
        whole = (np.arange(24) / 7).astype(np.float32).reshape(4, 6)
        views = {
            "columns first": np.asfortranarray(whole),
            "every other column": whole[:, ::2],
            "a cut": whole[1:3, :4],
        }
        view = views[layout]
        expected = rendered("m", np.array(view, order="C"), 1, [], encoding)
        assert rendered("m", view, 1, [], encoding) == expected

    def test_a_model_s_name_is_escaped(self) -> None:
        """A name is text, whatever stands in it."""
        content = rendered('"}\n', np.ones((1, 1), np.float32), 1, [], "float")
        assert json.loads(content)["model"] == '"}\n'


@given(rows=matrices())
@settings(deadline=None)
def test_octets_are_the_matrix_in_little_endian_float32(rows: Floats) -> None:
    """Row after row, four bytes a number, nothing before or after."""
    raw = bytes(render_octets(rows))
    values = struct.unpack(f"<{rows.size}f", raw)
    assert np.array(values, np.float32).tobytes() == rows.tobytes()


def test_octets_of_a_view_are_those_of_its_copy() -> None:
    """Any layout in memory."""
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = struct.pack("<6f", 0, 2, 4, 6, 8, 10)
    assert bytes(render_octets(whole[:, ::2])) == expected
    assert bytes(render_octets(np.asfortranarray(whole)[:, ::2])) == expected


class TestTokenize:
    """POST tokenize."""

    def test_accepts_what_shapes_tokens(self) -> None:
        """The fields it shares with embeddings mean the same."""
        fields = {"input": ["a"], "model": "m", "user": "u", "truncate": "start"}
        request = parse_tokenize(body(**fields, prompt_name="query"), MAX_INPUTS)
        assert request == WireRequest("m", ["a"], None, prompt_name="query", truncate="start")

    @pytest.mark.parametrize("field", ["dimensions", "encoding_format"])
    def test_refuses_what_shapes_vectors(self, field: str) -> None:
        """There are no vectors, so a field about them is a mistake."""
        with pytest.raises(RequestError) as error:
            parse_tokenize(body(input="a", **{field: None}), MAX_INPUTS)
        assert (error.value.code, error.value.param) == ("unknown_parameter", field)
        assert "encoding_format" not in error.value.message.partition("accepted")[2]

    def test_answer_by_hand(self) -> None:
        """A text that fits and one that is cut."""
        tokens = [Tokens([2, 3], ["[CLS]", "é"], 2), Tokens([2], ["[CLS]"], 9)]
        parts = [render_tokens([text], i) for i, text in enumerate(tokens)]
        whole = tokens_answer("m", [render_tokens(tokens, 0)])
        assert b"".join(whole) == b"".join(tokens_answer("m", parts)), "in one part or several"
        assert json.loads(b"".join(whole)) == {
            "object": "list",
            "model": "m",
            "data": [
                {"object": "tokens", "index": 0, "token_ids": [2, 3], "tokens": ["[CLS]", "é"]}
                | {"count": 2, "total": 2, "truncated": False},
                {"object": "tokens", "index": 1, "token_ids": [2], "tokens": ["[CLS]"]}
                | {"count": 1, "total": 9, "truncated": True},
            ],
        }


class TestErrorBody:
    """OpenAI's error body."""

    @pytest.mark.parametrize("code", ERRORS)
    def test_every_code(self, code: str) -> None:
        """All four keys are always there, param null when there is none."""
        status, kind, *_ = ERRORS[code]
        error = RequestError(code, 'say "what"\n', headers={"a": "b"})
        assert error.status == status
        assert json.loads(render_error(error)) == {
            "error": {"message": 'say "what"\n', "type": kind, "param": None, "code": code}
        }

    def test_param(self) -> None:
        """The offending field stands there as it was named."""
        rendered = json.loads(render_error(RequestError("empty_input", "m", "input[17]")))
        assert rendered["error"]["param"] == "input[17]"


def test_small_answers_are_json_in_utf_8() -> None:
    """`render` escapes nothing it need not."""
    assert render({"a": ["é", 1, None, True]}) == '{"a":["é",1,null,true]}'.encode()
