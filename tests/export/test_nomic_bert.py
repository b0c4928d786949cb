"""nomic_bert: the torch module against transformers 5.18, and the fused graph against the module.

Runs in the export environment. NOMIC_REFERENCE_PYTHON names a Python with transformers 5.18; the
comparisons that run it are skipped without, and the recorded numbers of one small checkpoint are
compared always.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from embedserve import finishing, pooling
from export.families import nomic_bert
from export.families.nomic_bert_checkpoint import read_checkpoint
from export.families.nomic_bert_facts import read_facts
from export.families.nomic_bert_graph import LONGEST_MASKED, export_onnx
from tests.reference.nomic_checkpoint import (
    REAL,
    SMALL,
    Form,
    Size,
    hub_config,
    random_ids,
    transformers_config,
    write_checkpoint,
)

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "reference" / "nomic_small.json"
TOLERANCE = 1e-5
SEED = 20
# Heads of 64 and products long enough for every blocking of the matrix kernels.
WIDE: Size = (64, 128, 2, 2, 512)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@pytest.fixture(params=["hub", "transformers"])
def form(request: pytest.FixtureRequest) -> Form:
    form: Form = request.param
    return form


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wide")
    write_checkpoint(directory, "hub", WIDE, SEED)
    export_onnx(directory, directory / "model.onnx")
    return directory


@pytest.fixture(scope="module")
def session(wide: Path) -> onnxruntime.InferenceSession:
    return open_session(wide / "model.onnx", threads=2)


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, *sequences: Ints) -> list[Floats]:
    """Hidden states (t_i, h) of each sequence, all of them in one padded pass."""
    ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    [states] = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return [states[row, : len(sequence)] for row, sequence in enumerate(sequences)]


def run_module(model: nomic_bert.NomicBertModel, sequence: Ints) -> Floats:
    ids = torch.from_numpy(sequence)[None, :]
    with torch.inference_mode():
        states = model(ids, torch.ones_like(ids)).last_hidden_state
    array: Floats = states[0].numpy()
    return array


def finish(hidden: Floats) -> dict[str, Floats]:
    """The model cards' pipelines in the service's own functions, named as the reference's are."""
    mean = pooling.mean(hidden[None], np.ones((1, len(hidden)), np.int64))
    normed = finishing.layer_norm(mean, 1e-5, None, None)
    cuts = [dim for dim in (768, 512, 64) if dim <= hidden.shape[1]]
    return {
        "v1": finishing.normalize(mean)[0],
        **{f"v1.5.{dim}": finishing.truncate(normed, dim)[0] for dim in cuts},
    }


