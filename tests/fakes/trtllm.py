"""TensorRT-LLM's programs as doubles: trtllm-serve, trtllm-build, trtllm-bench and convert_checkpoint.py.

`install(folder, version)` makes an environment in which they are found. What they imitate and what they do not is in
README.md; where a table below differs by release, the comment names the source in NVIDIA/TensorRT-LLM.

Environment, seconds unless said:
    FAKE_TRTLLM_LOAD_S (0.3), FAKE_TRTLLM_TTFT_S (0.005), FAKE_TRTLLM_TPOT_S (0.0005), FAKE_TRTLLM_BUILD_S (0.05)
    FAKE_TRTLLM_METRICS_WAIT_S (2)  how long GET /metrics waits for a first item, where it is on
    FAKE_TRTLLM_EOS_AFTER           tokens after which a request without ignore_eos stops
    FAKE_TRTLLM_BREAK_AFTER         tokens after which the engine breaks a request
    FAKE_TRTLLM_NEED_WEIGHTS        1: a checkpoint without *.safetensors needs load_format: dummy
    FAKE_TRTLLM_FAIL_STEP           convert, build, serve or bench: that step exits 1 ...
    FAKE_TRTLLM_FAIL_ONCE           ... only while this file does not exist; it is made on failing
    FAKE_TRTLLM_RECORD              a file to which trtllm-serve writes the settings that took effect, as JSON
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import hashlib
import heapq
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

VERSIONS = ("0.21.0", "1.0.0", "1.2.1", "1.3.0rc5")
BLOCK = 32  # tokens in a KV block
MAX_BLOCKS = 4096
KEEP_ALIVE_S = 5.0
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "one", "red", "bird", "in", "tall", "grass")

Release = tuple[int, int]


def release_of(version: str) -> Release:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def seconds(name: str, default: float) -> float:
    return float(os.environ.get(f"FAKE_TRTLLM_{name}", default))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def log(level: str, text: str) -> None:
    say(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [TRT-LLM] [{level}] {text}")


def banner(version: str) -> str:
    """What `import tensorrt_llm` prints on stdout."""
    name = "TensorRT-LLM" if release_of(version) < (1, 1) else "TensorRT LLM"
    return f"[TensorRT-LLM] {name} version: {version}"


class CrashError(Exception):
    """The program dies as Python does: a traceback on stderr, exit code 1."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def fail_step(step: str, message: str) -> None:
    """CrashError if this step was told to fail."""
    if os.environ.get("FAKE_TRTLLM_FAIL_STEP") != step:
        return
    once = os.environ.get("FAKE_TRTLLM_FAIL_ONCE")
    if once:
        if Path(once).exists():
            return
        Path(once).touch()
    log("E", message)
    raise CrashError("RuntimeError", message)


# --- command lines, as click reads and prints them


@dataclass(frozen=True)
class Option:
    names: tuple[str, ...]  # in the order of --help
    kind: str | tuple[str, ...]  # TEXT, INTEGER, FLOAT, FLAG, PATH (must exist), FILE, or the choices
    help: str = ""
    default: Any = None
    key: str = ""
    required: bool = False
    multiple: bool = False
    minimum: int | None = None
    off: str = ""  # the other name of a pair --on/--off
    aliases: tuple[tuple[str, str], ...] = ()
    group: str = ""

    @property
    def dest(self) -> str:
        return self.key or next(name for name in self.names if name.startswith("--"))[2:]

    @property
    def usage(self) -> str:
        """The left column of --help; short names come first, as click sorts them."""
        names = ", ".join(sorted(self.names, key=lambda name: name.startswith("--")))
        if self.off:
            names += f" / {self.off}"
        if self.kind == "FLAG":
            return names
        if isinstance(self.kind, tuple):
            return f"{names} [{'|'.join(self.kind)}]"
        return f"{names} {'INTEGER RANGE' if self.minimum is not None else self.kind}"


@dataclass(frozen=True)
class Command:
    path: str
    usage: str
    doc: tuple[str, ...]
    options: tuple[Option, ...] = ()
    arguments: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    show_default: bool = False


def usage_error(command: Command, message: str) -> None:
    complain(f"Usage: {command.path} {command.usage}")
    complain(f"Try '{command.path} --help' for help.\n\nError: {message}")
    raise SystemExit(2)


def help_text(command: Command) -> str:
    lines = [f"Usage: {command.path} {command.usage}"]
    for paragraph in command.doc:
        lines += ["", *textwrap.wrap(paragraph, 76, initial_indent="  ", subsequent_indent="  ")]
    rows, group = [], ""
    for option in command.options:
        text = option.help
        extra = []
        if command.show_default and option.default is not None and (option.kind != "FLAG" or option.off):
            on = next(iter(option.names))[2:] if option.off else option.default
            extra.append(f"default: {on}")
        if option.minimum is not None:
            extra.append(f"x>={option.minimum}")
        if option.required:
            extra.append("required")
        if extra:
            text = f"{text}  [{'; '.join(extra)}]"
        if option.group and option.group != group:
            group = option.group
            rows.append((f"{group}: ", ""))
        rows.append((f"{'  ' if option.group else ''}{option.usage}", text))
    rows.append(("--help", "Show this message and exit."))
    for title, table in (("Options:", rows), ("Commands:", list(command.commands))):
        if table:
            lines += ["", title, *definitions(table)]
    return "\n".join(lines)


