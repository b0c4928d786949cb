"""Tokenization: ids as the model sees them, cut as the tokenizers library itself would cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from embedserve.artifact import TOKENIZER
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import RequestError, StartupError
from embedserve.model import loading
from embedserve.model.request import Truncate
from embedserve.model.tokenizer import CHARACTERS_PER_TOKEN, STEP_CHARACTERS, Tokenizer
from tests import tiny


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for the library ends with the test."""
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("threads", [1, 13])
def test_threads_share_a_batch(threads: int, tmp_path: Path) -> None:
    """As many as are asked for. A step takes as much longer a part: its time stays."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tiny.write(tmp_path / "m")
    model, _ = loading.load_model(ModelSpec("m"), tmp_path / "m", "cpu", tokenizing=threads)
    assert model.tokenizer.step_characters == threads * STEP_CHARACTERS
    assert os.environ["TOKENIZERS_PARALLELISM"] == ("true" if threads > 1 else "false")
    assert os.environ["RAYON_NUM_THREADS"] == (str(threads) if threads > 1 else "")


CUTS: dict[Truncate, str] = {"end": "right", "start": "left"}


def word_piece() -> tokenizers.Tokenizer:
    """[CLS] before and [SEP] after, as BERT."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "ab", "##a", "##b", "##c", "##cd"]
    made = tokenizers.Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")  # noqa: S106  # a token, no secret
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(words[:4])
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def byte_level_bpe() -> tokenizers.Tokenizer:
    """<s> before and </s> after, as RoBERTa; every byte is a token, "ab" and "abc" are one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", *alphabet, "ab", "abc"]
    made = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [("a", "b"), ("ab", "c")])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(tokens[:3])
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def unigram() -> tokenizers.Tokenizer:
    """</s> after the text and nothing before, as T5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("a", -4.0), ("b", -4.0)]
    pieces += [("c", -4.5), ("▁a", -2.0), ("▁ab", -2.5), ("bc", -3.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<pad>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return made


def without_special_tokens() -> tokenizers.Tokenizer:
    """A word is a token, and there is nothing else."""
    made = tokenizers.Tokenizer(
        models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]")  # noqa: S106  # a token, no secret
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "word piece": word_piece,
    "byte-level bpe": byte_level_bpe,
    "unigram": unigram,
    "without special tokens": without_special_tokens,
}
SPECIAL = {"word piece": 2, "byte-level bpe": 2, "unigram": 1, "without special tokens": 0}


def saved(made: tokenizers.Tokenizer, directory: Path) -> Path:
    """Write tokenizer.json; return its directory."""
    made.save(str(directory / TOKENIZER))
    return directory


def loaded(made: tokenizers.Tokenizer, directory: Path, max_tokens: int) -> Tokenizer:
    """The tokenizer as it is served."""
    vocabulary = made.get_vocab_size()
    manifest = tiny.manifest(max_tokens=max_tokens, vocabulary=vocabulary)
    return Tokenizer(saved(made, directory), manifest)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind's tokenizer.json."""
    return {kind: saved(make(), tmp_path_factory.mktemp("t")) for kind, make in KINDS.items()}


def ids_of(tokenizer: Tokenizer, text: str, prompt: str = "", cut: Truncate = "end") -> list[int]:
    """One text's ids."""
    (ids,) = tokenizer.encode([text], prompt, cut).sequences
    assert ids.dtype == "int64"
    assert ids.ndim == 1
    return [int(i) for i in ids]


class TestByHand:
    """Ids that can be read off the vocabularies above."""

    @pytest.mark.parametrize(
        ("kind", "text", "ids"),
        [
            ("word piece", "a ab abcd", [2, 4, 7, 7, 11, 3]),
            ("byte-level bpe", "abc", [0, 260, 2]),
            ("unigram", "a", [7, 1]),
            ("without special tokens", "a c x", [1, 3, 0]),
        ],
        ids=list(KINDS),
    )
    def test_ids(self, tmp_path: Path, kind: str, text: str, ids: list[int]) -> None:
        """The special tokens are put where the tokenizer's post-processor says."""
        assert ids_of(loaded(KINDS[kind](), tmp_path, 16), text) == ids

    @pytest.mark.parametrize(
        ("cut", "limit", "ids"),
        [
            ("end", 6, [2, 4, 5, 6, 4, 3]),
            ("end", 5, [2, 4, 5, 6, 3]),
            ("start", 5, [2, 5, 6, 4, 3]),
            ("end", 3, [2, 4, 3]),
            ("start", 3, [2, 4, 3]),
            ("end", 2, [2, 3]),
            ("start", 2, [2, 3]),
        ],
    )
    def test_cut(self, tmp_path: Path, cut: Truncate, limit: int, ids: list[int]) -> None:
        """Of "a b c a" the end or the start goes, [CLS] and [SEP] stay."""
        assert ids_of(loaded(word_piece(), tmp_path, limit), "a b c a", cut=cut) == ids

    @pytest.mark.parametrize(("cut", "ids"), [("end", [2, 2, 4, 3, 3]), ("start", [2, 4, 3, 5, 3])])
    def test_a_text_that_spells_special_tokens(
        self, tmp_path: Path, cut: Truncate, ids: list[int]
    ) -> None:
        """A "[CLS]" in the text is content: it is cut like a word, and the real one is not."""
        assert ids_of(loaded(word_piece(), tmp_path, 5), "[CLS] a [SEP] b", cut=cut) == ids

    def test_the_prompt_is_part_of_the_text(self, tmp_path: Path) -> None:
        """Prompt + text is tokenized as one string, with no space between, and counts."""
        tokenizer = loaded(word_piece(), tmp_path, 4)
        assert ids_of(tokenizer, "b", "a") == [2, 7, 3]
        assert ids_of(tokenizer, "b c", "a ") == [2, 4, 5, 3]
        assert tokenizer.encode(["b c"], "a ").truncated == [0]

    def test_tokens_counts_what_the_model_runs(self, tmp_path: Path) -> None:
        """After the cut, special tokens included; the cut texts are listed."""
        encoded = loaded(word_piece(), tmp_path, 4).encode(["a", "a b c", "a b", "c c c c c"])
        assert [len(ids) for ids in encoded.sequences] == [3, 4, 4, 4]
        assert encoded.tokens == 15
        assert encoded.truncated == [1, 3]


class TestTokens:
    """What is shown of a text."""

    def test_by_hand(self, tmp_path: Path) -> None:
        """Ids and tokens as they are run, and their number before the cut."""
        shown = loaded(word_piece(), tmp_path, 4).tokens(["a", "b c a"], "a")
        assert [(text.ids, text.tokens, text.total) for text in shown] == [
            ([2, 4, 8, 3], ["[CLS]", "a", "##a", "[SEP]"], 4),
            ([2, 7, 6, 3], ["[CLS]", "ab", "c", "[SEP]"], 5),
        ]

    def test_error_mode_refuses(self, tmp_path: Path) -> None:
        """Tokens are shown of what would be embedded, and of nothing else."""
        with pytest.raises(RequestError):
            loaded(word_piece(), tmp_path, 4).tokens(["b c a"], truncate="error")


text_strategy = st.lists(
    st.sampled_from(
        ["a", "b", "ab", "abc", "abcd", "[CLS]", "</s>", "<s>", "é", "漢字", " ", "\n", "x.y", "😀"]
    )
    | st.text(max_size=3),
    max_size=12,
).map(" ".join)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    texts=st.lists(text_strategy.filter(str.strip), min_size=1, max_size=4),
    prompt=st.sampled_from(["", "a: ", "[SEP]"]),
    cut=st.sampled_from(sorted(CUTS)),
    room=st.integers(0, 12),
)
@settings(deadline=None, max_examples=200)
def test_equals_the_library_s_own_truncation(
    directories: dict[str, Path],
    kind: str,
    texts: list[str],
    prompt: str,
    cut: Truncate,
    room: int,
) -> None:
    """Every text has the ids that tokenizers' truncation to the same limit gives it."""
    limit = SPECIAL[kind] + room
    if room == 0 and not SPECIAL[kind]:
        return  # a model of no tokens
    reference = tokenizers.Tokenizer.from_file(str(directories[kind] / TOKENIZER))
    whole = [reference.encode(prompt + text).ids for text in texts]
    reference.enable_truncation(limit, direction=CUTS[cut])
    expected = [reference.encode(prompt + text).ids for text in texts]

    tokenizer = Tokenizer(directories[kind], tiny.manifest(max_tokens=limit))
    encoded = tokenizer.encode(texts, prompt, cut)
    assert [ids.tolist() for ids in encoded.sequences] == expected
    assert encoded.truncated == [i for i, ids in enumerate(whole) if len(ids) > limit]
    assert encoded.totals == list(map(len, whole))
    assert encoded.tokens == sum(map(len, expected))


