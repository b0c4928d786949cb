"""The models of the comparison, with random weights, as today's libraries save them.

.venv-export/bin/python -m tests.models.speed.checkpoints FAMILY DIRECTORY HIDDEN LAYERS
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.models.speed.lengths import WORDS

hf: Any = transformers  # untyped
LIMIT = 2048
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Kind:
    """A family: its configuration's class, the size of a head, pooling, and further keys."""

    config: str
    head: int
    pooling: str = "mean"
    more: Mapping[str, Any] = field(default_factory=dict)


_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
KINDS: Mapping[str, Kind] = {
    "bert": Kind("BertConfig", 32),
    "xlm-roberta": Kind("XLMRobertaConfig", 32, more={"type_vocab_size": 1}),
    "mpnet": Kind("MPNetConfig", 32),
    "modernbert": Kind("ModernBertConfig", 64),
    "gemma3_text": Kind(
        "Gemma3TextConfig",
        64,
        more={
            "num_key_value_heads": 1,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "use_bidirectional_attention": True,
            "sliding_window": 512,
        },
    ),
    "qwen3": Kind("Qwen3Config", 64, "lasttoken", {"num_key_value_heads": 2, "head_dim": 64}),
    "nomic_bert": Kind("NomicBertConfig", 64, more={"hidden_act": "silu", **_ROPE}),
}


def write(family: str, directory: Path, hidden: int, layers: int) -> None:
    """Save a model of that size as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    kind = KINDS[family]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(),
        pad_token=SPECIAL[0],
        unk_token=SPECIAL[1],
        cls_token=SPECIAL[2],
        sep_token=SPECIAL[3],
        model_max_length=LIMIT,
        model_input_names=["input_ids", "attention_mask"],
    )
    config = getattr(hf, kind.config)(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // kind.head,
        intermediate_size=4 * hidden,
        # Two of RoBERTa's and MPNet's positions are never used.
        max_position_embeddings=LIMIT + 2,
        pad_token_id=0,
        **kind.more,
    )
    torch.manual_seed(0)
    base = directory.with_name(directory.name + "-base")
    model = hf.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=LIMIT)
    modules = [transformer, Pooling(hidden, pooling_mode=kind.pooling), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory), create_model_card=False)


def _tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in SPECIAL[2:4]],
    )
    return tokenizer


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