def definitions(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two columns as click sets them: the left at most 30 wide, the right wrapped to a line of 78."""
    rows = list(rows)
    column = min(max(len(left) for left, _ in rows), 30) + 2
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(78 - column - 2, 10), break_long_words=False)
        if not wrapped:
            lines.append(f"  {left}".rstrip() if not left.endswith(": ") else f"  {left}")
        elif len(left) <= column - 2:
            lines.append(f"  {left:<{column}}{wrapped.pop(0)}")
        else:
            lines.append(f"  {left}")
        lines += [" " * (column + 2) + line for line in wrapped]
    return lines


def convert(command: Command, option: Option, name: str, text: str) -> Any:
    """The value of one option, or the end of the program as click ends it."""
    hint = " / ".join(f"'{each}'" for each in option.names)
    if isinstance(option.kind, tuple):
        text = dict(option.aliases).get(text, text)
        if text not in option.kind:
            choices = ", ".join(repr(each) for each in option.kind)
            usage_error(command, f"Invalid value for {hint}: {text!r} is not one of {choices}.")
        return text
    if option.kind in ("INTEGER", "FLOAT"):
        try:
            value = int(text) if option.kind == "INTEGER" else float(text)
        except ValueError:
            word = "integer" if option.kind == "INTEGER" else "float"
            usage_error(command, f"Invalid value for {hint}: {text!r} is not a valid {word}.")
        if option.minimum is not None and value < option.minimum:
            usage_error(command, f"Invalid value for {hint}: {value} is not in the range x>={option.minimum}.")
        return value
    if option.kind == "PATH" and not Path(text).exists():
        usage_error(command, f"Invalid value for {hint}: Path {text!r} does not exist.")
    if option.kind == "FILE" and Path(text).is_dir():
        usage_error(command, f"Invalid value for {hint}: File {text!r} is a directory.")
    return text


def parse(command: Command, argv: list[str], interspersed: bool = True) -> tuple[dict[str, Any], list[str], set[str]]:
    """The options by name, the words that are no options, and which options were given."""
    known = {name: option for option in command.options for name in (*option.names, *filter(None, [option.off]))}
    values = {option.dest: [] if option.multiple else option.default for option in command.options}
    given: set[str] = set()
    words: list[str] = []
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        if word == "--":
            words += rest
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
            if not interspersed:
                words += rest
                break
            continue
        name, equals, text = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        if name == "--help":
            say(help_text(command))
            raise SystemExit(0)
        if name not in known:
            near = sorted(difflib.get_close_matches(name, known))
            hint = f" Did you mean {near[0]}?" if len(near) == 1 else ""
            hint = f" (Possible options: {', '.join(near)})" if len(near) > 1 else hint
            usage_error(command, f"No such option: {name}{hint}")
        option = known[name]
        given.add(option.dest)
        if option.kind == "FLAG":
            if equals:
                usage_error(command, f"Option {name!r} does not take a value.")
            values[option.dest] = name != option.off
            continue
        if not equals:
            if not rest:
                usage_error(command, f"Option {name!r} requires an argument.")
            text = rest.popleft()
        value = convert(command, option, name, text)
        if option.multiple:
            values[option.dest].append(value)
        else:
            values[option.dest] = value
    for option in command.options:
        if option.required and values[option.dest] is None:
            usage_error(command, f"Missing option {' / '.join(repr(name) for name in option.names)}.")
    if interspersed:
        if len(words) < len(command.arguments):
            usage_error(command, f"Missing argument {command.arguments[len(words)]!r}.")
        spare = words[len(command.arguments) :]
        if spare:
            plural = "s" if len(spare) > 1 else ""
            usage_error(command, f"Got unexpected extra argument{plural} ({' '.join(spare)})")
    return values, words, given


LEVELS = ("internal_error", "error", "warning", "info", "verbose", "debug", "trace")


def serve_command(release: Release) -> Command:
    """`trtllm-serve serve`.

    0.21: tensorrt_llm/commands/serve.py as of June 2025; 1.0: the syntax page of 1.1.0; 1.2: the same file at 00209af1;
    1.3: the syntax page of 1.3.0rc7, without the tensorrt backend that later release candidates dropped.
    """
    modern, latest = release >= (1, 2), release >= (1, 3)

    def option(names: str, kind: str | tuple[str, ...], text: str, default: Any = None, **more: Any) -> Option:
        tag = more.pop("tag", "beta")
        return Option(tuple(names.split()), kind, f":tag:`{tag}` {text}" if modern and tag else text, default, **more)

    def sized(short: str, long: str) -> str:
        return f"--{long} --{short}" if modern else f"--{short}"

    if release < (1, 0):
        backend = option("--backend", ("pytorch",), "Set to 'pytorch' for pytorch path. Default is cpp path.")
    else:
        names = ("pytorch", "_autodeploy") if latest else ("pytorch", "tensorrt", "_autodeploy")
        text = "The backend to use to serve the model. Default is pytorch backend."
        backend = option("--backend", names, text, "pytorch", aliases=() if latest else (("trt", "tensorrt"),))
    tokenizer = "Path | Name of the tokenizer."
    experimental = "" if modern else "[Experimental] "
    later = {"tag": "prototype"}
    rows: list[tuple[bool, Option]] = [
        (True, option("--tokenizer", "TEXT", tokenizer if modern else
                      f"{tokenizer}Specify this value only if using TensorRT engine as model.")),
        (modern, option("--custom_tokenizer", "TEXT", "Custom tokenizer type: alias or Python import path.", **later)),
        (True, option("--host", "TEXT", "Hostname of the server.", "localhost")),
        (True, option("--port", "INTEGER", "Port of the server.", 8000)),
        (True, backend),
        (modern, option("--custom_module_dirs", "PATH", "Paths to custom module directories to import.",
                        multiple=True, **later)),
        (True, option("--log_level", LEVELS, "The logging level.", "info")),
        (True, option("--max_beam_width", "INTEGER", "Maximum number of beams for beam search decoding.", 1)),
        (True, option("--max_batch_size", "INTEGER", "Maximum number of requests that the engine can schedule.", 2048)),
        (True, option("--max_num_tokens", "INTEGER",
                      "Maximum number of batched input tokens after padding is removed in each batch.", 8192)),
        (True, option("--max_seq_len", "INTEGER", "Maximum total length of one request, including prompt and outputs. "
                      "If unspecified, the value is deduced from the model config.")),
        (True, option(sized("tp_size", "tensor_parallel_size"), "INTEGER", "Tensor parallelism size.", 1,
                      key="tp_size")),
        (True, option(sized("pp_size", "pipeline_parallel_size"), "INTEGER", "Pipeline parallelism size.", 1,
                      key="pp_size")),
        (modern, option(sized("cp_size", "context_parallel_size"), "INTEGER", "Context parallelism size.", 1,
                        key="cp_size")),
        (True, option(sized("ep_size", "moe_expert_parallel_size"), "INTEGER", "expert parallelism size",
                      key="ep_size")),
        (True, option(sized("cluster_size", "moe_cluster_parallel_size"), "INTEGER", "expert cluster parallelism size",
                      key="cluster_size")),
        (True, option("--gpus_per_node", "INTEGER",
                      "Number of GPUs per node. Default to None, and it will be detected automatically.")),
        (True, option("--free_gpu_memory_fraction --kv_cache_free_gpu_memory_fraction" if modern else
                      "--kv_cache_free_gpu_memory_fraction", "FLOAT",
                      "Free GPU memory fraction reserved for KV Cache, after allocating model weights and buffers.",
                      0.9, key="fraction")),
        (latest, option("--kv_cache_dtype", ("auto", "fp8", "nvfp4"), "KV cache quantization dtype for PyTorch "
                        "backend. 'auto' uses checkpoint/model metadata; explicit values force override.", "auto",
                        **later)),
        (True, option("--num_postprocess_workers", "INTEGER", f"{experimental}Number of workers to postprocess raw "
                      "responses to comply with OpenAI protocol.", 0, **later)),
        (True, option("--trust_remote_code", "FLAG", "Flag for HF transformers.", False)),
        (modern, option("--revision", "TEXT", "The revision to use for the HuggingFace model (branch name, tag name, "
                        "or commit id).")),
        (True, option("--config --extra_llm_api_options" if modern else "--extra_llm_api_options", "TEXT",
                      "Path to a YAML file that overwrites the parameters specified by trtllm-serve." +
                      (" Can be specified as either --config or --extra_llm_api_options." if modern else ""),
                      key="extra_llm_api_options", **later)),
        (True, option("--reasoning_parser", ("deepseek-r1", "qwen3", "nano-v3") if modern else ("deepseek-r1",),
                      f"{experimental}Specify the parser for reasoning models.", **later)),
        (modern, option("--tool_parser", ("qwen3", "qwen3_coder", "kimi_k2", "deepseek_v3", "deepseek_v31",
                                          "deepseek_v32"), "Specify the parser for tool models.", **later)),
        (True, option("--metadata_server_config_file", "TEXT", "Path to metadata server config file", **later)),
        (True, option("--server_role", "TEXT",
                      "Server role. Specify this value only if running in disaggregated mode.", **later)),
        (release >= (1, 0), option("--fail_fast_on_attention_window_too_large", "FLAG", "Exit with runtime error when "
                                   "attention window is too large to fit even a single sequence in the KV cache.",
                                   False, **later)),
        (modern, option("--otlp_traces_endpoint", "TEXT", "Target URL to which OpenTelemetry traces will be sent.",
                        **later)),
        (modern, option("--disagg_cluster_uri", "TEXT", "URI of the disaggregated cluster.", **later)),
        (modern, option("--enable_chunked_prefill", "FLAG", "Enable chunked prefill", False, **later)),
        (modern, option("--media_io_kwargs", "TEXT", "Keyword arguments for media I/O.", **later)),
        (modern, option("--chat_template", "TEXT", "Specify a custom chat template. Can be a file path or one-liner "
                        "template string", **later)),
        (latest, option("--grpc", "FLAG", "Run gRPC server instead of OpenAI HTTP server. gRPC server accepts "
                        "pre-tokenized requests and returns raw token IDs.", False, tag="")),
        (latest, option("--served_model_name", "TEXT", "The model name used in the API. If not specified, the model "
                        "path is used as the model name.", **later)),
        (latest, option("--extra_visual_gen_options", "TEXT", "Path to a YAML file with extra VISUAL_GEN model "
                        "options.", **later)),
    ]  # fmt: skip
    doc = ("Running an OpenAI API compatible server", "MODEL: model name | HF checkpoint path | TensorRT engine path")
    options = tuple(each for there, each in rows if there)
    return Command("trtllm-serve serve", "[OPTIONS] MODEL", doc, options, ("MODEL",))


# --- LlmArgs: the YAML file


def words_of(text: str) -> set[str]:
    return set(text.split())


def llm_args(release: Release, torch: bool) -> dict[str, set[str] | None]:
    """The keys that the backend's LlmArgs takes, each with its own keys where those are checked.

    tensorrt_llm/llmapi/llm_args.py. A nested model of 0.21 ignores what it does not know; later ones forbid it.
    TorchLlmArgs and TrtLlmArgs share a base: what belongs to one is forbidden in the other.
    """
    keys: dict[str, set[str] | None] = dict.fromkeys(
        words_of("""
        model tokenizer tokenizer_mode skip_tokenizer_init trust_remote_code tensor_parallel_size dtype revision
        tokenizer_revision pipeline_parallel_size context_parallel_size gpus_per_node moe_cluster_parallel_size
        moe_tensor_parallel_size moe_expert_parallel_size enable_attention_dp cp_config load_format enable_lora
        lora_config enable_chunked_prefill guided_decoding_backend iter_stats_max_iterations
        request_stats_max_iterations peft_cache_config cache_transceiver_config speculative_config max_batch_size
        max_input_len max_seq_len max_beam_width max_num_tokens gather_generation_logits num_postprocess_workers
        postprocess_tokenizer_dir reasoning_parser backend kv_cache_config scheduler_config""")
    )
    if torch:
        keys |= dict.fromkeys(
            words_of("""
            attn_backend disable_overlap_scheduler enable_iter_perf_stats enable_iter_req_stats print_iter_log
            torch_compile_config enable_layerwise_nvtx_marker enable_min_latency stream_interval""")
        )
    else:
        keys |= dict.fromkeys(
            words_of("""
            build_config quant_config calib_config enable_build_cache extended_runtime_perf_knob_config fast_build
            embedding_parallel_mode batching_type normalize_log_probs enable_tqdm workspace""")
        )
    if release < (1, 0):
        if torch:
            keys |= dict.fromkeys(
                words_of("""
                use_cuda_graph cuda_graph_batch_sizes cuda_graph_max_batch_size cuda_graph_padding_enabled
                moe_backend moe_max_num_tokens kv_cache_dtype mixed_sampler enable_trtllm_sampler
                autotuner_enabled""")
            )
        return keys
    cache = words_of("""
        enable_block_reuse max_tokens max_attention_window sink_token_length free_gpu_memory_fraction host_cache_size
        onboard_blocks cross_kv_cache_fraction secondary_offload_min_priority event_buffer_max_size
        enable_partial_reuse copy_on_partial_reuse dtype use_uvm""")
    keys["kv_cache_config"] = cache | (words_of("tokens_per_block max_gpu_total_bytes") if release >= (1, 2) else set())
    keys["scheduler_config"] = words_of("capacity_scheduler_policy context_chunking_policy dynamic_batch_config")
    keys["fail_fast_on_attention_window_too_large"] = None
    if torch:
        keys |= dict.fromkeys(words_of("moe_config enable_autotuner garbage_collection_gen0_threshold"))
        keys["cuda_graph_config"] = words_of("batch_sizes max_batch_size enable_padding")
        keys["enable_trtllm_sampler" if release < (1, 2) else "sampler_type"] = None
    if release >= (1, 2):  # neither is in the LlmArgs of 1.0
        keys |= dict.fromkeys(words_of("return_perf_metrics perf_metrics_max_requests otlp_traces_endpoint"))
    return keys


def yaml_value(text: str) -> Any:
    """A scalar, or a mapping or list in braces without any in it."""
    text = text.strip()
    if text[:1] in "{[" and text[:1]:
        parts = [part for part in text[1:-1].split(",") if part.strip()]
        if text[0] == "[":
            return [yaml_value(part) for part in parts]
        return {yaml_value(name): yaml_value(value) for name, _, value in (part.partition(":") for part in parts)}
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    plain = {"": None, "~": None, "null": None, "true": True, "yes": True, "on": True, "false": False, "no": False,
             "off": False}  # fmt: skip
    if text.lower() in plain:
        return plain[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def yaml_block(lines: list[str], indent: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while lines:
        line = lines[0]
        depth = len(line) - len(line.lstrip())
        if depth < indent:
            break
        name, colon, value = line.strip().partition(":")
        if depth > indent or not colon or name.startswith("- "):
            raise CrashError("yaml.scanner.ScannerError", f"mapping values are not allowed here: {line.strip()!r}")
        lines.pop(0)
        deeper = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
        nested = not value.strip() and deeper > depth
        found[yaml_value(name)] = yaml_block(lines, deeper) if nested else yaml_value(value)
    return found


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; JSON is YAML."""
    if not Path(path).is_file():
        raise CrashError("FileNotFoundError", f"[Errno 2] No such file or directory: {path!r}")
    text = Path(path).read_text(encoding="utf-8")
    try:
        import yaml

        found = yaml.safe_load(text)
    except ImportError:
        try:
            found = json.loads(text)
        except ValueError:
            lines = [re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in text.splitlines()]
            found = yaml_block([line for line in lines if line and line != "---"], 0) or None
    if not isinstance(found, dict):
        raise CrashError("TypeError", f"argument of type {type(found).__name__!r} is not iterable")
    return found


def check_llm_args(extra: dict[str, Any], release: Release, backend: str) -> None:
    """CrashError as pydantic does on what LlmArgs would not take."""
    torch = backend != "tensorrt"
    known = llm_args(release, torch)
    wrong: list[tuple[str, str, str, Any]] = []

    def forbid(place: str, value: Any) -> None:
        wrong.append((place, "Extra inputs are not permitted", "extra_forbidden", value))

    for name, value in extra.items():
        if name not in known:
            forbid(name, value)
            continue
        inner = known[name]
        if inner is not None and isinstance(value, dict):
            for each in value:
                if each not in inner:
                    forbid(f"{name}.{each}", value[each])
        whole = name.startswith("max_") or name in ("stream_interval", "perf_metrics_max_requests")
        if whole and value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            wrong.append((name, "Input should be a valid integer", "int_type", value))
        elif name == "stream_interval" and value <= 0:
            wrong.append((name, "Input should be greater than 0", "greater_than", value))
        if name.startswith(("enable_", "return_", "disable_")) and not isinstance(value, bool | dict):
            wrong.append((name, "Input should be a valid boolean", "bool_type", value))
        if name.endswith("_config") and value is not None and not isinstance(value, dict):
            wrong.append((name, "Input should be a valid dictionary", "dict_type", value))
        if name == "load_format" and (str(value).upper() if torch else value) not in ("AUTO", "DUMMY", "auto", "dummy"):
            wrong.append((name, f"Value error, Invalid LoadFormat: {value}", "value_error", value))
    cache = extra.get("kv_cache_config")
    if not torch and release >= (1, 0) and isinstance(cache, dict) and cache.get("dtype", "auto") != "auto":
        text = "Assertion failed, KvCacheConfig.dtype is not supported by the TensorRT backend."
        wrong.append(("", text, "assertion_error", extra))
    if wrong:
        raise validation_crash(torch, wrong)


def validation_crash(torch: bool, wrong: list[tuple[str, str, str, Any]]) -> CrashError:
    name = "TorchLlmArgs" if torch else "TrtLlmArgs"
    lines = [f"{len(wrong)} validation error{'s' if len(wrong) > 1 else ''} for {name}"]
    for place, text, kind, value in wrong:
        lines += [place] if place else []
        lines.append(f"  {text} [type={kind}, input_value={value!r}, input_type={type(value).__name__}]")
        lines.append(f"    For further information visit https://errors.pydantic.dev/2.10/v/{kind}")
    log("E", "Failed to parse the arguments for the LLM constructor: " + "\n".join(lines))
    return CrashError("pydantic_core._pydantic_core.ValidationError", "\n".join(lines))


# --- models and engines


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CrashError(
            "OSError",
            f"{folder} does not appear to have a file named config.json. Checkout "
            f"'https://huggingface.co/{folder}/tree/main' for available files.",
        )
    return json.loads(path.read_text(encoding="utf-8"))


def is_engine(config: dict[str, Any]) -> bool:
    return "build_config" in config and "pretrained_config" in config


def find_model(model: str) -> Path | None:
    """The folder of a local model, None for a name that Hugging Face could know."""
    if Path(model).is_dir():
        return Path(model)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        return None
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", model):
        raise CrashError(
            "OSError",
            f"{model} is not a local folder and is not a valid model identifier listed on "
            "'https://huggingface.co/models'",
        )
    raise CrashError(
        "huggingface_hub.errors.HFValidationError",
        "Repo id must be in the form 'repo_name' or "
        f"'namespace/repo_name': '{model}'. Use `repo_type` argument if needed.",
    )


def check_checkpoint(folder: Path, dummy: bool) -> dict[str, Any]:
    """The config of a Hugging Face checkpoint for the PyTorch backend."""
    config = read_config(folder)
    if is_engine(config) or not {"model_type", "architectures"} & set(config):
        raise CrashError(
            "ValueError",
            f"Unrecognized model in {folder}. Should have a `model_type` key in its config.json, "
            "or contain one of the following strings in its name: llama, qwen2, qwen3",
        )
    needed = os.environ.get("FAKE_TRTLLM_NEED_WEIGHTS") == "1" and not dummy
    if needed and not list(folder.glob("*.safetensors")):
        raise CrashError("RuntimeError", f"No weight files found in {folder}.")
    return config


def check_engine(folder: Path, version: str) -> dict[str, Any]:
    """The config of an engine of this version."""
    if not (folder / "config.json").is_file():
        raise CrashError("ValueError", f"Failed to infer model format because no config.json exists in {folder}")
    config = read_config(folder)
    if not is_engine(config):
        raise CrashError(
            "RuntimeError",
            f"{folder} is no engine folder. (The real program would build an engine from a "
            "checkpoint first; this double does not.)",
        )
    for rank in range(config["pretrained_config"].get("mapping", {}).get("world_size", 1)):
        if not (folder / f"rank{rank}.engine").is_file():
            raise CrashError("RuntimeError", f"Error opening engine file: {folder}/rank{rank}.engine")
    if config.get("version") != version:
        log("E", "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
            "stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match.)")  # fmt: skip
        raise CrashError(
            "RuntimeError",
            f"Executor worker returned error: {folder} was built by TensorRT-LLM "
            f"{config.get('version')}, this is {version}",
        )
    return config


# --- the engine: in-flight batching on a clock


@dataclass(eq=False)
class Generation:
    """One request in the engine."""

    number: int
    prompt: int
    cached: int
    limit: int
    finish: str
    emit: Callable[[int, str | None], None]  # tokens so far, finish reason
    done: asyncio.Future[str]
    arrived: float
    scheduled: float = 0.0
    ready_at: float = math.inf
    made: int = 0
    shown: int = 0
    first: float = 0.0
    last: float = 0.0
    first_iter: int = 0


@dataclass
class Finished:
    """What the metrics need of a request that ended well."""

    request: Generation
    reason: str
    last_iter: int
    blocks: int
    reused: int


@dataclass
class Engine:
    """At most `batch` requests at once; the rest wait. A token is due every `tpot` after `ttft`."""

    batch: int
    ttft: float
    tpot: float
    interval: int = 1
    keep_stats: bool = False
    keep_requests: int = 0
    break_after: int | None = None
    waiting: deque[Generation] = field(default_factory=deque)
    running: list[Generation] = field(default_factory=list)
    stats: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=1000))
    requests: deque[Finished] = field(default_factory=deque)
    finished: list[Finished] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)
    reused: int = 0
    missed: int = 0
    iteration: int = 0
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.requests = deque(maxlen=self.keep_requests)

    def cached(self, tokens: list[Any]) -> int:
        """Tokens of this prompt whose blocks are known; the rest become known."""
        key, hits, known = b"", 0, True
        blocks = (len(tokens) - 1) // BLOCK
        if len(self.seen) > 200_000:
            self.seen.clear()
        for block in range(blocks):
            text = repr(tokens[block * BLOCK : (block + 1) * BLOCK]).encode()
            key = hashlib.blake2b(key + text, digest_size=12).digest()
            known = known and key in self.seen
            hits += known
            self.seen.add(key)
        self.reused += hits
        self.missed += blocks - hits
        return hits * BLOCK

    def submit(self, generation: Generation) -> None:
        self.waiting.append(generation)
        self.admit()

    def admit(self) -> None:
        now = time.monotonic()
        while self.waiting and len(self.running) < self.batch:
            generation = self.waiting.popleft()
            generation.scheduled = now
            generation.ready_at = now + self.ttft
            self.running.append(generation)
        if self.timer:
            self.timer.cancel()
        if self.running:
            due = min(each.ready_at + each.made * self.tpot for each in self.running)
            loop = asyncio.get_running_loop()
            self.timer = loop.call_at(loop.time() + max(0.0, due - now), self.step)

    def step(self) -> None:
        began = time.monotonic()
        self.iteration += 1
        active = len(self.running)
        context = 0
        for generation in list(self.running):
            if began < generation.ready_at:
                continue
            late = began - generation.ready_at
            due = generation.limit if self.tpot <= 0 else 1 + int(late / self.tpot + 1e-9)
            context += generation.made == 0
            while generation.made < min(due, generation.limit):
                self.token(generation, began)
                if generation.done.done():
                    self.running.remove(generation)
                    break
        if self.keep_stats:
            self.stats.append(self.iteration_stats(active, context, time.monotonic() - began))
        self.admit()

    def token(self, generation: Generation, now: float) -> None:
        generation.made += 1
        if generation.made == 1:
            generation.first, generation.first_iter = now, self.iteration
        generation.last = now
        end = generation.finish if generation.made == generation.limit else None
        if end or generation.made == 1 or generation.made % self.interval == 0:
            generation.emit(generation.made, end)
            generation.shown = generation.made
        if self.break_after is not None and generation.made >= self.break_after and not end:
            generation.done.set_exception(RuntimeError("Encountered an error in forwardAsync function: broken"))
        elif end:
            self.end(generation, end)
            generation.done.set_result(end)

    def end(self, generation: Generation, reason: str) -> None:
        blocks = math.ceil((generation.prompt + generation.made) / BLOCK)
        item = Finished(generation, reason, self.iteration, blocks, generation.cached // BLOCK)
        self.finished.append(item)
        self.requests.append(item)

    def abort(self, generation: Generation) -> None:
        for queue in (self.waiting, self.running):
            if generation in queue:
                queue.remove(generation)
        if not generation.done.done():
            generation.done.cancel()
        self.admit()

    def used_blocks(self) -> int:
        return sum(math.ceil((each.prompt + each.made) / BLOCK) for each in self.running)

    def hit_rate(self) -> float:
        return self.reused / max(self.reused + self.missed, 1)

    def iteration_stats(self, active: int, context: int, took: float) -> dict[str, Any]:
        used = min(self.used_blocks(), MAX_BLOCKS)
        return {
            "cpuMemUsage": 0, "gpuMemUsage": 76665782272, "inflightBatchingStats": {
                "avgNumDecodedTokensPerIter": 1.0, "microBatchId": 0, "numContextRequests": context,
                "numCtxTokens": 0, "numGenRequests": active - context, "numPausedRequests": 0,
                "numScheduledRequests": active},
            "iter": self.iteration, "iterLatencyMS": round(max(took, self.tpot) * 1000, 6), "kvCacheStats": {
                "allocNewBlocks": self.missed, "allocTotalBlocks": self.missed, "cacheHitRate": self.hit_rate(),
                "freeNumBlocks": MAX_BLOCKS - used, "maxNumBlocks": MAX_BLOCKS, "missedBlocks": self.missed,
                "reusedBlocks": self.reused, "tokensPerBlock": BLOCK, "usedNumBlocks": used},
            "maxNumActiveRequests": self.batch, "numActiveRequests": active, "numQueuedRequests": len(self.waiting),
            "timestamp": time.strftime("%m-%d-%Y %H:%M:%S"),
        }  # fmt: skip


# --- requests, as the pydantic models of tensorrt_llm/serve/openai_protocol.py take them

# The type of each field; "?" where null is taken as well.
BOTH_FIELDS = """model:str frequency_penalty:float? logit_bias:dict? n:int presence_penalty:float? seed:int? stop:text?
    stream:bool? stream_options:dict? temperature:float? top_p:float? user:str? lora_request:dict? best_of:int?
    use_beam_search:bool top_k:int top_p_min:float min_p:float repetition_penalty:float length_penalty:float
    early_stopping:bool stop_token_ids:list? include_stop_str_in_output:bool ignore_eos:bool min_tokens:int
    skip_special_tokens:bool spaces_between_special_tokens:bool truncate_prompt_tokens:int? add_special_tokens:bool
    response_format:dict? disaggregated_params:dict?"""
COMPLETION_FIELDS = """prompt:prompt echo:bool? logprobs:int? max_tokens:int? suffix:str? return_context_logits:bool
    detokenize:bool"""
CHAT_FIELDS = """messages:list prompt_token_ids:list? top_logprobs:int? tools:list? tool_choice:any echo:bool
    add_generation_prompt:bool documents:list? chat_template:str? chat_template_kwargs:dict?"""


def fields_of(release: Release, chat: bool) -> dict[str, str]:
    text = f"{BOTH_FIELDS} {CHAT_FIELDS if chat else COMPLETION_FIELDS}"
    if chat and release >= (1, 2):
        text += " logprobs:bool? max_tokens:int? max_completion_tokens:int? reasoning_effort:str? cache_salt:str?"
    elif chat:
        text += " logprobs:int? max_tokens:int max_completion_tokens:int"
    return dict(item.split(":") for item in text.split())  # type: ignore[misc]


def fits(kind: str, value: Any) -> bool:
    if value is None:
        return kind.endswith("?") or kind == "any"
    tests: dict[str, Callable[[], bool]] = {
        "str": lambda: isinstance(value, str),
        "int": lambda: isinstance(value, int) and not isinstance(value, bool),
        "float": lambda: isinstance(value, int | float) and not isinstance(value, bool),
        "bool": lambda: isinstance(value, bool),
        "list": lambda: isinstance(value, list),
        "dict": lambda: isinstance(value, dict),
        "text": lambda: isinstance(value, str | list),
        "prompt": lambda: isinstance(value, str) or is_prompt_list(value),
        "any": lambda: True,
    }
    return tests[kind.rstrip("?")]()


def is_prompt_list(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(each, str) for each in value):
        return True
    rows = value if all(isinstance(each, list) for each in value) else [value]
    return all(row and all(isinstance(each, int) and not isinstance(each, bool) for each in row) for row in rows)


class BadRequestError(Exception):
    """An answer of 400; `validation` for one that FastAPI gives before the server's own code runs."""

    def __init__(self, message: str, validation: bool = False) -> None:
        super().__init__(message)
        self.validation = validation


def check_body(body: dict[str, Any], release: Release, chat: bool) -> None:
    known = fields_of(release, chat)
    wrong: list[dict[str, Any]] = []

    def refuse(kind: str, place: tuple[str, ...], text: str, value: Any) -> None:
        wrong.append({"type": kind, "loc": ("body", *place), "msg": text, "input": value})

    options = body.get("stream_options")
    if (options is not None if chat else options) and not body.get("stream"):
        text = ("stream_options can only be set if stream is true" if chat else
                "Stream options can only be defined when stream is true.")  # fmt: skip
        refuse("value_error", (), f"Value error, {text}", body)
    elif not chat and body.get("logprobs") and release < (1, 3):
        refuse("value_error", (), "Value error, logprobs is not supported", body)
    elif chat and body.get("top_logprobs") is not None and not body.get("logprobs"):
        refuse("value_error", (), "Value error, logprobs must be true when using top_logprobs", body)
    elif body.get("suffix"):
        refuse("value_error", (), "Value error, suffix is not supported", body)
    else:
        for name in ("model", "messages" if chat else "prompt"):
            if name not in body:
                refuse("missing", (name,), "Field required", body)
        for name, value in body.items():
            alias = chat and name == "max_completion_tokens" and "max_tokens" in body
            if name not in known or alias:
                refuse("extra_forbidden", (name,), "Extra inputs are not permitted", value)
            elif not fits(known[name], value):
                kind = known[name].rstrip("?")
                word = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}.get(kind, kind)
                refuse(f"{kind}_type", (name,), f"Input should be a valid {word}", value)
        for name, value in (options or {}).items() if isinstance(options, dict) else ():
            if name not in ("include_usage", "continuous_usage_stats"):
                refuse("extra_forbidden", ("stream_options", name), "Extra inputs are not permitted", value)
            elif value is not None and not isinstance(value, bool):
                refuse("bool_type", ("stream_options", name), "Input should be a valid boolean", value)
        for index, message in enumerate(body.get("messages") or [] if chat else []):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                refuse("missing", ("messages", str(index), "role"), "Field required", message)
    if wrong:
        raise BadRequestError(str(wrong), validation=True)


