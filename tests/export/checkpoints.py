"""Small checkpoints with random weights, saved by sentence-transformers' own API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sentence_transformer.modules.layer_norm import LayerNorm
from sentence_transformers.sentence_transformer.modules.pooling import Pooling
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from export.texts import TEXTS
from tests.reference.nomic_checkpoint import Size, write_checkpoint

hf: Any = transformers  # untyped
VOCABULARY = 600
HIDDEN = 32
LIMIT = 48
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
DISTILBERT_SIZE = {
    "vocab_size": VOCABULARY,
    "dim": HIDDEN,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
}
# Two of the RoBERTa family's positions are never used.
ROBERTA = {"max_position_embeddings": LIMIT + 2, "pad_token_id": 1, "type_vocab_size": 1}
MODERN_TOKENS = {
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def wordpiece(special: Sequence[str] = BERT_TOKENS) -> tokenizers.Tokenizer:
    """Train BERT's tokenizer."""
    unknown = next(t for t in special if "unk" in t.lower())
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _framed(tokenizer, special)


def bpe(special: Sequence[str] = ROBERTA_TOKENS) -> tokenizers.Tokenizer:
    """Train RoBERTa's tokenizer."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _framed(tokenizer, special)


def unigram(special: Sequence[str] = ROBERTA_TOKENS) -> tokenizers.Tokenizer:
    """Train XLM-RoBERTa's tokenizer."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        unk_token=ROBERTA_TOKENS[3],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _framed(tokenizer, special)


def _framed(tokenizer: tokenizers.Tokenizer, special: Sequence[str]) -> tokenizers.Tokenizer:
    start, end = ("[CLS]", "[SEP]") if "[CLS]" in special else ("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (start, end)],
    )
    return tokenizer


def bert(directory: Path, **options: Any) -> None:
    """Write a BERT as transformers saves it."""
    config = hf.BertConfig(**SIZE, max_position_embeddings=64, **options)
    save(directory, config, hf.BertTokenizerFast(tokenizer_object=wordpiece()))


def xlm_roberta(directory: Path) -> None:
    """Write an XLM-RoBERTa with a Unigram tokenizer."""
    tokenizer = hf.XLMRobertaTokenizerFast(tokenizer_object=unigram())
    save(directory, hf.XLMRobertaConfig(**SIZE, **ROBERTA), tokenizer)


def mpnet(directory: Path) -> None:
    """Write an MPNet: relative positions beside the learned ones, no token types."""
    special = ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
    tokenizer = hf.MPNetTokenizerFast(tokenizer_object=wordpiece(special))
    config = hf.MPNetConfig(**SIZE, max_position_embeddings=LIMIT + 2, pad_token_id=1)
    save(directory, config, tokenizer)


def roberta(directory: Path) -> None:
    """Write a RoBERTa with a byte-level BPE tokenizer."""
    tokenizer = hf.RobertaTokenizerFast(tokenizer_object=bpe())
    save(directory, hf.RobertaConfig(**SIZE, **ROBERTA), tokenizer)


def distilbert(directory: Path) -> None:
    """Write a DistilBERT."""
    tokenizer = hf.DistilBertTokenizerFast(tokenizer_object=wordpiece())
    config = hf.DistilBertConfig(**DISTILBERT_SIZE, max_position_embeddings=64)
    save(directory, config, tokenizer)


