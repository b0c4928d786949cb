"""nomic_bert behind the server: Matryoshka, prompts, long texts, and the models' known answers.

Random weights in the form of nomic-embed-text-v1.5 (tests/reference/nomic_artifact.py).
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from embedserve.artifact import MANIFEST
from tests import tiny
from tests.conftest import EXPORT_PYTHON, ROOT, Server, Start

# The model card's own pipeline at 512 dimensions: the first three components.
KNOWN_V15 = {
    "search_query: What is TSNE?": (
        -0.00518727907910943,
        0.06514579057693481,
        -0.21579129655361176,
    ),
    "search_query: Who is Laurens van der Maaten?": (
        -0.008253306150436401,
        0.005108598619699478,
        -0.22179779410362244,
    ),
}
GIBIBYTE = 2**30


def make(size: str, out: Path) -> Path:
    """Export a nomic checkpoint of a size; models.toml beside the artifacts."""
    command = [
        str(EXPORT_PYTHON),
        "-m",
        "tests.reference.nomic_artifact",
        size,
        str(out / "artifacts"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=3000)
    tiny.write(out / "artifacts" / "tiny")
    return tiny.models_toml(out / "models.toml", {"nomic": "", "tiny": ""})


@pytest.fixture(scope="module")
def nomic(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server of the small checkpoint and of the tiny model."""
    models = make("small", tmp_path_factory.mktemp("nomic"))
    return start(models, models.parent / "artifacts")


def vectors(answer: httpx.Response) -> np.ndarray:
    """The answer's vectors (n, dim) float32."""
    assert answer.status_code == 200, answer.text
    return np.array([d["embedding"] for d in answer.json()["data"]], np.float32)


def words(count: int, seed: int = 1) -> str:
    """A text of `count` random words of a few letters."""
    chosen = random.Random(seed)  # noqa: S311  # a seed, so that a failure can be repeated
    return " ".join("".join(chosen.choices("abcdefg", k=3)) for _ in range(count))


class TestSmall:
    """The small checkpoint, through the real server."""

    def test_prompts(self, nomic: Server) -> None:
        """input_type finds nomic's own names of the prompts."""
        by_role = nomic.embed(model="nomic", input="abc", input_type="query")
        written = nomic.embed(model="nomic", input="search_query: abc")
        np.testing.assert_array_equal(vectors(by_role), vectors(written))
        assert by_role.json()["usage"] == written.json()["usage"]
        documents = nomic.embed(model="nomic", input="abc", input_type="document")
        assert np.abs(vectors(documents) - vectors(written)).max() > 1e-3

    def test_unit_vectors_at_any_dimension(self, nomic: Server) -> None:
        """A cut vector is the card's pipeline: the start of the whole one, scaled to length 1."""
        whole = vectors(nomic.embed(model="nomic", input=["abc", "def"]))
        for dimensions in (whole.shape[1], 17, 2, 1):
            cut = vectors(nomic.embed(model="nomic", input=["abc", "def"], dimensions=dimensions))
            expected = (
                whole[:, :dimensions] / np.linalg.norm(whole[:, :dimensions], axis=1)[:, None]
            )
            np.testing.assert_allclose(cut, expected, atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)

    def test_bits_do_not_depend_on_company(self, nomic: Server) -> None:
        """On both sides of the length from which passes have no padding."""
        texts = [words(n, n) for n in (1, 5, 5, 40, 90, 120, 170, 200, 230, 600)]
        alone = [vectors(nomic.embed(model="nomic", input=text))[0].tobytes() for text in texts]

        def together(number: int) -> None:
            order = random.Random(number).sample(range(len(texts)), len(texts))  # noqa: S311
            rows = vectors(nomic.embed(model="nomic", input=[texts[i] for i in order]))
            assert [row.tobytes() for row in rows] == [alone[i] for i in order]

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(together, range(12)))

    def test_limit(self, nomic: Server) -> None:
        """8,192 tokens are run, more are cut and said."""
        answer = nomic.embed(model="nomic", input=[words(9000), "abc"])
        usage = answer.json()["usage"]
        assert usage["truncated"] == [0]
        assert 8192 < usage["prompt_tokens"] < 8192 + 10

    def test_short_requests_pass_a_long_text(self, nomic: Server) -> None:
        """While a text of 8,192 tokens runs, another model's requests are answered."""
        assert answered_beside(nomic, words(9000)) >= 1


def answered_beside(server: Server, long: str) -> int:
    """Count the short requests to another model that are answered while a long text runs."""
    ended = threading.Event()

    def run() -> httpx.Response:
        try:
            with server.client() as client:
                body = {"model": "nomic", "input": long}
                return client.post("/v1/embeddings", json=body, timeout=900)
        finally:
            ended.set()

    answered = 0
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        running = pool.submit(run)
        while not ended.is_set():
            begin = time.perf_counter()
            answer = client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
            if not ended.is_set():
                assert answer.status_code == 200
                assert time.perf_counter() - begin < 1
                answered += 1
        assert running.result().status_code == 200
    return answered


@pytest.mark.slow
def test_long_text_at_real_size(start: Start, tmp_path: Path) -> None:
    """One text of 8,192 tokens at 12 layers of 768: at most 2.5 GiB, and others are answered."""
    models = make("real", tmp_path)
    server = start(models, tmp_path / "artifacts", "--request-timeout", "900")
    begin = time.perf_counter()
    answered = answered_beside(server, words(9000))
    seconds = time.perf_counter() - begin
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(f"peak {peak / GIBIBYTE:.2f} GiB, {seconds:.0f} s, {answered} short requests beside it")
    assert answered > 10
    assert peak <= 2.5 * GIBIBYTE


@pytest.mark.hub
@pytest.mark.parametrize("name", ["nomic-embed-text-v1", "nomic-embed-text-v1.5"])
def test_known_answer(start: Start, name: str) -> None:
    """The model card's figures, where the weights could be had."""
    artifact = ROOT / "artifacts" / name
    if not (artifact / MANIFEST).exists():
        pytest.skip(f"{artifact}: the weights are on the hub alone; run make export with a network")
    server = start(ROOT / "models.toml", ROOT / "artifacts", "--model", name)
    if name == "nomic-embed-text-v1":
        rows = vectors(server.embed(model=name, input=list(KNOWN_V15)))
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        return
    rows = vectors(server.embed(model=name, input=list(KNOWN_V15), dimensions=512))
    for row, known in zip(rows, KNOWN_V15.values(), strict=True):
        np.testing.assert_allclose(row[:3], known, atol=1e-5, rtol=0)
