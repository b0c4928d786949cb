"""The execution providers; lanes, tokens a pass and tokenizing threads that are in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from embedserve.config.settings import Settings
from embedserve.model import cuda


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider: onnxruntime's name, its options, and how to get it.

    `lanes` (0: one per core) and `tokens_per_pass` are the best values for it, used unless the
    settings give others; `tokenizers` cannot be set.
    """

    name: str
    options: Mapping[str, str]
    advice: str
    lanes: int
    tokens_per_pass: int
    tokenizers: int = 1  # requests that are tokenized at once
    device: str | None = None  # where token embeddings stay, and are pooled
    disabled_optimizers: tuple[str, ...] = ()  # of onnxruntime's, by its names
    precisions: tuple[str, ...] = ("fp32", "fp16")
    check: Callable[[], None] = lambda: None  # StartupError where this machine cannot run it


PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        {},
        "it is in every build of onnxruntime",
        lanes=0,
        # Small passes stay in the caches: 128 to 512 are equal within the noise, 4,096 runs at
        # 0.6 of them; and a query waits for the end of one at most.
        tokens_per_pass=256,
        # The operator that it makes of Add and LayerNormalization takes four times as long.
        disabled_optimizers=("SkipLayerNormFusion",),
        precisions=("fp32", "fp16", "int8"),
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        # Exact float32 (no TF32), and memory by what is asked for, not by powers of two.
        # Attention by every kernel but cuDNN's (8). cuDNN makes a plan for each new shape of a
        # pass, which takes some 25 ms, and passes have thousands of shapes (docs/cuda.md).
        {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested", "sdpa_kernel": "247"},
        "install onnxruntime-gpu in place of onnxruntime (docs/cuda.md)",
        # One pass computes while the other's arrays are made and copied. A third and a fourth take
        # more of the interpreter's lock than they give: 0.9 and 0.8 of the rate of two.
        lanes=2,
        # 4,096 to 131,072 are equal within the noise: the event loop is full before the GPU is.
        tokens_per_pass=16_384,
        # While the ids of one request go to the loop, the threads tokenize another.
        tokenizers=2,
        # 512 texts of 256 tokens take 29 ms, and 156 where their token embeddings are copied.
        device="cuda",
        # onnxruntime 1.31.1 crashes in it at load, with Gemma 2 in fp16: graphs of export/ have
        # GroupQueryAttention already.
        disabled_optimizers=("GroupQueryAttentionFusion",),
        check=cuda.check,
    ),
}


def lanes(settings: Settings, cores: int) -> int:
    """The setting, or what serves the provider best, or one lane for each of `cores`."""
    return settings.lanes or PROVIDERS[settings.provider].lanes or cores


def tokens_per_pass(settings: Settings) -> int:
    """The setting, or what serves the provider best."""
    return settings.tokens_per_pass or PROVIDERS[settings.provider].tokens_per_pass


def tokenizing(provider: Provider, cores: int) -> int:
    """How many threads share a batch of texts: one beside lanes that compute on the cores.

    Else what is free. A GPU's lanes and the event loop take a core each, and one thread tokenizes
    13,000 mixed or 1,700 long texts a second: less than a GPU embeds.
    """
    return 1 if provider.device is None else max(1, cores - provider.lanes - 1)