def prompt_tokens(body: dict[str, Any], chat: bool) -> list[Any]:
    """The prompt as tokens: ids as given, else words."""
    if chat:
        if body.get("prompt_token_ids") is not None:
            return body["prompt_token_ids"]
        if not body["messages"]:
            raise BadRequestError("list index out of range")
        tokens: list[Any] = []
        for message in body["messages"]:
            content = message.get("content") or ""
            parts = content if isinstance(content, list) else [{"text": content}]
            text = " ".join(str(part.get("text", "")) for part in parts)
            tokens += ["<|im_start|>", message["role"], *text.split(), "<|im_end|>"]
        return [*tokens, "<|im_start|>", "assistant"]
    prompt = body["prompt"]
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise BadRequestError("this double takes one prompt in a request")
        prompt = prompt[0]
    return prompt if isinstance(prompt, list) else prompt.split() or [prompt]


def text_of(first: int, last: int) -> str:
    """The text of tokens first..last-1. Of sixteen tokens one has none yet, and the next brings that of both."""
    words = []
    for index in range(first, last):
        if index % 16 == 5:
            continue
        words += [WORDS[each % len(WORDS)] for each in ((index - 1, index) if index % 16 == 6 else (index,))]
    return "".join((" " if first or index else "") + word for index, word in enumerate(words))


