"""SGLang 0.5.23 as a double: `python -m sglang.launch_server`, as far as a sweep uses it.

`install(folder)` makes an environment in which it is found, with a torch for the CPU; there it starts as the real one
does without a GPU. What does not differ from the double of vLLM beside this file is used from there: processes,
connections, streams, and the environment. There is no model, and tokens are words; what it counts is what it did.

Like the real one it loads first and binds its port last, answers /v1/models before it is ready, and asks itself for a
completion, which it counts. When a part of it fails, it kills itself with SIGKILL. A prompt with a token id beyond the
vocabulary is such a failure.

Sources: SGLang 0.5.23, srt/arg_groups/fields, srt/entrypoints, srt/observability/metrics_collector.py, and a run of it
on a CPU: log lines, pages, streams and refusals are its own.

Environment: FAKE_SGLANG_* as FAKE_VLLM_* of vllm.py, and
    FAKE_SGLANG_FLUSH         refuse: the prefix cache is not emptied, as while requests run
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


def _neighbour() -> Any:
    spec = importlib.util.spec_from_file_location("_fake_vllm_parts", Path(__file__).with_name("vllm.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.PREFIX = "FAKE_SGLANG_"
    return module


parts = _neighbour()
append, end, say, told = parts.append, parts.end, parts.say, parts.told

VERSION = "0.5.23"
WARM_UP_S = 0.1
HEALTH_S = 1.0
KV_CACHE_TOKENS = 65_536
PREFILL = 16_384
HISTOGRAMS = {
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "e2e_request_latency_seconds": "Histogram of End-to-end request latency in seconds",
    "request_time_per_output_token_seconds": "Histogram of time per output token of a request in seconds.",
}
COUNTERS = {
    "prompt_tokens": "Number of prefill tokens processed.",
    "generation_tokens": "Number of generation tokens processed.",
    "num_requests": "Number of requests processed.",
}
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
# Options with a value; those that this double heeds have a destination of its own or of vLLM's double.
OPTIONS: dict[str, dict[str, Any]] = {
    "--host": {"default": "127.0.0.1"}, "--port": {"type": int, "default": 30000},
    "--served-model-name": {}, "--tokenizer-path": {}, "--load-format": {}, "--api-key": {},
    "--dtype": {"choices": DTYPES, "default": "auto"}, "--context-length": {"type": int, "dest": "max_model_len"},
    "--max-running-requests": {"type": int, "dest": "max_num_seqs"}, "--max-queued-requests": {"type": int},
    "--max-total-tokens": {"type": int, "default": KV_CACHE_TOKENS}, "--mem-fraction-static": {"type": float},
    "--chunked-prefill-size": {"type": int, "default": 4096}, "--max-prefill-tokens": {"type": int, "default": PREFILL},
    "--device": {"choices": ("cuda", "cpu", "xpu", "hpu", "npu", "musa"), "default": "cuda"},
    "--attention-backend": {"choices": ("triton", "torch_native", "flashinfer", "fa3", "intel_amx")},
    "--random-seed": {"type": int}, "--stream-interval": {"type": int}, "--decode-log-interval": {"type": int},
    "--log-level": {}, "--log-level-http": {}, "--schedule-policy": {}, "--quantization": {},
}  # fmt: skip
SWITCHES = ("--enable-metrics", "--disable-radix-cache", "--enable-cache-report", "--trust-remote-code",
            "--skip-server-warmup", "--disable-cuda-graph")  # fmt: skip

_CHILD = "[2026-11-28 19:10:24] Scheduler hit an exception: Traceback (most recent call last):\n{}\n"
DEATHS = {
    "memory": _CHILD.format("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a "
                            "total capacity of 14.57 GiB of which 65.38 MiB is free."),
    "cache": _CHILD.format("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current "
                           "value: mem_fraction_static=0.05"),
    "weights": _CHILD.format("ValueError: Loaded weights leave no GPU memory for the KV cache under "
                             "--mem-fraction-static=0.3. Raise --mem-fraction-static above 0.412"),
    "vocabulary": _CHILD.format("IndexError: index out of range in self"),
    "unknown": _CHILD.format("AssertionError"),
}  # fmt: skip


def log(text: str) -> None:
    """A line as the real one writes it: with a time, and without a level."""
    say(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}")


# --- the command line


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="sglang serve")
    made.add_argument("--model-path", "--model", required=True)
    made.add_argument("--tensor-parallel-size", "--tp-size", type=int, default=1)
    made.add_argument("--pipeline-parallel-size", "--pp-size", type=int, default=1)
    for name, how in OPTIONS.items():
        made.add_argument(name, **how)
    for name in SWITCHES:
        made.add_argument(name, action="store_true")
    return made


def run(version: str, argv: list[str]) -> None:
    """The program: the server's module."""
    args = parser().parse_args(argv)
    args.disable_uvicorn_access_log = args.log_level_http == "warning"
    append("PIDS", str(os.getpid()))
    own = {name: value for name, value in os.environ.items() if name.startswith("SGLANG_")}
    append("CALLS", json.dumps({"start": argv, "env": own}))
    if args.device == "cuda":
        end("RuntimeError: Found no NVIDIA driver on your system.", 1)
    if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1" or args.attention_backend not in ("torch_native", "intel_amx"):
        end("ImportError: cannot import name 'fused_experts' from 'sgl_kernel'", 1)
    config = read_config(args)
    log(f"server_args={vars(args)}")
    log("Ignore import error when loading sglang.srt.models.midashenglm: No module named 'torchaudio'")
    core = parts.start_family(None)
    server = Server(args, args.model_path, version, config)
    parts.load(server)
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((args.host, args.port))
    except OSError:
        log(f"ERROR:    [Errno {errno.EADDRINUSE}] error while attempting to bind on address "
            f"('{args.host}', {args.port}): address already in use")  # fmt: skip
        os.kill(core, signal.SIGTERM)
        raise SystemExit(3) from None
    asyncio.run(server.serve(sock, core))


