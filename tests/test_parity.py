"""The real model's vectors are sentence-transformers', and the same in any company."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import EXPORT_PYTHON, MINILM, ROOT, Server, Start
from tests.texts import texts

# transformers: "iPhone" and "Samsung" through all-MiniLM-L6-v2, first three components.
KNOWN = {
    "iPhone": (-0.02878604456782341, 0.024760600179433823, 0.06652576476335526),
    "Samsung": (-0.13341815769672394, 0.049686793237924576, 0.043825067579746246),
}
TOLERANCE = 1e-5

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reference:
    """sentence-transformers' answer."""

    texts: list[str]
    vectors: Vectors
    ids: list[list[int]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Run sentence-transformers in its own environment on all texts."""
    directory = tmp_path_factory.mktemp("reference")
    asked = texts()
    (directory / "texts.json").write_text(json.dumps(asked), encoding="utf-8")
    module = "tests.reference.sentence_transformers_reference"
    files = (str(directory / "texts.json"), str(directory / "out.npz"))
    command = [str(EXPORT_PYTHON), "-m", module, MINILM, *files]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    with np.load(directory / "out.npz", allow_pickle=False) as out:
        ends = np.cumsum(out["lengths"])[:-1]
        ids = [part.tolist() for part in np.split(out["ids"], ends)]
        return Reference(asked, out["vectors"], ids)


def embed(server: Server, asked: list[str]) -> Vectors:
    """The server's vectors (n, dim)."""
    answer = server.embed(model=MINILM, input=asked)
    assert answer.status_code == 200, answer.text
    return np.array([d["embedding"] for d in answer.json()["data"]], np.float32)


def test_known_answer(minilm: Server) -> None:
    """The published answer for two words, to 1e-6."""
    rows = embed(minilm, list(KNOWN))
    for row, known in zip(rows, KNOWN.values(), strict=True):
        np.testing.assert_allclose(row[:3], known, atol=1e-6, rtol=0)


def test_vectors_are_those_of_sentence_transformers(minilm: Server, reference: Reference) -> None:
    """At least 200 real texts of many lengths and scripts, to 1e-5 in every component."""
    assert len(reference.texts) >= 200
    lengths = [len(ids) for ids in reference.ids]
    assert min(lengths) <= 3
    assert lengths.count(256) >= 5  # cut at the model's limit, not the tokenizer file's 128
    rows = embed(minilm, reference.texts)
    difference = np.abs(rows - reference.vectors).max(axis=1)
    worst = int(difference.argmax())
    print(f"largest absolute difference {difference.max():.1e} of {len(rows)} texts")
    assert difference.max() <= TOLERANCE, reference.texts[worst][:80]


def test_token_counts_are_those_of_sentence_transformers(
    minilm: Server, reference: Reference
) -> None:
    """usage counts the same tokens, and names the texts that were cut."""
    answer = minilm.embed(model=MINILM, input=reference.texts).json()
    assert answer["usage"]["prompt_tokens"] == sum(map(len, reference.ids))


def test_token_ids_are_those_of_sentence_transformers(reference: Reference) -> None:
    """The artifact's tokenizer gives the same ids for each text."""
    from embedserve import artifact
    from embedserve.model.tokenizer import Tokenizer

    directory = ROOT / "artifacts" / MINILM
    tokenizer = Tokenizer(directory, artifact.read(directory))
    ours = [ids.tolist() for ids in tokenizer.encode(reference.texts).sequences]
    assert ours == reference.ids


@pytest.mark.parametrize(
    "flags",
    [
        ("--cache-mb", "1"),  # room for a third of the texts: some are kept, some computed again
        ("--lanes", "1", "--tokens-per-pass", "4096"),
        ("--lanes", "3", "--tokens-per-pass", "64", "--cache-mb", "1"),
    ],
    ids=["cache", "one lane, large passes", "three lanes, small passes, cache"],
)
def test_bits_do_not_depend_on_settings(
    minilm: Server, start: Start, flags: tuple[str, ...]
) -> None:
    """The same bits with other lanes and passes, from the cache, and for equal texts at once."""
    other = start(ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM, *flags)
    asked = texts()[:120]
    expected = [row.tobytes() for row in embed(minilm, asked)]
    with ThreadPoolExecutor(6) as pool:
        for rows in pool.map(lambda _: embed(other, asked + asked[::-1]), range(6)):
            assert [row.tobytes() for row in rows] == expected + expected[::-1]
    assert other.stop() == 0


def test_bits_do_not_depend_on_company(minilm: Server) -> None:
    """A text's vector is bit-identical alone, in any batch and under concurrent load."""
    chosen = random.Random(7)  # noqa: S311  # a seed, so that a failure can be repeated
    asked = chosen.sample(texts(), 60)
    alone = {text: embed(minilm, [text])[0] for text in asked}

    def shuffled(number: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        some = random.Random(number).sample(asked, 1 + number % 40)  # noqa: S311
        return zip(some, embed(minilm, some), strict=True)

    with ThreadPoolExecutor(12) as pool:
        for answer in pool.map(shuffled, range(48)):
            for text, row in answer:
                assert row.tobytes() == alone[text].tobytes(), text[:80]


def test_start_is_quick(minilm: Server) -> None:
    """The golden check costs at most 0.3 s beyond loading."""
    line = next(s for s in minilm.log.read_text().splitlines() if "golden vectors" in s)
    seconds = float(line.split(" in ")[2].split(" s")[0])
    assert seconds <= 0.3, line


def test_artifact_says_its_parity(minilm: Server) -> None:
    """GET models/{id} carries the certificate."""
    with minilm.client() as client:
        parity = client.get(f"/v1/models/{MINILM}").json()["parity"]
    assert parity["texts"] >= 50
    assert 0 < parity["max_abs_difference"] <= TOLERANCE


def test_fingerprint_stands_in_the_changelog(minilm: Server) -> None:
    """Vectors change only with a line in the changelog: the fingerprint of today's is in it."""
    with minilm.client() as client:
        fingerprint = client.get(f"/v1/models/{MINILM}").json()["fingerprint"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"{MINILM}: fingerprint {fingerprint}" in changelog
