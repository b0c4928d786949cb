"""SentencePiece models as files, and the fast tokenizers that transformers 4 makes from them.

The package sentencepiece is not needed: pieces are trained by tokenizers, the file is written with
the message that transformers carries, and converted by its own converters, which only read a few
attributes of the slow tokenizer.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from tokenizers import Tokenizer, normalizers

from tests.models import charsmap, vocabularies

hf: Any = transformers  # untyped
# The package has a function of the same name.
_converters: Any = importlib.import_module("transformers.convert_slow_tokenizer")
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # sentencepiece_model.proto, SentencePiece.Type


@dataclass(frozen=True, slots=True)
class Kind:
    """One published SentencePiece file: its name, its first pieces, and what reads it.

    `converter` and `tokenizer` are classes of transformers; `reads` what the converter reads of
    the slow tokenizer, `ids` the ids of special tokens in the tokenizer that results.
    """

    file: str
    first: Sequence[str]
    unknown: str
    converter: str
    tokenizer: str
    ids: Mapping[str, int]
    reads: Mapping[str, object] = field(default_factory=dict)


_FAIRSEQ = ("<unk>", "<s>", "</s>")
_CLS_SEP = {"[CLS]": 2, "[SEP]": 3}
KINDS = {
    "xlm-roberta": Kind(
        "sentencepiece.bpe.model",
        _FAIRSEQ,
        "<unk>",
        "XLMRobertaConverter",
        "XLMRobertaTokenizerFast",
        {"<s>": 0, "</s>": 2},
    ),
    "camembert": Kind(
        "sentencepiece.bpe.model",
        _FAIRSEQ,
        "<unk>",
        "CamembertConverter",
        "CamembertTokenizerFast",
        # The converter names both, and puts the model's own after its four: 5 and 6.
        {"<s>": 5, "</s>": 6},
    ),
    "albert": Kind(
        "spiece.model",
        ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
        "<unk>",
        "AlbertConverter",
        "AlbertTokenizerFast",
        _CLS_SEP,
        {"keep_accents": False, "do_lower_case": True},
    ),
    "t5": Kind(
        "spiece.model",
        ("<pad>", "</s>", "<unk>"),
        "<unk>",
        "T5Converter",
        "T5TokenizerFast",
        {"</s>": 1},
        {"_extra_ids": 10},
    ),
    "deberta-v2": Kind(
        "spm.model",
        ("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
        "[UNK]",
        "DebertaV2Converter",
        "DebertaV2TokenizerFast",
        {"[CLS]": 1, "[SEP]": 2},
        {"do_lower_case": False, "split_by_punct": False},
    ),
}


def save(directory: Path, kind: Kind, **options: Any) -> int:
    """Write the model's file and the fast tokenizer's; return how many ids it has."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / kind.file
    path.write_bytes(_model(kind))
    slow = SimpleNamespace(
        vocab_file=str(path), convert_tokens_to_ids=kind.ids.__getitem__, **kind.reads
    )
    tokenizer: Tokenizer = getattr(_converters, kind.converter)(slow).converted()
    fast = getattr(hf, kind.tokenizer)(tokenizer_object=tokenizer, **options)
    fast.save_pretrained(directory)
    return len(fast)


def _model(kind: Kind) -> bytes:
    spec = _converters.import_protobuf()
    charsmap_ = charsmap.nmt_nfkc()
    proto = spec.ModelProto()
    for piece in kind.first:
        kind_of = _UNKNOWN if piece == kind.unknown else _CONTROL
        proto.pieces.add(piece=piece, score=0.0, type=kind_of)
    for piece, score in vocabularies.unigram(normalizers.Precompiled(charsmap_)):
        if piece not in kind.first:
            proto.pieces.add(piece=piece, score=score, type=_NORMAL)
    proto.trainer_spec.model_type = spec.TrainerSpec.UNIGRAM
    proto.trainer_spec.unk_id = kind.first.index(kind.unknown)
    proto.normalizer_spec.name = "nmt_nfkc"
    proto.normalizer_spec.precompiled_charsmap = charsmap_
    encoded: bytes = proto.SerializeToString()
    return encoded
