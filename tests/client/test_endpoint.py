"""What a request looks like on the wire, and what is refused before one is made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadgen import __version__
from loadgen.client.endpoint import DIALECTS, Api, Endpoint, RequestEncoder, check_header, check_prompt, check_url
from loadgen.errors import UsageError
from loadgen.workloads.prompts import Prompt

TEXT = Prompt(id="t", kind="text", content=b'"Hi"', output_tokens=16)
MESSAGES = Prompt(id="m", kind="messages", content=b'[{"role":"system","content":"Hi"}]', output_tokens=16)
TOKEN_IDS = Prompt(id="i", kind="token_ids", content=b"[5,6,7]", output_tokens=16, input_tokens=3)


def encoded(prompt: Prompt, *, request_id: bytes = b"r-1", **fields: Any) -> tuple[list[bytes], bytes]:
    """Head lines and body of the request."""
    settings = {"url": "http://host:8000", "model": "m", "dialect": "vllm", **fields}
    head, _, body = RequestEncoder(Endpoint(**settings)).encode(prompt, request_id).partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def body_of(prompt: Prompt, **fields: Any) -> dict[str, Any]:
    return json.loads(encoded(prompt, **fields)[1])


# --- the bytes


def test_request_byte_for_byte() -> None:
    endpoint = Endpoint(url="http://host:8000", model="org/m", dialect="vllm")
    body = (
        b'{"model":"org/m","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},'
        b'"temperature":0,"ignore_eos":true,"prompt":"Hi","max_tokens":16,"min_tokens":16}'
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\n"
        "Host: host:8000\r\n"
        f"User-Agent: loadgen/{__version__}\r\n"
        "Accept: text/event-stream\r\n"
        "Content-Type: application/json\r\n"
        "X-Request-Id: r-1\r\n"
        f"Content-Length: {len(body)}\r\n"
        "\r\n"
    )
    assert RequestEncoder(endpoint).encode(TEXT, b"r-1") == head.encode() + body


BOTH_KEYS = {"include_usage": True, "continuous_usage_stats": True}
PINNED = {"max_tokens": 16, "min_tokens": 16, "ignore_eos": True, "stream_options": BOTH_KEYS}
UNPINNED = {"max_tokens": 16, "stream_options": {"include_usage": True}}
OPTIONS = {"vllm": PINNED, "trtllm": PINNED, "sglang": PINNED, "sim": PINNED, "openai": UNPINNED}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("api", "prompt", "path", "carried"),
    [
        ("completions", TEXT, b"/v1/completions", {"prompt": "Hi"}),
        ("completions", TOKEN_IDS, b"/v1/completions", {"prompt": [5, 6, 7]}),
        ("chat", TEXT, b"/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("chat", MESSAGES, b"/v1/chat/completions", {"messages": [{"role": "system", "content": "Hi"}]}),
    ],
    ids=["completions-text", "completions-ids", "chat-text", "chat-messages"],
)
def test_path_and_body_of_each_dialect_and_api(
    dialect: str, api: Api, prompt: Prompt, path: bytes, carried: dict[str, Any]
) -> None:
    head, body = encoded(prompt, dialect=dialect, api=api)
    assert head[0] == b"POST %b HTTP/1.1" % path
    assert json.loads(body) == {"model": "m", "stream": True, "temperature": 0, **OPTIONS[dialect], **carried}


@pytest.mark.parametrize("text", ["Hi", "caf\u00e9", "\u65e5\u672c\u8a9e \U0001f600"])
def test_content_length_counts_bytes(text: str) -> None:
    prompt = Prompt(id="x", kind="text", content=json.dumps(text, ensure_ascii=False).encode(), output_tokens=1)
    head, body = encoded(prompt, model=text)
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["prompt"] == json.loads(body)["model"] == text


@pytest.mark.parametrize(
    "base", ["http://host/proxy", "http://host/proxy/", "http://host/proxy/v1", "http://host/proxy/v1/"]
)
def test_path_of_the_base_url_is_kept_and_v1_comes_once(base: str) -> None:
    assert encoded(TEXT, url=check_url(base))[0][0] == b"POST /proxy/v1/completions HTTP/1.1"


@pytest.mark.parametrize("host", ["host", "host:8000", "[::1]:8000"])
def test_host_header_is_the_urls(host: str) -> None:
    assert encoded(TEXT, url=f"http://{host}/proxy")[0][1] == f"Host: {host}".encode()


def test_one_encoder_serves_many_prompts() -> None:
    encoder = RequestEncoder(Endpoint(url="http://host", model="m", dialect="sim"))
    rich = Prompt(id="x", kind="text", content=b'"a"', output_tokens=2, fields={"seed": b"1"})
    first = encoder.encode(TEXT, b"1")
    encoder.encode(rich, b"2")
    assert encoder.encode(TEXT, b"1") == first


# --- precedence


def test_prompt_fields_override_extra_body_which_overrides_defaults() -> None:
    prompt = Prompt(
        id="x", kind="text", content=b'"Hi"', output_tokens=16, fields={"top_p": b"0.5", "min_tokens": b"3"}
    )
    body = body_of(prompt, extra_body={"temperature": b"0.7", "top_p": b"0.9", "ignore_eos": b"false"})
    assert body["temperature"] == 0.7
    assert body["top_p"] == 0.5
    assert body["ignore_eos"] is False
    assert body["min_tokens"] == 3
    assert body["max_tokens"] == 16


def test_a_field_is_sent_once_whoever_sets_it() -> None:
    prompt = Prompt(id="x", kind="text", content=b'"Hi"', output_tokens=16, fields={"temperature": b"1"})
    assert encoded(prompt, extra_body={"temperature": b"0.5"})[1].count(b'"temperature"') == 1


def test_extra_headers_are_sent() -> None:
    head, _ = encoded(TEXT, headers={"Authorization": "Bearer k", "X-Team": "a b"})
    assert {b"Authorization: Bearer k", b"X-Team: a b"} <= set(head)


@pytest.mark.parametrize("name", ["User-Agent", "user-agent", "USER-AGENT"])
def test_header_of_the_user_replaces_ours_in_whatever_case(name: str) -> None:
    head, _ = encoded(TEXT, headers={name: "mine"})
    assert [line for line in head if line.lower().startswith(b"user-agent:")] == [f"{name}: mine".encode()]


# --- what is refused


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "X-Request-Id", "Connection"])
def test_a_header_that_frames_the_request_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="loadgen sets it"):
        check_header(name, "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nX-Evil: 1"),
        ("X-A", "b\nX-Evil: 1"),
        ("X-A", "b\rc"),
        ("X-A", "b\x00c"),
        ("X-A", "b\tc"),
        ("X-A", "b\x7fc"),
        ("X-A", "caf\u00e9"),
        ("X-A", "b\u2028c"),
        ("X-A: b\r\nX-Evil", "1"),
        ("X A", "b"),
        ("X-A:", "b"),
        ("X-\u00c9", "b"),
        ("", "b"),
        ("-", "b"),
    ],
)
def test_header_that_would_break_out_of_its_line_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match="header"):
        check_header(name, value)


@pytest.mark.parametrize(
    ("name", "value"), [("Authorization", "Bearer a.b-c=="), ("x-my_id.2", ""), ("X-A", "a: b, c")]
)
def test_check_accepts_ordinary_headers(name: str, value: str) -> None:
    check_header(name, value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("https://host/v1", "https://host"),
        ("https://host/v1/", "https://host"),
        ("https://host/proxy/v1", "https://host/proxy"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_base_url(url: str, base: str) -> None:
    assert check_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "host:8000",
        "127.0.0.1:8000",
        "ftp://host",
        "unix:///run/server.sock",
        "http:host",
        "http://",
        "http://:8000",
        "http:///v1",
        "http://host:port",
        "http://host:65536",
        "http://host:-1",
        "http://[::1",
        "http://host?a=b",
        "http://host/v1#part",
    ],
)
def test_no_base_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:8000"):
        check_url(url)


@pytest.mark.parametrize("url", ["http://user:secret@host", "https://user@host:8000/v1"])
def test_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="Authorization") as caught:
        check_url(url)
    assert "@" not in str(caught.value)


def test_port_0_is_refused() -> None:
    with pytest.raises(UsageError):
        check_url("http://host:0")


@pytest.mark.parametrize(
    "url",
    [
        "http://a b",
        " https://host",
        "http://host/a b",
        "http://host/a\r\nX-Evil: 1",
        "http://host/\x0b",
        "http://host/\u00e9",
        "http://h\u00f6st",
    ],
)
def test_url_that_cannot_stand_in_a_request_line_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        check_url(url)


@pytest.mark.parametrize(
    ("url", "secure", "host", "port"),
    [
        ("http://host", False, "host", 80),
        ("https://host", True, "host", 443),
        ("https://host:8443/v1", True, "host", 8443),
        ("http://[::1]:8000", False, "::1", 8000),
        ("HTTPS://Host", True, "host", 443),
    ],
)
def test_where_to_connect(url: str, secure: bool, host: str, port: int) -> None:
    endpoint = Endpoint(url=check_url(url), model="m", dialect="vllm")
    assert (endpoint.secure, endpoint.host, endpoint.port) == (secure, host, port)


@pytest.mark.parametrize(
    ("api", "prompt", "advice"),
    [("completions", MESSAGES, "use --endpoint chat"), ("chat", TOKEN_IDS, "use --endpoint completions")],
)
def test_prompt_that_the_api_cannot_carry_is_refused(api: Api, prompt: Prompt, advice: str) -> None:
    with pytest.raises(UsageError, match=advice) as caught:
        check_prompt(api, prompt)
    assert f"prompt {prompt.id} " in str(caught.value)


@pytest.mark.parametrize(
    ("api", "prompt"), [("completions", TEXT), ("completions", TOKEN_IDS), ("chat", TEXT), ("chat", MESSAGES)]
)
def test_check_accepts_prompts_that_the_api_carries(api: Api, prompt: Prompt) -> None:
    check_prompt(api, prompt)