# --- trtllm-serve


@dataclass
class Settings:
    """What took effect, of the command line and of the YAML file."""

    version: str
    backend: str
    model: str
    name: str
    host: str
    port: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    chunked: bool
    stream_interval: int
    block_reuse: bool
    fraction: float
    stats: bool
    perf_metrics: bool
    perf_metrics_max_requests: int
    extra: dict[str, Any]

    @property
    def release(self) -> Release:
        return release_of(self.version)


def resolve(version: str, values: dict[str, Any], given: set[str], model: str) -> Settings:
    """The settings, or a crash as the real program crashes before it loads anything."""
    release = release_of(version)
    if values["gpus_per_node"] is None and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        raise CrashError("ValueError", "No GPU devices found on the node")
    extra = read_yaml(values["extra_llm_api_options"]) if values["extra_llm_api_options"] is not None else {}
    backend = extra.get("backend", values["backend"]) or "tensorrt"
    if backend not in ("pytorch", "_autodeploy") and (backend != "tensorrt" or release >= (1, 3)):
        text = f"{backend} is not a known backend, check help for available options."
        complain(f"Error: Invalid value for backend: {text}")
        raise SystemExit(2)
    torch = backend != "tensorrt"
    check_llm_args(extra, release, backend)
    limits = {name: values[name] for name in ("max_batch_size", "max_num_tokens", "max_seq_len")}
    for name in limits:
        if extra.get(name) is None:
            continue
        # The build config made of the command line wins over the file: set_runtime_knobs_from_build_config.
        if torch and release < (1, 1) and limits[name] is not None:
            log("W", f"overriding {name} from build_config")
        else:
            limits[name] = extra[name]
    folder = find_model(model)
    if torch:
        config = check_checkpoint(folder, str(extra.get("load_format")).lower() == "dummy") if folder else {}
        longest = limits["max_seq_len"] or config.get("max_position_embeddings", 4096)
    else:
        config = check_engine(folder, version) if folder else {}
        if folder is None:
            raise CrashError("RuntimeError", f"{model} is no engine folder")
        build = config["build_config"]
        for name in ("max_batch_size", "max_num_tokens"):
            if limits[name] > build[name]:
                text = f"Value error, {name} [{limits[name]}] is greater than build_config.{name} [{build[name]}]"
                raise validation_crash(False, [("", f"{text} in build_config", "value_error", {"model": model})])
        sizes = config["pretrained_config"].get("mapping", {}).get("tp_size", 1)
        if values["tp_size"] not in (1, sizes):
            text = f"Value error, tp_size {values['tp_size']} is not consistent with the engine's tp_size {sizes}"
            raise validation_crash(False, [("", text, "value_error", {"model": model})])
        longest = build["max_seq_len"]
        tokenizer = values["tokenizer"]
        if tokenizer is None and not (folder / "tokenizer_config.json").exists():
            raise CrashError("AttributeError", "'NoneType' object has no attribute 'tokenizer'")
        if tokenizer is not None:
            find_model(tokenizer)
    cache = extra.get("kv_cache_config") or {}
    # Before 1.2 the mapping of the file replaces the one made of the command line.
    merged = {"free_gpu_memory_fraction": values["fraction"]} if release >= (1, 2) or not cache else {}
    merged |= cache
    served = values.get("served_model_name")
    return Settings(
        version=version, backend=backend, model=model, name=served or (folder.resolve().name if folder else model),
        host=values["host"], port=values["port"], max_batch_size=limits["max_batch_size"],
        max_num_tokens=limits["max_num_tokens"], max_seq_len=longest,
        chunked=bool(extra.get("enable_chunked_prefill", values.get("enable_chunked_prefill"))),
        stream_interval=extra.get("stream_interval", 1), block_reuse=bool(merged.get("enable_block_reuse", True)),
        fraction=merged.get("free_gpu_memory_fraction") or 0.9,
        stats=bool(extra.get("enable_iter_perf_stats")) if torch else True,
        perf_metrics=bool(extra.get("return_perf_metrics")),
        perf_metrics_max_requests=extra.get("perf_metrics_max_requests", 0), extra=extra,
    )  # fmt: skip


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep: bool
    chunked: bool  # the client can read a chunked answer


def dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class Server:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        broken = os.environ.get("FAKE_TRTLLM_BREAK_AFTER")
        self.engine = Engine(
            batch=settings.max_batch_size, ttft=seconds("TTFT_S", 0.005), tpot=seconds("TPOT_S", 0.0005),
            interval=settings.stream_interval, keep_stats=settings.stats,
            keep_requests=settings.perf_metrics_max_requests if settings.perf_metrics else 0,
            break_after=int(broken) if broken else None,
        )  # fmt: skip
        self.count = 0
        gets: dict[str, Callable[[Request], Any]] = {
            "/health": self.health, "/health_generate": self.health_generate, "/version": self.get_version,
            "/v1/models": self.models, "/metrics": self.metrics,
        }  # fmt: skip
        if settings.release >= (1, 2):
            gets["/perf_metrics"] = self.perf_metrics
            if settings.perf_metrics:
                gets["/prometheus/metrics"] = self.prometheus
        posts = {"/v1/completions": self.complete, "/v1/chat/completions": self.complete}
        self.routes = {("GET", path): call for path, call in gets.items()}
        self.routes |= {("POST", path): call for path, call in posts.items()}

    # HTTP

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = True
        try:
            while True:
                request = await self.read(reader, writer, None if first else KEEP_ALIVE_S)
                if request is None:
                    break
                first = False
                status = await self.answer(request, reader, writer)
                peer = writer.get_extra_info("peername") or ("", 0)
                phrase = f'"{request.method} {request.path} HTTP/1.1" {status}'
                say(f"INFO:     {peer[0]}:{peer[1]} - {phrase}")
                if not request.keep or status is None or writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: float | None
    ) -> Request | None:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), idle)
        start, *rows = head[:-4].decode("latin-1").split("\r\n")
        parts = start.split(" ")
        headers = {}
        for row in rows:
            name, colon, value = row.partition(":")
            if not colon or name != name.strip():
                parts = []
            headers[name.lower()] = value.strip()
        if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            self.send(writer, 400, b"Invalid HTTP request received.", "text/plain; charset=utf-8", keep=False)
            return None
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b""
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += (await reader.readexactly(size + 2))[:-2]
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        wish = headers.get("connection", "").lower()
        keep = wish != "close" if parts[2] == "HTTP/1.1" else wish == "keep-alive"
        return Request(parts[0], parts[1].partition("?")[0], headers, body, keep, parts[2] == "HTTP/1.1")

    def send(self, writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json",
             keep: bool = True, more: str = "") -> str:  # fmt: skip
        phrase = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}.get(status, "Error")
        head = f"HTTP/1.1 {status} {phrase}\r\ndate: {formatdate(usegmt=True)}\r\nserver: uvicorn\r\n"
        head += f"content-length: {len(body)}\r\n" + (f"content-type: {kind}\r\n" if kind else "") + more
        head += "\r\n" if keep else "connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        return f"{status} {phrase}"

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        """The status as the access log has it; None where the connection was cut."""
        call = self.routes.get((request.method, request.path))
        if call is None:
            others = [method for method, path in self.routes if path == request.path]
            if others:
                allow = f"allow: {', '.join(others)}\r\n"
                return self.send(writer, 405, dumped({"detail": "Method Not Allowed"}), keep=request.keep, more=allow)
            return self.send(writer, 404, dumped({"detail": "Not Found"}), keep=request.keep)
        try:
            if call == self.complete:
                status = await self.complete(request, reader, writer)
            else:
                body, kind = await call(request)
                status = self.send(writer, 200, body, kind, request.keep)
        except BadRequestError as error:
            flat = {"object": "error", "message": str(error), "type": "BadRequestError", "param": None, "code": 400}
            newer = error.validation and self.settings.release >= (1, 3)  # openai_server.py at 00057725
            status = self.send(writer, 400, dumped({"error": str(error)} if newer else flat), keep=request.keep)
        await writer.drain()
        return status

    # endpoints

    async def health(self, _: Request) -> tuple[bytes, str]:
        return b"", ""

    async def health_generate(self, _: Request) -> tuple[bytes, str]:
        generation = self.generate(["hi"], 1, "length", lambda made, end: None)
        try:
            await generation.done
        except RuntimeError:
            return b"Generation health check failed", ""
        return b"Generation health check OK", ""

    async def get_version(self, _: Request) -> tuple[bytes, str]:
        return dumped({"version": self.settings.version}), "application/json"

    async def models(self, _: Request) -> tuple[bytes, str]:
        card = {"id": self.settings.name, "object": "model", "created": int(time.time()), "owned_by": "tensorrt_llm"}
        return dumped({"object": "list", "data": [card]}), "application/json"

    async def metrics(self, _: Request) -> tuple[bytes, str]:
        """The iteration statistics; whoever reads them takes them, and two readers at once share them out."""
        stats = self.engine.stats
        until = time.monotonic() + seconds("METRICS_WAIT_S", 2.0)
        while self.settings.stats and not stats and time.monotonic() < until:
            await asyncio.sleep(0.02)
        taken = []
        while stats:
            taken.append(stats.popleft())
            if len(taken) % 8 == 0:
                await asyncio.sleep(0)
        return dumped(taken), "application/json"

    async def perf_metrics(self, _: Request) -> tuple[bytes, str]:
        items = []
        while self.engine.requests:
            each = self.engine.requests.popleft()
            ran = each.request
            items.append({"request_id": ran.number, "perf_metrics": {
                "first_iter": ran.first_iter, "last_iter": each.last_iter,
                "timing_metrics": {
                    "server_arrival_time": ran.arrived, "arrival_time": ran.arrived,
                    "first_scheduled_time": ran.scheduled, "first_token_time": ran.first,
                    "server_first_token_time": ran.first, "last_token_time": ran.last},
                "kv_cache_metrics": {
                    "num_total_allocated_blocks": each.blocks, "num_new_allocated_blocks": each.blocks - each.reused,
                    "num_reused_blocks": each.reused, "num_missed_blocks": each.blocks - each.reused}}})  # fmt: skip
        return dumped(items), "application/json"

    async def prometheus(self, _: Request) -> tuple[bytes, str]:
        text = prometheus_text(self.engine, "trtllm_" if self.settings.release >= (1, 3) else "")
        return text.encode(), "text/plain; version=0.0.4; charset=utf-8"

    def generate(
        self, tokens: list[Any], limit: int, finish: str, emit: Callable[[int, str | None], None]
    ) -> Generation:
        self.count += 1
        cached = self.engine.cached(tokens) if self.settings.block_reuse else 0
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        generation = Generation(self.count, len(tokens), cached, limit, finish, emit, done, time.monotonic())
        self.engine.submit(generation)
        return generation

    def lengths(self, body: dict[str, Any], prompt: int, chat: bool) -> tuple[int, str]:
        """How many tokens the answer will have, and why it ends there."""
        settings = self.settings
        wanted = body.get("max_tokens", body.get("max_completion_tokens")) if chat else body.get("max_tokens")
        if wanted is not None and wanted <= 0:
            raise BadRequestError(f"max_tokens must be greater than 0, got max_tokens={wanted}")
        room = settings.max_seq_len - prompt
        if settings.backend == "tensorrt" and not settings.chunked and (wanted or 1) > room:
            raise BadRequestError(
                f"The sum of prompt length ({float(prompt)}) and query length (0) max_tokens ({wanted}) "
                f"should not exceed max_seq_len ({settings.max_seq_len})"
            )
        checked = settings.backend != "tensorrt" and settings.release >= (1, 2) and not settings.chunked
        if checked and prompt > settings.max_num_tokens:
            raise BadRequestError(
                f"The sum of prompt length ({float(prompt)}), query length (0) should not exceed "
                f"max_num_tokens ({settings.max_num_tokens})"
            )
        if room <= 0:
            raise BadRequestError(f"Prompt length ({prompt}) should be less than max_seq_len ({settings.max_seq_len})")
        limit = room if wanted is None else min(wanted, room)
        stops = os.environ.get("FAKE_TRTLLM_EOS_AFTER") or ("16" if wanted is None else None)
        if stops and not body.get("ignore_eos"):
            stop = max(int(stops), body.get("min_tokens", 0))
            if stop < limit:
                return stop, "stop"
        return limit, "length"

    async def complete(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str | None:
        chat = request.path.endswith("/chat/completions")
        body = read_body(request)
        check_body(body, self.settings.release, chat)
        if body.get("n", 1) != 1:
            torch = self.settings.backend == "pytorch" and self.settings.release < (1, 2)
            raise BadRequestError(
                "Multiple response is not supported in PyTorch workflow" if torch else "this double gives one choice"
            )
        tokens = prompt_tokens(body, chat)
        limit, finish = self.lengths(body, len(tokens), chat)
        answer = Answer(self.settings.release, body, chat, len(tokens))
        if not body.get("stream"):
            generation = self.generate(tokens, limit, finish, lambda made, end: None)
            if not await self.finished(generation, reader, writer):
                return None
            if (error := generation.done.exception()) is not None:
                raise BadRequestError(str(error))
            answer.cached = generation.cached
            return self.send(writer, 200, dumped(answer.whole(limit, finish)), keep=request.keep)
        head = f"HTTP/1.1 200 OK\r\ndate: {formatdate(usegmt=True)}\r\nserver: uvicorn\r\n"
        head += "content-type: text/event-stream; charset=utf-8\r\n"
        head += "transfer-encoding: chunked\r\n" if request.chunked else ""
        head += "" if request.keep and request.chunked else "connection: close\r\n"
        writer.write(f"{head}\r\n".encode())

        def write(events: Iterable[bytes]) -> None:
            if not writer.is_closing():
                for event in events:
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event) if request.chunked else event)

        generation = self.generate(tokens, limit, finish, lambda made, end: write(answer.events(made, end)))
        answer.number, answer.cached = generation.number, generation.cached
        if not await self.finished(generation, reader, writer):
            return None
        if (error := generation.done.exception()) is not None:
            log("E", f"Traceback (most recent call last):\nRuntimeError: {error}")
            return None
        write([b"data: [DONE]\n\n"])
        if request.chunked:
            writer.write(b"0\r\n\r\n")
        request.keep = request.keep and request.chunked
        return "200 OK"

    async def finished(
        self, generation: Generation, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Wait for the end. The client is looked at once a second, as the real one does: False if it has gone."""
        while not generation.done.done():
            await asyncio.wait({generation.done}, timeout=1.0)
            if not generation.done.done() and (reader.at_eof() or writer.is_closing()):
                self.engine.abort(generation)
                log("I", f"{writer.get_extra_info('peername')} is disconnected, abort {generation.number}")
                return False
        return True


def read_body(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type")
    if kind is not None and "json" not in kind:
        text = "Input should be a valid dictionary or object to extract fields from"
        wrong = {"type": "model_attributes_type", "loc": ("body",), "msg": text, "input": request.body}
        raise BadRequestError(str([wrong]), validation=True)
    try:
        body = json.loads(request.body)
    except ValueError as error:
        wrong = {"type": "json_invalid", "loc": ("body", 0), "msg": "JSON decode error", "ctx": {"error": str(error)}}
        raise BadRequestError(str([wrong]), validation=True) from None
    if not isinstance(body, dict):
        text = "Input should be a valid dictionary or object to extract fields from"
        wrong = {"type": "model_attributes_type", "loc": ("body",), "msg": text, "input": body}
        raise BadRequestError(str([wrong]), validation=True)
    return body


class Answer:
    """One answer in the shapes of tensorrt_llm/serve/postprocess_handlers.py."""

    def __init__(self, release: Release, body: dict[str, Any], chat: bool, prompt: int) -> None:
        self.release, self.model, self.chat, self.prompt = release, body["model"], chat, prompt
        self.detokenize = body.get("detokenize", True)
        options = body.get("stream_options")
        self.usage_on = bool(options) and options.get("include_usage", True) is True
        default = release < (1, 3)
        self.every = self.usage_on and options.get("continuous_usage_stats", default) is True
        self.number = self.cached = self.shown = 0  # a number for a stream only: its id is constant from 1.3
        self.created = int(time.time())

    def usage(self, made: int) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_tokens": self.prompt, "total_tokens": self.prompt + made,
                                 "completion_tokens": made}  # fmt: skip
        if self.release >= (1, 2):  # openai_protocol.py of 1.0 has no details
            found["prompt_tokens_details"] = {"cached_tokens": self.cached}
        return found

    def head(self, chat: bool, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if chat else "cmpl"
        if self.release >= (1, 3) and self.number:
            return {"id": f"{prefix}-{self.number}", "object": kind, "created": self.created, "model": self.model}
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.model}

    def delta(self, made: int, delta: dict[str, Any], end: str | None, blank: bool = False) -> bytes:
        """A chat event: what is null is left out."""
        if self.release < (1, 2):
            delta["tool_calls"] = []
        choice: dict[str, Any] = {"index": 0, "delta": delta}
        if end:
            choice["finish_reason"] = end
            if self.release >= (1, 2):
                choice["avg_decoded_tokens_per_iter"] = 1.0
        event = self.head(True, "chat.completion.chunk") | {"choices": [choice]}
        if self.every:
            event["usage"] = self.usage(made)
        return b"data: " + dumped(event) + (b" \n\n" if blank else b"\n\n")

    def events(self, made: int, end: str | None) -> list[bytes]:
        """The events for the tokens since the last."""
        first, self.shown = self.shown, made
        text = text_of(first, made)
        events = []
        if self.chat:
            if first == 0:
                events.append(self.delta(0, {"role": "assistant"}, None, blank=True))
            events.append(self.delta(made, {"content": text, "reasoning_content": ""}, end))
        else:
            choice = {"index": 0, "text": text if self.detokenize else "",
                      "token_ids": None if self.detokenize else list(range(first, made)), "logprobs": None,
                      "finish_reason": end, "stop_reason": None}  # fmt: skip
            if self.release >= (1, 2):
                choice["avg_decoded_tokens_per_iter"] = 1.0 if end else None
            event = self.head(False, "text_completion") | {"choices": [choice]}
            event["usage"] = self.usage(made) if self.every else None
            events.append(b"data: " + dumped(event) + b"\n\n")
        if end and self.usage_on:
            # Of either endpoint the last has the object of a chat.
            event = self.head(self.chat or self.release < (1, 3), "chat.completion.chunk")
            events.append(b"data: " + dumped(event | {"choices": [], "usage": self.usage(made)}) + b"\n\n")
        return events

    def whole(self, made: int, end: str) -> dict[str, Any]:
        text = text_of(0, made)
        late = {"disaggregated_params": None}
        late |= {"avg_decoded_tokens_per_iter": 1.0} if self.release >= (1, 2) else {}
        if self.chat:
            message = {"role": "assistant", "content": text, "reasoning_content": ""}
            message |= {"reasoning": None, "tool_calls": []} if self.release >= (1, 2) else {"tool_calls": []}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end, "stop_reason": None,
                      "mm_embedding_handle": None} | late  # fmt: skip
        else:
            choice = {"index": 0, "text": text if self.detokenize else "",
                      "token_ids": None if self.detokenize else list(range(made)), "logprobs": None,
                      "context_logits": None, "finish_reason": end, "stop_reason": None} | late  # fmt: skip
        head = self.head(self.chat, "chat.completion" if self.chat else "text_completion")
        return head | {"choices": [choice], "usage": self.usage(made), "prompt_token_ids": None}


LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                   480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TPOT_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0)  # fmt: skip


def prometheus_text(engine: Engine, prefix: str) -> str:
    """Five metrics of requests, once one has ended; with a prefix the engine's gauges and counters as well."""
    labels = 'engine_type="undefined",model_name="undefined"'
    ended = engine.finished
    done = [each.request for each in ended]
    lines: list[str] = []

    def single(name: str, kind: str, text: str, value: float) -> None:
        lines.extend([f"# HELP {prefix}{name} {text}", f"# TYPE {prefix}{name} {kind}",
                      f"{prefix}{name}{{{labels}}} {float(value)}"])  # fmt: skip

    def histogram(name: str, text: str, buckets: tuple[float, ...], values: list[float]) -> None:
        lines.extend([f"# HELP {prefix}{name} {text}", f"# TYPE {prefix}{name} histogram"])
        lines.append(f"{prefix}{name}_sum{{{labels}}} {sum(values)}")
        for bucket in (*buckets, math.inf):
            edge = "+Inf" if bucket == math.inf else str(bucket)
            count = float(sum(value <= bucket for value in values))
            lines.append(f'{prefix}{name}_bucket{{engine_type="undefined",le="{edge}",model_name="undefined"}} {count}')
        lines.append(f"{prefix}{name}_count{{{labels}}} {float(len(values))}")

    if done:
        name = f"{prefix}request_success_total"
        lines += [f"# HELP {name} Count of successfully processed requests.", f"# TYPE {name} counter"]
        for reason in sorted({each.reason for each in ended}):
            count = float(sum(each.reason == reason for each in ended))
            lines.append(f'{name}{{engine_type="undefined",finished_reason="{reason}",model_name="undefined"}} {count}')
        histogram("e2e_request_latency_seconds", "Histogram of end to end request latency in seconds.",
                  LATENCY_BUCKETS, [each.last - each.arrived for each in done])  # fmt: skip
        histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.",
                  TTFT_BUCKETS, [each.first - each.arrived for each in done])  # fmt: skip
        histogram("time_per_output_token_seconds", "Histogram of time per output token in seconds.", TPOT_BUCKETS,
                  [(each.last - each.first) / (each.made - 1) for each in done if each.made > 1])  # fmt: skip
        histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.",
                  LATENCY_BUCKETS, [each.scheduled - each.arrived for each in done])  # fmt: skip
    if prefix:
        single("num_requests_running", "gauge", "Number of active requests", len(engine.running))
        single("num_requests_waiting", "gauge", "Number of queued requests", len(engine.waiting))
        single("kv_cache_utilization", "gauge", "KV cache utilization", engine.used_blocks() / MAX_BLOCKS)
        single("kv_cache_hit_rate", "gauge", "KV cache hit rate", engine.hit_rate())
        single("kv_cache_reused_blocks_total", "counter", "Cumulative number of KV cache blocks reused", engine.reused)
        single("kv_cache_missed_blocks_total", "counter", "Cumulative number of KV cache blocks missed", engine.missed)
        single("prompt_tokens_total", "counter", "Cumulative number of prompt (input) tokens processed.",
               sum(each.prompt for each in done))  # fmt: skip
        single("generation_tokens_total", "counter", "Cumulative number of generation (output) tokens produced.",
               sum(each.made for each in done))  # fmt: skip
    return "\n".join(lines) + ("\n" if lines else "")


