"""What an engine died of, from what real engines wrote before they did."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from loadgen.engines import guarded
from loadgen.engines.guarded import LOG_TAIL_BYTES, SHOWN_LINES, last_words
from loadgen.engines.table import ENGINES

CRASH = """\
(EngineCore_DP0 pid=812) ERROR 11-23 20:49:07 [core.py:708]     super().__init__(vllm_config, executor_class, log_stats)
(EngineCore_DP0 pid=812) ERROR 11-23 20:49:07 [core.py:708] {words}
(EngineCore_DP0 pid=812) Process EngineCore_DP0:
(APIServer pid=700) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""
# The way vLLM 0.5 to 0.20 begin where a part of them cannot be used, and go on.
WARNING = "WARNING 11-23 20:48:59 [_custom_ops.py:20] Failed to import from vllm._C with {error}\n"


def explain(log: str, exit_code: int | None) -> str | None:
    """By the causes of every engine."""
    causes = tuple(cause for row in ENGINES.values() for cause in row.endings.causes)
    return guarded.explain(log, exit_code, guarded.Endings(causes))


def crash(words: str) -> str:
    """The end of vLLM's log, where the cause is not in the last line."""
    return CRASH.format(words=words)


OUT_OF_MEMORY = "out of memory: use a smaller --kv-memory-fraction"
NO_CACHE = "too little GPU memory for the KV cache"
PORT = "its port was taken: choose another --port"
DTYPE = "the GPU does not support this dtype: choose another with --dtype"
NO_UUID = "this version cannot read the UUID of a GPU or MIG slice in CUDA_VISIBLE_DEVICES"
NO_GPU = "it found no GPU that it can use: see `loadgen engines doctor`"
EXTRA = "it does not know one of its extra options"


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (crash("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB. GPU 0 has a total capacity of "
               "15.77 GiB of which 512.00 MiB is free."), OUT_OF_MEMORY),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n", OUT_OF_MEMORY),
        ("OSError: [Errno 12] Cannot allocate memory\n", OUT_OF_MEMORY),
        (crash("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
               "initializing the engine."), NO_CACHE),
        (crash("ValueError: To serve at least one request with the model's max seq len (262144), (14.50 GiB KV cache "
               "is needed, which is larger than the available KV cache memory (6.20 GiB)."), NO_CACHE),
        (crash("ValueError: Free memory on device (3.22/4.0 GiB) on startup is less than desired GPU memory "
               "utilization (0.9, 3.6 GiB). Decrease GPU memory utilization."), NO_CACHE),
        ("ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): address already in use\n",
         PORT),
        ("OSError: [Errno 98] Address already in use\n", PORT),
        ("ImportError: libmpi.so.40: cannot open shared object file: No such file or directory\n",
         "a library is missing: libmpi.so.40; install it"),
        ("ModuleNotFoundError: No module named 'tensorrt_llm.bindings'\n",
         "a Python package is missing in its environment: tensorrt_llm.bindings"),
        ("/env/bin/python: No module named vllm\n", "a Python package is missing in its environment: vllm"),
        (crash("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 "
               "GPU has compute capability 7.5. You can use float16 instead"), DTYPE),
        (crash("ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. "
               "Current capability: 80."), DTYPE),
        ("    return int(physical_device_id)\nValueError: invalid literal for int() with base 10: "
         "'MIG-377e0049-554c-540b-93c6-d0976f8426cb'\n", NO_UUID),
        ("ValueError: invalid literal for int() with base 10: 'GPU-52a3a85d-3c55-ca3a-a955-82c69ed360fc'\n", NO_UUID),
        ("usage: vllm serve [model_tag] [options]\nvllm: error: unrecognized arguments: --max-num-seq 8\n",
         "it does not know these arguments: --max-num-seq 8"),
        ("Error: No such option: --max_batch_sizes (Possible options: --max_batch_size, --max_beam_width)\n",
         "it does not know the option --max_batch_sizes"),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error for TorchLlmArgs\nenable_iter_perf\n  Extra "
         "inputs are not permitted [type=extra_forbidden, input_value=True, input_type=bool]\n", EXTRA),
        ("RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU\n", NO_GPU),
        ("RuntimeError: No CUDA GPUs are available\n", NO_GPU),
        ("RuntimeError: CUDA error: no CUDA-capable device is detected\n", NO_GPU),
        ("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version\n", NO_GPU),
    ],
    ids=["torch", "C++", "host", "no blocks", "one request", "not free", "uvicorn", "bind", "library", "package",
         "engine", "bf16", "fp8", "MIG UUID", "GPU UUID", "argparse", "click", "pydantic", "no driver", "hidden",
         "no device", "old driver"],
)  # fmt: skip
def test_a_known_cause_is_told(log: str, cause: str) -> None:
    found = explain(log, 1)
    assert found is not None
    assert found.startswith(cause)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("RuntimeError: [TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, mMemPool->getPool(), "
         "mCudaStream->get()): out of memory (/src/cpp/tensorrt_llm/runtime/tllmBuffers.h:125)\n", OUT_OF_MEMORY),
        ("[TRT] [E] [executionContext.cpp::initializeExecutionContext::625] Error Code 2: OutOfMemory (Requested size "
         "was 20132809216 bytes.)\n", OUT_OF_MEMORY),
        (crash("ValueError: To serve at least one request with the models's max seq len (262144), (11.75 GiB KV cache "
               "is needed, which is larger than the available KV cache memory (8.03 GiB)."), NO_CACHE),
        (crash("ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: "
               "[torch.float16]"), DTYPE),
        ("Error: No such option '--max_batch_sizes'. Did you mean '--max_batch_size'?\n",
         "it does not know the option --max_batch_sizes"),
        ("ValueError: LLM got invalid argument: free_gpu_memory_fraction\n", EXTRA),
    ],
    ids=["TensorRT-LLM", "TensorRT", "one request in older vLLM", "AWQ", "click 8.5", "TensorRT-LLM 1.2.1"],
)  # fmt: skip
def test_a_cause_in_other_words_is_told(log: str, cause: str) -> None:
    found = explain(log, 1)
    assert found is not None
    assert found.startswith(cause)


