"""A TCP connection's way to a server through a link of so many megabytes a second, all connections together."""

import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

_PIECE = 1 << 16  # bytes


class Link:
    """Forwards connections to ``target``; what clients send shares the link's rate, answers are not held up.

    Args:
        target: Url of the server.
        megabytes_s: rate of the link in MB/s.

    Attributes:
        url: To connect to instead.
    """

    def __init__(self, target: str, megabytes_s: float) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname, parts.port
        self._rate = megabytes_s * 1e6
        self._free_at, self._lock = 0.0, threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections; those that are open end with their clients."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
            except OSError:  # closed, or the server is away: the client sees its connection end
                return
            threading.Thread(target=self._pump, args=(client, server, self._wait), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, lambda _: None), daemon=True).start()

    def _wait(self, size: int) -> None:
        """Takes the link for ``size`` bytes, once it is free."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self._rate
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, wait: Callable[[int], None]) -> None:
        try:
            while piece := source.recv(_PIECE):
                wait(len(piece))
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # either side is gone
            source.close()
            sink.close()
