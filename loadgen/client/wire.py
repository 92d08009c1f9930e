"""The wire: sends one streaming OpenAI-compatible request, and settles one Exchange.

The hot path. What makes its times true:

* A read is stamped first thing in ``data_received``, before HTTP is parsed and before any task or
  callback is woken. A stamp taken when a coroutine gets its turn is 2 to 430 ms late at 1,024
  streams (measured for five other clients).
* ``sent_ns`` is read just before ``socket.send`` is called on a connection already held. The
  transport is not used for that, since an event loop's transport writes at the end of the loop's
  iteration, after the callbacks of every other socket.
* Between the two, a read costs two list appends. Events are split and JSON is decoded in slices of
  at most a tenth of a millisecond, after every socket that was ready has been read.
* A slot whose request has ended sends its next one within the same callback; the record of the
  one that ended is made later.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec

from loadgen.client.endpoint import Endpoint
from loadgen.client.exchange import Exchange
from loadgen.clock import now_ns
from loadgen.records import ErrorKind
from loadgen.units import NS_PER_S

# Reads of one request that may wait to be parsed. Larger is cheaper, and holds more memory.
PARSE_BATCH = 32
# So many are parsed at once, spare time or not: memory stays bounded under full load.
MAX_UNPARSED = 256
SLICE_NS = 100_000
PATIENCE_NS = NS_PER_S // 2
# vLLM and TensorRT-LLM (uvicorn) close a connection that has been idle for 5 s.
IDLE_LIMIT_NS = 3 * NS_PER_S
SWEEP_S = 0.25
# After [DONE] the server has this long to end the response; then the connection is given up.
DONE_GRACE_NS = NS_PER_S


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in seconds. ``first_token`` runs from ``sent_ns``, ``between_tokens`` from the last token."""

    connect_s: float = 10.0
    first_token_s: float = 300.0
    between_tokens_s: float = 60.0
    request_s: float = 3600.0


class Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    __slots__ = (
        "_chunked", "_complete", "_feed", "_length", "_parser", "_reusable", "_sock", "_stamp", "_transport",
        "_type", "closed", "exchange", "free_ns", "served", "wire",
    )  # fmt: skip

    def __init__(self, wire: Wire, sock: socket.socket) -> None:
        self.wire = wire
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self.exchange: Exchange | None = None
        self.free_ns = 0
        self.served = 0  # exchanges that were completed on it
        self.closed = False
        self._stamp = 0
        self._complete = False
        self._reusable = False
        self._chunked = False
        self._length: int | None = None
        self._type = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, no subclass

    def send(self, exchange: Exchange) -> None:
        """Writes the request. The caller has made sure that the connection is idle."""
        self.exchange = exchange
        exchange.connection = self
        self._complete = False
        self._chunked = False
        self._length = None
        self._type = b""
        payload = exchange.payload
        transport = self._transport
        assert transport is not None
        if self.wire.tls is not None:
            stamp = now_ns()
            transport.write(payload)
        else:
            stamp = now_ns()
            try:
                written = self._sock.send(payload)
            except (BlockingIOError, InterruptedError):
                written = 0
            except OSError:
                written = 0  # the transport meets the same error, and reports it in connection_lost
            if written < len(payload):
                transport.write(memoryview(payload)[written:])
        if exchange.sent_ns is None:
            exchange.sent_ns = exchange.seen_ns = stamp

    # The reader's side. httptools calls the on_* methods from inside feed_data.

    def data_received(self, data: bytes) -> None:
        self._stamp = now_ns()
        if self.exchange is None:
            self.abandon()  # nobody asked: nothing that comes here can be trusted now
            return
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:
            self._break("bad_payload", "the server switched protocols")
        except httptools.HttpParserError as error:
            self._break("bad_payload", f"malformed HTTP: {error.__context__ or error}", data)
        if self._complete:
            self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._type = value
        elif name == b"transfer-encoding":
            self._chunked = b"chunked" in value.lower()
        elif name == b"content-length":
            self._length = int(value) if value.isdigit() else None

    def on_headers_complete(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        status = self._parser.get_status_code()
        if status >= 200:  # not a 100 Continue
            exchange.status = status
            exchange.headers_ns = self._stamp
            exchange.says_stream = self._type.lower().startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        assert exchange is not None
        exchange.stamps.append(self._stamp)
        pieces = exchange.pieces
        pieces.append(body)
        if len(pieces) >= PARSE_BATCH:
            self.wire.later(exchange)

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.status is not None:
            self._complete = True
            # Only inside this callback does the parser still know how the body was framed.
            self._reusable = self._parser.should_keep_alive()

    def _end(self) -> None:
        """The response is complete: the connection goes back, and the slot goes on."""
        self._complete = False
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        self.served += 1
        if self._reusable and not self.closed:
            self.free_ns = self._stamp
            self.wire.idle.append(self)
        else:
            self.abandon()
        exchange.end_ns = self._stamp
        self.wire.end(exchange)

    def _break(self, kind: ErrorKind, message: str, body: bytes | None = None) -> None:
        exchange, self.exchange = self.exchange, None
        self.abandon()
        if exchange is not None:
            exchange.fail(kind, message, body)
            exchange.end_ns = self._stamp
            self.wire.end(exchange)

    def cancel(self, kind: ErrorKind, message: str) -> None:
        """Ends the exchange as a failure, and the connection with it; the server sees a disconnect."""
        self._stamp = now_ns()
        self._break(kind, message)

    def abandon(self) -> None:
        """Closes the connection at once."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.wire.connections.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        exchange.end_ns = stamp = now_ns()
        if exchange.status is None:
            if self.served and not exchange.retried:
                # An idle connection that the server closed just as it was taken up again.
                exchange.retried = True
                exchange.connection = None
                self.wire.send(exchange, fresh=True)
                return
            exchange.fail("stream_truncated", f"the connection was lost before any answer{_why(exc)}")
        elif self._chunked or self._length is not None:
            exchange.parse()
            if exchange.done_ns is None:
                exchange.fail("stream_truncated", f"the connection was lost after {exchange.tokens} tokens{_why(exc)}")
        elif exc is not None:
            exchange.fail("stream_truncated", f"the connection was lost{_why(exc)}")
        exchange.end_ns = stamp  # else: a body that the end of the connection delimits
        self.wire.end(exchange)


def _why(exc: Exception | None) -> str:
    return f": {exc}" if exc is not None else ""


class Wire:
    """Connections to one endpoint, and the requests in flight on them.

    There is no limit on connections: a request that finds no idle one opens another.

    Args:
        endpoint: where to.
        timeouts: each request's limits.
        settled: called for every exchange that has ended, once its results can be read.
    """

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, settled: Callable[[Exchange], None]) -> None:
        self._endpoint = endpoint
        self._timeouts = timeouts
        self._settled = settled
        self._loop = asyncio.get_running_loop()
        self._address: tuple[int, Any] | None = None
        self.tls: ssl.SSLContext | None = _tls_context(endpoint)
        self.idle: list[Connection] = []
        self.connections: set[Connection] = set()
        self.active: set[Exchange] = set()
        self._connecting: dict[Exchange, asyncio.Task[None]] = {}
        self._later: deque[Exchange] = deque()
        self._sliced_ns = 0
        self._slice_due = False
        # Called again and again while there is time left and it returns True.
        self.spare_time: Callable[[], bool] | None = None
        self._sweeper: asyncio.TimerHandle | None = self._loop.call_later(SWEEP_S, self._sweep)

    # Sending.

    def send(self, exchange: Exchange, fresh: bool = False) -> None:
        """Sends on an idle connection at once, else on a new one as soon as it stands."""
        self.active.add(exchange)
        now = now_ns()
        idle = self.idle
        while idle and not fresh:
            connection = idle.pop()
            if connection.closed:
                continue
            if now - connection.free_ns > IDLE_LIMIT_NS:
                connection.abandon()
                continue
            connection.send(exchange)
            return
        exchange.wait_ns = now
        self._connecting[exchange] = self._loop.create_task(self._connect(exchange))

    async def open(self, count: int) -> None:
        """Opens connections ahead, so that the first requests need not wait for theirs.

        A connect that fails here is left to the request that will need it, and recorded there.
        """
        missing = count - len([c for c in self.idle if not c.closed])
        for start in range(0, missing, 128):  # stay below servers' accept backlogs
            batch = [self._open() for _ in range(min(128, missing - start))]
            for result in await asyncio.gather(*batch, return_exceptions=True):
                if isinstance(result, Connection):
                    result.free_ns = now_ns()
                    self.idle.append(result)

    async def _connect(self, exchange: Exchange) -> None:
        error = connection = None
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                connection = await self._open()
        except TimeoutError:
            error = f"no connection within {self._timeouts.connect_s:g} s"
        except OSError as failure:
            error = f"cannot connect to {self._endpoint.host}:{self._endpoint.port}: {failure.strerror or failure}"
        except asyncio.CancelledError:
            error = "cancelled"
        del self._connecting[exchange]
        exchange.connect_ns = now_ns() - exchange.wait_ns
        if connection is not None:
            if exchange.ended:
                connection.abandon()
            else:
                connection.send(exchange)
            return
        if exchange.ended:
            return
        assert error is not None
        exchange.fail("cancelled" if error == "cancelled" else "connect", error)
        exchange.end_ns = now_ns()
        self.end(exchange)

    async def _open(self) -> Connection:
        if self._address is None:
            self._address = await self._resolve()
        family, address = self._address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(sock, address)
            _, connection = await self._loop.create_connection(
                lambda: Connection(self, sock),
                sock=sock,
                ssl=self.tls,
                server_hostname=self._endpoint.host if self.tls else None,
            )
        except BaseException:
            sock.close()
            raise
        self.connections.add(connection)
        return connection

    async def _resolve(self) -> tuple[int, Any]:
        """The first address that takes a connection; found once, so that no request waits for DNS."""
        found = await self._loop.getaddrinfo(self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for family, _, _, _, address in found:
            probe = socket.socket(family, socket.SOCK_STREAM)
            probe.setblocking(False)
            try:
                if len(found) > 1:
                    await self._loop.sock_connect(probe, address)
                return family, address
            except OSError as error:
                failure = error
            finally:
                probe.close()
        raise failure or OSError(f"no address for {self._endpoint.host}")

    # Ending.

    def end(self, exchange: Exchange) -> None:
        """The exchange is over, well or not; its record is made later."""
        if exchange.ended:
            return
        exchange.ended = True
        exchange.connection = None
        self.active.discard(exchange)
        self.later(exchange)
        exchange.on_end(exchange)

    def cancel_all(self, message: str) -> None:
        """Ends everything in flight as cancelled."""
        for exchange in list(self.active):
            self._cancel(exchange, "cancelled", message)

    def _cancel(self, exchange: Exchange, kind: ErrorKind, message: str) -> None:
        if exchange.connection is not None:
            exchange.connection.cancel(kind, message)
            return
        task = self._connecting.get(exchange)
        exchange.fail(kind, message)
        exchange.end_ns = now_ns()
        self.end(exchange)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Closes every connection; nothing may be in flight."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self.connections):
            connection.abandon()
        self.idle.clear()
        tasks = list(self._connecting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    # Work that can wait.

    def later(self, exchange: Exchange) -> None:
        """Parses what the exchange holds, and settles it if it has ended, when the sockets are read."""
        if exchange.queued_ns:
            if len(exchange.pieces) >= MAX_UNPARSED:
                exchange.parse()
            return
        exchange.queued_ns = now_ns()
        self._later.append(exchange)
        self.work_soon()

    def work_soon(self) -> None:
        """Has the waiting work, and then ``spare_time``, done between reads."""
        if not self._slice_due:
            self._slice_due = True
            self._loop.call_soon(self._slice)

    def _slice(self) -> None:
        start = now_ns()
        deadline = start + SLICE_NS
        later = self._later
        if later and start - later[0].queued_ns > PATIENCE_NS:
            # No idle time has come up: parsing now takes a third of the time, rather than let
            # what was read pile up in memory.
            deadline += min((start - self._sliced_ns) // 2, 20 * SLICE_NS)
        more = True
        while now_ns() < deadline:
            if later:
                self.settle(later.popleft())
            elif self.spare_time is None or not self.spare_time():
                more = False
                break
        self._sliced_ns = now_ns()
        if more:
            self._loop.call_soon(self._slice)
        else:
            self._slice_due = False

    def settle(self, exchange: Exchange) -> None:
        """Parses; for an exchange that has ended, finishes it and reports it."""
        exchange.queued_ns = 0
        if exchange.ended:
            exchange.finish()
            self._settled(exchange)
        else:
            exchange.parse()

    def settle_all(self) -> None:
        """Does all the waiting work now."""
        while self._later:
            self.settle(self._later.popleft())

    # Time-outs, and idle connections.

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        now = now_ns()
        limits = self._timeouts
        first_ns = int(limits.first_token_s * NS_PER_S)
        between_ns = int(limits.between_tokens_s * NS_PER_S)
        request_ns = int(limits.request_s * NS_PER_S)
        tightest_ns = min(first_ns, between_ns, DONE_GRACE_NS)
        for exchange in list(self.active):
            if exchange.sent_ns is None:
                continue
            if now - exchange.sent_ns > request_ns:
                self._cancel(exchange, "timeout", f"not done within {limits.request_s:g} s")
                continue
            if now - exchange.seen_ns < tightest_ns:
                continue
            exchange.parse()  # what has come is not known before it is parsed
            waited = now - exchange.seen_ns
            if exchange.done_ns is not None:
                if now - exchange.done_ns > DONE_GRACE_NS and exchange.connection is not None:
                    connection, exchange.connection = exchange.connection, None
                    connection.exchange = None
                    connection.abandon()
                    exchange.end_ns = exchange.done_ns
                    self.end(exchange)
            elif exchange.first_token_ns is None:
                if waited > first_ns:
                    self._cancel(exchange, "timeout", f"no token within {limits.first_token_s:g} s")
            elif waited > between_ns:
                message = f"no token for {limits.between_tokens_s:g} s, after {exchange.tokens} tokens"
                self._cancel(exchange, "timeout", message)
        idle_before = now_ns() - IDLE_LIMIT_NS
        stale = [c for c in self.idle if c.closed or c.free_ns < idle_before]
        if stale:
            self.idle = [c for c in self.idle if not c.closed and c.free_ns >= idle_before]
            for connection in stale:
                connection.abandon()


def _tls_context(endpoint: Endpoint) -> ssl.SSLContext | None:
    if not endpoint.secure:
        return None
    context = ssl.create_default_context()
    if not endpoint.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