def reference(checkpoint: Path, sequences: dict[str, Ints]) -> dict[str, Floats]:
    """What transformers 5.18 makes of the same checkpoint, in a process of its own."""
    python = os.environ.get("NOMIC_REFERENCE_PYTHON")
    if python is None:
        pytest.skip("NOMIC_REFERENCE_PYTHON is not set: no Python with transformers 5.18")
    ids, out = checkpoint / "ids.npz", checkpoint / "out.npz"
    np.savez(ids, allow_pickle=False, **sequences)
    command = [
        python,
        "-m",
        "tests.reference.nomic_reference",
        "run",
        *map(str, (checkpoint, ids, out)),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


def compare(checkpoint: Path, sequences: dict[str, Ints]) -> None:
    expected = reference(checkpoint, sequences)
    export_onnx(checkpoint, checkpoint / "model.onnx")
    model = nomic_bert.NomicBertModel.from_pretrained(checkpoint)
    session = open_session(checkpoint / "model.onnx", threads=2)
    for name, sequence in sequences.items():
        hidden = run(session, sequence)[0]
        assert_close(run_module(model, sequence), expected[f"{name}.hidden"])
        assert_close(hidden, expected[f"{name}.hidden"])
        for key, vector in finish(hidden).items():
            assert_close(vector, expected[f"{name}.{key}"])


def assert_close(found: Floats, expected: Floats) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE


def write_config(directory: Path, config: dict[str, object]) -> None:
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


# Against transformers 5.18


@pytest.mark.parametrize("name", ["short", "long"])
def test_recorded_reference(tmp_path: Path, form: Form, name: str) -> None:
    """Module and graph give the numbers that transformers 5.18 gave for a small checkpoint."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    arrays = {key: np.array(rows, np.float32) for key, rows in recorded["arrays"].items()}
    write_checkpoint(tmp_path, form, SMALL, recorded["seed"])
    export_onnx(tmp_path, tmp_path / "model.onnx")
    sequence = random_ids(recorded["seed"], recorded["lengths"][name], SMALL[0])
    model = nomic_bert.NomicBertModel.from_pretrained(tmp_path)
    for hidden in (
        run_module(model, sequence),
        run(open_session(tmp_path / "model.onnx", 1), sequence)[0],
    ):
        assert_close(hidden[:: recorded["hidden_stride"]], arrays[f"{name}.hidden"])
        assert_close(finish(hidden)["v1"], arrays[f"{name}.v1"])


def test_live_reference(tmp_path: Path, form: Form) -> None:
    """The same against a running transformers 5.18, which reads both forms of weights itself."""
    write_checkpoint(tmp_path, form, WIDE, SEED)
    write_config(tmp_path, transformers_config(WIDE))
    compare(tmp_path, {f"t{t}": random_ids(t, t, WIDE[0]) for t in (8, 300, 600)})


@pytest.mark.slow
def test_real_size(tmp_path: Path) -> None:
    """12 layers of 768 at 8, 300 and 3,000 tokens, and both finishing pipelines."""
    write_checkpoint(tmp_path, "transformers", REAL, SEED)
    compare(tmp_path, {f"t{t}": random_ids(t, t, REAL[0]) for t in (8, 300, 3000)})


# The graph


@pytest.mark.parametrize("tokens", [1, 2, 8, 511, 512, 513, 700])
def test_graph_equals_module(
    wide: Path, session: onnxruntime.InferenceSession, tokens: int
) -> None:
    """Alone and beside a longer text, on both attention paths, to 1e-5."""
    model = nomic_bert.NomicBertModel.from_pretrained(wide)
    sequence, longer = random_ids(1, tokens, WIDE[0]), random_ids(2, tokens + 5, WIDE[0])
    expected = run_module(model, sequence)
    assert_close(run(session, sequence)[0], expected)
    assert_close(run(session, longer, sequence)[1], expected)


def batches(count: int) -> Iterator[list[Ints]]:
    """Random batches of texts short enough for the masked path, from 2 tokens as in real texts."""
    draw = np.random.default_rng(SEED)
    for _ in range(count):
        longest = int(draw.choice([4, 20, 130, LONGEST_MASKED + 1]))
        lengths = draw.integers(2, longest, size=int(draw.integers(1, 7)))
        yield [draw.integers(0, WIDE[0], size=int(t)) for t in lengths]


def test_batches_do_not_change_bits(session: onnxruntime.InferenceSession) -> None:
    """A short text has the same bits alone, in any batch, and with any padding."""
    for batch in batches(40):
        for alone, together in zip(batch, run(session, *batch), strict=True):
            np.testing.assert_array_equal(run(session, alone)[0], together)


def test_long_batches_do_not_change_bits(session: onnxruntime.InferenceSession) -> None:
    """Nor has a long one other bits in a pass without padding."""
    for tokens in (LONGEST_MASKED + 1, 777, 1500):
        batch = [random_ids(seed, tokens, WIDE[0]) for seed in range(3)]
        for alone, together in zip(batch, run(session, *batch), strict=True):
            np.testing.assert_array_equal(run(session, alone)[0], together)


@pytest.mark.parametrize("threads", [1, 3, 4])
def test_threads_do_not_change_bits(
    wide: Path, session: onnxruntime.InferenceSession, threads: int
) -> None:
    other = open_session(wide / "model.onnx", threads)
    for tokens in (2, 37, LONGEST_MASKED, 1500):
        sequence = random_ids(tokens, tokens, WIDE[0])
        np.testing.assert_array_equal(run(session, sequence)[0], run(other, sequence)[0])


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither the place, nor the run, nor the form of the checkpoint is in the graph."""
    forms: tuple[Form, ...] = ("hub", "hub", "transformers")
    for n, form in enumerate(forms):
        write_checkpoint(tmp_path / str(n), form, SMALL, SEED)
        export_onnx(tmp_path / str(n), tmp_path / f"{n}.onnx")
    first = (tmp_path / "0.onnx").read_bytes()
    assert first == (tmp_path / "1.onnx").read_bytes()
    assert first == (tmp_path / "2.onnx").read_bytes()


_PEAK = """
import sys, numpy, onnxruntime
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = peak()
ids = numpy.zeros((1, int(sys.argv[2])), numpy.int64)
session.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})
print(loaded, peak())
"""


def peak_memory(model: Path, tokens: int) -> tuple[int, int]:
    """Largest resident MiB of a process after loading, and after one pass."""
    command = [sys.executable, "-c", _PEAK, str(model), str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    loaded, peak = done.stdout.split()
    return int(loaded), int(peak)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_no_full_attention_matrix(tmp_path: Path) -> None:
    """At 4,096 tokens and 8 heads a full matrix would be 512 MiB."""
    write_checkpoint(tmp_path, "hub", (64, 128, 1, 8, 64), SEED)
    export_onnx(tmp_path, tmp_path / "model.onnx")
    loaded, peak = peak_memory(tmp_path / "model.onnx", 4096)
    assert peak - loaded < 100


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_at_real_size(tmp_path: Path) -> None:
    """8,192 tokens at the real size fit into 2.5 GiB, weights included."""
    write_checkpoint(tmp_path, "hub", REAL, SEED)
    export_onnx(tmp_path, tmp_path / "model.onnx")
    _, peak = peak_memory(tmp_path / "model.onnx", 8192)
    assert peak < 2560


# What is read, and what is refused


def test_forms_are_one_model(tmp_path: Path) -> None:
    """Names of keys and of weights do not matter, also in a mixture of both forms."""
    write_checkpoint(tmp_path / "hub", "hub", SMALL, SEED)
    write_checkpoint(tmp_path / "transformers", "transformers", SMALL, SEED)
    write_checkpoint(tmp_path / "mixed", "hub", SMALL, SEED)
    write_config(tmp_path / "mixed", hub_config(SMALL) | transformers_config(SMALL))
    facts, weights = read_checkpoint(tmp_path / "hub", allow_auto_map=True)
    for other in ("transformers", "mixed"):
        other_facts, other_weights = read_checkpoint(tmp_path / other, allow_auto_map=True)
        assert other_facts == facts
        assert list(other_weights) == list(weights)
        assert all(torch.equal(other_weights[key], weights[key]) for key in weights)


REFUSED: list[tuple[str, object]] = [
    ("model_type", "bert"),
    ("activation_function", "gelu"),
    ("prenorm", True),
    ("use_rms_norm", True),
    ("parallel_block", True),
    ("causal", True),
    ("qkv_proj_bias", True),
    ("mlp_fc1_bias", True),
    ("mlp_fc2_bias", True),
    ("rotary_emb_fraction", 0.5),
    ("rotary_emb_fraction", True),
    ("rotary_emb_interleaved", True),
    ("rotary_emb_scale_base", 512),
    ("rotary_scaling_factor", 2.0),
    ("scale_attn_weights", False),
    ("moe_every_n_layers", 2),
    ("num_experts", 8),
    ("num_heads_kv", 1),
    ("n_embd", "32"),
    ("n_layer", 0),
    ("rotary_emb_base", 0),
    ("_attn_implementation_internal", "org/kernel"),
    ("quantization_config", {"bits": 4}),
    ("something_new", 3),
]


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{k}={v}" for k, v in REFUSED])
def test_refused_config(key: str, value: object) -> None:
    """The message names the key, what was found and what is accepted."""
    with pytest.raises(ValueError, match=rf"config.json: {key} ") as error:
        read_facts(hub_config(SMALL) | {key: value}, allow_auto_map=True)
    assert repr(value) in str(error.value)
    assert "accepted: " in str(error.value)


ROPE: list[dict[str, object]] = [
    {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0},
    {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "default"},
]


@pytest.mark.parametrize("rope", ROPE, ids=["dynamic", "partial", "no-theta"])
def test_refused_rope_parameters(rope: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"config.json: rope_parameters\.\w+ .*; accepted: "):
        read_facts(transformers_config(SMALL) | {"rope_parameters": rope})


@pytest.mark.parametrize(
    "key", ["vocab_size", "n_embd", "rotary_emb_base", "rotary_emb_fraction", "activation_function"]
)
def test_missing_fact(key: str) -> None:
    """No default is picked for a fact, not even the one that nomic's own code has."""
    config = hub_config(SMALL)
    del config[key]
    with pytest.raises(ValueError, match=rf"config.json: .*{key} is missing; accepted: "):
        read_facts(config, allow_auto_map=True)


def test_contradiction() -> None:
    config = hub_config(SMALL) | transformers_config(SMALL) | {"rotary_emb_base": 10000}
    with pytest.raises(ValueError, match="rotary_emb_base = 10000 contradicts"):
        read_facts(config, allow_auto_map=True)


def test_auto_map_is_refused_unless_replaced() -> None:
    with pytest.raises(ValueError, match="auto_map names remote code"):
        read_facts(hub_config(SMALL))


def change_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    weights: dict[str, Any] = load_file(path) | changes
    save_file({key: value for key, value in weights.items() if value is not None}, path)


CHANGES: list[tuple[str, torch.Tensor | None, str]] = [
    ("emb_ln.bias", None, "missing weights emb_ln.bias"),
    ("encoder.layers.1.attn.Wqkv.weight", None, "missing weights encoder.layers.1.attn.Wqkv"),
    ("encoder.layers.0.mlp.fc2.bias", torch.zeros(32), "unexpected weights .*fc2.bias"),
    ("pooler.dense.weight", torch.zeros(32, 32), "unexpected weights pooler.dense.weight"),
    ("emb_ln.weight", torch.zeros(31), r"emb_ln.weight has shape \(31,\); accepted: \(32,\)"),
    ("emb_ln.weight", torch.zeros(32, dtype=torch.int8), "emb_ln.weight is torch.int8; accepted"),
]


@pytest.mark.parametrize(("key", "tensor", "message"), CHANGES, ids=[m for _, _, m in CHANGES])
def test_refused_weights(
    tmp_path: Path, key: str, tensor: torch.Tensor | None, message: str
) -> None:
    write_checkpoint(tmp_path, "hub", SMALL, SEED)
    change_weights(tmp_path, **{key: tensor})
    with pytest.raises(ValueError, match=message):
        export_onnx(tmp_path, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message):
        nomic_bert.NomicBertModel.from_pretrained(tmp_path)


def test_pickle_is_not_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "hub", SMALL, SEED)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model.safetensors: not found"):
        export_onnx(tmp_path, tmp_path / "model.onnx")


def test_other_precision_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "hub", SMALL, SEED)
    with pytest.raises(ValueError, match=r"dtype = torch.float16; accepted: float32"):
        nomic_bert.NomicBertModel.from_pretrained(tmp_path, dtype=torch.float16)


