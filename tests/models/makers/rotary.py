"""Encoders with rotary positions: ModernBERT; nomic, gte and jina v3 in the hub's own form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.models import sentencepieces, vocabularies
from tests.models.checkpoint_files import (
    SIZE,
    Modules,
    edit_json,
    hf,
    read_json,
    write_json,
    write_model,
    write_tokenizer,
)
from tests.models.makers import bert

_BERT_TOKENS = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
_BERT_IDS = {
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_GEMMA_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<bos>",
    "sep_token": "<eos>",
}
_GEMMA_IDS = {
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def modernbert(
    directory: Path,
    vocabulary: Any,
    tokens: Mapping[str, str],
    modules: Modules,
    model_class: Any = None,
    **config: Any,
) -> None:
    size = write_tokenizer(
        directory,
        vocabulary,
        "PreTrainedTokenizerFast",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=modules.limit,
        **tokens,
    )
    made = hf.ModernBertConfig(
        vocab_size=size,
        local_attention=128,
        global_attn_every_n_layers=3,
        **{**SIZE, "num_hidden_layers": 4, "max_position_embeddings": modules.limit, **config},
    )
    hub = {"position_embedding_type": "absolute"}
    write_model(directory, made, model_class, hub=hub)
    modules.write(directory)


def gte_modernbert(directory: Path) -> None:
    vocabulary = vocabularies.byte_bpe(vocabularies.BERT)
    modules = Modules("cls_token", 8192, prompts={})
    modernbert(directory, vocabulary, _BERT_TOKENS, modules, **_BERT_IDS)


def modernbert_embed(directory: Path) -> None:
    """nomic-ai's: saved with the language model's head."""
    vocabulary = vocabularies.byte_bpe(vocabularies.BERT)
    prompts = {"query": "search_query: ", "document": "search_document: "}
    modules = Modules("mean_tokens", 8192, prompts=prompts)
    head = hf.ModernBertForMaskedLM
    modernbert(directory, vocabulary, _BERT_TOKENS, modules, head, **_BERT_IDS)


def mmbert(directory: Path, limit: int = 8192) -> None:
    """ModernBERT over Gemma's vocabulary: mmBERT, granite-embedding-311m-multilingual-r2."""
    thetas = {"local_rope_theta": 160000.0, "global_rope_theta": 160000.0}
    modules = Modules("mean_tokens", limit, prompts={})
    modernbert(directory, vocabularies.gemma(), _GEMMA_TOKENS, modules, **thetas, **_GEMMA_IDS)


def granite_r2(directory: Path) -> None:
    """granite-embedding-311m-multilingual-r2: 32,768 tokens."""
    mmbert(directory, 32768)


# -- the hub's own forms: config and weights are written by tests.models.native -----------------


def nomic(directory: Path, modules: Modules) -> None:
    bert.tokenizer(directory, limit=8192)
    modules.write(directory)


def nomic_v15(directory: Path) -> None:
    nomic(directory, Modules("mean_tokens", 8192, normalize=False))


def arctic_m_long(directory: Path) -> None:
    nomic(directory, Modules("cls_token", 2048, prompts={"query": bert.QUERY}))


def coderankembed(directory: Path) -> None:
    prompts = {"query": "Represent this query for searching relevant code: "}
    nomic(directory, Modules("cls_token", 8192, prompts=prompts))


def nomic_v2_moe(directory: Path) -> None:
    prompts = {"query": "search_query: ", "passage": "search_document: "}
    nomic(directory, Modules("mean_tokens", 512, prompts=prompts))


def gte_new(directory: Path) -> None:
    """gte-multilingual-base: XLM-R's tokenizer."""
    kind = sentencepieces.KINDS["xlm-roberta"]
    sentencepieces.save(directory, kind, model_max_length=8192)
    Modules("cls_token", 8192, prompts={}).write(directory)


def gte_en(directory: Path) -> None:
    """gte-base-en-v1.5: BERT's tokenizer."""
    bert.tokenizer(directory, limit=8192)
    Modules("cls_token", 8192, normalize=False, prompts={}).write(directory)


def arctic_m_v2(directory: Path) -> None:
    """snowflake-arctic-embed-m-v2.0: the code lies beside it, model_type gte."""
    kind = sentencepieces.KINDS["xlm-roberta"]
    sentencepieces.save(directory, kind, model_max_length=8192)
    Modules("cls_token", 8192, prompts={"query": "query: "}).write(directory)


def jina_v3(directory: Path) -> None:
    """jina-embeddings-v3: a class of its own as the first module, which takes a task."""
    kind = sentencepieces.KINDS["xlm-roberta"]
    sentencepieces.save(directory, kind, model_max_length=8194)
    Modules("mean_tokens", None, prompts={}).write(directory)
    modules = read_json(directory / "modules.json")
    modules[0] |= {"name": "transformer", "type": "custom_st.Transformer", "kwargs": ["task"]}
    write_json(directory / "modules.json", modules)


def jina_v2(directory: Path) -> None:
    """jina-embeddings-v2: code of its own, ALiBi."""
    code = "jinaai/jina-bert-implementation--"
    hub = {
        "architectures": ["JinaBertForMaskedLM"],
        "auto_map": {
            "AutoConfig": f"{code}configuration_bert.JinaBertConfig",
            "AutoModel": f"{code}modeling_bert.JinaBertModel",
        },
        "feed_forward_type": "geglu",
        "position_embedding_type": "alibi",
        "model_max_length": 8192,
        "attn_implementation": "torch",
        "emb_pooler": "mean",
    }
    bert.bert(directory)
    edit_json(directory / "config.json", **hub)
    Modules("mean_tokens", 8192, normalize=False).write(directory)
