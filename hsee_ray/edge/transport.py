"""HTTP connections that wait for as long as something moves, and read no more than an answer can be.

What is bounded is silence, not the whole: a slow link takes its time. So that nobody holds a device for ever by moving
a byte now and then, each time of silence must move a KiB, after the first three.
"""

from __future__ import annotations

import io
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPResponse as RawResponse
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if sys.platform == "linux":
    import fcntl
    import termios

_PIECE_BYTES = 16 << 10
_LEAST_BYTES = 1024
_FIRST_SILENCES = 3
_LOOKS = 8
"""At what has been taken, within a time of silence."""
_OTHER_BYTES = 64 << 10
"""Of an answer, beside labels: headers, or the page that a proxy shows."""


class Silence(urllib3.exceptions.TimeoutError):
    """A server that was reached, and then nothing moved for too long."""


class TooLong(Exception):
    """An answer that is longer than any that was asked for."""


class Question(bytes):
    """A request's body."""

    answer_bytes: int
    """The labels that are asked for have no more than this."""


def connections(**options: Any) -> urllib3.PoolManager:
    """Connections to servers; `options` are those of urllib3, with a `timeout` in seconds."""
    manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return manager


class _Connection(HTTPConnection):
    """Takes bodies that are a `Question`. Raises Silence and TooLong."""

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any) -> None:
        self._begun_s = time.monotonic()
        self._idle_s = float(self.timeout)  # type: ignore[arg-type]
        self._sent_bytes = self._received_bytes = 0
        self._most_bytes = _OTHER_BYTES + body.answer_bytes
        self.response_class = partial(_Response, self)  # type: ignore[assignment]
        super().request(method, url, body=body, headers=headers, **options)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()  # whose own deadline is the timeout for each address
            self._begun_s = time.monotonic()
        view = memoryview(data)
        while view:
            # One call takes what has room, where `sendall` would have one deadline for everything.
            sent = self._patiently(self.sock, partial(self.sock.send, view[:_PIECE_BYTES]))
            self._sent_bytes += sent
            view = view[sent:]

    def receive(self, sock: socket.socket, buffer: Any) -> int:
        """Bytes of the answer that were put into the buffer."""
        count = self._patiently(sock, partial(sock.recv_into, buffer), answering=self._received_bytes == 0)
        self._received_bytes += count
        if self._received_bytes > self._most_bytes:
            raise TooLong(f"its answer has more than {self._most_bytes} bytes")
        return count

    def _patiently(self, sock: socket.socket, step: Callable[[], int], answering: bool = False) -> int:
        """What `step` gives, when it gives something. Raises Silence when nothing has come or gone for too long."""
        moved_at_s, unsent = time.monotonic(), _unsent_bytes(sock)
        # What lies in buffers on the way to the server moves no faster than the rest has.
        idle_s = self._idle_s + (moved_at_s - self._begun_s if answering else 0.0)
        while True:
            now_s = time.monotonic()
            moved = self._sent_bytes - unsent + self._received_bytes
            if now_s > self._begun_s + self._idle_s * (_FIRST_SILENCES + moved / _LEAST_BYTES):
                raise Silence(f"less than {_LEAST_BYTES} bytes have moved in each {self._idle_s:g} s")
            if now_s > moved_at_s + idle_s:
                what = f"has not taken the last {unsent} bytes" if unsent else "has said nothing"
                raise Silence(f"it {what} for {idle_s:.3g} s")
            sock.settimeout(idle_s / _LOOKS)
            try:
                return step()
            except TimeoutError:
                before, unsent = unsent, _unsent_bytes(sock)
                if unsent < before:
                    moved_at_s = time.monotonic()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Response(RawResponse):
    def __init__(self, connection: _Connection, sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), connection, sock))


class _Reader(io.RawIOBase):
    """What a connection receives, as a file."""

    def __init__(self, raw: io.RawIOBase, connection: _Connection, sock: socket.socket) -> None:
        self._raw = raw
        self._connection = connection
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._connection.receive(self._sock, buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _unsent_bytes(sock: socket.socket) -> int:
    """Bytes that the other end has not received yet; 0 where the system does not tell, as only Linux does."""
    if sys.platform != "linux":
        return 0
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)
