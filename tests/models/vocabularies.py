"""Tokenizers trained in memory, of each kind that published models have."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.models.texts import TEXTS

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MPNET = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
LLAMA = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Qwen 2's own pattern, from its tokenizer.json.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = tuple(text.replace("\x07", "").replace("\x7f", "") for text in TEXTS)


def wordpiece(
    lower: bool = True, special: Sequence[str] = BERT, size: int = 600, unknown: str = "[UNK]"
) -> Tokenizer:
    """BERT's: [CLS] text [SEP], or what `special` has in their places."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if "[CLS]" in special:
        frame(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    else:
        tokenizer.post_processor = _roberta(tokenizer)
    return tokenizer


def byte_bpe(special: Sequence[str], size: int = 700) -> Tokenizer:
    """GPT-2's, with RoBERTa's <s> text </s> or BERT's frame."""
    tokenizer = _byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), special, size)
    if "<s>" in special:
        tokenizer.post_processor = _roberta(tokenizer)
    else:
        frame(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")
    return tokenizer


def qwen(end: str | None = "<|endoftext|>") -> Tokenizer:
    """Qwen 2's, with `end` after a text as Qwen3-Embedding has it; None: nothing, as Qwen 2."""
    before = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = _byte_bpe(before, QWEN, 700)
    tokenizer.normalizer = normalizers.NFC()
    levels = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = levels
    if end is not None:
        added = template(tokenizer, f"$A {end}", f"$A $B {end}")
        tokenizer.post_processor = processors.Sequence([levels, added])
    return tokenizer


def gemma(single: str = "<bos> $A <eos>", size: int = 900) -> Tokenizer:
    """Gemma's: BPE with bytes for what it does not know, spaces as U+2581."""
    tokenizer = _spaced_bpe([*GEMMA, *BYTES], size)
    document = json.loads(tokenizer.to_str())
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    document["pre_tokenizer"] = split | {"invert": False}
    document["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return frame(_with_byte_fallback(document), single, f"{single} {single.replace('$A', '$B')}")


def llama(single: str = "<s> $A </s>", size: int = 900) -> Tokenizer:
    """Llama's and Mistral's as converted from SentencePiece: a space is put before a text."""
    tokenizer = _spaced_bpe([*LLAMA, *BYTES], size)
    document = json.loads(tokenizer.to_str())
    document["pre_tokenizer"] = None
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [{"type": "Prepend", "prepend": "▁"}, replace]
    document["normalizer"] = {"type": "Sequence", "normalizers": before}
    pair = f"{single} {single.replace('$A', '$B:1')}"
    return frame(_with_byte_fallback(document), single, pair)


def frame(tokenizer: Tokenizer, single: str, pair: str) -> Tokenizer:
    """Put special tokens around texts, as TemplateProcessing writes them."""
    tokenizer.post_processor = template(tokenizer, single, pair)
    return tokenizer


def template(tokenizer: Tokenizer, single: str, pair: str) -> processors.TemplateProcessing:
    names = sorted({word for word in single.split() if not word.startswith("$")})
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def unigram(normalizer: normalizers.Normalizer, size: int = 700) -> list[tuple[str, float]]:
    """Train SentencePiece's model; return its pieces and their scores, without special ones."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = "<unk>"
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[unknown], unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in pieces if piece != unknown]


def _byte_bpe(before: pre_tokenizers.PreTokenizer, special: Sequence[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = before
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _spaced_bpe(special: Sequence[str], size: int) -> Tokenizer:
    """BPE over words that begin with U+2581; few characters, so that many fall back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _with_byte_fallback(document: dict[str, object]) -> Tokenizer:
    model, added = document["model"], document["added_tokens"]
    assert isinstance(model, dict) and isinstance(added, list)
    model |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    document["added_tokens"] = [token for token in added if token["content"] not in BYTES]
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    document["decoder"] = {"type": "Sequence", "decoders": steps}
    return Tokenizer.from_str(json.dumps(document))


def _roberta(tokenizer: Tokenizer) -> processors.RobertaProcessing:
    ids = tokenizer.get_vocab()
    start, end = ("<s>", ids["<s>"]), ("</s>", ids["</s>"])
    return processors.RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=False)


def mask(content: str) -> AddedToken:
    """A mask that takes the space before it, as RoBERTa's relatives declare it."""
    return AddedToken(content, lstrip=True, rstrip=False)