def read_config(args: argparse.Namespace) -> dict[str, Any]:
    """The model's config.json; the end where the real one could not load the model either."""
    model = args.model_path
    try:
        config: dict[str, Any] = json.loads((Path(model) / "config.json").read_bytes())
    except OSError:
        end(f"OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '{model}'. Use `repo_type` "
            "argument if needed.", 1)  # fmt: skip
    if args.load_format != "dummy" and not list(Path(model).glob("*.safetensors")):
        end(f"RuntimeError: Cannot find any model weights with `{model}`", 1)
    longest = config["max_position_embeddings"]
    if (args.max_model_len or 0) > longest:
        end(f"ValueError: Warning: User-specified context_length ({args.max_model_len}) is greater than the derived "
            f"context_length ({longest}). This may lead to incorrect model outputs or CUDA errors.", 1)  # fmt: skip
    return config


# --- the server


class Refusal(parts.Refusal):  # type: ignore[misc]
    """An answer of SGLang's flat error shape."""

    def __init__(self, message: str, kind: str = "BadRequestError", status: int = 400) -> None:
        super().__init__(status, kind, message)
        self.body = {"object": "error", **self.body["error"]}


class Server(parts.Server):  # type: ignore[misc]
    """What differs from the double of vLLM."""

    headers_at_once = False

    def __init__(self, args: argparse.Namespace, model: str, version: str, config: dict[str, Any]) -> None:
        super().__init__(args, model, version, config)
        self.ready = False
        self.counts = {True: dict.fromkeys(COUNTERS, 0), False: dict.fromkeys(COUNTERS, 0)}
        self.times = {stream: {name: [0.0, 0] for name in HISTOGRAMS} for stream in (True, False)}
        self.queue_s = [0.0, 0]
        self.cached_tokens = 0
        self.aborted = 0
        self.gauges = (0, 0, 0.0)  # running, waiting, use of the cache: not of now

    def log_load(self) -> None:
        log("Load weight begin. avail mem=21.54 GB")
        log("Load weight end. elapsed=0.25 s, type=LlamaForCausalLM, avail mem=21.54 GB, mem usage=0.00 GB.")
        log(f"KV Cache is allocated. dtype: torch.float32, #tokens: {self.args.max_total_tokens}, K size: 0.03 GB, "
            "V size: 0.03 GB")  # fmt: skip
        args = self.args
        log(f"max_total_num_tokens={args.max_total_tokens}, chunked_prefill_size={args.chunked_prefill_size}, "
            f"max_prefill_tokens={args.max_prefill_tokens}, max_running_requests={args.max_num_seqs}, "
            f"context_len={self.longest}, available_cpu_mem=19.68 GB")  # fmt: skip
        log("Engine startup timings (s): load_weight=0.25, kv_cache_allocation=0.50, scheduler_e2e=3.25, "
            "cuda_graph={prefill=0.00, decode=0.75, target_verify=0.00, draft_prefill=0.00, draft_decode=0.00, "
            "draft_extend=0.00}, tokenizer_e2e=52.94")  # fmt: skip

    async def started(self) -> None:
        """It listens, and asks itself for a completion before it says that it is well."""
        await asyncio.sleep(WARM_UP_S)
        self.count([1] * 7, 8, False, time.monotonic() - WARM_UP_S, time.monotonic())
        self.ready = True
        log("The server is fired up and ready to roll!")

    def log_end(self) -> None:
        log("kill_process_tree called: include_parent=False")

    def die(self) -> NoReturn:
        """A child has failed: its words, and then the whole kills itself."""
        parts.write(2, told("LAST_WORDS", DEATHS["unknown"]) + "\n")
        log("SIGQUIT received. signum=3, frame=<frame>. It usually means one child failed.")
        log(f"kill_process_tree called: parent_pid={os.getpid()}, include_parent=True, pid={os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("lived on")

    async def answer(
        self, method: str, target: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        path, _, query = target.partition("?")
        if path in ("/health", "/health_generate") and self.ready:
            await asyncio.sleep(HEALTH_S)
        if path == "/flush_cache" and (wait := re.fullmatch(r"timeout=([\d.]+)", query)):
            deadline = time.monotonic() + float(wait[1])
            while self.running + self.waiting and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        await super().answer(method, path, body, reader, writer)

    def page(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Every path but completions: status, content type and body."""
        either = {"/flush_cache"}
        pages = {"/health", "/ping", "/ready", "/v1/models", "/server_info", "/get_server_info", *either}
        pages |= {"/metrics"} if self.args.enable_metrics else set()
        if path not in pages:
            return 404, "application/json", b'{"detail":"Not Found"}'
        if method != "GET" and path not in either:
            return 405, "application/json", b'{"detail":"Method Not Allowed"}'
        if path in ("/health", "/ping", "/ready"):
            return (200 if self.ready and not self.dead else 503), "text/plain", b""
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics().encode()
        if path == "/flush_cache":
            if not self.reset():
                return 400, "text/plain", b"Flush cache failed.\n"
            return 200, "text/plain", b"Cache flushed.\nPlease check backend logs for more details. (When there are " \
                b"running or waiting requests, the operation will not be performed.)\n"  # fmt: skip
        if path == "/v1/models":
            owner = told("OWNER", "sglang")
            entry = {"id": self.name, "object": "model", "created": self.created, "owned_by": owner,
                     "root": self.name, "parent": None, "max_model_len": self.longest}  # fmt: skip
            return 200, "application/json", json.dumps({"object": "list", "data": [entry]}).encode()
        info = {**vars(self.args), "version": self.version, "frontend": "python", "internal_states": [{}]}
        return 200, "application/json", json.dumps(info).encode()

    def reset(self) -> bool:
        append("CALLS", json.dumps({"reset": self.served}))
        if self.running or self.waiting or told("FLUSH") == "refuse":
            return False
        self.prefixes.clear()
        return True

    def cached(self, prompt: list[int]) -> int:
        """Tokens of the prompt that the radix cache has; it holds single tokens, and the last is always computed."""
        if self.args.disable_radix_cache:
            return 0
        keys = [hash(tuple(prompt[:end])) for end in range(1, len(prompt) + 1)]
        known = next((i for i, key in enumerate(keys[:-1]) if key not in self.prefixes), len(prompt) - 1)
        self.prefixes.update(keys)
        self.cached_tokens += known
        return known

    def check(self, body: bytes) -> tuple[dict[str, Any], list[int], int]:
        """The request, its prompt as token ids, and how many tokens it wants; Refusal as the real one refuses."""
        if told("COMPLETIONS") == "error":
            raise Refusal("Internal server error", "InternalServerError", 500)
        try:
            asked = json.loads(body)
            prompt, wanted = asked["prompt"], asked.get("max_tokens", 16)
            ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
            if not all(isinstance(i, int) for i in ids) or not isinstance(wanted, int) or wanted < 1:
                raise TypeError(wanted)
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(f"1 validation error: {error!r}", "Bad Request") from None
        if not ids or asked.get("temperature", 0) < 0:
            raise Refusal("Prompt cannot be empty" if not ids else "temperature must be non-negative")
        if asked.get("min_tokens", 0) > wanted:
            raise Refusal(f"min_new_tokens must be in [0, max_new_tokens({wanted})], got {asked['min_tokens']}.")
        if len(ids) >= self.longest:
            raise Refusal(f"The input ({len(ids)} tokens) is longer than the model's context length "
                          f"({self.longest} tokens).")  # fmt: skip
        if len(ids) + wanted > self.longest:
            raise Refusal(f"Requested token count exceeds the model's maximum context length of {self.longest} tokens. "
                          f"You requested a total of {len(ids) + wanted} tokens: {len(ids)} tokens from the input "
                          f"messages and {wanted} tokens for the completion.")  # fmt: skip
        if not all(0 <= i < self.vocab_size for i in ids):
            os.environ.setdefault("FAKE_SGLANG_LAST_WORDS", DEATHS["vocabulary"])
            self.die()
        # One short of the cache's length, which is one short of the model's: the rest is cut off without a word.
        return asked, ids, min(wanted, self.longest - 2 - len(ids))

    async def generate(
        self, asked: dict[str, Any], prompt: list[int], wanted: int, arrived_s: float, stream: Any,
        reader: asyncio.StreamReader,
    ) -> dict[str, Any] | None:  # fmt: skip
        options = asked.get("stream_options") or {}
        start_s = first_s = time.monotonic()
        cached = self.cached(prompt)
        self.gauges = (self.running, self.waiting, self.held_tokens / KV_CACHE_TOKENS)
        base = {"id": os.urandom(16).hex(), "object": "text_completion", "created": int(time.time()),
                "model": asked.get("model", self.name)}  # fmt: skip

        def usage(tokens: int) -> dict[str, Any]:
            details = {"cached_tokens": cached} if self.args.enable_cache_report else None
            return {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + tokens, "completion_tokens": tokens,
                    "prompt_tokens_details": details, "reasoning_tokens": 0}  # fmt: skip

        for index in range(wanted):
            await asyncio.sleep(start_s + self.ttft_s + index * self.tpot_s - time.monotonic())
            if told("DIE").isdigit() and self.served >= int(told("DIE")) and index == min(2, wanted - 1):
                self.die()
            if reader.at_eof():
                self.aborted += 1
                self.count(prompt, index, stream is not None, arrived_s, first_s)
                return None
            if index == 0:
                first_s = time.monotonic()
                if stream is not None:
                    await stream.start()  # not before
            if stream is not None:
                choice = {"index": 0, "text": " word", "logprobs": None, "matched_stop": None,
                          "finish_reason": "length" if index == wanted - 1 else None}  # fmt: skip
                continuous = usage(index + 1) if options.get("continuous_usage_stats") else None
                await stream.event({**base, "choices": [choice], "usage": continuous})
        if stream is not None:
            if options.get("include_usage"):
                await stream.event({**base, "choices": [], "usage": usage(wanted)})
            await stream.done()
        self.served += 1
        self.queue_s = [self.queue_s[0] + start_s - arrived_s, self.queue_s[1] + 1]
        self.count(prompt, wanted, stream is not None, arrived_s, first_s)
        choice = {"index": 0, "text": " word" * wanted, "logprobs": None, "finish_reason": "length"}
        return None if stream is not None else {**base, "choices": [choice], "usage": usage(wanted)}

    def count(self, prompt: list[int], tokens: int, streamed: bool, arrived_s: float, first_s: float) -> None:
        """What a request adds, all of it when it ends."""
        now_s = time.monotonic()
        for name, number in (("prompt_tokens", len(prompt)), ("generation_tokens", tokens), ("num_requests", 1)):
            self.counts[streamed][name] += number
        for name, seconds in (
            ("time_to_first_token_seconds", first_s - arrived_s),
            ("e2e_request_latency_seconds", now_s - arrived_s),
            ("request_time_per_output_token_seconds", (now_s - first_s) / max(1, tokens - 1)),
        ):
            self.times[streamed][name][0] += seconds
            self.times[streamed][name][1] += 1
        if self.running <= 1:
            self.gauges = (0, 0, 0.0)  # idle, or as good as that

    def metrics(self) -> str:
        """The Prometheus page. Series of answers that were streamed and of those that were not stand apart."""
        common = f'engine_type="unified",model_name="{self.name}"'
        ranks = f'{common},moe_ep_rank="0",pp_rank="0",tp_rank="0"'
        lines: list[str] = []

        def family(name: str, kind: str, text: str, samples: dict[str, float]) -> None:
            lines.extend([f"# HELP sglang:{name} {text}", f"# TYPE sglang:{name} {kind}"])
            lines.extend(f"sglang:{series} {float(value)}" for series, value in samples.items())

        texts = ("The number of running requests.", "The number of requests in the waiting queue.", "The token usage.")
        for name, value, text in zip(("num_running_reqs", "num_queue_reqs", "token_usage"), self.gauges, texts,
                                     strict=True):  # fmt: skip
            family(name, "gauge", text, {f"{name}{{{ranks}}}": value})
        kinds = {s: f'engine_type="unified",is_streaming="{str(s).lower()}",model_name="{self.name}"'
                 for s in (False, True) if self.counts[s]["num_requests"]}  # fmt: skip
        for name, text in COUNTERS.items():
            family(f"{name}_total", "counter", text,
                   {f"{name}_total{{{labels}}}": self.counts[s][name] for s, labels in kinds.items()})  # fmt: skip
        for name, text in HISTOGRAMS.items():
            samples = {}
            for s, labels in kinds.items():
                total, count = self.times[s][name]
                samples |= {f'{name}_bucket{{le="+Inf",{labels}}}': count, f"{name}_sum{{{labels}}}": total,
                            f"{name}_count{{{labels}}}": count}  # fmt: skip
            family(name, "histogram", text, samples)
        family("queue_time_seconds", "histogram", "Histogram of queueing time in seconds.",
               {f"queue_time_seconds_sum{{{ranks}}}": self.queue_s[0],
                f"queue_time_seconds_count{{{ranks}}}": self.queue_s[1]})  # fmt: skip
        if self.cached_tokens:
            family("cached_tokens_total", "counter", "Number of cached prompt tokens by source (device/host/storage).",
                   {f'cached_tokens_total{{cache_source="device",{common}}}': self.cached_tokens})  # fmt: skip
        if self.aborted:
            family("num_aborted_requests_total", "counter", "Number of requests aborted.",
                   {f"num_aborted_requests_total{{{common}}}": self.aborted})  # fmt: skip
        return "\n".join(lines) + "\n"


# --- the environment


def install(folder: Path, version: str = VERSION) -> Path:
    """Make an environment that has SGLang of this version and a torch for the CPU, and give its bin/python."""
    python: Path
    python, site = parts.environment(folder, "sglang", version, "sglang = sglang.cli.main:main")
    package = site / "sglang"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(
        "import importlib.util\nimport sys\n\n"
        f"spec = importlib.util.spec_from_file_location('_fake_sglang', {str(Path(__file__).resolve())!r})\n"
        "module = sys.modules['_fake_sglang'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"module.run({version!r}, sys.argv[1:])\n"
    )
    return python
