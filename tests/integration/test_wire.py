"""The wire against real sockets: the embedded engine with faults, and scripted servers."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from typing import Any

import pytest
import uvloop
from servers import TPOT_S, TTFT_S, read_request, scripted

from loadgen.client.endpoint import Endpoint, RequestEncoder
from loadgen.client.exchange import Exchange
from loadgen.client.wire import Timeouts, Wire
from loadgen.engines.launch import Launched
from loadgen.workloads.prompts import Prompt

QUICK = Timeouts(connect_s=2, first_token_s=5, between_tokens_s=5, request_s=10)


def prompt(output_tokens: int = 8, **fields: Any) -> Prompt:
    return Prompt(
        id="p",
        kind="text",
        content=b'"How do you do?"',
        output_tokens=output_tokens,
        fields={name: json.dumps(value).encode() for name, value in fields.items()},
    )


def exchange_all(
    url: str,
    prompts: list[Prompt],
    *,
    timeouts: Timeouts = QUICK,
    api: str = "completions",
    dialect: str = "sim",
    pause_s: float = 0.0,
    **more: Any,
) -> list[Exchange]:
    """Sends the prompts one after another over one Wire; the exchanges, settled."""
    endpoint = Endpoint(url=url, model="sim-fixed", dialect=dialect, api=api, **more)  # type: ignore[arg-type]
    encoder = RequestEncoder(endpoint)

    async def run() -> list[Exchange]:
        settled: list[Exchange] = []
        wire = Wire(endpoint, timeouts, settled.append)
        for number, one in enumerate(prompts):
            if number:
                await asyncio.sleep(pause_s)
            wire.send(Exchange(encoder.encode(one, b"id-%d" % number), lambda exchange: None))
            while len(settled) <= number:
                await asyncio.sleep(0.005)
        await wire.close()
        return settled

    return uvloop.run(run())


def one(url: str, output_tokens: int = 8, fault: dict[str, Any] | None = None, **more: Any) -> Exchange:
    return exchange_all(url, [prompt(output_tokens, **({"sim": fault} if fault else {}))], **more)[0]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_plain_stream_gives_every_token_and_its_time(sim: Launched, api: str) -> None:
    exchange = one(sim.url, 16, api=api)
    assert exchange.error is None
    assert exchange.output_tokens == 16
    assert exchange.finish_reason == "length"
    assert exchange.token_source == "usage_continuous"
    assert exchange.input_tokens and exchange.input_tokens > 0
    assert list(exchange.event_tokens) == [1] * 16
    assert exchange.sent_ns and exchange.first_token_ns and exchange.last_token_ns and exchange.headers_ns
    assert exchange.sent_ns < exchange.headers_ns < exchange.first_token_ns < exchange.last_token_ns <= exchange.end_ns
    assert exchange.sent_ns + sum(exchange.event_gap_ns) == exchange.last_token_ns
    # A machine that is busy makes tokens later, never earlier.
    assert exchange.first_token_ns - exchange.sent_ns >= TTFT_S * 1e9
    assert exchange.last_token_ns - exchange.first_token_ns >= 15 * TPOT_S * 1e9 * 0.8


FRAMINGS = {
    "fragments of 7 bytes": {"fragment_bytes": 7},
    "several events in a write": {"events_per_write": 4},
    "CR LF": {"crlf": True},
    "comments": {"comments": True},
    "data: without a space": {"bare_data": True},
    "several data lines": {"multi_line": True},
    "everything at once": {"crlf": True, "comments": True, "multi_line": True, "fragment_bytes": 3},
    "a body ended by the connection": {"framing": "close"},
    "another content type": {"content_type": "application/octet-stream"},
    "slow headers": {"headers_delay_s": 0.01},
    "headers after the first token is due": {"headers_delay_s": 0.025},
}


@pytest.mark.parametrize("fault", FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_tokens_do_not_depend_on_how_the_bytes_come(sim: Launched, api: str, fault: dict[str, Any]) -> None:
    exchange = one(sim.url, 12, fault, api=api)
    assert exchange.error is None
    assert exchange.output_tokens == sum(exchange.event_tokens) == 12


@pytest.mark.parametrize("usage", ["continuous", "final", "none"])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_tokens_are_counted_whatever_usage_is_sent(sim: Launched, api: str, usage: str) -> None:
    exchange = one(sim.url, 9, {"usage": usage, "empty_text": True}, api=api)
    assert exchange.error is None
    source = {"continuous": "usage_continuous", "final": "usage_final", "none": "events"}[usage]
    assert exchange.token_source == source
    assert exchange.output_tokens == 9
    assert (exchange.input_tokens is None) == (usage == "none")


def test_several_tokens_in_an_event_are_all_counted(sim: Launched) -> None:
    exchange = one(sim.url, 12, {"tokens_per_event": 4})
    assert list(exchange.event_tokens) == [1, 4, 4, 3]
    assert exchange.output_tokens == 12


def test_an_early_role_event_is_no_token(sim: Launched) -> None:
    for usage in ("continuous", "none"):
        exchange = one(sim.url, 4, {"role_early": True, "usage": usage}, api="chat")
        assert exchange.first_token_ns and exchange.sent_ns
        assert exchange.first_token_ns - exchange.sent_ns >= TTFT_S * 1e9
        assert exchange.output_tokens == 4


def test_reasoning_is_output(sim: Launched) -> None:
    exchange = one(sim.url, 6, {"reasoning": 3, "usage": "none"}, api="chat")
    assert exchange.output_tokens == 6
    assert exchange.first_token_ns and exchange.sent_ns
    assert exchange.first_token_ns - exchange.sent_ns < exchange.end_ns - exchange.sent_ns - 2 * TPOT_S * 1e9


def test_a_server_that_does_not_stream_has_no_ttft(sim: Launched) -> None:
    exchange = one(sim.url, 5, {"unstreamed": True})
    assert exchange.error is None
    assert exchange.output_tokens == 5
    assert exchange.first_token_ns is None
    assert exchange.last_token_ns == exchange.end_ns


FAILURES = {
    "stopped by a reset before headers": ({"reset_after": 0}, "stream_truncated", "before any answer"),
    "cut before headers": ({"cut_after": 0}, "stream_truncated", "before any answer"),
    "reset in the middle": ({"reset_after": 3}, "stream_truncated", "after 3 tokens"),
    "cut in the middle": ({"cut_after": 3}, "stream_truncated", "after 3 tokens"),
    "cut in the middle, no framing": ({"cut_after": 3, "framing": "close"}, "stream_truncated", "without [DONE]"),
    "error event": ({"error_after": 2}, "stream_error", "simulated engine failure"),
    "no [DONE]": ({"done": False}, "stream_truncated", "without [DONE]"),
    "no finish_reason": ({"finish": False}, "stream_truncated", "no finish_reason"),
    "malformed event": ({"malformed_after": 2}, "bad_payload", "no completion JSON"),
    "error 500, vLLM's shape": ({"status": 500}, "http_status", "simulated failure"),
    "error 400, flat": ({"status": 400, "error_shape": "flat"}, "http_status", "simulated failure"),
    "error 400, text": ({"status": 400, "error_shape": "text"}, "http_status", "simulated failure"),
    "error 422, detail": ({"status": 422, "error_shape": "detail"}, "http_status", "simulated failure"),
    "error 502, HTML": ({"status": 502, "error_shape": "html"}, "http_status", "<html>"),
    "error 503, no body": ({"status": 503, "error_shape": "empty"}, "http_status", "empty body"),
}


@pytest.mark.parametrize(("fault", "kind", "text"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_is_recorded_with_its_kind(sim: Launched, fault: dict[str, Any], kind: str, text: str) -> None:
    exchange = one(sim.url, 8, fault)
    assert exchange.error is not None
    assert exchange.error.kind == kind
    assert text in exchange.error.message
    assert exchange.error.status == fault.get("status", exchange.status)
    if kind == "http_status" and fault.get("error_shape") != "empty":
        assert exchange.error.body and "simulated failure" in exchange.error.body


TIMEOUTS = {
    "first token": ({"stall_after": 0}, {"first_token_s": 0.3}, "no token within 0.3 s"),
    "between tokens": ({"stall_after": 3}, {"between_tokens_s": 0.3}, "no token for 0.3 s, after 3 tokens"),
    "whole request": ({"tpot_s": 0.05}, {"request_s": 0.4}, "not done within 0.4 s"),
    "comments do not count as tokens": (
        {"stall_after": 1, "comments": True},
        {"between_tokens_s": 0.3},
        "no token for",
    ),
}


@pytest.mark.parametrize(("fault", "limit", "text"), TIMEOUTS.values(), ids=TIMEOUTS.keys())
def test_every_time_out_ends_the_request(
    sim: Launched, fault: dict[str, Any], limit: dict[str, float], text: str
) -> None:
    limits = {"connect_s": 2.0, "first_token_s": 5.0, "between_tokens_s": 5.0, "request_s": 10.0, **limit}
    started = time.monotonic()
    exchange = one(sim.url, 100, fault, timeouts=Timeouts(**limits))
    assert exchange.error is not None
    assert exchange.error.kind == "timeout"
    assert text in exchange.error.message
    assert time.monotonic() - started < 3


def test_a_refused_connection_is_a_connect_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    exchange = one(f"http://127.0.0.1:{port}")
    assert exchange.error is not None
    assert exchange.error.kind == "connect"
    assert exchange.sent_ns is None


EVENTS = (
    b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


def response(body: bytes, *, head: bytes = b"", status: bytes = b"200 OK", length: bool = True) -> bytes:
    lines = b"HTTP/1.1 %b\r\nContent-Type: text/event-stream\r\n%b" % (status, head)
    return lines + (b"Content-Length: %d\r\n" % len(body) if length else b"") + b"\r\n" + body


def test_a_body_of_known_length_keeps_the_connection() -> None:
    connections = []

    def answer(sock: socket.socket, number: int) -> None:
        connections.append(number)
        while read_request(sock):
            sock.sendall(response(EVENTS))

    with scripted(answer) as url:
        exchanges = exchange_all(url, [prompt(2)] * 3)
    assert [e.error for e in exchanges] == [None] * 3
    assert [e.output_tokens for e in exchanges] == [2] * 3
    assert connections == [0]


def test_connection_close_is_obeyed() -> None:
    connections = []

    def answer(sock: socket.socket, number: int) -> None:
        connections.append(number)
        read_request(sock)
        sock.sendall(response(EVENTS, head=b"Connection: close\r\n"))

    with scripted(answer) as url:
        exchanges = exchange_all(url, [prompt(2)] * 2)
    assert [e.error for e in exchanges] == [None] * 2
    assert connections == [0, 1]


def test_a_request_on_a_connection_closed_meanwhile_is_sent_again_once() -> None:
    served = []

    def answer(sock: socket.socket, number: int) -> None:
        read_request(sock)
        served.append(number)
        sock.sendall(response(EVENTS))
        if number == 0:
            read_request(sock)  # taken in, and dropped without an answer

    with scripted(answer) as url:
        first, second = exchange_all(url, [prompt(2)] * 2)
    assert (first.retried, second.retried) == (False, True)
    assert second.error is None
    assert second.sent_ns and second.first_token_ns
    assert served == [0, 1]


def test_an_idle_connection_is_not_used_after_three_seconds() -> None:
    connections = []

    def answer(sock: socket.socket, number: int) -> None:
        connections.append(number)
        while read_request(sock):
            sock.sendall(response(EVENTS))

    with scripted(answer) as url:
        exchanges = exchange_all(url, [prompt(2)] * 2, pause_s=3.6)
    assert [e.error for e in exchanges] == [None] * 2
    assert not exchanges[1].retried
    assert connections == [0, 1]


ODD_ANSWERS = {
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_payload", "malformed HTTP"),
    "HTML with 200": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>hi</html>",
        "bad_payload",
        "neither an event stream nor JSON",
    ),
    "JSON of another kind": (
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}',
        "bad_payload",
        "without choices",
    ),
    "an empty 200": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "bad_payload", "empty body"),
    "an empty stream": (response(b""), "stream_truncated", "without [DONE]"),
    "a redirect": (
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        "http_status",
        "HTTP 307",
    ),
    "events that are no objects": (response(b"data: [1,2]\n\ndata: [DONE]\n\n"), "bad_payload", "no completion JSON"),
    "invalid UTF-8": (
        response(b'data: {"choices":[{"text":"\xff\xfe"}]}\n\ndata: [DONE]\n\n'),
        "bad_payload",
        "no completion JSON",
    ),
    "two values in one event": (
        response(b'data: {"choices":[]},{"choices":[]}\n\ndata: [DONE]\n\n'),
        "bad_payload",
        "no completion JSON",
    ),
    "flat error in the stream": (
        response(b'data: {"object":"error","message":"out of blocks","code":500}\n\ndata: [DONE]\n\n'),
        "stream_error",
        "out of blocks",
    ),
    "error text in the stream": (
        response(b'data: {"error":"out of blocks"}\n\ndata: [DONE]\n\n'),
        "stream_error",
        "out of blocks",
    ),
}


@pytest.mark.parametrize(("raw", "kind", "text"), ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
def test_an_odd_answer_is_a_recorded_failure(raw: bytes, kind: str, text: str) -> None:
    def answer(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(raw)

    with scripted(answer) as url:
        exchange = one(url)
    assert exchange.error is not None
    assert (exchange.error.kind, text in exchange.error.message) == (kind, True), exchange.error


def test_done_without_an_end_of_the_body_is_a_success_after_a_grace() -> None:
    def answer(sock: socket.socket, number: int) -> None:
        read_request(sock)
        chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        sock.sendall(chunked + b"%x\r\n%b\r\n" % (len(EVENTS), EVENTS))
        sock.recv(1)  # keeps the connection open until the client gives it up

    with scripted(answer) as url:
        exchange = one(url)
    assert exchange.error is None
    assert exchange.output_tokens == 2
    assert exchange.done_ns == exchange.end_ns


def test_a_100_continue_is_passed_over() -> None:
    def answer(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + response(EVENTS))

    with scripted(answer) as url:
        exchange = one(url)
    assert exchange.error is None
    assert exchange.output_tokens == 2


def test_trtllm_events_have_a_blank_at_the_end_and_changing_ids() -> None:
    body = (
        b'data: {"id":"a","choices":[{"index":0,"delta":{"role":"assistant"}}],"usage":{"prompt_tokens":3,'
        b'"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":2}}} \n\n'
        b'data: {"id":"b","choices":[{"index":0,"delta":{"reasoning_content":"x"}}],"usage":{"prompt_tokens":3,'
        b'"completion_tokens":1}} \n\n'
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":""},"finish_reason":"length"}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":3}} \n\n'
        b'data: {"id":"d","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":3,'
        b'"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}} \n\ndata: [DONE]\n\n'
    )

    def answer(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(response(body))

    with scripted(answer) as url:
        exchange = one(url, api="chat", dialect="trtllm")
    assert exchange.error is None
    assert list(exchange.event_tokens) == [1, 2]
    assert (exchange.input_tokens, exchange.output_tokens, exchange.cached_tokens) == (3, 3, 2)


def test_a_large_prompt_is_sent_whole(sim: Launched) -> None:
    ids = b"[" + b",".join([b"12345"] * 300_000) + b"]"
    large = Prompt(id="large", kind="token_ids", content=ids, output_tokens=3, input_tokens=300_000)
    exchange = exchange_all(sim.url, [large])[0]
    assert exchange.error is None
    assert exchange.input_tokens == 300_000


def test_many_streams_at_once_lose_nothing(sim: Launched) -> None:
    endpoint = Endpoint(url=sim.url, model="sim-fixed", dialect="sim")
    encoder = RequestEncoder(endpoint)

    async def run() -> list[Exchange]:
        settled: list[Exchange] = []
        wire = Wire(endpoint, QUICK, settled.append)
        for number in range(300):
            wire.send(Exchange(encoder.encode(prompt(40), b"%d" % number), lambda exchange: None))
        while len(settled) < 300:
            await asyncio.sleep(0.01)
        await wire.close()
        return settled

    exchanges = uvloop.run(run())
    assert [e.error for e in exchanges] == [None] * 300
    assert {e.output_tokens for e in exchanges} == {40}
    assert {sum(e.event_tokens) for e in exchanges} == {40}


def test_cancel_ends_what_is_in_flight_and_what_still_connects(sim: Launched) -> None:
    endpoint = Endpoint(url=sim.url, model="sim-fixed", dialect="sim")
    encoder = RequestEncoder(endpoint)

    async def run() -> list[Exchange]:
        settled: list[Exchange] = []
        ended: list[Exchange] = []
        wire = Wire(endpoint, QUICK, settled.append)
        for _ in range(5):
            wire.send(Exchange(encoder.encode(prompt(1000), b"x"), ended.append))
        await asyncio.sleep(0.1)
        wire.send(Exchange(encoder.encode(prompt(1000), b"x"), ended.append))
        wire.cancel_all("enough")
        wire.settle_all()
        assert len(ended) == 6
        assert not wire.active
        await wire.close()
        return settled

    exchanges = uvloop.run(run())
    assert {e.error.kind if e.error else None for e in exchanges} == {"cancelled"}
    assert sum(e.first_token_ns is not None for e in exchanges) == 5


def test_https_with_a_certificate_of_ones_own(tmp_path: Any) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def answer(sock: socket.socket, number: int) -> None:
        with context.wrap_socket(sock, server_side=True) as secure:
            while read_request(secure):
                secure.sendall(response(EVENTS))

    with scripted(answer) as url:
        secure_url = url.replace("http:", "https:")
        refused = one(secure_url)
        accepted = exchange_all(secure_url, [prompt(2)] * 2, verify_tls=False)
    assert refused.error is not None
    assert refused.error.kind == "connect"
    assert "certificate" in refused.error.message.lower()
    assert [e.error for e in accepted] == [None, None]
    assert [e.output_tokens for e in accepted] == [2, 2]


def test_headers_and_key_reach_the_server() -> None:
    seen = []

    def answer(sock: socket.socket, number: int) -> None:
        seen.append(read_request(sock))
        sock.sendall(response(EVENTS))

    with scripted(answer) as url:
        one(url, headers={"Authorization": "Bearer abc", "X-Team": "perf"})
    head = seen[0].partition(b"\r\n\r\n")[0]
    assert b"\r\nAuthorization: Bearer abc" in head
    assert b"\r\nX-Team: perf" in head
    assert b"\r\nX-Request-Id: id-0" in head
