"""``sim``, the embedded engine: a real HTTP server whose timing is known.

It speaks vLLM's dialect (endpoints, stream format, error shapes, Prometheus names) and has two
modes:

``fixed``
    The first token and every gap come exactly as commanded, on an absolute schedule that starts
    at the read which completed the request. What the server itself was late by is measured and
    given at ``/sim/lateness``; its own stamps of each request are at ``/sim/requests``.
``batch``
    A continuous-batching model of one GPU and one model, see :mod:`loadgen.engines.sim_model`.

One thread, one epoll loop, no asyncio: an arrival is stamped before anything is parsed, tokens are
written with ``socket.send`` at their due time, and between any 16 writes the sockets are looked at
again. Faults are commanded per request in the body's field ``sim`` (:class:`Fault`), or for all.

It computes nothing: every token is the same word, and every figure measured on it is SIMULATED.
"""

from __future__ import annotations

import gc
import heapq
import resource
import select
import socket
import struct
import sys
from array import array
from collections import deque
from itertools import count
from typing import Any, Literal, Protocol

import httptools
import msgspec

from loadgen import __version__
from loadgen.clock import now_ns
from loadgen.engines.sim_model import GPUS, MODELS, BatchModel, Sequence
from loadgen.units import NS_PER_S

TEXT = b" token"
BYTES_PER_TEXT_TOKEN = 4  # a text prompt has no tokenizer here: four bytes count as a token
SPIN_NS = 100_000
MAX_LOGGED = 200_000


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request's ``sim`` field may command. Token numbers count from 1.

    Attributes:
        ttft_s, tpot_s: this request's timing (mode ``fixed``).
        status: answer with this HTTP status, and ``error_shape`` as the body.
        error_shape: ``vllm``, ``flat``, ``text``, ``detail``, ``html`` or ``empty``.
        reset_after, cut_after, error_after: after that many tokens reset the connection, close it
            cleanly without ``[DONE]``, or send an error event and then ``[DONE]``; 0 is before the
            first token (for the first two: before the headers).
        stall_after, stall_s: after that many tokens wait.
        tokens_per_event: tokens in each event after the first.
        events_per_write: events held back and written at once.
        fragment_bytes: write in pieces of that size, one system call each.
        headers_delay_s: response headers come that late (tokens are not moved).
        role_early: the chat role event comes with the headers, not with the first token.
        usage: ``continuous``, ``final`` or ``none``, whatever was asked for.
        finish: False leaves finish_reason null.
        done: False leaves out ``[DONE]``.
        crlf, comments, bare_data, multi_line: CR LF line ends, comment lines in between, ``data:``
            without a space, JSON split over several data lines.
        malformed_after: an event that is no JSON.
        empty_text: every second token has no text.
        reasoning: that many first tokens come as ``reasoning_content``.
        framing: ``chunked``, or ``close``: the end of the connection ends the body.
        unstreamed: answer a streaming request with one JSON body.
        content_type: of a stream.
        output_tokens: stop after that many tokens (finish_reason ``stop``).
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    status: int | None = None
    error_shape: Literal["vllm", "flat", "text", "detail", "html", "empty"] = "vllm"
    reset_after: int | None = None
    cut_after: int | None = None
    error_after: int | None = None
    stall_after: int | None = None
    stall_s: float = 3600.0
    tokens_per_event: int = 1
    events_per_write: int = 1
    fragment_bytes: int = 0
    headers_delay_s: float = 0.0
    role_early: bool = False
    usage: Literal["continuous", "final", "none"] | None = None
    finish: bool = True
    done: bool = True
    crlf: bool = False
    comments: bool = False
    bare_data: bool = False
    multi_line: bool = False
    malformed_after: int | None = None
    empty_text: bool = False
    reasoning: int = 0
    framing: Literal["chunked", "close"] = "chunked"
    unstreamed: bool = False
    content_type: str = "text/event-stream; charset=utf-8"
    output_tokens: int | None = None


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine behaves; ``port`` 0 takes a free one."""

    mode: Literal["fixed", "batch"] = "batch"
    host: str = "127.0.0.1"
    port: int = 0
    ttft_s: float = 0.05
    tpot_s: float = 0.01
    gpu: str = "a100-80gb"
    model: str = "qwen1.5-4b"
    max_batch_size: int = 256
    max_num_tokens: int = 8192
    fault: dict[str, Any] = {}

    @property
    def served_name(self) -> str:
        """The model's name on the wire; it says that nothing is computed."""
        return "sim-fixed" if self.mode == "fixed" else f"sim-{self.model}"


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Body(msgspec.Struct):
    model: str | None = None
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    sim: Fault | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


