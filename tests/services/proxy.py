"""A proxy that breaks HTTP on request: answers of its own, slowness, connections cut in the middle."""

import http.client
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.services.http_server import HttpServer, request_body


class FaultyProxy(HttpServer):
    """Forwards to an HTTP server; ``faults`` are used up one a request, for requests that ``method`` and ``text`` choose, all
    where they are empty.

    A fault is a status to answer with, "slow" (a second late), "cut" (the connection closed instead of passing the request on),
    "lost" (closed instead of passing the answer back), "torn" (closed in the middle of the answer), or "silent" (no answer before
    ``silence_s`` are over, and then none).
    """

    def __init__(self, target: str) -> None:
        super().__init__(partial(Handler, self))
        self.target = urlsplit(target)
        self.faults: list[int | str] = []
        self.method, self.text = "PUT", ""
        self.seen = 0
        self.silence_s = 2.0
        self._lock = threading.Lock()

    def next_fault(self, method: str, path: str) -> int | str | None:
        with self._lock:
            if self.method not in ("", method) or self.text not in path or not self.faults:
                return None
            self.seen += 1
            return self.faults.pop(0)


class Handler(BaseHTTPRequestHandler):
    """One connection.

    Args:
        proxy: proxy that it belongs to.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: FaultyProxy, *given: Any) -> None:
        self.proxy = proxy  # first, as what follows handles all requests
        super().__init__(*given)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def forward(self) -> None:
        body = request_body(self)
        fault = self.proxy.next_fault(self.command, self.path)
        if fault == "silent":
            time.sleep(self.proxy.silence_s)
        if fault in ("cut", "silent"):
            self.hang_up()
            return
        if fault == "slow":
            time.sleep(1)
        if isinstance(fault, int):
            code = {503: "SlowDown"}.get(fault, "InternalError")
            self.answer(fault, {}, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())
            return
        try:
            status, headers, content = self.pass_on(body)
        except OSError:  # the server is down
            fault = "lost"
        if fault == "lost":
            self.hang_up()
        else:
            self.answer(status, headers, content, torn=fault == "torn")

    def pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        target = self.proxy.target
        upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("transfer-encoding", "expect", "content-length"):
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            response = upstream.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            upstream.close()

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client was killed
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def answer(self, status: int, headers: dict[str, str], body: bytes, torn: bool = False) -> None:
        self.send_response_only(status)
        own = ("content-length", "connection", "transfer-encoding")
        kept = {name: value for name, value in headers.items() if name.lower() not in own}
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in {**kept, "Content-Length": length}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if torn else body)
        self.close_connection = self.close_connection or torn
