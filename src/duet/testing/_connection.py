"""One accepted socket: requests are read from it and answers written to it, and it is seen when the client leaves."""

from __future__ import annotations

import socket
import struct
import sys

import anyio

from duet.testing._http import Request, take_request
from duet.testing._plans import Plan


class Connection:
    """A connection to one client.

    On a bare socket, since an anyio stream always sends a FIN before it closes, so that no reset could be had from it,
    and buffers what is written, so that a client's leaving would show late.
    """

    def __init__(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = accepted
        self._buffer = bytearray()

    async def read_request(self) -> Request | None:
        """The next request; None where the client has closed the connection.

        Raises:
            Refusal: What arrives is none.
        """
        while (request := take_request(self._buffer)) is None:
            if not await self._receive():
                return None
        return request

    async def watch(self, answering: anyio.CancelScope) -> None:
        """Cancel `answering` once the client has closed the connection."""
        while await self._receive():
            pass
        answering.cancel()

    async def send(self, plan: Plan) -> bool:
        """Send an answer; False where the client was gone before its end."""
        try:
            for delay, data in plan.writes:
                await anyio.sleep(delay)
                await self._write(data)
            if plan.end == "hang":
                await anyio.sleep_forever()
            if plan.end == "reset":
                self._reset_on_closing()
        except OSError:
            return False
        return True

    def _reset_on_closing(self) -> None:
        # A socket with no time to linger sends a reset; the two fields are shorter on Windows.
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def _receive(self) -> bool:
        """Wait for bytes and keep them; False where no more will come."""
        while True:
            await anyio.wait_readable(self._socket)
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                return False
            self._buffer += data
            return bool(data)

    async def _write(self, data: bytes) -> None:
        # No checkpoint after the last byte: a client that leaves on having read it has cut nothing off.
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