async def serve_until_signal(settings: Settings) -> int:
    """Load, serve, end. The signal that ended it, or an exit code of 1 as a negative number."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda number=number: stop.done() or stop.set_result(number))
    bound = None
    if settings.release >= (1, 2):  # bound before loading, and without SO_REUSEADDR
        # With the protocol named, asyncio sets TCP_NODELAY on what it accepts.
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            bound.bind((settings.host, settings.port))
        except OSError as error:
            message = f"Failed to bind socket to {settings.host}:{settings.port}: {error}"
            raise CrashError("RuntimeError", message) from None
    log("I", f"Using LLM with {'TensorRT' if settings.backend == 'tensorrt' else 'PyTorch'} backend")
    worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1e9)", "fake-mpi-worker"])
    try:
        log("I", f"start MpiSession with 1 workers: pid {worker.pid}")
        log("I", f"max_batch_size={settings.max_batch_size}, free_gpu_memory_fraction={settings.fraction}")
        half = seconds("LOAD_S", 0.3) / 2
        for text in (f"Loading weights of {settings.model}", "Memory used after loading model weights: 13.44 GiB"):
            await asyncio.wait({stop}, timeout=half)
            if stop.done():
                await asyncio.sleep(0.2)
                return stop.result()
            log("I", text)
        fail_step("serve", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB")
        server = Server(settings)
        complain(f"INFO:     Started server process [{os.getpid()}]\nINFO:     Waiting for application startup.")
        where: dict[str, Any] = {"sock": bound} if bound else {"host": settings.host, "port": settings.port}
        try:
            listening = await asyncio.start_server(server.connection, **where, limit=1 << 20, backlog=2048)
        except OSError as error:
            complain(f"ERROR:    {error}")
            return -1
        place = f"http://{settings.host}:{settings.port}"
        complain("INFO:     Application startup complete.")
        complain(f"INFO:     Uvicorn running on {place} (Press CTRL+C to quit)")
        number = await stop
        complain("INFO:     Shutting down")
        listening.close()
        await asyncio.sleep(0.2)
        complain(f"INFO:     Finished server process [{os.getpid()}]")
        return number
    finally:
        worker.terminate()
        worker.wait()


def serve(version: str, argv: list[str]) -> int:
    release = release_of(version)
    commands = [("disaggregated", "Running server in disaggregated mode"),
                ("disaggregated_mpi_worker", "Launching disaggregated MPI worker")]  # fmt: skip
    if release >= (1, 0):
        commands.append(("mm_embedding_serve", "Running an OpenAI API compatible server"))
    if release >= (1, 2):
        commands.insert(2, ("grpc", "Running a gRPC server"))
    commands.append(("serve", "Running an OpenAI API compatible server"))
    group = Command("trtllm-serve", "[OPTIONS] COMMAND [ARGS]...", (), commands=tuple(commands))
    if not argv:
        say(help_text(group))
        return 2
    if argv[0].startswith("-"):  # the group's own parser comes first: options stand behind MODEL
        parse(group, argv, interspersed=False)
    if argv[0] in dict(commands):
        if argv[0] != "serve":
            raise CrashError("NotImplementedError", f"this double has no {argv[0]}")
        argv = argv[1:]
    values, words, given = parse(serve_command(release), argv)
    if values.get("grpc"):
        raise CrashError("NotImplementedError", "this double has no gRPC server")
    settings = resolve(version, values, given, words[0])
    record = os.environ.get("FAKE_TRTLLM_RECORD")
    if record:
        shown = settings.__dict__ | {"argv": argv, "pid": os.getpid(), "given": sorted(given)}
        Path(record).write_text(json.dumps(shown, indent=2), encoding="utf-8")
    ended = asyncio.run(serve_until_signal(settings))
    if ended == signal.SIGTERM:  # uvicorn raises the signal again when it has ended
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    if ended == signal.SIGINT:
        complain("\nAborted!")
    return 1


# --- convert_checkpoint.py and trtllm-build


def convert_checkpoint(version: str, model: str, argv: list[str]) -> int:
    """examples/models/core/{qwen,llama}/convert_checkpoint.py at 0df9aaf3; argparse, so prefixes of options pass."""
    say(version)
    parser = argparse.ArgumentParser(prog="convert_checkpoint.py")
    parser.add_argument("--model_dir", required=model == "qwen")
    parser.add_argument("--output_dir", default="tllm_checkpoint")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float16", "bfloat16", "float32"])
    for name in ("tp_size", "pp_size", "cp_size", "workers"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("moe_tp_size", "moe_ep_size"):
        parser.add_argument(f"--{name}", type=int, default=-1)
    parser.add_argument("--group_size", type=int, default=128)
    parser.add_argument("--embedding_sharding_dim", type=int, default=0, choices=[0, 1])
    precisions = ["int8", "int4", "int4_gptq", "int8_gptq"] if model == "qwen" else ["int8", "int4", "int4_gptq"]
    parser.add_argument("--weight_only_precision", nargs="?", const="int8", default="int8", choices=precisions)
    parser.add_argument("--smoothquant", "-sq", type=float)
    parser.add_argument("--calib_dataset", default="ccdv/cnn_dailymail")
    flags = """use_weight_only disable_weight_only_quant_plugin per_channel per_token int8_kv_cache per_group
        load_model_on_cpu use_parallel_embedding"""
    if model == "llama":
        flags += " use_fp8 use_fp8_rowwise load_by_shard save_config_only"
        for name in ("meta_ckpt_dir", "quant_ckpt_path", "log_level"):
            parser.add_argument(f"--{name}")
    for name in flags.split():
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args(argv)
    if args.model_dir is None:
        raise CrashError("AssertionError", "")
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if not (Path(args.model_dir) / "config.json").is_file():
        log("W", "AutoConfig cannot load the huggingface config.")
    config = read_config(Path(args.model_dir))
    fail_step("convert", "Checkpoint conversion failed, please check error log.")
    time.sleep(seconds("BUILD_S", 0.05))
    kind = config.get("torch_dtype", "bfloat16") if args.dtype == "auto" else args.dtype
    algo = {"int8": "W8A16", "int4": "W4A16", "int4_gptq": "W4A16_GPTQ", "int8_gptq": "W8A16_GPTQ"}
    world = args.tp_size * args.pp_size * args.cp_size
    converted = {
        "architecture": {"qwen": "QWenForCausalLM", "llama": "LlamaForCausalLM"}[model],
        "dtype": "float16" if args.dtype == "auto" and kind == "float32" else kind,
        "vocab_size": config.get("vocab_size", 32000), "hidden_size": config.get("hidden_size", 1024),
        "num_hidden_layers": config.get("num_hidden_layers", 24),
        "num_attention_heads": config.get("num_attention_heads", 16),
        "max_position_embeddings": config.get("max_position_embeddings", 4096),
        "quantization": {"quant_algo": algo[args.weight_only_precision] if args.use_weight_only else None,
                         "kv_cache_quant_algo": "INT8" if args.int8_kv_cache else None},
        "mapping": {"world_size": world, "tp_size": args.tp_size, "pp_size": args.pp_size, "cp_size": args.cp_size},
    }  # fmt: skip
    (output / "config.json").write_text(json.dumps(converted, indent=4), encoding="utf-8")
    for rank in range(world):
        (output / f"rank{rank}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    say("Total time of converting checkpoints: 00:00:00")
    return 0


# tensorrt_llm/plugin/plugin.py, cli_plugin_args
SWITCHES = """dora_plugin context_fmha bert_context_fmha_fp32_acc remove_input_padding use_paged_context_fmha
    use_fp8_context_fmha fuse_fp4_quant multiple_profiles paged_state streamingllm norm_quant_fusion reduce_fusion
    user_buffer use_fused_mlp pp_reduce_scatter"""
PLUGINS = """bert_attention_plugin gpt_attention_plugin gemm_plugin gemm_swiglu_plugin fp8_rowwise_gemm_plugin
    lora_plugin moe_plugin mamba_conv1d_plugin nccl_plugin low_latency_gemm_plugin low_latency_gemm_swiglu_plugin
    gemm_allreduce_plugin"""


def build(version: str, argv: list[str]) -> int:
    """tensorrt_llm/commands/build.py at 008b2b8d."""
    parser = argparse.ArgumentParser(prog="trtllm-build")
    paths = """checkpoint_dir model_config build_config model_cls_file model_cls_name input_timing_cache
        visualize_network paged_kv_cache cluster_key"""
    for name in paths.split():
        parser.add_argument(f"--{name}")
    parser.add_argument("--output_dir", default="engine_outputs")
    parser.add_argument("--output_timing_cache", default="model.cache")
    numbers = {"max_batch_size": 2048, "max_input_len": 1024, "max_beam_width": 1, "max_num_tokens": 8192,
               "opt_num_tokens": None, "max_encoder_input_len": 1024, "workers": 1, "max_lora_rank": 64,
               "max_draft_len": 0, "auto_parallel": 1, "gpus_per_node": 8}  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--max_seq_len", "--max_decoder_seq_len", dest="max_seq_len", type=int)
    parser.add_argument("--max_prompt_embedding_table_size", "--max_multimodal_len", type=int, default=0)
    parser.add_argument("--kv_cache_type", type=str.lower, default="paged", choices=["continuous", "paged", "disabled"])
    parser.add_argument("--profiling_verbosity", default="layer_names_only",
                        choices=["layer_names_only", "detailed", "none"])  # fmt: skip
    parser.add_argument("--log_level", default="info", choices=LEVELS)
    parser.add_argument("--logits_dtype", choices=["float16", "float32"])
    parser.add_argument("--lora_dir", nargs="+")
    parser.add_argument("--lora_ckpt_source", default="hf", choices=["hf", "nemo"])
    parser.add_argument("--lora_target_modules", nargs="+")
    parser.add_argument("--speculative_decoding_mode")
    flags = """strip_plan weight_sparsity weight_streaming fast_build enable_debug_output dry_run monitor_memory
        gather_context_logits gather_generation_logits gather_all_token_logits"""
    for name in flags.split():
        parser.add_argument(f"--{name}", action="store_true")
    kinds = ["auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"]
    plugins = parser.add_argument_group("Plugin config arguments")
    for name in PLUGINS.split():
        plugins.add_argument(f"--{name}", type=str, choices=kinds)
    for name in SWITCHES.split():
        plugins.add_argument(f"--{name}", type=str, choices=["enable", "disable"])
    plugins.add_argument("--tokens_per_block", type=int, default=BLOCK)
    args = parser.parse_args(argv)
    if args.checkpoint_dir is None and args.model_config is None:
        raise CrashError("AssertionError", "")
    path = Path(args.model_config) if args.model_config else Path(args.checkpoint_dir) / "config.json"
    if not path.is_file():
        raise CrashError("FileNotFoundError", f"[Errno 2] No such file or directory: '{path}'")
    config = json.loads(path.read_text(encoding="utf-8"))
    if "architecture" not in config or "dtype" not in config:
        raise CrashError("KeyError", "'architecture'")
    weights = Path(args.checkpoint_dir or "") / "rank0.safetensors"
    if args.checkpoint_dir and not weights.is_file():
        raise CrashError("FileNotFoundError", f"[Errno 2] No such file or directory: '{weights}'")
    log("I", f"Set dtype to {config['dtype']}.")
    longest = args.max_seq_len or config.get("max_position_embeddings", 4096)
    if args.max_seq_len is None:
        log("I", f"max_seq_len is not specified, using deduced value {longest}")
    time.sleep(seconds("BUILD_S", 0.05))
    fail_step("build", "Engine building failed, please check error log.")
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    chosen = vars(args)
    plugin_config = {name: chosen[name] if chosen[name] != "disable" else None for name in PLUGINS.split()}
    plugin_config |= {name: chosen[name] == "enable" if chosen[name] else None for name in SWITCHES.split()}
    built = {name: chosen[name] for name in ("max_input_len", "max_batch_size", "max_beam_width", "max_num_tokens",
                                             "opt_num_tokens", "gather_context_logits")}  # fmt: skip
    built |= {"max_seq_len": longest, "kv_cache_type": args.kv_cache_type.upper(), "plugin_config": plugin_config}
    whole = {"version": version, "pretrained_config": config, "build_config": built}
    (output / "config.json").write_text(json.dumps(whole, indent=4), encoding="utf-8")
    for rank in range(config.get("mapping", {}).get("world_size", 1)):
        if not args.dry_run:
            (output / f"rank{rank}.engine").write_bytes(b"ftrt" + bytes(60))
    log("I", "Total time of building all engines: 00:00:00")
    return 0


# --- trtllm-bench


def bench_commands(release: Release) -> tuple[Command, Command]:
    """The group, and `throughput`: bench/benchmark/throughput.py of June 2025, at 000a01de, at 56851033."""
    modern, latest = release >= (1, 2), release >= (1, 3)
    main = [
        Option(("--model", "-m"), "TEXT", "The Huggingface name of the model to benchmark.", required=True),
        Option(("--model_path",), "TEXT", "Path to a Huggingface checkpoint directory for loading model components."),
        Option(("--workspace", "-w"), "TEXT", "The directory to store benchmarking intermediate files.", "/tmp"),
        Option(("--log_level",), LEVELS, "The logging level.", "info"),
    ]
    if modern:
        main.append(Option(("--revision",), "TEXT", "The revision to use for the HuggingFace model (branch name, tag "
                           "name, or commit id)."))  # fmt: skip
    commands = [("latency", "Run a latency test on a TRT-LLM engine."),
                ("throughput", "Run a throughput test on a TRT-LLM engine.")]  # fmt: skip
    if not latest:
        commands.insert(0, ("build", "Build engines for benchmarking."))
    group = Command("trtllm-bench", "[OPTIONS] COMMAND [ARGS]...", (), tuple(main), commands=tuple(commands),
                    show_default=True)  # fmt: skip
    rows: list[tuple[bool, Option]] = []

    def option(where: str, names: str, kind: str | tuple[str, ...], text: str, default: Any = None, there: bool = True,
               **more: Any) -> None:  # fmt: skip
        rows.append((there, Option(tuple(names.split()), kind, text, default, group=where, **more)))

    run, data, world = "Engine run configuration.", "Engine Input Configuration", "World Configuration"
    load, report = "Request Load Control Options", "Reporting Options"
    option(run, "--engine_dir", "PATH", "Path to a serialized TRT-LLM engine.")
    if release < (1, 0):
        option(run, "--backend", ("pytorch", "_autodeploy"), "Set to 'pytorch' for pytorch path. Default is cpp path.")
    else:
        backends = ("pytorch", "_autodeploy") if latest else ("pytorch", "_autodeploy", "tensorrt")
        option(run, "--backend", backends, "The backend to use for benchmark. Default is pytorch backend.", "pytorch")
    option(run, "--custom_module_dirs", "PATH", "Paths to custom module directories to import.", there=modern,
           multiple=True)  # fmt: skip
    option(run, "--config --extra_llm_api_options" if latest else "--extra_llm_api_options", "TEXT",
           "Path to a YAML file that overwrites the parameters specified by trtllm-bench.",
           key="extra_llm_api_options")  # fmt: skip
    option(run, "--sampler_options", "PATH", "Path to a YAML file that sets sampler options.", there=modern)
    option(run, "--max_batch_size", "INTEGER", "Maximum runtime batch size to run the engine with.")
    option(run, "--max_num_tokens", "INTEGER", "Maximum runtime tokens that an engine can accept.")
    option(run, "--max_seq_len", "INTEGER", "Maximum sequence length.")
    option(run, "--beam_width", "INTEGER", "Number of search beams.", 1)
    option(run, "--kv_cache_free_gpu_mem_fraction", "FLOAT",
           "The percentage of memory to use for KV Cache after model load.", 0.9)  # fmt: skip
    option(data, "--dataset", "PATH", "Pass in a dataset file for parsing instead of stdin.", required=release < (1, 0))
    option(data, "--no_skip_tokenizer_init", "FLAG",
           "Do not skip tokenizer initialization when loading the model.", False, there=modern)  # fmt: skip
    option(data, "--eos_id", "INTEGER",
           "Set the end-of-sequence token for the benchmark. Set to -1 to disable EOS.", -1)  # fmt: skip
    option(data, "--modality", ("image", "video"), "Modality of the multimodal requests.")
    option(data, "--image_data_format", ("pt", "pil"), "Format of the image data for multimodal models.", "pt", modern)
    option(data, "--data_device", ("cuda", "cpu"), "Device to load the multimodal data on.", "cuda", modern)
    option(data, "--max_input_len", "INTEGER", "Maximum input sequence length to use for multimodal models.", 4096)
    option(data, "--num_requests", "INTEGER", "Number of requests to cap benchmark run at. If not specified or set to "
           "0, it will be the length of dataset.", 0)  # fmt: skip
    option(data, "--warmup", "INTEGER", "Number of requests warm up benchmark.", 2)
    option(data, "--target_input_len", "INTEGER", "Target (average) input length for tuning heuristics.", minimum=1)
    option(data, "--target_output_len", "INTEGER", "Target (average) sequence length for tuning heuristics.", minimum=1)
    option(world, "--tp", "INTEGER", "tensor parallelism size", 1)
    option(world, "--pp", "INTEGER", "pipeline parallelism size", 1)
    option(world, "--ep", "INTEGER", "expert parallelism size")
    option(world, "--cluster_size", "INTEGER", "expert cluster parallelism size")
    option(load, "--concurrency", "INTEGER", "Desired concurrency rate (number of requests processing at the same "
           "time), <=0 for no concurrency limit.", -1)  # fmt: skip
    option(report, "--report_json", "FILE", "Path where report is written to.")
    option(report, "--iteration_log", "FILE", "Path where iteration logging is written to.")
    option(report, "--output_json", "FILE", "Path where output should be written to.")
    option(report, "--request_json", "FILE", "Path where per request information is written to.",
           there=release >= (1, 0))  # fmt: skip
    chunks = "chunking in prefill stage for enhanced throughput benchmark."
    if modern:
        option(report, "--enable_chunked_context", "FLAG", f"Enable/disable {chunks}", True,
               off="--disable_chunked_context")  # fmt: skip
    else:
        option(report, "--enable_chunked_context", "FLAG", f"Enable {chunks}", False)
    option(report, "--scheduler_policy", ("guaranteed_no_evict", "max_utilization"), "KV cache scheduler policy: "
           "guaranteed_no_evict prevents request eviction, max_utilization optimizes for throughput.",
           "guaranteed_no_evict")  # fmt: skip
    option("", "--streaming", "FLAG", "Enable streaming mode for requests.", False)
    doc = ("Run a throughput test on a TRT-LLM engine.",)
    options = tuple(each for there, each in rows if there)
    return group, Command("trtllm-bench throughput", "[OPTIONS]", doc, options, show_default=True)


@dataclass
class Job:
    """A row of the dataset, and when it ran; times in ns."""

    task: int
    prompt: int
    output: int
    start: int = 0
    first: int = 0
    end: int = 0


def read_dataset(path: str, limit: int) -> list[Job]:
    """tensorrt_llm/bench/utils/data.py: a JSON object on every line, no empty lines."""
    jobs: list[Job] = []
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            if limit and len(jobs) == limit:
                break
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CrashError("json.decoder.JSONDecodeError", str(error)) from None
            if not isinstance(row, dict):
                raise CrashError("AttributeError", f"{type(row).__name__!r} object has no attribute 'get'")
            ids = row.get("input_ids", row.get("logits"))
            if ids is None and not isinstance(row.get("prompt"), str):
                raise CrashError("ValueError", "text input must be of type `str` (single example), `list[str]` (batch)")
            for name in ("task_id", "output_tokens"):
                if name not in row:
                    raise CrashError("KeyError", repr(name))
            numbers = [row["task_id"], row["output_tokens"], *(ids or [])]
            if not all(isinstance(each, int) and not isinstance(each, bool) for each in numbers):
                raise CrashError(
                    "pydantic_core._pydantic_core.ValidationError", "1 validation error for InferenceRequest"
                )
            prompt = ids if ids is not None else row["prompt"].split()
            jobs.append(Job(row["task_id"], len(prompt), row["output_tokens"]))
    if not jobs:
        raise CrashError("ZeroDivisionError", "division by zero")
    return jobs


def run_jobs(jobs: list[Job], concurrency: int, batch: int) -> None:
    """A closed loop on a made-up clock: `concurrency` at once, of which `batch` in the engine."""
    clients = [0] * min(concurrency if concurrency > 0 else len(jobs), len(jobs))
    slots = [0] * min(batch, len(jobs))
    for index, job in enumerate(jobs):
        job.start = heapq.heappop(clients)
        begun = max(job.start, heapq.heappop(slots))
        spread = 1 + 0.1 * (index * 7 % 11) / 11
        job.first = begun + int(seconds("TTFT_S", 0.005) * spread * 1e9) + 1000
        job.end = job.first + int((job.output - 1) * seconds("TPOT_S", 0.0005) * spread * 1e9) + 1000
        heapq.heappush(clients, job.end)
        heapq.heappush(slots, job.end)


def percentiles(values: list[float], scale: float = 1.0) -> dict[str, float]:
    """By index, without interpolation."""
    ranked = sorted(values)
    found = {f"p{p}": ranked[int(len(ranked) * p / 100)] for p in (50, 90, 95, 99)}
    found |= {"minimum": ranked[0], "maximum": ranked[-1], "average": sum(ranked) / len(ranked)}
    return {name: value * scale for name, value in found.items()}


def machine() -> dict[str, Any]:
    """The first GPU. The index is read as a number, so that the UUID of a GPU or a MIG slice is an error."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().split(",")[0].strip()
    if visible:
        try:
            int(visible)
        except ValueError as error:
            raise CrashError("ValueError", str(error)) from None
    return {"name": "NVIDIA Fake GPU", "memory.total": 79.25, "clocks.mem": 1.593}