class Timed(Protocol):
    """Something that the clock calls when its time has come."""

    def fire(self, due_ns: int, now: int) -> None: ...


class Connection:
    """A client's connection: reads are stamped and queued, writes go out at once."""

    __slots__ = ("_out", "_parser", "_server", "arrival_ns", "body", "closing", "headers", "reply", "sock", "url")

    def __init__(self, server: SimServer, sock: socket.socket) -> None:
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

    def __init__(self, server: SimServer, connection: Connection, body: _Body, chat: bool, fault: Fault) -> None:
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
                _encode((b"chatcmpl-" if chat else b"cmpl-").decode() + self.request_id.decode("latin-1")),
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


NO_FAULT = Fault()


class _Headers:
    """Response headers that a fault has put off."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def fire(self, due_ns: int, now: int) -> None:
        if not self._reply.started and self._reply._connection.reply is self._reply:
            self._reply.start()


class BatchEngine:
    """Steps of a continuous-batching engine; each step's tokens are written when it ends."""

    def __init__(self, server: SimServer, model: BatchModel) -> None:
        self._server = server
        self.model = model
        self._replies: dict[Sequence, Reply] = {}
        self._stepping = False

    def add(self, reply: Reply) -> None:
        sequence = Sequence(reply.input_tokens, reply.output_tokens)
        reply.sequence = sequence
        self._replies[sequence] = reply
        self.model.add(sequence)
        if not self._stepping:
            self._step(now_ns())

    def drop(self, reply: Reply) -> None:
        assert reply.sequence is not None
        if self._replies.pop(reply.sequence, None) is not None:
            self.model.remove(reply.sequence)

    def _step(self, start_ns: int) -> None:
        seconds = self.model.begin_step()
        self._stepping = seconds is not None
        if seconds is not None:
            self._server.at(start_ns + int(seconds * NS_PER_S), self)

    def fire(self, due_ns: int, now: int) -> None:
        self._server.late(now - due_ns)
        for sequence in self.model.end_step():
            reply = self._replies.get(sequence)  # None: its connection broke during this step
            if reply is not None and reply.token_fast(now_ns()):
                self._replies.pop(sequence, None)
                self.model.remove(sequence)
        self._step(due_ns)


