"""What the files say is read exactly, and what is not understood is refused with file and key."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from export import facts
from tests.export.checkpoints import (
    HIDDEN,
    LIMIT,
    as_saved_by_2,
    checkpoint,
    dense,
    edit_json,
    read_json,
    write_json,
)

pytestmark = pytest.mark.filterwarnings("ignore")

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every kind of module that has a configuration."""
    root = tmp_path_factory.mktemp("facts")
    return checkpoint(root / "model", after=[dense(HIDDEN, 16, torch.nn.Tanh())])


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_facts_of_a_checkpoint(model: Path) -> None:
    """Every fact comes from its file."""
    found = facts.read(model, ModelSpec(name="m"))
    assert (found.model_type, found.hidden_size, found.dimension) == ("bert", HIDDEN, 16)
    assert (found.max_tokens, found.pooling, found.pad_token_id) == (LIMIT, ("mean",), 0)
    assert [step.kind for step in found.finishing] == ["dense", "normalize"]
    assert found.finishing[0].activation == "torch.nn.modules.activation.Tanh"
    assert dict(found.prompts) == {"query": "", "document": ""}
    assert found.default_prompt_name is None


def test_facts_saved_by_2_are_the_same(tmp_path: Path) -> None:
    """The older form says the same in other words."""
    model = checkpoint(tmp_path / "model", pooling=("cls", "max", "mean"))
    new = facts.read(model, ModelSpec(name="m"))
    old = facts.read(as_saved_by_2(model), ModelSpec(name="m"))
    assert (old.pooling, old.max_tokens, old.dimension) == (new.pooling, LIMIT, 3 * HIDDEN)