def bench_report(version: str, jobs: list[Job], values: dict[str, Any], bench: dict[str, Any]) -> dict[str, Any]:
    """tensorrt_llm/bench/dataclasses/reporting.py at 02499765, get_statistics_dict."""
    latencies = [float(job.end - job.start) for job in jobs]
    total = max(job.end for job in jobs) - min(job.start for job in jobs)
    tpots = [(job.end - job.first) / (job.output - 1) if job.output > 1 else 0.0 for job in jobs]
    ttfts = [float(job.first - job.start) for job in jobs]
    speeds = [job.output / (job.end - job.start) for job in jobs]
    phases = [job.output / max(job.end - job.first, 1) for job in jobs]
    outputs, inputs = sum(job.output for job in jobs), sum(job.prompt for job in jobs)
    world = values["tp"] * values["pp"]
    found: dict[str, Any] = {
        "engine": {"model": bench["model"], "model_path": str(bench["model_path"]),
                   "engine_dir": str(values["engine_dir"]), "version": version} | bench["engine"],
        "machine": machine(),
        "world_info": {
            "tp_size": values["tp"], "pp_size": values["pp"], "ep_size": values["ep"], "world_size": world,
            "max_batch_size": bench["batch"], "max_num_tokens": bench["tokens"],
            "scheduling_policy": values["scheduler_policy"].upper(),
            "kv_cache_percentage": values["kv_cache_free_gpu_mem_fraction"],
            "issue_rate": len(jobs) / max(max(job.start for job in jobs), 1) * 1e9},
        "request_info": {
            "num_requests": len(jobs), "avg_num_concurrent_requests": sum(latencies) / total,
            "avg_input_length": inputs / len(jobs), "avg_output_length": outputs / len(jobs)},
        "performance": {
            "total_latency_ms": total / 1e6, "avg_request_latency_ms": sum(latencies) / len(jobs) / 1e6,
            "request_throughput_req_s": len(jobs) / total * 1e9,
            "system_output_throughput_tok_s": outputs / total * 1e9,
            "system_total_throughput_tok_s": (inputs + outputs) / total * 1e9,
            "output_throughput_per_user_tok_s": sum(speeds) / len(jobs) * 1e9,
            "output_throughput_per_gpu_tok_s": outputs / total * 1e9 / world,
            "request_latency_percentiles_ms": percentiles(latencies, 1e-6)},
    }  # fmt: skip
    if values["streaming"]:
        found["streaming_metrics"] = {
            "token_output_speed_tok_s": sum(phases) / len(jobs) * 1e9, "avg_ttft_ms": sum(ttfts) / len(jobs) / 1e6,
            "avg_tpot_ms": sum(tpots) / len(jobs) / 1e6, "tpot_percentiles": percentiles(tpots, 1e-6),
            "ttft_percentiles": percentiles(ttfts, 1e-6), "gen_tps_percentiles": percentiles(phases, 1e9),
        }  # fmt: skip
    found["dataset"] = {
        "isl_stats": percentiles([float(job.prompt) for job in jobs]),
        "osl_stats": percentiles([float(job.output) for job in jobs]),
        "seq_len_stats": percentiles([float(job.prompt + job.output) for job in jobs]),
        "num_requests": len(jobs), "dataset_path": str(Path(values["dataset"]).resolve()),
    }  # fmt: skip
    return found


