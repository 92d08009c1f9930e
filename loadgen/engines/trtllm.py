"""TensorRT-LLM: the command line of ``trtllm-serve``, its file of extra options, and its row of the table of engines.

Two lives: up to 1.2 the TensorRT backend serves an engine directory (``engines/trtllm_build.py``
makes one); the PyTorch backend serves a checkpoint as it is, from 0.18 as an option, from 1.0 by
default, and from 1.3 alone. Which options there are is read from the installed version's own help.

Written from its sources (0.21 to 1.3) and proven against executables that imitate them; it has
not met the real one here. Sources: TensorRT-LLM commands/serve.py, llmapi/llm_args.py,
serve/openai_server.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from loadgen import gpus
from loadgen.engines.engine import Engine, Finding, Libraries
from loadgen.engines.installs import Install, check_arguments, help_text, options_in, same_option, version_tuple
from loadgen.engines.models import Model, find_model
from loadgen.engines.spec import EngineCommand, EngineSpec, check_fit, chosen_gpus, engine_env, install_facts
from loadgen.engines.trtllm_bench import ENDINGS, run_offline
from loadgen.engines.trtllm_metrics import SERIES, IterationPage
from loadgen.environment import cache_folder
from loadgen.errors import UsageError

Backend = Literal["pytorch", "tensorrt"]
OPTIONS_FILE = "extra_llm_api_options.yaml"
PYTORCH_DEFAULT_SINCE = (1, 0)
PERF_METRICS_SINCE = (1, 1)
MAX_PERF_METRICS = 1000
PYTORCH_SINCE = (0, 18)
# CUDA of the releases: 1.2's from its install page, 1.0's and 1.1's from their containers.
CUDA_OF_RELEASE: dict[tuple[int, ...], str] = {(1, 0): "12.9", (1, 1): "13.0", (1, 2): "13.1"}


def check_engine_dir(install: Install, model: Model, found: list[gpus.Gpu]) -> None:
    """Refuses an engine that was built by another version, or lacks its files.

    Raises:
        UsageError: says how to build one that fits.
    """
    folder = Path(model.path)
    ranks = sorted(folder.glob("rank*.engine"))
    if not ranks:
        raise UsageError(f"--model {folder}: config.json is an engine's, but there is no rank0.engine; build it again")
    built_by = model.config.get("version")
    if built_by and built_by != install.version:
        raise UsageError(
            f"--model {folder}: was built by TensorRT-LLM {built_by}, and {install.version} is installed; build it "
            "again with `loadgen engines build trtllm`"
        )
    record = folder / "loadgen-build.json"
    if record.exists() and found:
        gpu = json.loads(record.read_text()).get("gpu")
        if gpu and gpu != found[0].name:
            raise UsageError(
                f"--model {folder}: was built for {gpu}, and this host has {found[0].name}; build it again"
            )


_BACKENDS = re.compile(r"--backend\s+\[([^\]]+)\]")


def backends_in(help_words: str) -> list[str]:
    """The backends that ``trtllm-serve serve --help`` offers; pytorch alone where the option is gone.

    0.21 names pytorch only: the TensorRT backend is the one without the option there.
    """
    match = _BACKENDS.search(" ".join(help_words.split()))
    return [word.strip() for word in match[1].split("|")] if match else ["pytorch"]


def choose_backend(spec: EngineSpec, install: Install, model: Model, offered: list[str]) -> Backend:
    """The backend that serves a model.

    Args:
        offered: by the installed version's help.

    Raises:
        UsageError: the one asked for is not in this version, or does not serve this model.
    """
    have = [name for name in offered if name in ("pytorch", "tensorrt")]
    if install.release < PYTORCH_DEFAULT_SINCE and "tensorrt" not in have:
        have.append("tensorrt")
    backend: Backend = spec.backend or ("tensorrt" if model.engine_dir else "pytorch")
    if backend not in have:
        why = ": serve the model's own folder with the PyTorch backend" if backend == "tensorrt" else ""
        raise UsageError(
            f"TensorRT-LLM {install.version} has the backend {' and '.join(have)}, and not the {backend} one that "
            f"{'--backend' if spec.backend else 'an engine directory'} asks for{why}"
        )
    if backend == "tensorrt" and not model.engine_dir:
        raise UsageError(
            f"--model {spec.model}: is no engine directory (its config.json has no build_config), which the TensorRT "
            f"backend needs; build one: loadgen engines build trtllm --model {spec.model}"
        )
    if backend == "pytorch" and model.engine_dir:
        raise UsageError(
            f"--model {spec.model}: is a TensorRT engine; the PyTorch backend needs the model's own folder"
        )
    return backend


def engine_limit(model: Model, name: str) -> int | None:
    """A limit that an engine was built with. trtllm-serve's own defaults end it where they are above
    those of the engine (seen in a log of 1.1), so that they are always given."""
    value = (model.config.get("build_config") or {}).get(name)
    return value if isinstance(value, int) else None


def extra_options(spec: EngineSpec, install: Install, model: Model, backend: Backend) -> dict[str, Any]:
    """The YAML that goes with the server: what has no option of its own.

    ``kv_cache_config`` given here replaces the whole of it, the command line's memory fraction too
    (1.0 to 1.2), so that fraction stands in both.
    """
    options: dict[str, Any] = {}
    cache: dict[str, Any] = {}
    if spec.prefix_caching is not None:
        cache["enable_block_reuse"] = spec.prefix_caching
    if cache and spec.kv_memory_fraction is not None:
        cache["free_gpu_memory_fraction"] = spec.kv_memory_fraction
    if cache:
        options["kv_cache_config"] = cache
    if backend == "pytorch":
        options["enable_iter_perf_stats"] = True
        options["stream_interval"] = 1
        if spec.dtype is not None:
            options["dtype"] = spec.dtype
        if model.dummy_weights:
            options["load_format"] = "dummy"
        if install.release >= PERF_METRICS_SINCE:
            options["return_perf_metrics"] = True
            options["perf_metrics_max_requests"] = MAX_PERF_METRICS
    return options


def prepare(spec: EngineSpec, install: Install | None, found: list[gpus.Gpu]) -> EngineCommand:
    """The command for a spec, everything checked that can be without starting it.

    Raises:
        UsageError: as :func:`loadgen.engines.vllm.prepare`.
    """
    assert install is not None and spec.model is not None
    model = find_model(spec.model, cache_folder() / "shapes", spec.tokenizer)
    if model.engine_dir:
        check_engine_dir(install, model, found)
        if spec.dtype is not None:
            raise UsageError("--dtype: an engine's dtype was set when it was built; leave it out")
    serve = install.environment.script("trtllm-serve")
    if serve is None:
        raise UsageError(
            f"--engine trtllm: tensorrt_llm {install.version} is in {install.environment.executable}, but there is no "
            "trtllm-serve beside it; install it again"
        )
    chosen, mig = chosen_gpus(spec, found)
    check_fit(spec, model, chosen, mig)
    words = help_text([serve, "serve", "--help"])
    backends = backends_in(words)
    backend = choose_backend(spec, install, model, backends)
    known = options_in(words)
    program = f"trtllm-serve {install.version}"
    check_arguments(spec.args, known, program)
    names = {same_option(option): option for option in known}
    argv = [serve, "serve", model.path, "--host", spec.host, "--port", "{port}"]

    def add(option: str, value: object, asked_as: str) -> None:
        if value is None:
            return
        if same_option(option) not in names:
            raise UsageError(f"{asked_as}: {program} has no option {option}; leave it out")
        argv.extend([option if option in known else names[same_option(option)], str(value)])

    # 0.21 has no word for the TensorRT backend: it is the one without an option.
    if backend == "pytorch" or install.release >= PYTORCH_DEFAULT_SINCE:
        add("--backend", backend, "--backend")
    add("--tokenizer", spec.tokenizer, "--tokenizer")
    add("--max_batch_size", spec.max_batch_size or engine_limit(model, "max_batch_size"), "--max-batch-size")
    add("--max_num_tokens", spec.max_num_tokens or engine_limit(model, "max_num_tokens"), "--max-num-tokens")
    add("--max_seq_len", spec.max_seq_len, "--max-seq-len")
    add("--kv_cache_free_gpu_memory_fraction", spec.kv_memory_fraction, "--kv-memory-fraction")
    add("--tp_size", spec.tensor_parallel if spec.tensor_parallel > 1 else None, "--tensor-parallel")
    options = extra_options(spec, install, model, backend)
    files = {}
    if options:
        # JSON is YAML too, and needs no library to be written right.
        files[OPTIONS_FILE] = json.dumps(options, indent=2) + "\n"
        add("--extra_llm_api_options", "{folder}/" + OPTIONS_FILE, "--prefix-caching")
    env = engine_env(spec, model)
    return EngineCommand(
        kind="trtllm",
        version=install.version,
        argv=[*argv, *spec.args],
        env=env,
        files=files,
        # It has no name for a served model: it lists its folder's name, and takes any in requests.
        model=model.name,
        gpu_uuids=[gpu.uuid for gpu in chosen],
        facts={
            **install_facts(install),
            "backend": backend,
            "extra_options": options,
            "dummy_weights": model.dummy_weights,
            **model.facts,
            "mig": mig.uuid if mig else None,
        },
    )


def installed_backends(install: Install) -> list[str]:
    """What an install can run a model with."""
    found = ["pytorch"] if install.release >= PYTORCH_SINCE else []
    return [*found, "tensorrt"] if install.environment.script("trtllm-build") else found


def lacks(install: Install, libraries: Libraries) -> str | None:
    """Why it cannot serve; None when nothing is missing."""
    if libraries.mpi is None:
        return "libmpi is missing (apt-get install libopenmpi-dev)"
    if install.environment.script("trtllm-serve") is None:
        return "trtllm-serve is not beside its Python"
    return None


def findings(install: Install, libraries: Libraries) -> list[Finding]:
    """What the doctor says of an install."""
    python, cuda = install.environment.executable, libraries.cuda
    found = []
    if libraries.mpi is None:
        what = f"{python}: TensorRT-LLM {install.version} needs libmpi"
        found.append(Finding(level="problem", what=what, mend="sudo apt-get -y install libopenmpi-dev"))
    needs = CUDA_OF_RELEASE.get(install.release[:2])
    if needs and cuda and version_tuple(cuda) < version_tuple(needs):
        older = ", or use TensorRT-LLM 1.0 (CUDA 12.9)" if version_tuple(cuda) >= (12, 9) else ""
        found.append(
            Finding(
                level="problem",
                what=f"{python}: TensorRT-LLM {install.version} is made for CUDA {needs}, and the driver runs up to "
                f"{cuda}",
                mend=f"install a newer driver, or the cuda-compat package on a data-centre GPU{older}",
            )
        )
    if "tensorrt" not in installed_backends(install):
        what = f"{python}: TensorRT-LLM {install.version} has no trtllm-build: the PyTorch backend alone"
        found.append(Finding(level="note", what=what))
    return found


ENGINE = Engine(
    title="TensorRT-LLM",
    owned_by="tensorrt_llm",
    prepare=prepare,
    packages=("tensorrt_llm",),
    scripts=("trtllm-serve",),
    backends=installed_backends,
    backend_options=("pytorch", "tensorrt"),
    lacks=lacks,
    findings=findings,
    # It lists its model by its folder's name, and takes any; others answer 404 to a wrong one.
    takes_any_model=True,
    series=SERIES,
    metrics_page="/prometheus/metrics",
    json_page=("/metrics", lambda: IterationPage().take),
    watched=frozenset({"iterations"}),
    endings=ENDINGS,
    spread_options=("--tp_size", "--tp-size", "--pp_size", "--pp-size"),
    run_offline=run_offline,
)
