"""``trtllm-bench throughput`` on a sweep's own prompts: the ceiling of the engine without HTTP.

Sources: TensorRT-LLM 0.21 to 1.3, bench/benchmark/throughput.py, bench/dataclasses/reporting.py.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from loadgen.engines.guarded import Endings, last_words, run_to_end
from loadgen.engines.installs import Install, check_arguments, help_text, options_in
from loadgen.engines.models import find_model
from loadgen.engines.offline import REPORT_FILE, OfflineReport, read_offline_report
from loadgen.engines.spec import EngineSpec, device_env
from loadgen.environment import cache_folder
from loadgen.errors import EngineError, UsageError
from loadgen.processes import clean_environ
from loadgen.workloads.prompts import SourceSpec, make_prompt

DATASET_FILE = "trtllm_bench_dataset.jsonl"
OPTIONS_FILE = "trtllm_bench_options.yaml"
LOG_FILE = "trtllm_bench.log"
TIMEOUT_S = 3600
# What any program of TensorRT-LLM may die of.
ENDINGS = Endings(
    causes=((r"Extra inputs are not permitted|LLM got invalid argument", "it does not know one of its extra options"),)
)


def offline_words(spec: EngineSpec, install: Install, folder: Path) -> list[str]:
    """The command of an offline run whose files are in ``folder``.

    Raises:
        UsageError: there is no trtllm-bench, or it lacks an option that is needed.
    """
    program = install.environment.script("trtllm-bench")
    if program is None:
        raise UsageError(f"TensorRT-LLM {install.version} in {install.environment.executable} has no trtllm-bench")
    assert spec.model is not None
    model = find_model(spec.model, cache_folder() / "shapes", spec.tokenizer)
    known = options_in(help_text([program, "--model", "x", "throughput", "--help"]))
    words = [program, "--model", model.name if model.local else model.path]
    if model.local:
        words += ["--model_path", spec.tokenizer or model.path]
    words += ["--workspace", str(folder.resolve()), "throughput"]
    given: list[tuple[str, object]] = [
        ("--dataset", (folder / DATASET_FILE).resolve()),
        ("--report_json", (folder / REPORT_FILE).resolve()),
        ("--engine_dir", model.path if model.engine_dir else None),
        # As for trtllm-serve: 0.21 has no word for the TensorRT backend.
        ("--backend", "pytorch" if not model.engine_dir else "tensorrt" if install.release >= (1, 0) else None),
        ("--tp", spec.tensor_parallel if spec.tensor_parallel > 1 else None),
        ("--max_batch_size", spec.max_batch_size),
        ("--max_num_tokens", spec.max_num_tokens),
        ("--max_seq_len", None if model.engine_dir else spec.max_seq_len),
        ("--kv_cache_free_gpu_mem_fraction", spec.kv_memory_fraction),
    ]
    options: dict[str, Any] = {}
    if model.dummy_weights:
        options["load_format"] = "dummy"
    if spec.prefix_caching is not None:
        options["kv_cache_config"] = {"enable_block_reuse": spec.prefix_caching}
        if spec.kv_memory_fraction is not None:
            options["kv_cache_config"]["free_gpu_memory_fraction"] = spec.kv_memory_fraction
    if options:
        (folder / OPTIONS_FILE).write_text(json.dumps(options, indent=2) + "\n")
        given.append(("--extra_llm_api_options", (folder / OPTIONS_FILE).resolve()))
    for option, value in given:
        if value is not None:
            check_arguments([option], known, f"trtllm-bench {install.version}", option)
            words += [option, str(value)]
    check_arguments(["--streaming"], known, f"trtllm-bench {install.version}", "--streaming")
    return [*words, "--streaming"]  # without it there is no TTFT


def write_prompts(source: SourceSpec, first: int, count: int, path: Path) -> None:
    """The prompts of a level in the form of trtllm-bench.

    Raises:
        UsageError: they are chat messages, which it does not take.
    """
    prompts = source.open()
    with path.open("wb") as file:
        for index in range(count):
            prompt = make_prompt(prompts, first + index)
            if prompt.kind == "messages":
                raise UsageError(
                    "--offline-ceiling: trtllm-bench takes no chat messages; use prompts of text or token ids"
                )
            field = "prompt" if prompt.kind == "text" else "input_ids"
            line = {"task_id": index, field: msgspec.Raw(prompt.content), "output_tokens": prompt.output_tokens}
            file.write(msgspec.json.encode(line) + b"\n")


def run_offline(
    spec: EngineSpec,
    install: Install,
    source: SourceSpec,
    first: int,
    count: int,
    folder: Path,
    say: Callable[[str], None],
) -> OfflineReport:
    """Runs trtllm-bench on a level's prompts, all there at once; its report stays in the folder.

    Raises:
        UsageError: nothing was started.
        EngineError: it failed, or did not end within an hour.
    """
    write_prompts(source, first, count, folder / DATASET_FILE)
    words = offline_words(spec, install, folder)
    log = folder / LOG_FILE
    say(f"offline ceiling: {shlex.join(words)}")
    environ = clean_environ() | {name: value for name, value in device_env(spec).items() if value is not None}
    code = run_to_end("trtllm-bench", words, environ, folder, log, say, TIMEOUT_S)
    if code != 0:
        raise EngineError(f"trtllm-bench failed: {last_words(log, code, endings=ENDINGS)}")
    return read_offline_report(folder / REPORT_FILE)