# The libraries


def sentence_transformers_directory(directory: Path) -> None:
    """A small nomic checkpoint as on the hub, whose auto_map leads into a trap."""
    from transformers import BertTokenizerFast

    write_checkpoint(directory, "hub", SMALL, SEED)
    trap = {name: f"trap.Nomic{name}" for name in ("AutoConfig", "AutoModel")}
    write_config(directory, hub_config(SMALL) | {"auto_map": trap})
    code = f"open({str(directory / 'sprung')!r}, 'w')\nraise SystemExit('remote code ran')\n"
    (directory / "trap.py").write_text(code, encoding="utf-8")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]
    (directory / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(directory / "vocab.txt"))  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(directory)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    limits = {"max_seq_length": 8192, "do_lower_case": False}
    (directory / "sentence_bert_config.json").write_text(json.dumps(limits), encoding="utf-8")
    (directory / "1_Pooling").mkdir()
    mean = {"word_embedding_dimension": SMALL[1], "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(mean), encoding="utf-8")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries, about themselves
def test_sentence_transformers_loads_it_without_remote_code(tmp_path: Path) -> None:
    """After register(), a hub checkpoint runs in NomicBertModel; its auto_map is not followed."""
    from sentence_transformers import SentenceTransformer

    nomic_bert.register()
    nomic_bert.register()
    sentence_transformers_directory(tmp_path)
    loaded = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    assert type(loaded[0].auto_model) is nomic_bert.NomicBertModel
    assert not (tmp_path / "sprung").exists()
    vectors = loaded.encode(["one two", "three three one one one two"])
    model = nomic_bert.NomicBertModel.from_pretrained(tmp_path)
    for vector, ids in zip(vectors, ([2, 5, 6, 3], [2, 7, 7, 5, 5, 5, 6, 3]), strict=True):
        assert_close(vector, finish(run_module(model, np.array(ids)))["v1"])


@pytest.mark.filterwarnings("ignore")  # the tracer's, about itself
def test_optimum_exports_it(tmp_path: Path) -> None:
    """optimum's own unfused export is found by model type and gives the module's numbers."""
    from optimum.exporters.onnx.convert import export  # type: ignore[import-untyped]
    from optimum.exporters.tasks import TasksManager  # type: ignore[import-untyped]

    nomic_bert.register()
    write_checkpoint(tmp_path, "hub", SMALL, SEED)
    model = nomic_bert.NomicBertModel.from_pretrained(tmp_path)
    config = TasksManager.get_exporter_config_constructor(
        "onnx", model_type="nomic_bert", task="feature-extraction", library_name="transformers"
    )(model.config)
    export(model, config, tmp_path / "plain.onnx", opset=17)
    sequence = random_ids(3, 40, SMALL[0])
    feeds = {"input_ids": sequence[None], "attention_mask": np.ones((1, 40), np.int64)}
    feeds["token_type_ids"] = np.zeros((1, 40), np.int64)
    [states] = open_session(tmp_path / "plain.onnx", 1).run(None, feeds)
    assert_close(states[0], run_module(model, sequence))
