"""The embedded engine's HTTP: connections, requests, and replies as vLLM writes them, with the faults asked for."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol

import httptools
import msgspec

from loadgen.engines.sim_config import NO_FAULT, Fault, SimConfig
from loadgen.engines.sim_model import Sequence
from loadgen.units import NS_PER_S

TEXT = b" token"
BYTES_PER_TEXT_TOKEN = 4  # a text prompt has no tokenizer here: four bytes count as a token


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Body(msgspec.Struct):
    """A completion request, as far as the engine looks at it."""

    model: str | None = None
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    sim: Fault | None = None


decode_body = msgspec.json.Decoder(Body).decode
encode = msgspec.json.Encoder().encode


class Timed(Protocol):
    """Something that the clock calls when its time has come."""

    def fire(self, due_ns: int, now: int) -> None: ...


class Server(Protocol):
    """What connections and replies need of the server that they belong to."""

    config: SimConfig
    created: int
    name_json: bytes
    serial: Callable[[], int]

    def at(self, due_ns: int, timed: Timed) -> None: ...

    def late(self, ns: int) -> None: ...

    def request(self, connection: Connection, method: bytes) -> None: ...

    def finished(self, reply: Reply, now: int) -> None: ...

    def want_write(self, connection: Connection, wanted: bool) -> None: ...

    def drop(self, connection: Connection) -> None: ...


class Connection:
    """A client's connection: reads are stamped and queued, writes go out at once."""

    __slots__ = ("_out", "_parser", "_server", "arrival_ns", "body", "closing", "headers", "reply", "sock", "url")

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self.sock = sock
        self._parser = httptools.HttpRequestParser(self)
        self._out = b""
        self.arrival_ns = 0
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.reply: Reply | None = None
        self.closing = False

    def feed(self, stamp: int, data: bytes) -> None:
        self.arrival_ns = stamp
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()

    def on_message_begin(self) -> None:
        self.headers = {}
        self.body = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self._server.request(self, self._parser.get_method())

    def write(self, data: bytes) -> None:
        if self._out:
            self._out += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._out = data[sent:]
            self._server.want_write(self, True)

    def flush(self) -> None:
        """The socket takes bytes again."""
        data, self._out = self._out, b""
        self._server.want_write(self, False)
        self.write(data)
        if self.closing and not self._out:
            self.close()

    def close(self, reset: bool = False) -> None:
        """Closes; with bytes still to be written, after those, unless ``reset``."""
        if self._out and not reset and not self.closing:
            self.closing = True
            return
        if reset and self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._server.drop(self)


