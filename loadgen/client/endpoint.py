"""An endpoint: a server's URL and what a request to it looks like, byte for byte."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import msgspec

from loadgen import __version__
from loadgen.errors import UsageError
from loadgen.workloads.prompts import Prompt

Api = Literal["completions", "chat"]

FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "x-request-id", "connection", "expect"})

_json = msgspec.json.Encoder().encode

# What a server accepts beyond the OpenAI fields, by the engine behind it. `fixed_length` says that
# ignore_eos and min_tokens pin the output length; without it a model may stop early, and the
# verdict OUTPUT_MISMATCH says so. `continuous_usage` is the second key of stream_options.
# vLLM and SGLang ignore a field that they do not know; TensorRT-LLM answers 400. OpenAI's own API knows
# neither key. Sources: vLLM 0.32.0 entrypoints, TensorRT-LLM 1.0 to 1.2 serve/openai_protocol.py,
# SGLang 0.5.23 srt/entrypoints/openai/protocol.py.


class Dialect(msgspec.Struct, frozen=True):
    """Which optional request fields an engine understands."""

    fixed_length: bool
    continuous_usage: bool


DIALECTS: dict[str, Dialect] = {
    "vllm": Dialect(fixed_length=True, continuous_usage=True),
    "trtllm": Dialect(fixed_length=True, continuous_usage=True),
    "sglang": Dialect(fixed_length=True, continuous_usage=True),
    "sim": Dialect(fixed_length=True, continuous_usage=True),
    "openai": Dialect(fixed_length=False, continuous_usage=False),
}


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go.

    Attributes:
        url: base URL, with or without a trailing ``/v1``.
        model: the served model's name.
        dialect: a key of :data:`DIALECTS`.
        api: ``completions`` or ``chat``.
        headers: extra headers; the API key, when there is one, is already among them.
        verify_tls: False accepts any certificate.
        extra_body: fields to add to every request, each value as JSON.
    """

    url: str
    model: str
    dialect: str
    api: Api = "completions"
    headers: dict[str, str] = {}
    verify_tls: bool = True
    extra_body: dict[str, bytes] = {}

    @property
    def secure(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        host = urlsplit(self.url).hostname
        assert host is not None
        return host

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (443 if self.secure else 80)


def check_url(url: str) -> str:
    """The base URL without a trailing slash or ``/v1``.

    Raises:
        UsageError: no http(s) URL with a host.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # Anything else would have to be encoded before it can stand in a request line.
        usable = usable and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        usable = False
    if usable and parts.username is not None:
        raise UsageError("--url: give user and password as --header 'Authorization: Basic ...', not in the URL")
    if not usable or parts.query or parts.fragment:
        raise UsageError(f"--url takes a base URL such as http://127.0.0.1:8000, not {url!r}")
    return url.rstrip("/").removesuffix("/v1")


def check_header(name: str, value: str) -> None:
    """Refuses what would break out of a header line, or cannot be sent.

    Raises:
        UsageError: as the message says.
    """
    if name.lower() in FRAMING_HEADERS:
        raise UsageError(f"header {name}: loadgen sets it for every request itself")
    token = name.replace("-", "").replace("_", "").replace(".", "")
    if not (token.isascii() and token.isalnum()):
        raise UsageError(f"not a header name: {name!r}")
    if not value.isprintable() or not value.isascii():
        raise UsageError(f"header {name}: the value must be printable ASCII on one line")


class RequestEncoder:
    """Makes the bytes of a request: everything that does not change is encoded once."""

    def __init__(self, endpoint: Endpoint) -> None:
        parts = urlsplit(endpoint.url)
        path = parts.path.rstrip("/") + ("/v1/chat/completions" if endpoint.api == "chat" else "/v1/completions")
        lines = {
            "Host": parts.netloc.rpartition("@")[2],
            "User-Agent": f"loadgen/{__version__}",
            "Accept": "text/event-stream",
            "Content-Type": "application/json",
        }
        given = {name.lower() for name in endpoint.headers}
        lines = {name: value for name, value in lines.items() if name.lower() not in given} | endpoint.headers
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._head = head.encode("ascii") + b"X-Request-Id: "
        self._api = endpoint.api
        self._dialect = DIALECTS[endpoint.dialect]
        options = {"include_usage": True}
        if self._dialect.continuous_usage:
            options["continuous_usage_stats"] = True
        self._fields = {
            "model": _json(endpoint.model),
            "stream": b"true",
            "stream_options": _json(options),
            "temperature": b"0",
        }
        if self._dialect.fixed_length:
            self._fields["ignore_eos"] = b"true"
        self._extra = endpoint.extra_body

    def encode(self, prompt: Prompt, request_id: bytes) -> bytes:
        """Head and body of the request for ``prompt``."""
        fields = dict(self._fields)
        if self._api == "completions":
            fields["prompt"] = prompt.content
        elif prompt.kind == "messages":
            fields["messages"] = prompt.content
        else:
            fields["messages"] = b'[{"role":"user","content":%b}]' % prompt.content
        count = b"%d" % prompt.output_tokens
        fields["max_tokens"] = count
        if self._dialect.fixed_length:
            fields["min_tokens"] = count
        if self._extra:
            fields.update(self._extra)
        if prompt.fields:
            fields.update(prompt.fields)
        body = b"{%b}" % b",".join([b"%b:%b" % (_json(name), value) for name, value in fields.items()])
        return b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, request_id, len(body), body)


def check_prompt(api: Api, prompt: Prompt) -> None:
    """Refuses prompts that the API cannot carry.

    Raises:
        UsageError: says which ``--endpoint`` to use.
    """
    if api == "completions" and prompt.kind == "messages":
        raise UsageError(f'prompt {prompt.id} has "messages", which /v1/completions does not take; use --endpoint chat')
    if api == "chat" and prompt.kind == "token_ids":
        raise UsageError(
            f"prompt {prompt.id} is a list of token ids, which /v1/chat/completions does not take; "
            "use --endpoint completions"
        )
