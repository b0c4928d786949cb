"""The attackers' process: connections that all do one form for a while.

python -m tests.attack.attackers PORT CONNECTIONS SECONDS, and the form as JSON on standard input.
It prints what it did. One thread, prepared bytes: it shares the machine with what it attacks.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import select
import socket
import struct
import sys
import time

from tests.attack.forms import WITHOUT_END, Form, Step, loaded

HOST = "127.0.0.1"
PIECE = 65_536  # bytes that are sent at once
AGAIN = 0.05  # seconds until a connection that has ended is opened again
NICE = 10  # real attackers are on other machines


class Attacker:
    """One connection after the other."""

    def __init__(self, form: Form, pieces: list[bytes]) -> None:
        self._form = form
        self._pieces = pieces
        self.socket: socket.socket | None = None
        self.sent = 0

    def open(self, port: int) -> None:
        """Connect, and begin the form."""
        self.socket = socket.socket()
        self.socket.setblocking(False)  # the socket module's own
        self.socket.connect_ex((HOST, port))
        self._step, self._left, self._rest = -1, 0, b""
        self._times = 0
        self.done = False

    def write(self) -> float | None:
        """Send on; seconds to pause, or None when the kernel takes no more."""
        assert self.socket is not None
        while True:
            if not self._rest:
                pause = self._next()
                if pause is not None:
                    return pause
            try:
                count = self.socket.send(self._rest)
            except BlockingIOError:
                return None
            self.sent += count
            self._rest = self._rest[count:]
            if not self._rest and self._step_now.pause:
                return self._step_now.pause

    @property
    def _step_now(self) -> Step:
        return self._form.steps[self._step]

    @property
    def _is_endless(self) -> bool:
        return self._step_now.times == WITHOUT_END and self._step_now.data != b""

    def _next(self) -> float | None:
        """Go to the next piece; a pause of 0 at the form's end."""
        if self._step < 0 or (self._times <= 0 and not self._is_endless):
            self._step += 1
            if self._step == len(self._form.steps):
                self._step -= 1
                self.done = True
                return 0.0
            self._times = self._step_now.times
        self._rest = self._pieces[self._step]
        self._times -= max(1, len(self._rest) // max(1, len(self._step_now.data)))
        return None

    def leave(self) -> bool:
        """End as the form says; whether the connection is gone."""
        assert self.socket is not None
        if self._form.leaves == "stays":
            return False
        if self._form.leaves == "half-closes":
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
            return False
        if self._form.leaves == "resets":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True


def pieces(form: Form) -> list[bytes]:
    """What is sent at once of each step: without pauses, many of its data together."""
    return [
        step.data * max(1, min(step.times or PIECE, PIECE // max(1, len(step.data))))
        if not step.pause
        else step.data
        for step in form.steps
    ]


class Crowd:
    """All attackers, in one loop."""

    def __init__(self, port: int, form: Form, count: int) -> None:
        self._port = port
        self._form = form
        prepared = pieces(form)
        self._attackers = [Attacker(form, prepared) for _ in range(count)]
        self._poll = select.epoll()
        self._open: dict[int, Attacker] = {}
        self._due: list[tuple[float, int, str, Attacker, int]] = []
        self._order = itertools.count()
        self.opened = self.read = 0

    def attack(self, seconds: float) -> None:
        """Go on for so long."""
        start = time.monotonic()
        for i, attacker in enumerate(self._attackers):
            self._at(start + 0.001 * i, "open", attacker)
        while (now := time.monotonic()) < start + seconds:
            while self._due and self._due[0][0] <= now:
                *_, what, attacker, number = heapq.heappop(self._due)
                self._act(what, attacker, number)
            wait = min(0.05, self._due[0][0] - now) if self._due else 0.05
            for number, events in self._poll.poll(max(0.0, wait)):
                if number in self._open:
                    self._handle(self._open[number], number, events)

    @property
    def sent(self) -> int:
        """Bytes, of all."""
        return sum(attacker.sent for attacker in self._attackers)

    def _at(self, when: float, what: str, attacker: Attacker, number: int = -1) -> None:
        heapq.heappush(self._due, (when, next(self._order), what, attacker, number))

    def _act(self, what: str, attacker: Attacker, number: int) -> None:
        if what == "open":
            attacker.open(self._port)
            assert attacker.socket is not None
            self.opened += 1
            self._open[attacker.socket.fileno()] = attacker
            self._poll.register(attacker.socket.fileno(), self._reading | select.EPOLLOUT)
        elif self._open.get(number) is attacker:
            self._write(attacker, number)

    @property
    def _reading(self) -> int:
        return select.EPOLLIN if self._form.reads else 0

    def _handle(self, attacker: Attacker, number: int, events: int) -> None:
        assert attacker.socket is not None
        if events & select.EPOLLIN:
            try:
                data = attacker.socket.recv(PIECE)
            except BlockingIOError:
                data = b"-"
            except OSError:
                data = b""
            self.read += len(data)
            if not data:
                self._end(attacker, number)
                return
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._end(attacker, number)
        elif events & select.EPOLLOUT:
            self._write(attacker, number)

    def _write(self, attacker: Attacker, number: int) -> None:
        try:
            pause = attacker.write()
        except OSError:
            self._end(attacker, number)
            return
        writing = 0 if pause is not None else select.EPOLLOUT
        self._poll.modify(number, self._reading | writing)
        if attacker.done:
            if attacker.leave():
                self._end(attacker, number)
        elif pause is not None:
            self._at(time.monotonic() + pause, "write", attacker, number)

    def _end(self, attacker: Attacker, number: int) -> None:
        assert attacker.socket is not None
        del self._open[number]
        attacker.socket.close()
        self._at(time.monotonic() + AGAIN, "open", attacker)


def main() -> None:
    """Attack."""
    port, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    os.nice(NICE)
    crowd = Crowd(port, loaded(sys.stdin.read()), count)
    crowd.attack(seconds)
    print(json.dumps({"opened": crowd.opened, "sent": crowd.sent, "read": crowd.read}))


if __name__ == "__main__":
    main()