class Reply:
    """The answer to one completion request."""

    __slots__ = (
        "_chat", "_connection", "_continuous", "_final_usage", "_head", "_plain", "_server", "arrival_ns", "emitted",
        "fault", "first_due_ns", "first_write_ns", "headers_due", "held", "input_tokens", "last_write_ns", "names",
        "output_tokens", "request_id", "sequence", "stalled", "started", "stream", "tpot_ns",
    )  # fmt: skip

    def __init__(self, server: Server, connection: Connection, body: Body, chat: bool, fault: Fault) -> None:
        config = server.config
        raw = bytes(body.messages if chat else body.prompt)
        self._server = server
        self._connection = connection
        self._chat = chat
        self.arrival_ns = connection.arrival_ns
        self.fault = fault
        self.stream = body.stream and not fault.unstreamed
        self.input_tokens = (
            raw.count(b",") + 1 if not chat and raw[:1] == b"[" else max(1, (len(raw) - 2) // BYTES_PER_TEXT_TOKEN)
        )
        wanted = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
        self.output_tokens = wanted if wanted is not None else 16
        if fault.output_tokens is not None:
            self.output_tokens = min(self.output_tokens, fault.output_tokens)
        options = body.stream_options or _StreamOptions()
        self._final_usage = options.include_usage
        self._continuous = options.include_usage and options.continuous_usage_stats
        if fault.usage is not None:
            self._final_usage = fault.usage != "none"
            self._continuous = fault.usage == "continuous"
        self.request_id = connection.headers.get(b"x-request-id", b"%d" % server.serial())
        self.names = (
            b'"id":%b,"object":"%b","created":%d,"model":%b'
            % (
                encode((b"chatcmpl-" if chat else b"cmpl-").decode() + self.request_id.decode("latin-1")),
                b"chat.completion" if chat else b"text_completion",
                server.created,
                server.name_json,
            )
        )  # fmt: skip
        chunk_names = self.names.replace(b'"chat.completion"', b'"chat.completion.chunk"', 1)
        self._head = b'data: {%b,"choices":[{"index":0,' % chunk_names
        # Everything but the token count of an ordinary event, made once: the server writes 100,000
        # events a second.
        self._plain = self._event_head(TEXT, None) + (
            b'],"usage":{"prompt_tokens":%d,"total_tokens":' % self.input_tokens if self._continuous else b"]}\n\n"
        )
        self.emitted = 0
        self.tpot_ns = int((config.tpot_s if fault.tpot_s is None else fault.tpot_s) * NS_PER_S)
        ttft_s = config.ttft_s if fault.ttft_s is None else fault.ttft_s
        self.first_due_ns = self.arrival_ns + int(ttft_s * NS_PER_S)
        self.first_write_ns = 0
        self.last_write_ns = 0
        self.started = False
        self.stalled = False
        self.headers_due = 0
        self.held: list[bytes] = []
        self.sequence: Sequence | None = None

    # What an event looks like.

    def _event_head(self, text: bytes, finish: bytes | None, field: bytes = b"content") -> bytes:
        reason = b"null" if finish is None else b'"%b"' % finish
        if self._chat:
            return b'%b"delta":{"%b":"%b"},"logprobs":null,"finish_reason":%b}' % (self._head, field, text, reason)
        return b'%b"text":"%b","logprobs":null,"finish_reason":%b,"stop_reason":null}' % (self._head, text, reason)

    def _usage(self) -> bytes:
        return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
            self.input_tokens,
            self.input_tokens + self.emitted,
            self.emitted,
        )

    def _usage_field(self) -> bytes:
        return b',"usage":%b' % self._usage() if self._continuous else b""

    def _role_event(self) -> bytes:
        return b'%b"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b}\n\n' % (
            self._head,
            self._usage_field(),
        )

    def _closing_events(self) -> list[bytes]:
        events = []
        if self._final_usage:
            start = self._head[: self._head.index(b'"choices"')]
            events.append(b'%b"choices":[],"usage":%b}\n\n' % (start, self._usage()))
        if self.fault.done:
            events.append(b"data: [DONE]\n\n")
        return events

    # Writing.

    def start(self) -> None:
        """Response headers, as soon as the request has been taken in."""
        fault = self.fault
        if fault.reset_after == 0 or fault.cut_after == 0:
            self._connection.close(reset=fault.reset_after == 0)
            return
        if not self.stream:
            return
        if fault.headers_delay_s and not self.headers_due:
            self.headers_due = self.arrival_ns + int(fault.headers_delay_s * NS_PER_S)
            self._server.at(self.headers_due, _Headers(self))
            return
        framing = b"transfer-encoding: chunked\r\n" if fault.framing == "chunked" else b"connection: close\r\n"
        head = b"HTTP/1.1 200 OK\r\nserver: loadgen-sim\r\ncontent-type: %b\r\n%b\r\n" % (
            fault.content_type.encode(),
            framing,
        )
        self.started = True
        held, self.held = self.held, []
        if self._chat and fault.role_early:
            self._connection.write(head)
            self._write([self._role_event()])
        elif held:  # tokens became due before the headers
            self._connection.write(head)
            self._write(held)
        else:
            self._connection.write(head)

    def _write(self, events: list[bytes], last: bool = False) -> None:
        """Events in one write, through whatever the fault does to them; ``last`` ends the body."""
        fault = self.fault
        if fault.comments:
            events = [b": keep-alive\n\n" + event for event in events]
        if fault.bare_data:
            events = [event.replace(b"data: ", b"data:", 1) for event in events]
        if fault.multi_line:
            events = [event.replace(b',"choices"', b',\ndata: "choices"', 1) for event in events]
        if fault.crlf:
            events = [event.replace(b"\n", b"\r\n") for event in events]
        if fault.framing == "chunked":
            data = b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events])
            if last:
                data += b"0\r\n\r\n"
        else:
            data = b"".join(events)
        if fault.fragment_bytes:
            for start in range(0, len(data), fault.fragment_bytes):
                self._connection.write(data[start : start + fault.fragment_bytes])
        else:
            self._connection.write(data)

    def tokens(self, tokens: int, now: int) -> bool:
        """Writes one event of that many tokens; True when the reply is complete or broken off."""
        fault = self.fault
        if not self.stream:
            self.emitted += tokens
            self.first_write_ns = self.first_write_ns or now
            if self.emitted >= self.output_tokens:
                self._write_whole(now)
                return True
            return False
        for limit, reset in ((fault.reset_after, True), (fault.cut_after, False)):
            if limit is not None and self.emitted >= limit:
                self._connection.close(reset=reset)
                return True
        if fault.error_after is not None and self.emitted >= fault.error_after:
            error = (
                b'data: {"error":{"message":"simulated engine failure","type":"InternalServerError","code":500}}\n\n'
            )
            self._write([error, b"data: [DONE]\n\n"], last=True)
            self._finish(now)
            return True
        events = [self._role_event()] if self._chat and not self.emitted and not fault.role_early else []
        if fault.malformed_after is not None and self.emitted == fault.malformed_after:
            events.append(b'data: {"choices":[{"index":0,\n\n')
        self.emitted += tokens
        last = self.emitted >= self.output_tokens
        text = b"" if fault.empty_text and self.emitted % 2 == 0 else TEXT
        field = b"reasoning_content" if self.emitted <= fault.reasoning else b"content"
        finish = None
        if last and fault.finish:
            finish = b"stop" if fault.output_tokens is not None else b"length"
        events.append(b"%b]%b}\n\n" % (self._event_head(text * tokens, finish, field), self._usage_field()))
        if last:
            events += self._closing_events()
        self.held += events
        waits = not self.started or (len(self.held) < fault.events_per_write and self.emitted > 1)
        if waits and not last:
            return False
        if not self.started:
            self.start_late()
        held, self.held = self.held, []
        self._write(held, last)
        self._mark(now)
        if last:
            self._finish(now)
        return last

    def start_late(self) -> None:
        """The last token is due and the headers are not out yet: both go now."""
        held, self.held = self.held, []
        self.start()
        self.held = held

    def _mark(self, now: int) -> None:
        self.first_write_ns = self.first_write_ns or now
        self.last_write_ns = now

    def token_fast(self, now: int) -> bool:
        """:meth:`tokens` for one token of a stream without faults."""
        emitted = self.emitted + 1
        if emitted >= self.output_tokens or (self._chat and emitted == 1) or self.fault is not NO_FAULT:
            return self.tokens(min(1 if not self.emitted else self.fault.tokens_per_event, self._left()), now)
        if not self.stream:
            return self.tokens(1, now)
        self.emitted = emitted
        if self._continuous:
            event = b'%b%d,"completion_tokens":%d}}\n\n' % (self._plain, self.input_tokens + emitted, emitted)
        else:
            event = self._plain
        self._connection.write(b"%x\r\n%b\r\n" % (len(event), event))
        if emitted == 1:
            self.first_write_ns = now
        self.last_write_ns = now
        return False

    def _left(self) -> int:
        return self.output_tokens - self.emitted

    def _finish(self, now: int) -> None:
        self._server.finished(self, now)
        self._connection.reply = None
        if self.fault.framing == "close":
            self._connection.close()

    def _write_whole(self, now: int) -> None:
        text = TEXT * self.output_tokens
        inner = b'"message":{"role":"assistant","content":"%b"}' if self._chat else b'"text":"%b"'
        finish = b"stop" if self.fault.output_tokens is not None else b"length"
        body = b'{%b,"choices":[{"index":0,%b,"finish_reason":"%b"}],"usage":%b}' % (
            self.names,
            inner % text,
            finish,
            self._usage(),
        )
        self._mark(now)
        self._server.finished(self, now)
        self._connection.reply = None
        self._connection.write(http_response(200, body))

    # The clock, in mode `fixed`.

    def fire(self, due_ns: int, now: int) -> None:
        connection = self._connection
        if connection.reply is not self:
            return  # the client has gone
        self._server.late(now - due_ns)
        fault = self.fault
        if fault.stall_after is not None and self.emitted >= fault.stall_after and not self.stalled:
            self.stalled = True
            self._server.at(now + int(fault.stall_s * NS_PER_S), self)
            return
        if not self.token_fast(now):
            self._server.at(self.first_due_ns + self.emitted * self.tpot_ns, self)


