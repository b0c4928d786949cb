"""What goes wrong in a pass: one bad text among many, no memory, no end, a deadline."""

from __future__ import annotations

import contextlib
import itertools
import re
import resource
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny
from tests.conftest import MINILM
from tests.faults import altered
from tests.faults.serving import ROOT, SECONDS, Served, serving, until

ALTERED = "tests.faults.altered"
# 63 inputs of one length: they share passes with the bad one.
TEXTS = [" ".join(words) for words in itertools.product("abcd", repeat=3)][:63]
IDS = [[tiny.ID[word] for word in f"[CLS] {text} [SEP]".split()] for text in TEXTS]
BAD: Mapping[str, tuple[list[Any], Any, str]] = {
    "NaN": (TEXTS, "a poison b", "non_finite_embedding"),
    "zeros": (IDS, [tiny.ID["void"]] * 5, "non_finite_embedding"),
    "a failing pass": (TEXTS, "a fail b", "inference_failed"),
}


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status, and the first vector as base64 or the error's code and place."""
    body = answer.json()
    if answer.status_code == 200:
        return 200, body["data"][0]["embedding"]
    return answer.status_code, f"{body['error']['code']} {body['error']['param']}"


def ask(server: Served, *inputs: Any) -> tuple[int, str]:
    """One request, on a connection of its own; it may hold token ids."""
    return outcome(server.embed(model="matryoshka", input=inputs, encoding_format="base64"))


class TestOneBadText:
    """A text that gives NaN or zeros, or that fails its whole pass."""

    @pytest.mark.parametrize("case", BAD)
    def test_among_requests(self, tiny_artifacts: Path, tmp_path: Path, case: str) -> None:
        """Of 64 requests in one pass 63 get the bits that each gets alone, one its error; a
        request of the same 64 inputs gets that error with the input's place.
        """
        good, bad, code = BAD[case]
        inputs = [*good[:40], bad, *good[40:]]
        flags = ("--lanes", "1", "--tokens-per-pass", "4096")
        with (
            serving(tiny_artifacts, tmp_path / "log", *flags, runner=(ALTERED, "gate")) as server,
            ThreadPoolExecutor(len(inputs) + 1) as pool,
        ):
            alone = [ask(server, one) for one in inputs]
            assert alone[40] == (500, f"{code} input[0]")
            assert {status for status, _ in alone[:40] + alone[41:]} == {200}
            passes = self._passes(server)
            server.hold_passes()
            first = pool.submit(ask, server, "d d d d d")  # it takes the lane
            until(lambda: self._count(server, "requests_in_flight") == 1)
            until(lambda: self._count(server, "queue_depth") == 0)
            together = [pool.submit(ask, server, one) for one in inputs]
            until(lambda: self._count(server, "queue_depth") == len(inputs))
            server.release_passes()
            assert [one.result(SECONDS) for one in together] == alone
            assert first.result(SECONDS)[0] == 200
            assert self._passes(server) - passes < 20  # they did share passes
            assert ask(server, *inputs) == (500, f"{code} input[40]")
            assert ask(server, *good) == alone[0]
            assert server.stop() == 0

    def _passes(self, server: Served) -> float:
        return sum(
            self._count(server, name) for name in ("batch_size_count", "failed_passes_total")
        )

    def _count(self, server: Served, name: str) -> float:
        return server.metric(f'embedserve_{name}{{model="matryoshka"}}')


