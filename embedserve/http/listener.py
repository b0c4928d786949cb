"""The socket that the server listens on."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct

from embedserve.config.settings import Settings
from embedserve.errors import Exit, StartupError

BACKLOG = 2048  # connections that the kernel accepts ahead of this process
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # socket(7); the socket module does not have them


def bind(
    settings: Settings, port: int | None = None, *, shared: bool = False, listens: bool = True
) -> socket.socket:
    """Bind before models load, so that an address in use costs no time. StartupError otherwise.

    `port`: instead of the one in the settings. `shared`: other sockets of this user may listen on
    the address as well, and each gets a part of the connections once it listens.
    """
    port = settings.port if port is None else port
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((settings.host, port))
        # Two processes may bind one address until one of them listens. Clients that connect while
        # models load wait here; past the backlog a handshake is dropped, and the client retries
        # after 1 s.
        if listens:
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {settings.host}:{port}: {error.strerror}; choose another "
            "with --host and --port",
            Exit.UNAVAILABLE,
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may be any address
        return False


def accept_handshakes(listener: socket.socket) -> None:
    """Undo `refuse_handshakes`, where a socket outlives a process that has drained."""
    with contextlib.suppress(OSError):  # it has no filter
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def refuse_handshakes(listener: socket.socket) -> None:
    """Let the kernel drop new connections; it still hands over those that are established.

    A closed listener would reset those. A client that tries again a second later is refused.
    """
    # Classic BPF on the TCP header: byte 13 has the flags; 0x02 is SYN.
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    attached = struct.pack("@HP", len(program), ctypes.addressof(code))
    with contextlib.suppress(OSError):  # no Linux: those in the queue are reset
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, attached)
