"""One request in flight, and what has come back of it: pure, given the reads and their stamps.

The wire hands over each piece of the body with the time of its read; what the pieces mean (events,
tokens, usage, errors) is worked out here, later, many at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from loadgen.client.sse import SseParser
from loadgen.records import ErrorKind, RequestError, TokenSource

MAX_EVENT_BYTES = 16 * 2**20
MAX_JSON_BYTES = 64 * 2**20
KEPT_BODY_CHARS = 4096
DONE = b"[DONE]"


class Carrier(Protocol):
    """What an exchange knows of the connection that carries it."""

    exchange: Exchange | None

    def abandon(self) -> None:
        """Closes the connection: the reply is not to be read to its end."""

    def cancel(self, kind: ErrorKind, message: str) -> None:
        """Ends the exchange with an error."""


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    code: Any = None


class _PlainUsage(msgspec.Struct, gc=False):
    completion_tokens: int


class _PlainChoice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _PlainEvent(msgspec.Struct, gc=False):
    """What is needed of an event once usage is known to come with each: no text, no names."""

    choices: list[_PlainChoice]
    usage: _PlainUsage
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_events = msgspec.json.Decoder(list[_Event]).decode
_decode_plain_events = msgspec.json.Decoder(list[_PlainEvent]).decode
_decode_any = msgspec.json.Decoder().decode


def error_message(body: bytes) -> str:
    """The message inside an error body, in any of the shapes that engines use.

    vLLM: ``{"error": {"message": ...}}``; TensorRT-LLM: flat ``{"object": "error", "message":
    ...}`` and ``{"error": "text"}``; FastAPI: ``{"detail": ...}``. Anything else comes back as
    text, on one line.
    """
    try:
        value = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            inner = value.get(key)
            if isinstance(inner, dict):
                inner = inner.get("message", inner)
            if inner:
                return inner if isinstance(inner, str) else msgspec.json.encode(inner).decode()
    text = " ".join(body[:KEPT_BODY_CHARS].decode("utf-8", "replace").split())
    return text[:300] if text else "empty body"


class Exchange:
    """One request in flight, and what has come back of it.

    ``on_end`` is called once, in the callback of the read (or failure) that ended it; the results
    below can be read after :meth:`finish`.

    Attributes:
        payload: the request's bytes, head and body.
        job: the caller's own.
        pieces, stamps: body pieces that wait to be parsed, and when each was read.
        queued_ns: since when it waits to be parsed; 0 when it does not.
        seen_ns: the last token event that is known, else ``sent_ns``.
        says_stream: the content type is that of an event stream.
        tokens: output tokens counted so far.
        sent_ns, headers_ns, first_token_ns, last_token_ns, end_ns: as in RequestRecord.
        event_gap_ns, event_tokens: as ``event_ns`` and ``event_tokens`` in RequestRecord.
        error: None after success.
    """

    __slots__ = (
        "_body", "_parser", "_streamed", "_usage_seen", "cached_tokens", "connect_ns", "connection", "done_ns",
        "end_ns", "ended", "error", "event_gap_ns", "event_tokens", "finish_reason", "first_token_ns",
        "headers_ns", "input_tokens", "job", "last_token_ns", "on_end", "output_tokens", "payload", "pieces",
        "queued_ns", "retried", "says_stream", "seen_ns", "sent_ns", "stamps", "status", "token_source",
        "tokens", "wait_ns",
    )  # fmt: skip

    def __init__(self, payload: bytes, on_end: Callable[[Exchange], None], job: Any = None) -> None:
        self.payload = payload
        self.on_end = on_end
        self.job = job
        self.connection: Carrier | None = None
        self.wait_ns = 0  # when the wait for a connection began
        self.connect_ns = 0
        self.sent_ns: int | None = None
        self.headers_ns: int | None = None
        self.first_token_ns: int | None = None
        self.last_token_ns: int | None = None
        self.done_ns: int | None = None
        self.end_ns = 0
        self.ended = False
        self.retried = False
        self.status: int | None = None
        self.error: RequestError | None = None
        self.finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.token_source: TokenSource | None = None
        self.event_gap_ns = array("q")
        self.event_tokens = array("i")
        self.pieces: list[bytes] = []
        self.stamps: list[int] = []
        self.queued_ns = 0
        self._parser: SseParser | None = None
        self._body = bytearray()
        self._streamed: bool | None = None  # None until the first body byte tells
        self.says_stream = False
        self.tokens = 0
        self._usage_seen = 0  # 0 none yet, 1 with the end only, 2 with every event
        self.seen_ns = 0

    def fail(self, kind: ErrorKind, message: str, body: bytes | None = None) -> None:
        """Records a failure; the first one counts."""
        if self.error is None:
            text = None if body is None else body[: 4 * KEPT_BODY_CHARS].decode("utf-8", "replace")
            self.error = RequestError(
                kind=kind,
                status=self.status,
                message=message,
                body=None if text is None else text[:KEPT_BODY_CHARS],
            )

    def parse(self) -> None:
        """Takes in every read that has come so far."""
        pieces, stamps = self.pieces, self.stamps
        if not pieces:
            return
        self.pieces = []
        self.stamps = []
        if self._streamed is None:
            first = b"".join(pieces[:16]).lstrip(b"\xef\xbb\xbf\r\n ")
            # Some servers send events under another content type; a stream is what looks like one.
            self._streamed = self.status == 200 and (self.says_stream or first.startswith((b"data:", b":", b"event:")))
            if self._streamed:
                self._parser = SseParser()
        if not self._streamed:
            for piece in pieces:
                if len(self._body) < MAX_JSON_BYTES:
                    self._body += piece
            return
        parser = self._parser
        assert parser is not None
        payloads, stamps = parser.feed_reads(pieces, stamps)
        if parser.pending_bytes > MAX_EVENT_BYTES:
            self.fail("bad_payload", f"an event of more than {MAX_EVENT_BYTES} bytes")
            if self.connection is not None:
                self.connection.abandon()
        plain = self._usage_seen == 2 and self.first_token_ns is not None
        if payloads and not (plain and self._take_plain(payloads, stamps)):
            self._take_events(stamps, payloads)

    def _take_plain(self, payloads: list[bytes], stamps: list[int]) -> bool:
        """The middle of an ordinary stream, where each event brings one token more.

        Nearly all that is ever read is of this kind, and as a batch it costs two thirds of what
        :meth:`_take_events` costs. Returns False, with nothing taken in, for anything else.
        """
        count = len(payloads)
        try:
            events = _decode_plain_events(b"[%b]" % b",".join(payloads))
            totals = [event.usage.completion_tokens for event in events]
            finishes = [event.choices[0].finish_reason for event in events]
            errors = [event.error for event in events]
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
            return False
        first = self.tokens + 1
        if totals != list(range(first, first + count)) or finishes.count(None) + errors.count(None) != 2 * count:
            return False
        before = self.last_token_ns or self.sent_ns or 0
        self.event_gap_ns.fromlist([stamp - last for last, stamp in zip([before, *stamps], stamps, strict=False)])
        self.event_tokens.fromlist([1] * count)
        self.tokens += count
        self.output_tokens = max(self.tokens, self.output_tokens or 0)
        self.last_token_ns = self.seen_ns = stamps[-1]
        return True

    def _take_events(self, stamps: list[int], payloads: list[bytes]) -> None:
        done_ns = None
        if payloads[-1].strip() == DONE:
            done_ns = stamps.pop()
            payloads.pop()
        events: list[Any]
        try:
            events = _decode_events(b"[%b]" % b",".join(payloads))
            if len(events) != len(payloads):  # a payload that held two values, comma and all
                raise msgspec.DecodeError("not one JSON value")
        except (msgspec.DecodeError, UnicodeDecodeError):
            events, stamps = self._decode_singly(stamps, payloads)
        gaps = self.event_gap_ns
        counts = self.event_tokens
        counted = self.tokens
        before = self.last_token_ns or self.sent_ns or 0
        for stamp, event in zip(stamps, events, strict=True):
            choices = event.choices
            usage = event.usage
            if event.error is not None or event.object == "error":
                detail = event.error if event.error is not None else {"message": event.message, "code": event.code}
                raw = msgspec.json.encode(detail)
                self.fail("stream_error", error_message(b'{"error":%b}' % raw), raw)
                continue
            if not choices:
                if usage is not None:  # the closing event; had usage come with each, it brings nothing new
                    self._take_usage(usage)
                    self._usage_seen = self._usage_seen or 1
                continue
            if usage is not None and usage.completion_tokens is not None:
                tokens = usage.completion_tokens - counted
                if self._usage_seen != 2:
                    self._usage_seen = 2
                    self._take_usage(usage)
            elif self._usage_seen == 2:
                tokens = 0  # the next usage makes up for it
            else:
                tokens = _provisional_tokens(choices[0])
            finish = choices[0].finish_reason
            if finish is not None:
                self.finish_reason = finish
            if tokens > 0:
                counted += tokens
                gaps.append(stamp - before)
                counts.append(tokens)
                before = stamp
        if counted > self.tokens:
            if self.first_token_ns is None:
                self.first_token_ns = (self.sent_ns or 0) + gaps[0]
            self.last_token_ns = self.seen_ns = before
        if self._usage_seen == 2:
            self.output_tokens = max(counted, self.output_tokens or 0)
        self.tokens = counted
        if done_ns is not None and self.done_ns is None:
            self.done_ns = done_ns

    def _take_usage(self, usage: _Usage) -> None:
        if usage.completion_tokens is not None:
            self.output_tokens = usage.completion_tokens
        if usage.prompt_tokens is not None:
            self.input_tokens = usage.prompt_tokens
        if usage.prompt_tokens_details:
            cached = usage.prompt_tokens_details.get("cached_tokens")
            self.cached_tokens = cached if isinstance(cached, int) else None

    def _decode_singly(self, stamps: list[int], payloads: list[bytes]) -> tuple[list[Any], list[int]]:
        """The events that can be decoded; the first that cannot becomes this request's failure."""
        good_stamps, events = [], []
        for stamp, payload in zip(stamps, payloads, strict=True):
            if payload.strip() == DONE:
                self.done_ns = stamp
                continue
            try:
                events.append(_decode_event(payload))
                good_stamps.append(stamp)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                self.fail("bad_payload", f"an event that is no completion JSON: {error}", payload)
        return events, good_stamps

    def finish(self) -> None:
        """Decides between success and failure once the exchange has ended and all is parsed."""
        self.parse()
        if self._streamed is None:  # no body at all
            self._streamed = self.status == 200 and self.says_stream
        if self.done_ns is not None:
            self.end_ns = self.done_ns
        if self.error is None and self.status is not None and self.status != 200:
            body = bytes(self._body)
            self.fail("http_status", f"HTTP {self.status}: {error_message(body)}", body)
        elif self.error is None and not self._streamed:
            self._finish_unstreamed()
        elif self.error is None:
            if self.done_ns is None:
                self.fail("stream_truncated", f"the stream ended without [DONE], after {self.tokens} tokens")
            elif self.finish_reason is None:
                self.fail("stream_truncated", "[DONE] came, but no finish_reason")
        if self._usage_seen == 2:
            self.token_source = "usage_continuous"
        elif self._usage_seen == 1:
            self.token_source = "usage_final"
        elif self.tokens:
            self.token_source = "events"
            self.output_tokens = self.tokens
        self.payload = b""
        self._body = bytearray()

    def _finish_unstreamed(self) -> None:
        """A 200 that is no event stream: a whole completion, or a failure."""
        body = bytes(self._body)
        try:
            reply = _decode_any(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.fail("bad_payload", f"a 200 that is neither an event stream nor JSON: {error_message(body)}", body)
            return
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(reply, dict) or not isinstance(choices, list) or not choices:
            self.fail("bad_payload", f"a 200 without choices: {error_message(body)}", body)
            return
        if isinstance(choices[0], dict):
            self.finish_reason = choices[0].get("finish_reason")
        usage = reply.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self._usage_seen = 1
            self.output_tokens = usage["completion_tokens"]
            prompt_tokens = usage.get("prompt_tokens")
            self.input_tokens = prompt_tokens if isinstance(prompt_tokens, int) else None
        self.last_token_ns = self.end_ns
        if self.finish_reason is None:
            self.fail("bad_payload", "a completion without a finish_reason", body)


def _provisional_tokens(choice: Any) -> int:
    """1 when an event without usage carries a token, else 0.

    A chat stream's role event carries none, nor does an empty closing event. An empty text inside
    a stream does: an incomplete UTF-8 sequence, or a special token.
    """
    delta = choice.delta
    if delta is None:
        return 1 if choice.text or choice.finish_reason is None else 0
    if delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls:
        return 1
    return 0 if delta.role is not None or choice.finish_reason is not None else 1
