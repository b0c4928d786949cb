"""The most memory a server may use: what the settings allow, by construction."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from embedserve.config.settings import Settings
from embedserve.diagnose import footprint
from embedserve.system import host
from embedserve.system.host import Known
from tests import holders, tiny
from tests.conftest import ROOT, Start

MINILM = tiny.manifest(hidden_size=384, max_tokens=256)
LONG = tiny.manifest(hidden_size=768, max_tokens=8192, masked_up_to=512)


def most(lanes: int = 2, tokens: int = 256, *, manifest: object = MINILM, **changed: int) -> int:
    settings = replace(Settings(), **changed)  # type: ignore[arg-type]  # numbers alone
    return footprint.estimate(0, [manifest], lanes, tokens, settings).most  # type: ignore[list-item]


def test_passes_on_a_device() -> None:
    """The host holds what is copied: three arrays of ids and the rows, on every lane."""

    def passes(**options: bool) -> int:
        settings = Settings()
        return footprint.estimate(0, [MINILM], 2, 16_384, settings, **options).parts["passes"]

    assert passes(on_device=True) == 2 * 16_384 * (24 + 4 * MINILM.dimension)
    assert passes(on_device=True) < passes() // 30


@pytest.mark.parametrize("setting", ["max_pending_mb", "cache_mb"])
def test_megabytes_count_in_full(setting: str) -> None:
    """What a setting allows is in the sum."""
    assert most(**{setting: 1400}) - most(**{setting: 400}) == 1_000_000_000


def test_the_largest_body_counts() -> None:
    """It is taken when it is alone, though it is more than max_pending_mb: so is it counted.

    As it came, as the parser's copy, and as texts of four bytes a character. The longest text is
    tokenized at 128 bytes a character.
    """
    bag = tiny.manifest(max_tokens=2**31 - 1, pooling=("bag",))
    small = most(manifest=bag, max_pending_mb=1, max_body_bytes=2_000_000, max_inputs=10)
    large = most(manifest=bag, max_pending_mb=1, max_body_bytes=5_000_000, max_inputs=10)
    assert large - small == (6 + 128) * 3_000_000


def test_the_largest_answer_counts() -> None:
    """Vectors as float32 and as JSON, each with its text's place in the queue."""
    wide = replace(MINILM, dimension=1000)
    small = most(manifest=wide, max_pending_mb=1, max_body_bytes=1000, max_inputs=1000)
    large = most(manifest=wide, max_pending_mb=1, max_body_bytes=1000, max_inputs=1100)
    assert large - small == 100 * (1000 * 20 + 1000)


def test_token_ids_count() -> None:
    """Where a model accepts them, a body may be made of as many integers as tokens."""
    settings = replace(Settings(), max_pending_mb=1)
    without, with_ids = (
        footprint.estimate(0, [MINILM], 2, 256, settings, takes_ids=takes)
        for takes in (False, True)
    )
    assert with_ids.most - without.most == 64 * (settings.max_request_tokens + settings.max_inputs)


def test_lanes_and_passes_count() -> None:
    """Each lane may run the largest pass at once: of the budget, or of the longest text."""
    assert most(4) - most(2) == most(6) - most(4) > 0
    assert most(tokens=16_384) > most(tokens=256) + 16_000 * 384 * 4
    assert most(manifest=LONG) > most() + 2 * 8192 * 768 * 4


def test_static_embeddings_are_rows_alone() -> None:
    """Without a limit the largest text is that of a request, and there is no attention."""
    bag = tiny.manifest(hidden_size=256, max_tokens=2**31 - 1, pooling=("bag",))
    less = most(manifest=bag, max_request_tokens=100_000)
    assert most(manifest=bag, max_request_tokens=200_000) - less == 2 * 100_000 * 256 * 4 * 2


def test_connections_count() -> None:
    """A head may be on its way on each."""
    assert most(max_connections=10_000) - most(max_connections=1_000) >= 9_000 * 32_768