class SimServer:
    """The server: sockets, clock and routes."""

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.created = 1_700_000_000
        self.name_json = _encode(config.served_name)
        self._serial = count()
        self.serial = self._serial.__next__
        self._heap: list[tuple[int, int, Timed]] = []
        self._arrived: deque[tuple[int, Connection, bytes]] = deque()
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._default_fault = msgspec.convert(config.fault, Fault) if config.fault else NO_FAULT
        self._batch = (
            BatchEngine(
                self,
                BatchModel(GPUS[config.gpu], MODELS[config.model], config.max_batch_size, config.max_num_tokens),
            )
            if config.mode == "batch"
            else None
        )
        self._lateness = array("q")
        self._log: deque[tuple[bytes, int, int, int, int]] = deque(maxlen=MAX_LOGGED)
        self._counters = {"prompt": 0, "generation": 0, "stop": 0, "length": 0, "aborted": 0}
        self._sums = {"ttft": 0.0, "e2e": 0.0, "tpot": 0.0}
        self._running = 0
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._listener = socket.create_server((config.host, config.port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self.port: int = self._listener.getsockname()[1]

    # The loop.

    def run(self) -> None:
        """Serves for ever."""
        heap, arrived, poll = self._heap, self._arrived, self._epoll.poll
        connections = self._connections
        listener = self._listener.fileno()
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            now = now_ns()
            fired = 0
            while heap and heap[0][0] <= now:
                due, _, timed = heapq.heappop(heap)
                timed.fire(due, now)
                now = now_ns()
                fired += 1
                if fired == 16:
                    break  # arrivals must be stamped in time too
            if arrived:
                stamp, connection, data = arrived.popleft()
                connection.feed(stamp, data)
            if arrived or (heap and heap[0][0] - now_ns() < SPIN_NS):
                ready = poll(0)
            else:
                ready = self._wait()
            for fd, mask in ready:
                if fd == listener:
                    self._accept()
                else:
                    one = connections.get(fd)
                    if one is None:
                        continue
                    if mask & select.EPOLLOUT:
                        one.flush()
                    if mask & ~select.EPOLLOUT:
                        self._read(one)

    def _wait(self) -> list[tuple[int, int]]:
        """Sleeps until a socket is ready or the next deadline is near.

        epoll's own time-out has a resolution of 1 ms; select's has one of 1 us.
        """
        if not self._heap:
            return self._epoll.poll(1.0)
        seconds = (self._heap[0][0] - now_ns() - SPIN_NS) / NS_PER_S
        if seconds > 0:
            select.select([self._epoll.fileno()], [], [], seconds)
        return self._epoll.poll(0)

    def at(self, due_ns: int, timed: Timed) -> None:
        """Calls ``timed.fire`` at ``due_ns``."""
        heapq.heappush(self._heap, (due_ns, self.serial(), timed))

    def late(self, ns: int) -> None:
        if len(self._lateness) < 5 * MAX_LOGGED:
            self._lateness.append(ns)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                print(f"sim: cannot accept a connection: {error}", file=sys.stderr, flush=True)
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = Connection(self, sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._arrived.append((now_ns(), connection, data))
        else:
            self.drop(connection)

    def want_write(self, connection: Connection, wanted: bool) -> None:
        mask = select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
        if connection.sock.fileno() >= 0:
            self._epoll.modify(connection.sock.fileno(), mask)

    def drop(self, connection: Connection) -> None:
        """Forgets a connection; a request on it is aborted, as vLLM does."""
        fd = connection.sock.fileno()
        if fd < 0:
            return
        del self._connections[fd]
        self._epoll.unregister(fd)
        connection.sock.close()
        reply, connection.reply = connection.reply, None
        if reply is not None:
            self._running -= 1
            self._counters["aborted"] += 1
            self._counters["prompt"] += reply.input_tokens
            self._counters["generation"] += reply.emitted
            if self._batch is not None and reply.sequence is not None:
                self._batch.drop(reply)

    # Routes.

    def request(self, connection: Connection, method: bytes) -> None:
        path = connection.url.partition(b"?")[0]
        if path in (b"/v1/completions", b"/v1/chat/completions"):
            if method != b"POST":
                connection.write(http_response(405, b'{"detail":"Method Not Allowed"}'))
            else:
                self._complete(connection, chat=b"chat" in path)
            return
        answers = {
            b"/health": lambda: b"",
            b"/version": lambda: _encode({"version": __version__}),
            b"/v1/models": self._models,
            b"/sim/lateness": self._lateness_report,
            b"/sim/requests": self._request_log,
        }
        if path == b"/metrics":
            connection.write(http_response(200, self._metrics().encode(), b"text/plain; version=0.0.4"))
        elif path in answers:
            connection.write(http_response(200, answers[path]()))
        else:
            connection.write(http_response(404, b'{"detail":"Not Found"}'))

    def _complete(self, connection: Connection, chat: bool) -> None:
        raw = b"".join(connection.body)
        try:
            body = _decode_body(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            connection.write(_error(400, str(error), "Bad Request"))
            return
        name = self.config.served_name
        wanted = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
        if body.model is not None and body.model != name:
            text = f"The model `{body.model}` does not exist. Valid aliases: {name}."
            connection.write(_error(404, text, "NotFoundError", "model"))
        elif not bytes(body.messages if chat else body.prompt).strip(b'"[] '):
            connection.write(_error(400, f"{'messages' if chat else 'prompt'} is missing or empty", "Bad Request"))
        elif wanted is not None and wanted < 1:
            connection.write(_error(400, f"max_tokens must be at least 1, got {wanted}", "BadRequestError"))
        else:
            fault = body.sim or self._default_fault
            if fault.status is not None:
                connection.write(_shaped_error(fault.status, fault.error_shape))
                return
            reply = Reply(self, connection, body, chat, fault)
            connection.reply = reply
            self._running += 1
            reply.start()
            if self._batch is not None:
                self._batch.add(reply)
            else:
                self.at(reply.first_due_ns, reply)

    def finished(self, reply: Reply, now: int) -> None:
        self._running -= 1
        self._counters["prompt"] += reply.input_tokens
        self._counters["generation"] += reply.emitted
        self._counters["stop" if reply.fault.output_tokens is not None else "length"] += 1
        self._sums["ttft"] += (reply.first_write_ns - reply.arrival_ns) / NS_PER_S
        self._sums["e2e"] += (now - reply.arrival_ns) / NS_PER_S
        if reply.emitted > 1:
            self._sums["tpot"] += (now - reply.first_write_ns) / NS_PER_S / (reply.emitted - 1)
        self._log.append((reply.request_id, reply.arrival_ns, reply.first_write_ns, reply.last_write_ns, reply.emitted))

    def _models(self) -> bytes:
        name = self.config.served_name
        entry = {"id": name, "object": "model", "created": self.created, "owned_by": "loadgen-sim", "root": name}
        return _encode({"object": "list", "data": [entry]})

    def _lateness_report(self) -> bytes:
        """Seconds by which token writes came after their due time, since the last call."""
        late = sorted(self._lateness)
        self._lateness = array("q")
        report: dict[str, float] = {"count": len(late)}
        if late:
            report["mean_s"] = sum(late) / len(late) / NS_PER_S
            for q in (50, 99):
                report[f"p{q}_s"] = late[min(len(late) - 1, len(late) * q // 100)] / NS_PER_S
            report["max_s"] = late[-1] / NS_PER_S
        return _encode(report)

    def _request_log(self) -> bytes:
        """``[id, arrival_ns, first_write_ns, last_write_ns, tokens]`` of each request since the last call."""
        rows = [(row[0].decode("latin-1"), *row[1:]) for row in self._log]
        self._log.clear()
        return _encode(rows)

    def _metrics(self) -> str:
        labels = f'engine="0",model_name={self.name_json.decode()}'
        waiting = kv_used = 0.0
        if self._batch is not None:
            waiting, kv_used = float(self._batch.model.waiting), self._batch.model.kv_usage
        finished = self._counters["stop"] + self._counters["length"]
        lines = []

        def series(name: str, kind: str, value: float, more: str = "") -> None:
            lines.append(f"# TYPE {name} {kind}")
            lines.append(f"{name}{{{labels}{more}}} {value}")

        series("vllm:num_requests_running", "gauge", self._running - waiting)
        series("vllm:num_requests_waiting", "gauge", waiting)
        series("vllm:kv_cache_usage_perc", "gauge", kv_used)
        series("vllm:prompt_tokens_total", "counter", self._counters["prompt"])
        series("vllm:generation_tokens_total", "counter", self._counters["generation"])
        series("vllm:num_preemptions_total", "counter", 0)
        for reason in ("stop", "length"):
            series("vllm:request_success_total", "counter", self._counters[reason], f',finished_reason="{reason}"')
        for name, key in (
            ("vllm:time_to_first_token_seconds", "ttft"),
            ("vllm:e2e_request_latency_seconds", "e2e"),
            ("vllm:request_time_per_output_token_seconds", "tpot"),
        ):
            lines.append(f"# TYPE {name} histogram")
            lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {finished}')
            lines.append(f"{name}_sum{{{labels}}} {self._sums[key]}")
            lines.append(f"{name}_count{{{labels}}} {finished}")
        return "\n".join(lines) + "\n"


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


def _error(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    return http_response(status, _encode({"error": {"message": message, "type": kind, "param": param, "code": status}}))


def _shaped_error(status: int, shape: str) -> bytes:
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
    return http_response(status, _encode(bodies[shape])) if shape in bodies else _error(status, text, "ServerError")


def main(argv: list[str]) -> None:
    """``python -m loadgen.engines.sim CONFIG_JSON PORT``: serves until it is ended."""
    config = msgspec.json.decode(argv[1], type=SimConfig)
    SimServer(msgspec.structs.replace(config, port=int(argv[2]))).run()


if __name__ == "__main__":
    main(sys.argv)