class TestLimits:
    """What is refused, and what is just not."""

    def test_error_mode_names_the_first_text_that_is_too_long(self, tmp_path: Path) -> None:
        """`truncate: "error"` refuses with the index, the count and the limit."""
        tokenizer = loaded(word_piece(), tmp_path, 5)
        with pytest.raises(RequestError) as error:
            tokenizer.encode(["a b c", "a b c a b", "a b c a"], truncate="error")
        assert error.value.code == "context_length_exceeded"
        assert error.value.status == 400
        assert error.value.param == "input[1]"
        assert "7 tokens" in error.value.message
        assert "5" in error.value.message.removeprefix("input[1] has 7")

    def test_error_mode_accepts_what_just_fits(self, tmp_path: Path) -> None:
        """At the limit nothing is cut and nothing refused."""
        encoded = loaded(word_piece(), tmp_path, 5).encode(["a b c"], truncate="error")
        assert [ids.tolist() for ids in encoded.sequences] == [[2, 4, 5, 6, 3]]
        assert encoded.truncated == []

    def test_error_mode_counts_the_prompt(self, tmp_path: Path) -> None:
        """What fits alone may not fit with its prompt."""
        tokenizer = loaded(word_piece(), tmp_path, 5)
        with pytest.raises(RequestError) as error:
            tokenizer.encode(["a b c"], "c ", truncate="error")
        assert error.value.code == "context_length_exceeded"

    @pytest.mark.parametrize("prompt", ["", "c " * 5], ids=["no prompt", "prompt"])
    def test_characters_are_bounded_before_tokens_are_counted(
        self, tmp_path: Path, prompt: str
    ) -> None:
        """250 characters a token, prompt included, are work enough; one more is refused."""
        assert CHARACTERS_PER_TOKEN == 250
        tokenizer = loaded(word_piece(), tmp_path, 4)
        room = 4 * 250 - len(prompt)
        just = "a " * (room // 2)
        assert len(tokenizer.encode([just], prompt).sequences[0]) == 4
        with pytest.raises(RequestError) as error:
            tokenizer.encode(["a", just + "b"], prompt)
        assert error.value.code == "input_too_long"
        assert error.value.status == 400
        assert error.value.param == "input[1]"
        assert str(room + 1) in error.value.message
        assert str(room) in error.value.message.removeprefix(f"input[1] has {room + 1}")

    @pytest.mark.parametrize(
        "text", [" ", "\n\t ", "\u00a0", "\u200b", "\x00", "\ufeff"], ids=ascii
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_without_a_token_is_handed_on(
        self, directories: dict[str, Path], kind: str, text: str
    ) -> None:
        """A text that a tokenizer makes nothing of is refused: no graph runs zero tokens."""
        tokenizer = Tokenizer(directories[kind], tiny.manifest())
        try:
            encoded = tokenizer.encode(["a", text])
        except RequestError as error:
            assert (error.status, error.param) == (400, "input[1]")
        else:
            assert all(len(ids) > 0 for ids in encoded.sequences)


class TestTokenIds:
    """Ids that a client sends."""

    def test_are_taken_as_they_are(self, tmp_path: Path) -> None:
        """No special tokens are added, nothing is cut."""
        encoded = loaded(word_piece(), tmp_path, 4).check_token_ids([[2, 4, 3], [0, 11, 5, 5]])
        assert [ids.tolist() for ids in encoded.sequences] == [[2, 4, 3], [0, 11, 5, 5]]
        assert all(ids.dtype == "int64" for ids in encoded.sequences)
        assert encoded.tokens == 7
        assert encoded.truncated == []

    @pytest.mark.parametrize("token", [-1, 12, 2**31, 2**63, 2**64 - 1, -(2**63)])
    def test_outside_the_vocabulary(self, tmp_path: Path, token: int) -> None:
        """onnxruntime answers an id of -1 wrongly instead of failing: refused here."""
        tokenizer = loaded(word_piece(), tmp_path, 4)
        assert tokenizer.vocabulary == 12
        with pytest.raises(RequestError) as error:
            tokenizer.check_token_ids([[1], [2, token]])
        assert error.value.code == "token_id_out_of_range"
        assert error.value.param == "input[1]"
        assert str(token) in error.value.message
        assert "0 to 11" in error.value.message

    def test_too_many(self, tmp_path: Path) -> None:
        """Ids past the limit are refused, never cut."""
        with pytest.raises(RequestError) as error:
            loaded(word_piece(), tmp_path, 4).check_token_ids([[1] * 4, [1] * 5])
        assert error.value.code == "context_length_exceeded"
        assert error.value.param == "input[1]"


def template(single: str) -> tokenizers.Tokenizer:
    """The word pieces with another post-processor."""
    made = word_piece()
    made.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


class TestLoading:
    """What a tokenizer.json may hold."""

    @pytest.mark.parametrize(
        "single",
        ["$A:1", "[CLS]:1 $A:0 [SEP]:0", "[CLS] $A [SEP]:1", "[CLS] [SEP]", "$A [SEP] $A"],
    )
    def test_a_post_processor_that_does_more_is_refused(self, tmp_path: Path, single: str) -> None:
        """Token types other than 0, and texts put twice or not at all, are not understood."""
        directory = saved(template(single), tmp_path)
        with pytest.raises(StartupError) as error:
            Tokenizer(directory, tiny.manifest())
        assert str(error.value).startswith(f"{directory / TOKENIZER}: ")

    @pytest.mark.parametrize(
        ("single", "ids"),
        [
            ("$A", [4, 5, 6]),
            ("[CLS] $A", [2, 4, 5]),
            ("$A [SEP] [SEP]", [4, 3, 3]),
            ("[SEP] [CLS] $A", [3, 2, 4]),
        ],
    )
    def test_special_tokens_on_one_side_only(
        self, tmp_path: Path, single: str, ids: list[int]
    ) -> None:
        """Any number of special tokens before and after is kept by the cut."""
        assert ids_of(loaded(template(single), tmp_path, 3), "a b c a b c") == ids

    def test_a_tokenizer_that_knows_no_latin_letters(self, tmp_path: Path) -> None:
        """A tokenizer that drops what it does not know still keeps its special tokens in a cut."""
        made = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "漢": 2, "字": 3}, []))
        made.add_special_tokens(["<s>", "</s>"])
        made.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
        assert ids_of(loaded(made, tmp_path, 4), "漢字漢字漢") == [0, 2, 3, 1]

    def test_baked_padding_and_truncation_have_no_effect(self, tmp_path: Path) -> None:
        """Many tokenizer.json pad to 128 and cut at 128: the manifest's limit alone counts."""
        made = word_piece()
        made.enable_padding(length=16)
        made.enable_truncation(3, direction="left")
        tokenizer = loaded(made, tmp_path, 6)
        encoded = tokenizer.encode(["a", "a b c a", "a b c a b"])
        assert [ids.tolist() for ids in encoded.sequences] == [
            [2, 4, 3],
            [2, 4, 5, 6, 4, 3],
            [2, 4, 5, 6, 4, 3],
        ]
        assert encoded.truncated == [2]

    @pytest.mark.parametrize(
        "content", [None, b"", b"{}", b"not json", b"\xff\xfe"], ids=["missing"] + ["broken"] * 4
    )
    def test_no_tokenizer(self, tmp_path: Path, content: bytes | None) -> None:
        """The file is named."""
        path = tmp_path / TOKENIZER
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StartupError) as error:
            Tokenizer(tmp_path, tiny.manifest())
        assert str(error.value).startswith(f"{path}: ")

    def test_one_call_s_mode_does_not_reach_another_thread_s(self, tmp_path: Path) -> None:
        """Calls with different modes at the same time do not disturb one another."""
        tokenizer = loaded(word_piece(), tmp_path, 5)
        expected = {"end": [2, 4, 5, 6, 3], "start": [2, 5, 6, 4, 3]}
        cuts: list[Truncate] = ["end", "start"] * 40
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda cut: ids_of(tokenizer, "a b c a", "", cut), cuts))
        assert found == [expected[cut] for cut in cuts]
