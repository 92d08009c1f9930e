"""What ``sim``, the embedded engine, can be told: how it behaves, and the faults that a request may ask for."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


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


NO_FAULT = Fault()


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