def bench(version: str, argv: list[str]) -> int:
    release = release_of(version)
    group, throughput = bench_commands(release)
    main, words, _ = parse(group, argv, interspersed=False)
    if not words:
        usage_error(group, "Missing command.")
    if words[0] not in dict(group.commands):
        usage_error(group, f"No such command {words[0]!r}.")
    if words[0] != "throughput":
        raise CrashError("NotImplementedError", f"this double has no {words[0]}")
    values, _, _ = parse(throughput, words[1:])
    log("I", "Preparing to run throughput benchmark...")
    torch = (values["backend"] or "tensorrt") != "tensorrt"
    Path(main["workspace"]).mkdir(parents=True, exist_ok=True)
    folder = Path(main["model_path"]) if main["model_path"] else find_model(main["model"])
    config = check_checkpoint(folder, True) if folder else {}
    if values["dataset"] is None:
        raise CrashError("TypeError", "expected str, bytes or os.PathLike object, not NoneType")
    jobs = read_dataset(values["dataset"], values["num_requests"])
    longest = max(job.prompt + job.output for job in jobs)
    extra = read_yaml(values["extra_llm_api_options"]) if values["extra_llm_api_options"] else {}
    if torch:
        tokens, batch = values["max_num_tokens"] or 8192, values["max_batch_size"] or 256
        kind = str(config.get("torch_dtype", "bfloat16"))
        about = {"backend": "Pytorch", "dtype": kind, "kv_cache_dtype": None, "quantization": None}
    else:
        if values["max_seq_len"] is not None:
            raise CrashError("AssertionError", "max_seq_len is not a runtime parameter for C++ backend")
        if values["engine_dir"] is None:
            raise CrashError("TypeError", "unsupported operand type(s) for /: 'NoneType' and 'str'")
        engine = check_engine(Path(values["engine_dir"]), version)
        built, trained = engine["build_config"], engine["pretrained_config"]
        if longest > built["max_seq_len"]:
            raise CrashError(
                "RuntimeError",
                f"Engine supports a max sequence of {built['max_seq_len']}. Provided dataset "
                f"contains a maximum sequence of {longest}. Please rebuild a new engine to support this "
                "dataset.",
            )
        tokens = values["max_num_tokens"] or built["max_num_tokens"]
        batch = values["max_batch_size"] or built["max_batch_size"]
        about = {"backend": "TRT", "dtype": trained["dtype"],
                 "kv_cache_dtype": trained["quantization"]["kv_cache_quant_algo"],
                 "quantization": trained["quantization"]["quant_algo"],
                 "max_input_length": built["max_input_len"], "max_sequence_length": built["max_seq_len"]}  # fmt: skip
    check_llm_args(extra, release, "pytorch" if torch else "tensorrt")
    log("I", "Setting up throughput benchmark.")
    time.sleep(seconds("LOAD_S", 0.3))
    fail_step("bench", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB")
    if torch and values["max_seq_len"] and longest > values["max_seq_len"]:
        raise CrashError(
            "tensorrt_llm.executor.utils.RequestError",
            f"Prompt and output ({longest}) exceed max_seq_len ({values['max_seq_len']})",
        )
    if values["warmup"] > 0:
        log("I", "Running warmup.")
    run_jobs(jobs, values["concurrency"], min(extra.get("max_batch_size") or batch, batch))
    log("I", "Benchmark done. Reporting results...")
    about_run = {"model": main["model"], "model_path": folder, "engine": about, "batch": batch, "tokens": tokens}
    found = bench_report(version, jobs, values, about_run)
    if values["report_json"]:
        log("I", f"Writing report to '{values['report_json']}'.")
        write_json(values["report_json"], found)
    if values["output_json"]:
        write_json(values["output_json"], {job.task: text_of(0, job.output) for job in jobs})
    if values.get("request_json"):
        rows = [{"id": job.task, "num_input_tokens": job.prompt, "decode_iteration": job.output - 1,
                 "start_timestamp": job.start, "end_timestamp": job.end, "first_token_timestamp": job.first,
                 "output": text_of(0, job.output), "output_tokens": job.output} for job in jobs]  # fmt: skip
        write_json(values["request_json"], rows)
    if values["iteration_log"]:
        Path(values["iteration_log"]).write_text("".join(f'{{"iter": {n}}}\n' for n in range(len(jobs))), "utf-8")
    rule, performance = "=" * 59, found["performance"]
    log("I", f"\n\n{rule}\n= PERFORMANCE OVERVIEW \n{rule}\n"
        f"Request Throughput (req/sec):                     {performance['request_throughput_req_s']:.4f}\n"
        f"Total Output Throughput (tokens/sec):             {performance['system_output_throughput_tok_s']:.4f}\n"
        f"Total Latency (ms):                               {performance['total_latency_ms']:.4f}\n")  # fmt: skip
    return 0


def write_json(path: str, value: Any) -> None:
    if not Path(path).parent.is_dir():
        raise CrashError("FileNotFoundError", f"[Errno 2] No such file or directory: {path!r}")
    Path(path).write_text(json.dumps(value, indent=4), encoding="utf-8")


# --- the environment


def run(program: str, version: str, argv: list[str]) -> int:
    """One of the programs; `convert:qwen` and `convert:llama` are the two scripts."""
    calls: dict[str, Callable[[str, list[str]], int]] = {
        "trtllm-serve": serve,
        "trtllm-build": build,
        "trtllm-bench": bench,
        "convert:qwen": lambda version, argv: convert_checkpoint(version, "qwen", argv),
        "convert:llama": lambda version, argv: convert_checkpoint(version, "llama", argv),
    }
    try:
        return calls[program](version, argv)
    except CrashError as crash:
        complain("Traceback (most recent call last):")
        complain(f'  File "{sys.argv[0]}", line 8, in <module>\n    sys.exit(main())')
        complain(f"{crash.kind}: {crash}" if str(crash) else crash.kind)
        return 1


def install(folder: Path, version: str) -> Path:
    """Make an environment that has TensorRT-LLM of this version, and give its bin/python.

    It is a virtual environment of this Python, so that sysconfig names its folders; bin/python puts site/ in front
    of the caller's PYTHONPATH, and runs bin/python3.
    """
    release = release_of(version)
    folder = Path(folder).resolve()
    site, scripts = folder / "site", folder / "bin"
    package = site / "tensorrt_llm"
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for path in (scripts, package / "commands", library):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n", "utf-8")
    (library / "tensorrt_llm.pth").write_text(f"{site}\n", "utf-8")
    (scripts / "python3").unlink(missing_ok=True)
    (scripts / "python3").symlink_to(base)
    python = scripts / "python"
    write_script(python, "/bin/sh", f"PYTHONPATH={shlex.quote(str(site))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
                 f'export PYTHONPATH\nexec {shlex.quote(str(scripts / "python3"))} "$@"\n')  # fmt: skip
    info = site / f"tensorrt_llm-{version}.dist-info"
    shutil.rmtree(info, ignore_errors=True)
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n", "utf-8")
    (info / "INSTALLER").write_text("pip\n", "utf-8")
    (package / "version.py").write_text(f'__version__ = "{version}"\n', "utf-8")
    (package / "__init__.py").write_text(
        f'from .version import __version__\n\nprint("{banner(version)}", flush=True)\n', "utf-8")  # fmt: skip
    (package / "_double.py").write_text(
        "import importlib.util\nimport sys\n\nfrom .version import __version__\n\n\n"
        "def run(program):\n"
        f"    spec = importlib.util.spec_from_file_location('_fake_trtllm', {str(Path(__file__).resolve())!r})\n"
        "    module = sys.modules['_fake_trtllm'] = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    return module.run(program, __version__, sys.argv[1:])\n", "utf-8")  # fmt: skip
    (package / "commands" / "__init__.py").write_text("", "utf-8")
    console = []
    for name in ("serve", "bench", *(["build"] if release < (1, 3) else [])):
        main = f"import sys\n\nfrom tensorrt_llm._double import run\n\n\ndef main():\n    return run('trtllm-{name}')\n"
        text = f"{main}\n\nif __name__ == '__main__':\n    sys.exit(main())\n"
        (package / "commands" / f"{name}.py").write_text(text, "utf-8")
        text = f"import sys\nfrom tensorrt_llm.commands.{name} import main\n\nsys.exit(main())\n"
        write_script(scripts / f"trtllm-{name}", str(python), text)
        console.append(f"trtllm-{name} = tensorrt_llm.commands.{name}:main")
    (info / "entry_points.txt").write_text("[console_scripts]\n" + "\n".join(console) + "\n", "utf-8")
    if release < (1, 3):
        for model in ("qwen", "llama"):
            path = folder / "examples" / "models" / "core" / model / "convert_checkpoint.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = f"import sys\nfrom tensorrt_llm._double import run\n\nsys.exit(run('convert:{model}'))\n"
            path.write_text(text, "utf-8")
    return python


def write_script(path: Path, interpreter: str, text: str) -> None:
    """A script of sh or Python; where a shebang cannot hold the path, the lines that pip writes for that."""
    start = f"#!{interpreter}\n"
    if " " in interpreter or len(start) > 127:
        start = f"#!/bin/sh\n'''exec' \"{interpreter}\" \"$0\" \"$@\"\n' '''\n"
    path.write_text(start + text, "utf-8")
    path.chmod(0o755)