class TestMemory:
    """The process may have little more memory than it has, then as much as it wants."""

    LIMITS = pytest.mark.parametrize(
        ("kind", "field"),
        [
            pytest.param(resource.RLIMIT_AS, "VmSize", id="address space", marks=pytest.mark.slow),
            pytest.param(resource.RLIMIT_DATA, "VmData", id="data"),
        ],
    )

    @LIMITS
    def test_none_left(self, tmp_path: Path, kind: int, field: str) -> None:
        """Bulk gets its vectors or 503 out_of_memory, whatever finds no memory: parsing,
        tokenizing, passes, rendering. The process lives, and serves as before afterwards.

        Where uvloop has no memory for what it received, it can only close that connection.
        """
        flags = ("--model", MINILM, "--tokens-per-pass", "4096")
        with (
            serving(ROOT / "artifacts", tmp_path / "log", *flags) as server,
            ThreadPoolExecutor(6) as pool,
            server.client() as probe,
        ):
            assert probe.get("/livez").status_code == 200
            seen = set()
            for more in (0, 4, 60):
                self._limit(server, kind, self._used(server, field) + (more << 20))
                # Many short texts, a megabyte, and large passes.
                for count, words, seconds in ((200, 3, "20"), (1000, 200, "0.5"), (10, 200, "20")):
                    bodies = [self._texts(i, count, words) for i in range(6)]
                    sent = [pool.submit(self._ask, server, texts, seconds) for texts in bodies]
                    seen |= {one.result(SECONDS) for one in sent}
                assert probe.get("/livez").status_code == 200
            # 429: tokenizing that waits is more than the half second that a request gives itself.
            late, cut_off = {(504, "deadline_exceeded"), (429, "queue_full")}, {(0, "cut off")}
            assert seen <= {(200, ""), (503, "out_of_memory")} | late | cut_off
            assert (503, "out_of_memory") in seen
            self._limit(server, kind, resource.RLIM_INFINITY)
            done = list(pool.map(lambda i: self._ask(server, self._texts(i, 20, 50)), range(6)))
            assert done == [(200, "")] * 6
            assert "internal error" not in server.log.read_text()
            assert server.stop() == 0

    def _texts(self, which: int, count: int, words: int) -> list[str]:
        return [f"{which} {i} " + "word " * words for i in range(count)]

    def _ask(self, server: Served, texts: list[str], seconds: str = "20") -> tuple[int, str]:
        try:
            answer = server.embed({"x-request-timeout": seconds}, model=MINILM, input=texts)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            assert sum(map(len, texts)) > 500_000, "a small body was not read"
            return 0, "cut off"
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    def _used(self, server: Served, field: str) -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        found = re.search(field + r":\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def _limit(self, server: Served, kind: int, most: int) -> None:
        resource.prlimit(server.process.pid, kind, (most, resource.RLIM_INFINITY))


@contextlib.contextmanager
def endless(artifacts: Path, log: Path, *flags: str) -> Iterator[Served]:
    """A server whose passes of one text of altered.ENDLESS tokens never come back."""
    flags = ("--lanes", "2", "--drain-seconds", "1", *flags)
    with serving(artifacts, log, *flags, runner=(ALTERED, "endless")) as server:
        yield server


class TestLostLane:
    """A pass that does not end, whoever asks it to."""

    LOST = "a b c d a b"  # and two special tokens

    def test_others_go_on(self, tiny_artifacts: Path, tmp_path: Path) -> None:
        """Its request gets 504, others their vectors from the other lane; /livez says that a new
        process is needed; SIGTERM ends this one with 0.
        """
        with endless(tiny_artifacts, tmp_path / "log") as server, server.client() as client:
            start = time.monotonic()
            answer = server.embed({"x-request-timeout": "1"}, model="matryoshka", input=self.LOST)
            assert outcome(answer) == (504, "deadline_exceeded None")
            assert 1.0 <= time.monotonic() - start < 5.0
            assert client.get("/livez").status_code == 200
            while client.get("/livez").status_code == 200:
                assert ask(server, "a b")[0] == 200
            assert time.monotonic() - start >= 1.0 + altered.LOST_SECONDS
            assert client.get("/readyz").json()["error"]["code"] == "not_ready"
            assert server.metric("embedserve_live") == server.metric("embedserve_ready") == 0
            assert ask(server, "a c")[0] == 200
            start = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - start < 1.0 + 10.0


class TestDeadline:
    """A deadline that passes in a running pass."""

    def test_the_lane_is_free_at_once(self, tmp_path: Path) -> None:
        """The pass is stopped: the next request of the only lane does not wait for its end."""
        flags = ("--model", MINILM, "--lanes", "1", "--tokens-per-pass", "65536")
        # Some 3.5 s in one pass, and its longest operator 0.6: a pass ends after the one it is in.
        bulk = [f"{i} " + "word " * 250 for i in range(64)]
        with serving(ROOT / "artifacts", tmp_path / "log", *flags) as server:
            late = server.embed({"x-request-timeout": "1"}, model=MINILM, input=bulk)
            assert outcome(late) == (504, "deadline_exceeded None")
            start = time.monotonic()
            assert server.embed(model=MINILM, input="hello").status_code == 200
            assert time.monotonic() - start < 1.5
            passed = f'embedserve_inference_duration_seconds_count{{model="{MINILM}"}}'
            assert server.metric(passed) == 1  # the long one came to no end
            assert server.stop() == 0