LIMITS: dict[str, tuple[Edit, int]] = {
    "max_seq_length-alone": (
        lambda d: edit_json(d / "sentence_bert_config.json", max_seq_length=60),
        60,
    ),
    "tokenizer": (lambda d: edit_json(d / "tokenizer_config.json", model_max_length=20), 20),
    "positions": (lambda d: edit_json(d / "tokenizer_config.json", model_max_length=10**30), 64),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_is_sentence_transformers_own(name: str, model: Path) -> None:
    """max_seq_length alone; else model_max_length, at most max_position_embeddings."""
    from sentence_transformers import SentenceTransformer

    edit, expected = LIMITS[name]
    edit(model)
    assert facts.read(model, ModelSpec(name="m")).max_tokens == expected
    reference = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    assert reference.max_seq_length == expected


def _module(index: int, **changes: object) -> Edit:
    def edit(directory: Path) -> None:
        modules = read_json(directory / "modules.json")
        modules[index].update(changes)
        write_json(directory / "modules.json", modules)

    return edit


def _json(name: str, **changes: object) -> Edit:
    return lambda directory: edit_json(directory / name, **changes)


def _gone(name: str) -> Edit:
    return lambda directory: (directory / name).unlink()


def _pickled(name: str) -> Edit:
    def edit(directory: Path) -> None:
        path = directory / name / "model.safetensors"
        path.rename(path.with_name("pytorch_model.bin"))

    return edit


def _broken(name: str) -> Edit:
    def edit(directory: Path) -> None:
        (directory / name).write_text("{")

    return edit


POOLING, DENSE, BERT = "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json"
NO_PAD = {"pad_token": "<none>"}
GELU = "torch.nn.modules.activation.GELU"
REFUSED: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "no-modules": (_gone("modules.json"), ("modules.json", "no such file")),
    "unknown-module": (
        _module(2, type="sentence_transformers.models.CNN"),
        ("modules.json", "type", "models.CNN"),
    ),
    "foreign-module": (_module(2, type="custom.Dense"), ("modules.json", "type", "custom.Dense")),
    "module-kwargs": (_module(0, kwargs=["task"]), ("modules.json", "kwargs")),
    "module-key": (_module(0, extra=1), ("modules.json", "'extra'")),
    "module-outside": (_module(2, path="../x"), ("modules.json", "path", "../x")),
    "no-pooling": (_module(1, type="sentence_transformers.models.Dense"), ("modules.json",)),
    "auto_map": (_json("config.json", auto_map={"AutoModel": "x.Y"}), ("config.json", "auto_map")),
    "tokenizer-auto_map": (
        _json("tokenizer_config.json", auto_map={}),
        ("tokenizer_config.json", "auto_map"),
    ),
    "kernel-config": (
        _json("config.json", _attn_implementation_internal="owner/kernel"),
        ("config.json", "_attn_implementation_internal", "owner/kernel"),
    ),
    "kernel-attention": (
        _json("config.json", attn_implementation="owner/kernel"),
        ("config.json", "attn_implementation"),
    ),
    "encoder-decoder": (
        _json("config.json", is_encoder_decoder=True),
        ("config.json", "is_encoder_decoder"),
    ),
    "quantized": (_json("config.json", quantization_config={"bits": 4}), ("quantization_config",)),
    "adapter": (_json("adapter_config.json", r=8), ("adapter_config.json",)),
    "pickled-weights": (_pickled("."), ("model.safetensors", "pytorch_model.bin")),
    "pickled-dense": (_pickled("2_Dense"), ("2_Dense/model.safetensors", "pytorch_model.bin")),
    "no-tokenizer": (_gone("tokenizer.json"), ("tokenizer.json", "no such file")),
    "truncation-side": (
        _json("tokenizer_config.json", truncation_side="left"),
        ("truncation_side", "left"),
    ),
    "pad-token": (
        _json("tokenizer_config.json", **{"pad_token": "<none>"}),
        ("pad_token", "<none>"),
    ),
    "pooling-key": (_json(POOLING, pooling_mode_new=True), (POOLING, "pooling_mode_new")),
    "pooling-mode": (_json(POOLING, pooling_mode="median"), (POOLING, "pooling_mode", "median")),
    "include-prompt": (_json(POOLING, include_prompt=False), (POOLING, "include_prompt")),
    "dense-key": (_json(DENSE, rank=2), (DENSE, "rank")),
    "dense-residual": (_json(DENSE, use_residual=True), (DENSE, "use_residual")),
    "dense-size": (_json(DENSE, in_features=64), (DENSE, "in_features", "64")),
    "dense-weights": (_json(DENSE, out_features=17), ("2_Dense/model.safetensors", "(16, 32)")),
    "activation": (_json(DENSE, activation_function=GELU), (DENSE, "activation_function", GELU)),
    "dense-input": (_json(DENSE, module_input_name="token_embeddings"), ("module_input_name",)),
    "normalize-key": (_json("3_Normalize/config.json", p=1), ("3_Normalize/config.json", "'p'")),
    "limit": (_json(BERT, max_seq_length="long"), (BERT, "max_seq_length", "long")),
    "sentence-key": (_json(BERT, surprise=1), (BERT, "surprise")),
    "task": (_json(BERT, transformer_task="fill-mask"), (BERT, "transformer_task")),
    "processing": (_json(BERT, processing_kwargs={"text": {"a": 1}}), ("processing_kwargs",)),
    "model-args": (_json(BERT, model_args={"torch_dtype": "float16"}), (BERT, "model_args")),
    "modality": (_json(BERT, modality_config={"message": {}}), (BERT, "modality_config")),
    "truncate-dim": (
        _json("config_sentence_transformers.json", truncate_dim=8),
        ("truncate_dim", "8"),
    ),
    "sparse": (
        _json("config_sentence_transformers.json", model_type="SparseEncoder"),
        ("model_type",),
    ),
    "default-prompt": (
        _json("config_sentence_transformers.json", default_prompt_name="none"),
        ("config_sentence_transformers.json", "default_prompt_name"),
    ),
    "prompt-type": (
        _json("config_sentence_transformers.json", prompts={"query": 1}),
        ("prompts.query",),
    ),
    "bad-json": (_broken(DENSE), (DENSE, "JSON")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str, model: Path) -> None:
    """Exit 65, and one line that names the file and the key."""
    edit, named = REFUSED[name]
    (model / "3_Normalize").mkdir(exist_ok=True)
    edit(model)
    with pytest.raises(StartupError) as caught:
        facts.read(model, ModelSpec(name="m"))
    assert caught.value.status == Exit.DATAERR
    assert "\n" not in str(caught.value)
    for part in named:
        assert part in str(caught.value)


def test_kernels_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the package `kernels`, transformers would run code that a config names."""
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(facts, "find_spec", lambda name: found if name == "kernels" else None)
    with pytest.raises(StartupError, match="kernels"):
        facts.read(model, ModelSpec(name="m"))


def test_nomic_bert_may_name_the_code_that_is_replaced(model: Path) -> None:
    """auto_map of nomic_bert is tolerated: its code is never run."""
    edit_json(model / "config.json", auto_map={"AutoModel": "x.Y"}, model_type="nomic_bert")
    assert facts.read(model, ModelSpec(name="m")).model_type == "nomic_bert"


def test_wishes_of_models_toml(tmp_path: Path) -> None:
    """Finishing and prompts are added where the files say none, and may repeat what they say."""
    plain = checkpoint(tmp_path / "plain", normalize=False)
    spec = ModelSpec(
        name="m", finishing=("layer_norm", "normalize"), prompts={"q": "q: "}, matryoshka=(32, 8)
    )
    found = facts.read(plain, spec)
    assert [(s.kind, s.added) for s in found.finishing] == [
        ("layer_norm", True),
        ("normalize", True),
    ]
    assert (dict(found.prompts), found.matryoshka) == ({"q": "q: "}, (32, 8))
    normalized = checkpoint(tmp_path / "normalized")
    found = facts.read(normalized, ModelSpec(name="m", finishing=("normalize",)))
    assert [(s.kind, s.added) for s in found.finishing] == [("normalize", False)]


CONTRADICTIONS: dict[str, tuple[ModelSpec, str]] = {
    "finishing": (ModelSpec(name="m", finishing=("layer_norm", "normalize")), "finishing"),
    "prompts": (ModelSpec(name="m", prompts={"query": "other: "}), "prompts"),
    "matryoshka": (ModelSpec(name="m", matryoshka=(1024,)), "matryoshka has 1024"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_wish_against_the_files_is_refused(name: str, tmp_path: Path) -> None:
    """models.toml may add to the files and not contradict them."""
    model = checkpoint(tmp_path / "model", prompts={"query": "query: "})
    spec, named = CONTRADICTIONS[name]
    with pytest.raises(StartupError, match=named) as caught:
        facts.read(model, spec)
    assert caught.value.status == Exit.CONFIG
