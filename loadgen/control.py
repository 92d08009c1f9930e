"""The endpoint's control side, where latency is not measured: who is there, and its counters.

aiohttp serves here; measured requests go over :mod:`loadgen.wire`.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import EndpointError

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_S = 10.0
OWNERS = {"vllm": "vllm", "tensorrt_llm": "trtllm", "loadgen-sim": "sim"}


class Server(msgspec.Struct, kw_only=True):
    """What answers at a URL. ``kind`` is a dialect's name; ``models`` is empty when it lists none."""

    kind: str
    version: str | None
    models: list[str]
    raw: dict[str, Any] = {}


def _session(headers: dict[str, str], verify_tls: bool) -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        connector=aiohttp.TCPConnector(ssl=verify_tls),
    )


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with session.get(url) as response:
        return response.status, await response.content.read(4 * 2**20)


def identify(url: str, headers: dict[str, str], verify_tls: bool = True) -> Server:
    """Asks ``/v1/models`` and ``/version``.

    Raises:
        EndpointError: nothing answers, the key is refused, or what answers lists no models.
    """
    import aiohttp

    async def ask() -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        async with _session(headers, verify_tls) as session:
            models = await _get(session, f"{url}/v1/models")
            return models, await _get(session, f"{url}/version")

    try:
        (status, body), (version_status, version_body) = asyncio.run(ask())
    except TimeoutError:
        raise EndpointError(f"{url}: no answer within {TIMEOUT_S:g} s; is the server up and ready?") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EndpointError(f"{url}: {_reason(error)}; is the server up, and the URL right?") from None
    if status in (401, 403):
        raise EndpointError(f"{url}: HTTP {status}: the API key is missing or wrong; give --api-key")
    try:
        listing = msgspec.json.decode(body)
        entries = [entry for entry in listing["data"] if isinstance(entry.get("id"), str)]
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        entries = []
    if status != 200 or not entries:
        what = " ".join(body[:80].decode("utf-8", "replace").split())
        raise EndpointError(
            f"{url}: this is no OpenAI-compatible server: /v1/models answers HTTP {status} with {what!r}"
        )
    version = None
    if version_status == 200:
        try:
            version = str(msgspec.json.decode(version_body)["version"])
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError):
            version = None
    return Server(
        kind=OWNERS.get(str(entries[0].get("owned_by")), "openai"),
        version=version,
        models=[entry["id"] for entry in entries],
        raw={"models": entries, "version": version},
    )


def _reason(error: Exception) -> str:
    os_error = getattr(error, "os_error", None)
    if isinstance(os_error, OSError) and os_error.strerror:
        return os_error.strerror
    return str(error) or type(error).__name__


_SERIES = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "requests": "vllm:request_success_total",
}


def parse_counters(text: str) -> dict[str, float]:
    """The counters of :data:`COUNTERS` in a Prometheus page, summed over labels; {} without them."""
    sums: dict[str, float] = {}
    names = {series: key for key, series in COUNTERS.items()}
    for line in text.splitlines():
        match = _SERIES.match(line)
        if match and match[1] in names:
            try:
                sums[names[match[1]]] = sums.get(names[match[1]], 0.0) + float(match[3])
            except ValueError:
                continue
    return sums


def read_counters(url: str, headers: dict[str, str], verify_tls: bool = True) -> dict[str, float]:
    """The engine's own counters, or {} where it has none that are known."""
    import aiohttp

    async def ask() -> tuple[int, bytes]:
        async with _session(headers, verify_tls) as session:
            return await _get(session, f"{url}/metrics")

    try:
        status, body = asyncio.run(ask())
    except (TimeoutError, aiohttp.ClientError, OSError):
        return {}
    return parse_counters(body.decode("utf-8", "replace")) if status == 200 else {}


def get_json(url: str) -> Any:
    """The JSON that ``url`` answers with; for the embedded engine's own pages.

    Raises:
        EndpointError: no answer, or no JSON.
    """
    import aiohttp

    async def ask() -> tuple[int, bytes]:
        async with _session({}, True) as session:
            return await _get(session, url)

    try:
        return msgspec.json.decode(asyncio.run(ask())[1])
    except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        raise EndpointError(f"{url}: {_reason(error)}") from None