def modernbert(directory: Path) -> None:
    """Write a ModernBERT whose local attention sees 8 tokens: less than a text has."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe(BERT_TOKENS),
        pad_token=BERT_TOKENS[0],
        cls_token=BERT_TOKENS[2],
        sep_token=BERT_TOKENS[3],
        model_input_names=["input_ids", "attention_mask"],
    )
    config = hf.ModernBertConfig(
        **SIZE,
        **MODERN_TOKENS,
        max_position_embeddings=64,
        local_attention=8,
        global_attn_every_n_layers=2,
    )
    save(directory, config, tokenizer)


def save(directory: Path, config: Any, tokenizer: Any) -> None:
    """Write a model with random weights, far from where training starts: mistakes show."""
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


Family = Callable[[Path], None]


def checkpoint(
    directory: Path,
    family: Family = bert,
    pooling: str | Sequence[str] = "mean",
    after: Iterable[Any] = (),
    normalize: bool = True,
    padding_side: str = "right",
    **options: Any,
) -> Path:
    """Write a sentence-transformers model as its current version saves it; return `directory`."""
    base = directory.with_name(directory.name + "-base")
    family(base)
    transformer = Transformer(str(base), max_seq_length=LIMIT)
    transformer.tokenizer.padding_side = padding_side
    modes = pooling if isinstance(pooling, str) else tuple(pooling)
    modules = [transformer, Pooling(HIDDEN, pooling_mode=modes), *after]
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device="cpu", **options)
    model.save(str(directory), create_model_card=False)
    return directory


def dense(inputs: int, outputs: int, activation: Any, bias: bool = True) -> Dense:
    """A Dense module with random weights."""
    torch.manual_seed(1)
    return Dense(inputs, outputs, bias=bias, activation_function=activation)


def layer_norm(size: int) -> LayerNorm:
    """A LayerNorm module whose weights are not ones and zeros."""
    torch.manual_seed(2)
    module = LayerNorm(size)
    with torch.no_grad():
        module.norm.weight.add_(torch.randn(size) * 0.1)
        module.norm.bias.add_(torch.randn(size) * 0.1)
    return module


SMALL_NOMIC: Size = (VOCABULARY, HIDDEN, 2, 2, 64)


def nomic_bert(directory: Path, limit: int, size: Size = SMALL_NOMIC) -> Path:
    """Write a nomic_bert as the hub has it: `auto_map`, mean pooling, nothing after it."""
    write_checkpoint(directory, "hub", size, seed=3)
    hf.BertTokenizerFast(tokenizer_object=wordpiece()).save_pretrained(directory)
    (directory / "1_Pooling").mkdir()
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    write_json(directory / "modules.json", modules)
    pooling = {"word_embedding_dimension": size[1], "pooling_mode_mean_tokens": True}
    write_json(directory / "1_Pooling" / "config.json", pooling)
    sentence = {"max_seq_length": limit, "do_lower_case": False}
    write_json(directory / "sentence_bert_config.json", sentence)
    return directory


def static(directory: Path, *after: Any, dtype: Any = torch.float32) -> Path:
    """A random table under a tokenizer that puts tokens around a text; `after` are modules."""
    tokenizer: Any = tokenizers.Tokenizer.from_str(wordpiece().to_str())
    draw = torch.Generator().manual_seed(0)
    table = torch.randn((VOCABULARY, HIDDEN), generator=draw).to(dtype)
    module: Any = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[module, *after], device="cpu").save(str(directory))
    return directory


def as_saved_by_2(directory: Path) -> Path:
    """Rewrite a checkpoint as sentence-transformers 2.x saved it."""
    modules = read_json(directory / "modules.json")
    for module in modules:
        name = module["type"].rsplit(".", 1)[1]
        module["type"] = f"sentence_transformers.models.{name}"
    write_json(directory / "modules.json", modules)
    pooling = directory / "1_Pooling" / "config.json"
    modes = read_json(pooling)["pooling_mode"]
    keys = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
        "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    }
    old = {key: mode in modes for mode, key in keys.items()}
    write_json(pooling, {"word_embedding_dimension": HIDDEN, **old})
    limit = {"max_seq_length": LIMIT, "do_lower_case": False}
    write_json(directory / "sentence_bert_config.json", limit)
    versions = {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}
    write_json(directory / "config_sentence_transformers.json", {"__version__": versions})
    edit_json(directory / "tokenizer_config.json", model_max_length=64)
    return directory


def as_saved_by_5(directory: Path) -> Path:
    """Rewrite a checkpoint as sentence-transformers 5.x saved it: Normalize has moved since."""
    modules = read_json(directory / "modules.json")
    for module in modules:
        if module["type"].endswith("Normalize"):
            module["type"] = (
                "sentence_transformers.sentence_transformer.modules.normalize.Normalize"
            )
            (directory / module["path"] / "config.json").unlink(missing_ok=True)
    write_json(directory / "modules.json", modules)
    return directory


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, {**(read_json(path) if path.exists() else {}), **changes})
