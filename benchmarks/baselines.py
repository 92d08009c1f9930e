"""Two bare clients to compare with: what aiohttp, and what asyncio.Protocol with httptools, can do
when they parse no JSON, keep no records and check nothing.

    python benchmarks/baselines.py aiohttp|protocol PORT CONCURRENCY REQUESTS INPUT_TOKENS OUTPUT_TOKENS

Prints one JSON line: mean and 99th percentile of TTFT in seconds, mean TPOT in seconds, tokens/s
from the first send to the last byte.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import statistics
import sys
import time

import httptools
import uvloop

now = time.perf_counter_ns


def bodies(requests: int, input_tokens: int, output_tokens: int) -> list[bytes]:
    rng = random.Random(0)
    fields = {
        "model": "known",
        "stream": True,
        "max_tokens": output_tokens,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    prompts = ([rng.randrange(10, 32000) for _ in range(input_tokens)] for _ in range(requests))
    return [json.dumps({**fields, "prompt": ids}).encode() for ids in prompts]


def result(rows: list[tuple[int, int, int]], tokens: int, start_ns: int, end_ns: int) -> None:
    ttft = sorted((first - sent) / 1e9 for sent, first, _ in rows)
    tpot = [(last - first) / 1e9 / (tokens - 1) for _, first, last in rows]
    print(
        json.dumps(
            {
                "ttft_mean_s": statistics.mean(ttft),
                "ttft_p99_s": ttft[int(len(ttft) * 0.99)],
                "tpot_mean_s": statistics.mean(tpot),
                "tokens_per_s": len(rows) * tokens / ((end_ns - start_ns) / 1e9),
                "requests": len(rows),
            }
        )
    )


async def run_aiohttp(port: int, concurrency: int, queue: list[bytes]) -> list[tuple[int, int, int]]:
    import aiohttp

    rows = []
    url = f"http://127.0.0.1:{port}/v1/completions"
    headers = {"content-type": "application/json"}

    async def slot(session: aiohttp.ClientSession) -> None:
        while queue:
            body = queue.pop()
            first = last = 0
            sent = now()
            async with session.post(url, data=body, headers=headers) as response:
                async for _ in response.content.iter_any():
                    last = now()
                    first = first or last
            rows.append((sent, first, last))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[slot(session) for _ in range(concurrency)])
    return rows


class Bare(asyncio.Protocol):
    def __init__(self, queue: list[bytes], rows: list[tuple[int, int, int]], done: asyncio.Future[None]) -> None:
        self.queue, self.rows, self.done = queue, rows, done
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        if not self.queue:
            if not self.done.done():
                self.done.set_result(None)
            return
        body = self.queue.pop()
        self.first = self.last = 0
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        self.sent = now()
        self.transport.write(head.encode() + b"\r\n\r\n" + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.stamp = now()
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.last = self.stamp
        self.first = self.first or self.last

    def on_message_complete(self) -> None:
        self.rows.append((self.sent, self.first, self.last))
        self.next()


async def run_protocol(port: int, concurrency: int, queue: list[bytes]) -> list[tuple[int, int, int]]:
    loop = asyncio.get_running_loop()
    rows: list[tuple[int, int, int]] = []
    futures = [loop.create_future() for _ in range(concurrency)]
    for start in range(0, concurrency, 128):
        batch = futures[start : start + 128]
        await asyncio.gather(
            *[loop.create_connection(lambda f=f: Bare(queue, rows, f), "127.0.0.1", port) for f in batch]
        )
    await asyncio.gather(*futures)
    return rows


def main() -> None:
    kind, port, concurrency, requests, input_tokens, output_tokens = sys.argv[1], *map(int, sys.argv[2:])
    queue = bodies(requests, input_tokens, output_tokens)
    gc.collect()
    gc.freeze()
    gc.disable()
    run = {"aiohttp": run_aiohttp, "protocol": run_protocol}[kind]
    start = now()
    rows = uvloop.run(run(port, concurrency, queue))
    result(rows, output_tokens, start, max(last for *_, last in rows))


if __name__ == "__main__":
    main()
