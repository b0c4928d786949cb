"""Clients that ask all the time and retry as OpenAI's do, and what each of their requests got."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

RETRIES = 2  # of openai's clients, unless told otherwise
RETRIED = (408, 409, 429)  # and 500 and above
FIRST, MOST = 0.5, 8.0  # seconds before a retry, where the answer does not say


@dataclass(slots=True)
class Traffic:
    """What requests got in the end, and how often one had to be sent again."""

    statuses: list[int] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)  # why
    contents: dict[int, set[bytes]] = field(default_factory=dict)  # by the request's number
    failures: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _more: threading.Condition = field(default_factory=threading.Condition)

    @property
    def answered(self) -> int:
        """How many requests have ended."""
        return len(self.statuses)

    def wait_for(self, more: int) -> None:
        """Until so many more requests have been answered."""
        until = self.answered + more
        with self._more:
            self._more.wait_for(lambda: self.answered >= until or self.failures)

    def ask_until_ended(self, url: str, number: int, body: dict[str, Any]) -> None:
        """One client, with its own request."""
        contents = self.contents.setdefault(number, set())
        headers = {"accept": "application/octet-stream"}
        with httpx.Client(base_url=url, trust_env=False, timeout=60, headers=headers) as client:
            while not self._ended.is_set():
                answer = self._ask(client, body)
                with self._more:
                    self.statuses.append(answer.status_code)
                    if answer.status_code == 200:
                        contents.add(answer.content)
                    else:
                        self.failures.append(answer.text)
                    self._more.notify_all()

    def end(self) -> None:
        """Let every client end after the request it has."""
        self._ended.set()

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        for left in reversed(range(RETRIES + 1)):
            wait = random.uniform(0.75, 1) * min(MOST, FIRST * 2 ** (RETRIES - left))  # noqa: S311
            try:
                answer = client.post("/v1/embeddings", json=body)
            except httpx.TransportError as error:
                if not left:
                    return httpx.Response(599, text=repr(error))
                self.retries.append(repr(error))
            else:
                if not left or (answer.status_code < 500 and answer.status_code not in RETRIED):
                    return answer
                self.retries.append(f"{answer.status_code} {answer.text}")
                if milliseconds := answer.headers.get("retry-after-ms"):
                    wait = float(milliseconds) / 1000
            threading.Event().wait(wait)
        raise AssertionError("unreachable")


@contextlib.contextmanager
def traffic(url: str, bodies: Sequence[dict[str, Any]]) -> Iterator[Traffic]:
    """A client for each request, which it sends again and again to the end of the block."""
    made = Traffic()
    with ThreadPoolExecutor(len(bodies)) as pool:
        asking = [pool.submit(made.ask_until_ended, url, i, body) for i, body in enumerate(bodies)]
        try:
            made.wait_for(len(bodies))
            yield made
        finally:
            made.end()
            for client in asking:
                client.result()
