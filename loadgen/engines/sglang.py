"""SGLang: its command line, and its row of the table of engines.

Written from the sources of 0.5.2, 0.5.9 and 0.5.23 and from a 0.5.23 that ran on a CPU. Which options
there are is read from the installed version's own help.

Sources: SGLang 0.5.23, srt/arg_groups/fields, srt/entrypoints/http_server.py, srt/entrypoints/openai,
srt/observability/metrics_collector.py, srt/mem_cache/kv_cache_configurator.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from loadgen import gpus
from loadgen.engines.engine import CacheReset, Engine, Finding, Libraries, answered_200
from loadgen.engines.guarded import NO_ROOM_FOR_CACHE, Endings
from loadgen.engines.installs import Install, check_arguments, kept_options, same_option
from loadgen.engines.models import Model, find_model
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

# The KV cache on a CPU, in tokens. Left to itself SGLang fills 70 % of the memory there.
CPU_KV_CACHE_TOKENS = 65_536
# How long a reset of the prefix cache may wait for the last requests to end; older releases ignore it.
FLUSH_WAIT_S = 5

SERIES = {
    "requests_running": ("sglang:num_running_reqs",),
    "requests_waiting": ("sglang:num_queue_reqs",),
    "kv_cache_usage": ("sglang:token_usage",),
    "requests": ("sglang:num_requests_total",),
    "prompt_tokens": ("sglang:prompt_tokens_total",),
    "generation_tokens": ("sglang:generation_tokens_total",),
    "preemptions": ("sglang:num_retracted_requests_total",),
    # It counts no queries: every token of a prompt is looked up.
    "prefix_cache_queries": ("sglang:prompt_tokens_total",),
    "prefix_cache_hits": ("sglang:cached_tokens_total",),
    "ttft": ("sglang:time_to_first_token_seconds",),
    "queue": ("sglang:queue_time_seconds", "sglang:queue_time_s"),
    "e2e": ("sglang:e2e_request_latency_seconds",),
    # Before 0.5.23 there are only the gaps between tokens.
    "tpot": ("sglang:request_time_per_output_token_seconds", "sglang:inter_token_latency_seconds"),
}


def runs_on_cpu(install: Install) -> bool:
    """Whether it can only use the CPU: SGLang has no package of its own for that, but torch has."""
    return install.environment.torch_cuda is None


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has the matrix units that SGLang's kernels for the CPU need."""
    try:
        return " amx_tile" in cpuinfo.read_text()
    except OSError:
        return False


def prepare(spec: EngineSpec, install: Install | None, found: list[gpus.Gpu]) -> EngineCommand:
    """The command for a spec, everything checked that can be without starting it.

    Raises:
        UsageError: no such model, an option that it does not have, a GPU that is not there or too small.
    """
    assert install is not None and spec.model is not None
    program = f"SGLang {install.version}"
    model = find_model(spec.model, cache_folder() / "shapes", spec.tokenizer)
    if model.engine_dir:
        raise UsageError(
            f"--model {spec.model}: is a TensorRT engine, which SGLang cannot serve; give the model's folder"
        )
    # The console script came late; the module starts every release.
    start = [install.environment.executable, "-m", "sglang.launch_server"]
    known = kept_options(install, [*start, "--help"])
    check_arguments(spec.args, known, program)
    on_cpu = runs_on_cpu(install)
    chosen, mig = gpus_for(spec, install, "SGLang", on_cpu, found, "use an environment whose torch is for the CPU")
    check_fit(spec, model, chosen, mig)
    memory = _memory(chosen, mig, on_cpu)
    argv = [*start, "--model-path", model.path, "--enable-metrics"]
    if spec.prefix_caching is False:
        argv.append("--disable-radix-cache")  # it has no option that turns it on
    for option, value, asked_as in _options(spec, model, on_cpu, memory):
        if value is not None:
            check_arguments([option], known, program, asked_as)
            argv += [option, str(value)]
    env = engine_env(spec, model) | ({"SGLANG_USE_CPU_ENGINE": "1"} if on_cpu else {})
    return EngineCommand(
        kind="sglang",
        version=install.version,
        argv=[*argv, *spec.args],
        env=env,
        model=model.name,
        resets_prefix_cache=spec.prefix_caching is not False,
        gpu_uuids=[gpu.uuid for gpu in chosen],
        facts=facts_of(install, model, mig),
    )


def _memory(chosen: list[gpus.Gpu], mig: gpus.MigSlice | None, on_cpu: bool) -> int | None:
    """The memory of which ``--mem-fraction-static`` is a share; None where it is not known."""
    if on_cpu:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if mig is not None:
        return mig.memory_bytes
    return chosen[0].memory_bytes if chosen else None


