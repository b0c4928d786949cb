"""nomic_bert as a torch module: BERT with rotary positions and SwiGLU, without remote code.

The reference that exported artifacts are compared with; itself compared with NomicBertModel of
transformers 5.18 in tests/export/test_nomic_bert.py.
"""

from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx.model_configs import BertOnnxConfig  # type: ignore[import-untyped]
from optimum.exporters.tasks import TasksManager  # type: ignore[import-untyped]
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from export.families.nomic_bert_checkpoint import read_checkpoint
from export.families.nomic_bert_facts import read_facts


class NomicBertConfig(PretrainedConfig):
    """The facts of a nomic_bert config.json in either form, under transformers 5's names.

    Raises ValueError for what NomicBertModel does not implement exactly; see `read_facts`.
    `auto_map` is dropped: this class and NomicBertModel stand in for the code that it names.
    """

    model_type = "nomic_bert"
    has_no_defaults_at_init = True  # every fact has to be given

    def __init__(self, **values: object) -> None:
        facts = read_facts({"model_type": self.model_type, **values}, allow_auto_map=True)
        self.vocab_size = facts.vocab_size
        self.hidden_size = facts.hidden_size
        self.num_hidden_layers = facts.num_hidden_layers
        self.num_attention_heads = facts.num_attention_heads
        self.intermediate_size = facts.intermediate_size
        self.type_vocab_size = facts.type_vocab_size
        self.layer_norm_eps = facts.layer_norm_eps
        self.hidden_act = "silu"
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": facts.rope_theta}
        self.rope_parameters = rope
        super().__init__(attn_implementation=values.get("attn_implementation"))


class Embeddings(nn.Module):
    """Word plus token type; there are no position embeddings."""

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        types: torch.Tensor = self.token_type_embeddings(token_type_ids)
        embedded: torch.Tensor = self.word_embeddings(input_ids) + types
        return embedded


class Rotary(nn.Module):
    """Rotary position embedding over the whole head, halves rotated (not interleaved).

    Su et al., RoFormer, https://arxiv.org/abs/2104.09864.
    """

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        frequencies = inverse_frequencies(
            config.hidden_size // config.num_attention_heads, config.rope_parameters["rope_theta"]
        )
        self.register_buffer("frequencies", frequencies, persistent=False)

    def angles(self, tokens: int) -> torch.Tensor:
        """Angles (t, head / 2) float32."""
        frequencies = self.get_buffer("frequencies")
        positions = torch.arange(tokens, dtype=torch.float32, device=frequencies.device)
        return positions[:, None] * frequencies[None, :]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (b, heads, t, head) float32, rotated by position."""
        angles = self.angles(x.shape[-2])
        cos, sin = angles.cos(), angles.sin()
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.rotary = Rotary(config)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        # view and not unflatten: a traced graph would carry unflatten's sizes as constants.
        b, t, h = x.shape
        qkv = self.Wqkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = self.rotary(qkv[0]), self.rotary(qkv[1])
        mixed = functional.scaled_dot_product_attention(query, key, qkv[2], attn_mask=visible)
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).reshape(b, t, h))
        return out


class SwiGLU(nn.Module):
    """fc2(fc11(x) * silu(fc12(x))); Shazeer, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.fc11 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc12 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(self.fc11(x) * functional.silu(self.fc12(x)))
        return out


class Layer(nn.Module):
    """Post-norm: normalize after each residual sum."""

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        x = self.norm1(x + self.attn(x, visible))
        out: torch.Tensor = self.norm2(x + self.mlp(x))
        return out


class Encoder(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, visible)
        return x


class NomicBertModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Token ids to hidden states; parameters carry the hub's names. Inference in float32 only."""

    config_class = NomicBertConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.emb_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        config: NomicBertConfig | None = None,
        **options: object,
    ) -> "NomicBertModel":
        """Load a directory with config.json and model.safetensors, in either form.

        The Auto classes and sentence-transformers pass `options` about hub and cache, which have
        no meaning for a directory. One that would change the numbers raises ValueError, as do
        unsupported facts and missing or unexpected weights; see `read_checkpoint`.
        """
        for option in ("dtype", "torch_dtype", "quantization_config", "adapter_kwargs"):
            if options.get(option) not in (None, {}, "auto", "float32", torch.float32):
                raise ValueError(f"{option} = {options[option]!r}; accepted: float32")
        model_dir = Path(pretrained_model_name_or_path)
        _, weights = read_checkpoint(model_dir, allow_auto_map=True)
        model = cls(config or NomicBertConfig.from_pretrained(model_dir))
        model.load_state_dict(weights, strict=True)
        model.train(False)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = True,
    ) -> BaseModelOutput:
        """Compute hidden states.

        input_ids, attention_mask (1 for a token, 0 for padding) and token_type_ids (all 0 when
        None) are (b, t) int64; last_hidden_state is (b, t, h) float32, in the model's precision
        at real tokens and without meaning at padding. return_dict is what callers of transformers
        models pass, and changes nothing.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        visible = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        x = self.encoder(self.emb_ln(self.embeddings(input_ids, token_type_ids)), visible)
        return BaseModelOutput(last_hidden_state=x)


class NomicBertOnnxConfig(BertOnnxConfig):  # type: ignore[misc]  # optimum is untyped
    """Inputs and outputs for optimum's own, unfused export: those of BERT."""


def inverse_frequencies(head_size: int, theta: float) -> torch.Tensor:
    """Rotary frequencies (head / 2,) float32: theta ** (-2 i / head).

    In the reference's order of operations: one unit in the last place here is 1e-4 rad at
    position 3,000, more than the tolerance of the comparison allows.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    frequencies: torch.Tensor = 1.0 / (theta**exponents)
    return frequencies


def register() -> None:
    """Make `nomic_bert` known to transformers' Auto classes and to optimum; idempotent.

    From then on a checkpoint with `auto_map` loads through NomicBertModel and not through the
    code it names, as long as trust_remote_code is not set: transformers prefers a local class.
    """
    AutoConfig.register("nomic_bert", NomicBertConfig, exist_ok=True)
    AutoModel.register(NomicBertConfig, NomicBertModel, exist_ok=True)
    to_onnx = TasksManager.create_register("onnx", overwrite_existing=True)
    to_onnx("nomic_bert", "feature-extraction")(NomicBertOnnxConfig)