# --- several at once


def test_the_last_cause_wins_since_what_came_before_was_survived() -> None:
    library = "ImportError: libcudart.so.12: cannot open shared object file: No such file\n"
    memory = crash("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    found = explain(library + memory, 1)
    assert found is not None
    assert found.startswith(OUT_OF_MEMORY)
    assert explain(memory + library, 1) == (
        "a library is missing: libcudart.so.12; install it, or put its folder into LD_LIBRARY_PATH"
    )


def test_a_warning_is_no_cause() -> None:
    assert explain(WARNING.format(error="ImportError('libcudart.so.12: cannot open shared object file')"), 1) is None


def test_of_two_of_a_kind_the_last_is_told() -> None:
    log = "No module named 'flashinfer'\nINFO going on without\nModuleNotFoundError: No module named 'mpi4py'\n"
    assert explain(log, 1) == "a Python package is missing in its environment: mpi4py"


def test_a_warning_at_the_start_is_not_what_it_died_of() -> None:
    """As in zai-org/GLM-4 issue 510."""
    warning = WARNING.format(error="ImportError('libcudart.so.12: cannot open shared object file: No such file')")
    found = explain(warning + crash("ValueError: Bfloat16 is only supported on GPUs with compute capability 8.0"), 1)
    assert found is not None and found.startswith(DTYPE)


# --- killed, and unknown

KILLED = "it was killed from outside: most likely the host ran out of memory (see dmesg)"


@pytest.mark.parametrize("log", ["", "INFO 11-23 20:49:07 [loader.py:50] Loading weights took 12.31 seconds\n"])
def test_an_engine_that_was_killed_without_words(log: str) -> None:
    assert explain(log, -signal.SIGKILL) == KILLED


def test_an_engine_that_was_killed_for_a_cause_that_it_named() -> None:
    log = crash("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    found = explain(log, -signal.SIGKILL)
    assert found is not None and found.startswith(OUT_OF_MEMORY)


def test_an_engine_that_was_killed_did_not_die_of_a_warning() -> None:
    warning = WARNING.format(error="""ModuleNotFoundError("No module named 'vllm._C'")""")
    assert explain(warning + "INFO 11-23 20:49:07 [weight_utils.py:296] Loading shards\n", -signal.SIGKILL) == KILLED


@pytest.mark.parametrize("exit_code", [0, 1, -signal.SIGTERM, -signal.SIGSEGV, None])
@pytest.mark.parametrize("log", ["", "INFO:     Application startup complete.\n", crash("AssertionError")])
def test_an_unknown_cause_stays_unknown(log: str, exit_code: int | None) -> None:
    assert explain(log, exit_code) is None


# --- last words


def words(folder: Path, text: str, exit_code: int) -> list[str]:
    log = folder / "engine.log"
    log.write_text(text)
    return last_words(log, exit_code).splitlines()


def test_last_words_are_code_cause_and_the_end_of_the_log(tmp_path: Path) -> None:
    lines = words(tmp_path, "loading\n\n  \nOSError: [Errno 98] Address already in use\n", 1)
    assert lines == [
        f"exit code 1: {PORT}; the whole log is {tmp_path / 'engine.log'}",
        "  | loading",
        "  | OSError: [Errno 98] Address already in use",
    ]


@pytest.mark.parametrize(
    ("exit_code", "start"),
    [
        (3, "exit code 3; the whole log is"),
        (-11, "signal 11; the whole log is"),
        (-9, f"signal 9: {KILLED}; the whole"),
    ],
)
def test_last_words_say_how_it_ended(exit_code: int, start: str, tmp_path: Path) -> None:
    (line,) = words(tmp_path, "", exit_code)
    assert line.startswith(start)


def test_last_words_without_a_log(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none.log", 1) == f"exit code 1; the whole log is {tmp_path / 'none.log'}"


def test_only_the_last_lines_are_shown_and_none_of_them_whole_if_it_is_long(tmp_path: Path) -> None:
    lines = words(tmp_path, "".join(f"line {number}\n" for number in range(50)) + "x" * 1000, 1)
    assert lines[1] == f"  | line {50 - SHOWN_LINES + 1}"
    assert lines[-2:] == ["  | line 49", "  | " + "x" * 300]
    assert len(lines) == 1 + SHOWN_LINES


def test_a_cause_is_looked_for_in_the_last_part_of_a_long_log(tmp_path: Path) -> None:
    early, late = "OSError: [Errno 98] Address already in use\n", "ModuleNotFoundError: No module named 'mpi4py'\n"
    lines = words(tmp_path, early + "é" * LOG_TAIL_BYTES + "\n" + late, 1)
    assert lines[0].startswith("exit code 1: a Python package is missing in its environment: mpi4py; ")


def test_a_log_that_is_no_text_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"\xff\xfe broken\n")
    assert last_words(log, 1).endswith("\n  | \ufffd\ufffd broken")