class _Headers:
    """Response headers that a fault has put off."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def fire(self, due_ns: int, now: int) -> None:
        if not self._reply.started and self._reply._connection.reply is self._reply:
            self._reply.start()


_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed"}


def http_response(status: int, body: bytes, content_type: bytes = b"application/json") -> bytes:
    """A whole response of known length."""
    return b"HTTP/1.1 %d %b\r\nserver: loadgen-sim\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        _REASONS.get(status, b"Error"),
        content_type,
        len(body),
        body,
    )


def failure(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """An error response in vLLM's shape."""
    return http_response(status, encode({"error": {"message": message, "type": kind, "param": param, "code": status}}))


def shaped_failure(status: int, shape: str) -> bytes:
    """An error response that a fault asks for; the shapes are those of :class:`Fault`."""
    text = "simulated failure"
    if shape == "html":
        return http_response(status, b"<html><body><h1>simulated failure</h1></body></html>", b"text/html")
    bodies: dict[str, Any] = {
        "flat": {"object": "error", "message": text, "type": "BadRequestError", "param": None, "code": status},
        "text": {"error": text},
        "detail": {"detail": text},
    }
    if shape == "empty":
        return http_response(status, b"")
    return http_response(status, encode(bodies[shape])) if shape in bodies else failure(status, text, "ServerError")
