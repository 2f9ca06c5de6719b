"""What stands before every route: token or host, size of bodies, slow clients, log and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stt_jax.service.metrics import Metrics

_log = logging.getLogger("stt_jax.service")
_DRAINED_BYTES = 64 << 20  # of a body that is too large, so that its sender reads the answer
_MOST_HEAD_BYTES = 64 << 10  # of a request before its body
# Without a token the machine is all that keeps strangers out, and a web page that its browser shows
# can ask it under a name of its own (DNS rebinding).
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/", "/healthz", "/readyz")  # nothing of anybody is there


class Guard:
    """An ASGI application around another."""

    def __init__(
        self, app: Any, metrics: Metrics, *, token: str, host: str, max_body_bytes: int
    ) -> None:
        """`token` "" lets everybody in who asks this machine, or `host`, by its name."""
        self._app, self._metrics = app, metrics
        self._hosts = frozenset(name.encode() for name in (*_OWN_HOSTS, host.lower()))
        self._token, self._max_body_bytes = token.encode(), max_body_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def watched_send(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, watched_send)
        except Exception as error:
            # The message of an exception may hold what a person sent: only where it was is logged.
            _log.error("error", extra={"fields": {"where": _where(error)}})
            if status == 500:
                detail = "the service has an error; it is in its log"
                await _answer(watched_send, 500, detail)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            fields = {"route": route, "status": status, "ms": round(seconds * 1e3, 2)}
            _log.info("request", extra={"fields": fields})

    async def _guarded(self, scope: dict, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        if not self._token and _host_name(headers.get(b"host", b"")) not in self._hosts:
            await _answer(
                send, 421, "ask this service as localhost, or give it a token and send it"
            )
            return
        if not self._may_enter(scope["path"], headers):
            await _answer(send, 401, "send the service's token as 'Authorization: Bearer TOKEN'")
            return
        length = headers.get(b"content-length", b"0")
        body = _Body(receive, self._max_body_bytes)
        if length.isdigit() and int(length) > self._max_body_bytes:
            await body.drain()
            await _answer(send, 413, body.too_large)
            return

        async def send_if_whole(message: dict) -> None:
            # Whoever reads the body may take the error for one of their own and answer it.
            if not body.exceeded:
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, body.receive, send_if_whole)
        if body.exceeded:
            await body.drain()
            await _answer(send, 413, body.too_large)

    def _may_enter(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if not self._token or path in OPEN_PATHS:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token, self._token)


class _TooLargeError(Exception):
    pass


class _Body:
    """Counts the bytes of a body as they come."""

    def __init__(self, receive: Any, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._num_bytes, self._more = 0, True
        self.exceeded = False
        self.too_large = f"the body is larger than {limit} bytes; send fewer events at a time"

    async def receive(self) -> dict:
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._more = message.get("more_body", False)
            if self._num_bytes > self._limit:
                self.exceeded = True
                raise _TooLargeError
        return message

    async def drain(self) -> None:
        while self._more and self._num_bytes < _DRAINED_BYTES:
            message = await self._receive()
            self._num_bytes += len(message.get("body", b""))
            self._more = message.get("more_body", False)


def _host_name(host: bytes) -> bytes:
    """Of a Host header, without its port; of an IPv6 address without its brackets."""
    if host.startswith(b"["):
        return host[1:].partition(b"]")[0].lower()
    return host.partition(b":")[0].lower()


async def _answer(send: Any, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _where(error: BaseException) -> str:
    """Type and places of an exception, innermost last, without its message."""
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' '.join(places[-6:])}"


def impatient_protocol(receive_s: float) -> type[HttpToolsProtocol]:
    """HTTP/1.1 that hangs up on a client which takes longer than that to send a request, or whose
    headers do not end.
    """

    class ImpatientProtocol(HttpToolsProtocol):
        _hang_up: asyncio.TimerHandle | None = None
        _is_coming = _is_head = False  # a request, and of it the headers
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._is_coming = self._is_head = True
            self._head_bytes = 0

        def on_headers_complete(self) -> None:
            self._is_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._is_coming = False
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data)
            super().data_received(data)  # a request that begins here has no headers yet
            if self._is_head and self._head_bytes > _MOST_HEAD_BYTES:
                self._close()  # the parser has no limit of its own
            elif not self._is_coming:
                self._relax()
            elif self._hang_up is None:
                self._wait()

        def connection_lost(self, error: Exception | None) -> None:
            self._relax()
            super().connection_lost(error)

        def _wait(self) -> None:
            self._hang_up = self.loop.call_later(receive_s, self._close)

        def _relax(self) -> None:
            if self._hang_up is not None:
                self._hang_up.cancel()
                self._hang_up = None

        def _close(self) -> None:
            self._relax()
            if not self.transport.is_closing():
                self.transport.abort()

    return ImpatientProtocol