def _options(spec: EngineSpec, model: Model, on_cpu: bool, memory: int | None) -> list[tuple[str, object, str]]:
    """Options, their values (None: left out), and what of loadgen's asked for them."""
    share = None if spec.kv_memory_fraction is None else f"{share_with_weights(spec, model, memory):.3f}"
    options: list[tuple[str, object, str]] = [
        ("--served-model-name", model.name, "--model"),
        ("--host", spec.host, "--host"),
        ("--port", "{port}", "--port"),
        ("--log-level-http", "warning", "--engine sglang"),  # a line for each request costs it time
        ("--load-format", "dummy" if model.dummy_weights else None, "--model"),
        ("--tokenizer-path", spec.tokenizer, "--tokenizer"),
        ("--dtype", spec.dtype, "--dtype"),
        ("--max-running-requests", spec.max_batch_size, "--max-batch-size"),
        # A step takes no more than either of all its prompts; the second is 16,384 by itself.
        ("--chunked-prefill-size", spec.max_num_tokens, "--max-num-tokens"),
        ("--max-prefill-tokens", spec.max_num_tokens, "--max-num-tokens"),
        ("--context-length", spec.max_seq_len, "--max-seq-len"),
        ("--mem-fraction-static", share, "--kv-memory-fraction"),
        ("--tp-size", spec.tensor_parallel if spec.tensor_parallel > 1 else None, "--tensor-parallel"),
    ]
    if on_cpu:
        given = {same_option(word) for word in spec.args if word.startswith("--")}
        own_size = share is not None or "--max-total-tokens" in given
        own_kernels = has_amx() or "--attention-backend" in given
        options += [
            ("--device", "cpu", "--engine sglang"),
            ("--max-total-tokens", None if own_size else CPU_KV_CACHE_TOKENS, "--engine sglang"),
            ("--attention-backend", None if own_kernels else "torch_native", "--engine sglang"),
        ]
    return options


def findings(install: Install, libraries: Libraries) -> list[Finding]:
    """What the doctor says of an install."""
    if not runs_on_cpu(install):
        return []
    return [
        Finding(
            level="note",
            what=f"{install.environment.executable}: SGLang {install.version} with a torch for the CPU needs kernels "
            "that PyPI does not have",
            mend="build sgl-kernel from SGLang's source, or see docs/engines.md",
        )
    ]


ENGINE = Engine(
    title="SGLang",
    owned_by="sglang",
    prepare=prepare,
    packages=("sglang",),
    stack=("sglang-kernel", "sgl-kernel"),
    scripts=("sglang",),
    cpu_only=runs_on_cpu,
    backends=lambda install: ["cpu"] if runs_on_cpu(install) else ["cuda"],
    findings=findings,
    # Its scheduler ends an answer one token before the length that the cache is made for, which is one short too.
    spare_tokens=2,
    # /health takes a second, and generates a token that its metrics count.
    health_page="/ping",
    version_pages=("/server_info", "/get_server_info"),
    series=SERIES,
    zero_until_seen=("prefix_cache_hits",),
    watched=frozenset({"requests_running", "generation_tokens", "kv_cache_usage"}),
    cache_reset=CacheReset(f"/flush_cache?timeout={FLUSH_WAIT_S}", answered_200),
    phases={
        "weights_s": r"Load weight end\. elapsed=([\d.]+) s",
        "kv_cache_s": r"Engine startup timings \(s\):.*?kv_cache_allocation=([\d.]+)",
        "graph_capture_s": r"Engine startup timings \(s\):.*?cuda_graph=\{prefill=[\d.]+, decode=([\d.]+)",
        "init_engine_s": r"Engine startup timings \(s\):.*?scheduler_e2e=([\d.]+)",
    },
    sizes={"kv_cache_tokens": r"\bmax_total_num_tokens=(\d+)"},
    endings=Endings(
        causes=(
            (
                r"Not enough memory\. Please try to increase --mem-fraction-static|"
                r"Loaded weights leave no GPU memory for the KV cache",
                NO_ROOM_FOR_CACHE,
            ),
            (
                r"User-specified context_length \((\d+)\) is greater than the derived context_length \((\d+)\)",
                "the model takes {1} tokens, fewer than the {0} of --max-seq-len",
            ),
            (r"error: argument ([\w/-]+): (invalid .+)", "it does not take this value of {0}: {1}"),
            (
                r"IndexError: index out of range in self",
                "a token id of a prompt is outside the model's vocabulary: use a smaller --vocab-size",
            ),
            (
                r"(sglang-kernel|sgl-kernel) (?:with minimum required version|is installed with version)",
                "its package {0} does not fit: install sglang again",
            ),
        ),
        survived=r"Ignore import error when loading",
        own_kill=(
            r"SIGQUIT received|[Rr]eceived sigquit from a child",
            "one of its processes failed; the lines of its log before that say why",
        ),
    ),
    spread_options=("--tp-size", "--tensor-parallel-size", "--tp", "--pp-size", "--pipeline-parallel-size", "--pp"),
)