class TestHolders:
    """What the process keeps is listed, with the consumer that counts it."""

    # A number of entries that the start decides: they are loaded, or next to nothing.
    FIXED = frozenset(
        {
            "engine.admission.Admission._rates",
            "engine.admission.Pace._paces",
            "artifact.Manifest.converted_from",
            "artifact.Manifest.files",
            "model.onnx_backend.OnnxBackend._inputs",
            "model.onnx_backend.OnnxBackend._steps",
            "model.onnx_backend.OnnxBackend._tables",
            "engine.batch_queue.BatchQueue._work",
            "config.models_toml.ModelSpec.sha256",
            "config.api_keys.Keys._digests",
            "config.api_keys.Keys._fixed",
            "engine.lanes.Lanes._free",
            "engine.lanes.Lanes._lanes",
            "metrics.Metrics._made",
            "metrics.Metrics._models",
            "metrics.Metrics._refusals",
            "metrics.Metrics._shown",
            "metrics.Metrics.nameless",
            "metrics.ModelMetrics.requests",
            "model.registry.ModelRegistry._aliases",
            "model.registry.ModelRegistry._is_only",
            "model.registry.ModelRegistry._models",
            "model.registry.ModelRegistry._names",
            "api.tracing.Traced._headers",
            "api.tracing.Traced._instrumented",
            "engine.scheduler.Scheduler._admission",
            "engine.scheduler.Scheduler._encoders",
            "engine.scheduler.Scheduler._metrics",
        }
    )
    # Of one request, counted with it: a few fields, or as many as a head may have.
    OF_A_REQUEST = frozenset(
        {
            "errors.RequestError.headers",
            "api.tracing.Trace.attributes",
            "engine.scheduler._Pass.stop",
        }
    )

    def test_each_has_its_line(self) -> None:
        """A class that keeps something new is added to a consumer, or said to be fixed here."""
        listed = [name for consumer in footprint.CONSUMERS for name in consumer.holders]
        assert len(listed) == len(set(listed))
        # Their processes are not the server's.
        of_others = ("bulk.", "cluster.", "processes.parent.", "processes.worker.")
        all_found = holders.found(ROOT / "embedserve")
        found = {name for name in all_found if not name.startswith(of_others)}
        assert len(found) >= 40
        known = {*listed, *self.FIXED, *self.OF_A_REQUEST}
        assert found - known == set(), "in no consumer's holders (embedserve/diagnose/footprint.py)"
        assert known - found == set(), "not there any more"

    def test_a_new_one_is_found(self, tmp_path: Path) -> None:
        """Of every kind: collections, buffers, threads, in a class or in its instances."""
        (tmp_path / "new.py").write_text(
            "class New:\n"
            "    kept: dict[str, bytes] = field(default_factory=dict)\n"
            "    shared = []\n"
            "    def __init__(self, names):\n"
            "        self._seen = set()\n"
            "        self._last: deque[bytes] = collections.deque(maxlen=3)\n"
            "        self._by_name = {name: 0 for name in names}\n"
            "        self._names = [*names] or None\n"
            "        self._buffer, self._count = bytearray(), 0\n"
            "        self._thread = Thread(target=print)\n"
            "        self._name = str(names)\n"
            "        local = []\n"
            "CACHE = {}\n"
            "@functools.lru_cache\n"
            "def cached(): pass\n"
        )
        names = ("kept", "shared", "_seen", "_last", "_by_name", "_names", "_buffer", "_thread")
        assert sorted(holders.found(tmp_path)) == sorted(
            [*(f"new.New.{name}" for name in names), "new.cached"]
        )


def test_documented() -> None:
    """The page has a row for each consumer, in their order."""
    page = (ROOT / "docs" / "operating.md").read_text()
    section = page.partition("\n## Memory\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", section, re.MULTILINE)[2:]
    wanted = [(one.name, one.what, one.by) for one in footprint.CONSUMERS]
    assert [(name, what, by) for name, what, by in rows if name != "loaded"] == wanted


def test_resident_is_the_kernel_s() -> None:
    """As /proc says it, and 0 elsewhere."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    said = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert abs(host.resident() - said) < 20_000_000
    assert host.resident(Path("/no/such/root")) == 0


def test_more_than_there_is() -> None:
    """What to lower is said where the limit may be passed, and only there."""
    found = footprint.estimate(200_000_000, [MINILM], 2, 256, Settings())
    said = found.advice(Known(512_000_000, "cgroup v2 memory.max"))
    assert said is not None
    assert "512 MB available (cgroup v2 memory.max)" in said
    assert "max_connections" in said
    assert found.advice(Known(64_000_000_000, "")) is None
    assert found.advice(None) is None


def test_printed_at_start(start: Start, tiny_artifacts: Path) -> None:
    """One line with its parts."""
    server = start(tiny_artifacts.parent / "models.toml", tiny_artifacts, "--cache-mb", "7")
    line = next(s for s in server.log.read_text().splitlines() if "memory: " in s)
    found = re.search(r"memory: (\d+) MB loaded, at most (\d+) MB .*cache 7", line)
    assert found, line
    assert 20 < int(found[1]) < 300
    assert int(found[2]) > int(found[1]) + 256
    for consumer in footprint.CONSUMERS:
        assert re.search(rf"[(, ]{consumer.name} \d+[,)]", line), consumer.name
