"""The endpoint's control side, where latency is not measured: who is there, and its counters.

aiohttp serves here; measured requests go over :mod:`loadgen.client.wire`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.server_metrics import SeriesNames, parse_prometheus
from loadgen.client.sse import SseParser
from loadgen.engines.table import ENGINES, UNKNOWN, kind_of, row_of
from loadgen.errors import EndpointError

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_S = 10.0
MAX_BODY_BYTES = 64 * 2**20


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
        return response.status, await _body(response)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body, as far as it is not absurdly long: what answers may be anything."""
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return body


async def healthy(url: str, kind: str) -> bool:
    """Whether the page for that, ``/health`` of most engines, answers 200."""
    import aiohttp

    row = row_of(kind)
    try:
        async with _session({}, True) as session:
            return (await _get(session, f"{url}{row.health_page if row is not None else '/health'}"))[0] == 200
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False


async def stream_a_token(url: str, model: str, timeout_s: float) -> None:
    """Asks for two tokens of a short completion, and waits for the stream's end.

    Raises:
        EndpointError: an error, or a stream without a token or without its end.
    """
    import aiohttp

    body = {"model": model, "prompt": [11, 12, 13, 14], "max_tokens": 2, "temperature": 0, "stream": True}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            _session({}, True) as session,
            session.post(f"{url}/v1/completions", json=body, timeout=timeout) as response,
        ):
            answer = await _body(response)
            if response.status != 200:
                words = " ".join(answer[:300].decode("utf-8", "replace").split())
                raise EndpointError(f"HTTP {response.status}: {words}")
    except TimeoutError:
        raise EndpointError(f"no token within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise EndpointError(_reason(error)) from None
    tokens = 0
    for event in SseParser().feed(answer):
        if event == b"[DONE]" and tokens:
            return
        try:
            content = msgspec.json.decode(event, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if "error" in content:
            raise EndpointError(f"an error in the stream: {str(content['error'])[:300]}")
        tokens += bool(content.get("choices"))
    raise EndpointError(f"the stream broke off, or held no token: {answer[-200:]!r}")


async def identify(url: str, headers: dict[str, str], verify_tls: bool = True) -> Server:
    """Asks ``/v1/models``, and the engine's page that says its version.

    Raises:
        EndpointError: nothing answers, the key is refused, or what answers lists no models.
    """
    import aiohttp

    try:
        async with _session(headers, verify_tls) as session:
            status, body = await _get(session, f"{url}/v1/models")
            entries = _models(body)
            kind = kind_of(str(entries[0].get("owned_by"))) if entries else UNKNOWN
            row = row_of(kind)
            version = await _version(session, url, row.version_pages if row is not None else ("/version",))
    except TimeoutError:
        raise EndpointError(f"{url}: no answer within {TIMEOUT_S:g} s; is the server up and ready?") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EndpointError(f"{url}: {_reason(error)}; is the server up, and the URL right?") from None
    if status in (401, 403):
        raise EndpointError(f"{url}: HTTP {status}: the API key is missing or wrong; give --api-key")
    if status != 200 or not entries:
        what = " ".join(body[:80].decode("utf-8", "replace").split())
        raise EndpointError(
            f"{url}: this is no OpenAI-compatible server: /v1/models answers HTTP {status} with {what!r}"
        )
    return Server(
        kind=kind,
        version=version,
        models=[entry["id"] for entry in entries],
        raw={"models": entries, "version": version},
    )


async def _version(session: aiohttp.ClientSession, url: str, pages: tuple[str, ...]) -> str | None:
    """The version that one of the pages says."""
    for page in pages:
        status, body = await _get(session, url + page)
        if status == 200:
            try:
                return str(msgspec.json.decode(body)["version"])
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError):
                continue
    return None


def _models(body: bytes) -> list[dict[str, Any]]:
    """What a server lists; [] where it lists nothing in the way of OpenAI."""
    try:
        listing = msgspec.json.decode(body)
        return [entry for entry in listing["data"] if isinstance(entry.get("id"), str)]
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        return []


def _reason(error: Exception) -> str:
    os_error = getattr(error, "os_error", None)
    if isinstance(os_error, OSError) and os_error.strerror:
        return os_error.strerror
    return str(error) or type(error).__name__


class MetricsPage:
    """An engine's own metrics, read over one connection. There must be one reader of a server: a read
    of a JSON page empties it.

    Args:
        url, headers, verify_tls: of the endpoint.
        kind: the engine's kind; of one that is not known, every engine's names are looked for.
    """

    def __init__(self, url: str, headers: dict[str, str], verify_tls: bool, kind: str) -> None:
        self._url = url
        self._headers = headers
        self._verify_tls = verify_tls
        self._session: aiohttp.ClientSession | None = None
        row = row_of(kind)
        rows = [row] if row is not None else ENGINES.values()
        self._zero = row.zero_until_seen if row is not None else ()
        self._path = row.metrics_page if row is not None else "/metrics"
        self._names = SeriesNames(*(row.series for row in rows))
        self._json_path, self._read_json = "", None
        if row is not None and row.json_page is not None:
            self._json_path, make = row.json_page
            self._read_json = make()

    async def read(self) -> dict[str, float]:
        """The metrics by the names of :data:`loadgen.analysis.server_metrics.METRICS`; {} when there are none."""
        read_json = self._read_json
        from_json = {} if read_json is None else read_json((await self._page(self._json_path)).encode())
        values = parse_prometheus(await self._page(self._path), self._names)
        missing = dict.fromkeys(self._zero, 0.0) if values else {}
        return {**missing, **values, **from_json}

    @property
    def waits(self) -> bool:
        """Whether a page may wait before it answers, which costs the engine nothing."""
        return self._read_json is not None

    async def _page(self, path: str) -> str:
        import aiohttp

        if self._session is None:
            self._session = _session(self._headers, self._verify_tls)
        try:
            status, body = await _get(self._session, self._url + path)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return ""
        return body.decode("utf-8", "replace") if status == 200 else ""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def reset_prefix_cache(url: str, kind: str) -> bool:
    """Empties the engine's prefix cache; False where it cannot be asked to, or refuses."""
    import aiohttp

    row = row_of(kind)
    if row is None or row.cache_reset is None:
        return False
    try:
        async with _session({}, True) as session, session.post(url + row.cache_reset.path) as response:
            body = await _body(response)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False
    return row.cache_reset.done(response.status, body)


async def get_json(url: str) -> Any:
    """The JSON that ``url`` answers with; for the embedded engine's own pages.

    Raises:
        EndpointError: no answer, or no JSON.
    """
    import aiohttp

    try:
        async with _session({}, True) as session:
            return msgspec.json.decode((await _get(session, url))[1])
    except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        raise EndpointError(f"{url}: {_reason(error)}") from None
