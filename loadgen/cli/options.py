"""Options that several commands take, and the panels of ``loadgen sweep``; each option is written down once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from loadgen.cli.params import (
    ATTAINMENT,
    COUNT,
    DATASET,
    DIALECT,
    DURATION,
    ENGINE,
    LOADS,
    POSITIVE,
    RATES,
    SIM_GPU,
    SIM_MODEL,
    TOKEN_RANGE,
    count,
    option,
    share,
)

Json = Annotated[bool, option("--json", help="Print JSON instead of text.")]
Slo = Annotated[
    str | None,
    option(
        "--slo", metavar="ttft=500ms,tpot=50ms",
        help="Objectives to judge by, in place of those that the sweep was given.",
    ),
]  # fmt: skip
EnginePythons = Annotated[
    list[str] | None,
    option("--engine-python", metavar="PATH", help="Another Python environment to look into; repeatable."),
]
TorchPython = Annotated[
    str | None, option("--python", metavar="PATH", help="Python that has torch.  [default: the one that runs loadgen]")
]
Seed = Annotated[int, option("--seed", metavar="N", help="Seed of everything that is random.")]
Workers = Annotated[
    int | None, option("--workers", kind=COUNT, help="Worker processes.  [default: by load and number of cores]")
]
ServeHost = Annotated[str, option("--host", metavar="ADDRESS", help="Address to listen on.")]
RunOutput = Annotated[
    Path | None,
    option("--output", metavar="DIR", help="Folder for the results.  [default: a new one below reports/local]"),
]


class Load(NamedTuple):
    """Load."""

    levels: Annotated[
        tuple[int, ...] | None,
        option("--concurrency", kind=LOADS, help="Requests kept in flight at each level (a closed loop)."),
    ] = None
    rates: Annotated[
        tuple[float, ...] | None,
        option(
            "--rate",
            kind=RATES,
            help="Requests/s at each level, sent on time however slow the server is (an open loop).",
        ),
    ] = None
    arrival: Annotated[
        str | None,
        option(
            "--arrival",
            metavar="PATTERN",
            help="With --rate, when requests arrive: poisson, constant or gamma:CV (bursts, such as gamma:2). Without "
            "it, replay: the time stamps of the dataset.  [default: poisson]",
        ),
    ] = None
    speedup: Annotated[
        float | None, option("--speedup", kind=POSITIVE, help="Replay speed; 2 is twice as fast.  [default: 1]")
    ] = None
    max_in_flight: Annotated[
        int | None,
        option(
            "--max-in-flight",
            kind=COUNT,
            help="Limit on the requests in flight of an open loop or a search; requests that must wait for it are "
            "reported as late.  [default: 4096]",
        ),
    ] = None
    rounds: Annotated[
        int,
        option(
            "--rounds",
            kind=count(most=1000),
            help="Passes over all levels, each in a random order that --seed sets.  [default: 1]",
        ),
    ] = 1
    interleave: Annotated[
        bool,
        option("--interleave", help="Alternate between several engines, one round each, each launched anew."),
    ] = False
    warmup: Annotated[
        bool, option("--warmup/--no-warmup", help="Let every slot complete one request before measuring.")
    ] = True


class Prompts(NamedTuple):
    """Prompts."""

    dataset: Annotated[
        str | None,
        option("--dataset", kind=DATASET, help="JSONL file with one prompt a line, or a bundled set such as chat-256."),
    ] = None
    input_tokens: Annotated[
        Any, option("--input-tokens", kind=TOKEN_RANGE, help="Length of synthetic prompts.  [default: 256]")
    ] = None
    output_tokens: Annotated[
        Any,
        option("--output-tokens", kind=TOKEN_RANGE, help="Tokens to request.  [default: the dataset's, or 128]"),
    ] = None
    vocab_size: Annotated[
        int,
        option(
            "--vocab-size",
            metavar="N",
            help="Upper limit for token ids of synthetic prompts; a launched model's own vocabulary is a limit too.",
        ),
    ] = 32_000
    seed: Seed = 0


class Server(NamedTuple):
    """Server."""

    url: Annotated[
        str | None, option("--url", metavar="URL", help="Running server, such as http://127.0.0.1:8000.")
    ] = None
    engines: Annotated[
        list[str] | None,
        option(
            "--engine",
            kind=ENGINE,
            help="Engine to launch; repeat to measure several one after another.  [default without --url: sim]",
        ),
    ] = None
    model: Annotated[
        str | None,
        option(
            "--model",
            metavar="MODEL",
            help="With --engine: a folder, shape:NAME, or a name on the Hugging Face hub. With --url: the served "
            "model's name, needed only if there are several.",
        ),
    ] = None
    api: Annotated[
        Literal["completions", "chat"] | None,
        option("--endpoint", help="API to use.  [default: chat for prompts that are messages, else completions]"),
    ] = None
    dialect: Annotated[
        str | None,
        option(
            "--dialect",
            kind=DIALECT,
            help="Request fields that the server understands.  [default: what the server says it is]",
        ),
    ] = None
    api_key: Annotated[
        str | None, option("--api-key", metavar="KEY", help="Key to send as a bearer token. Env: LOADGEN_API_KEY.")
    ] = None
    headers: Annotated[
        list[str] | None, option("--header", metavar="'Name: value'", help="Header for every request; repeatable.")
    ] = None
    insecure: Annotated[bool, option("--insecure", help="Accept any TLS certificate.")] = False
    extra_body: Annotated[
        str | None, option("--extra-body", metavar="JSON", help="Fields to add to the body of every request.")
    ] = None


class Stopping(NamedTuple):
    """Stopping."""

    requests: Annotated[int | None, option("--requests", kind=COUNT, help="Requests to measure at each level.")] = None
    duration_s: Annotated[
        float | None,
        option("--duration", kind=DURATION, help="Length of each level, such as 60s or 5m.  [default: 20s]"),
    ] = None
    precision: Annotated[
        float | None,
        option(
            "--precision",
            kind=share("5%", whole=False),
            help="Measure each level until the 95 % intervals of mean TTFT, mean TPOT and output throughput are "
            "within this share of their value; --duration becomes the minimum.",
        ),
    ] = None
    max_duration_s: Annotated[
        float | None,
        option(
            "--max-duration",
            kind=DURATION,
            help="Time limit for one level with --precision or --find.  [default: 10m]",
        ),
    ] = None


class Search(NamedTuple):
    """SLO and search."""

    slo: Annotated[
        str | None,
        option(
            "--slo",
            metavar="ttft=500ms,tpot=50ms",
            help="Objectives for each request, or for a percentile (ttft:p99=500ms).",
        ),
    ] = None
    find: Annotated[
        Literal["capacity", "knee"] | None,
        option(
            "--find",
            help="Search for a load instead of measuring given ones. capacity: the highest load that meets --slo; "
            "knee: where throughput stops rising. The search starts from --concurrency N or --rate R (default: 1 in "
            "flight).",
        ),
    ] = None
    attainment: Annotated[
        float | None,
        option(
            "--attainment",
            kind=ATTAINMENT,
            help="Share of requests that must meet --slo, which the answer and --find capacity go by.  [default: 99%]",
        ),
    ] = None
    max_find_s: Annotated[
        float | None, option("--max-find", kind=DURATION, help="Time limit for the whole search.  [default: 1h]")
    ] = None


class SweepOfEngines(NamedTuple):
    """Engine."""

    mig: Annotated[
        Literal["all"] | None, option("--mig", help="Run one engine on each MIG slice of the GPU, all at once.")
    ] = None
    offline_ceiling: Annotated[
        bool,
        option(
            "--offline-ceiling",
            help="Run trtllm-bench on the same prompts too, and show its throughput (TensorRT-LLM only).",
        ),
    ] = False
    kernels: Annotated[
        bool, option("--kernels", help="Measure the engine's GPU kernels afterwards, at the sizes that it served.")
    ] = False


# Options of an engine, whether it is served or built.
MaxBatchSize = Annotated[int | None, option("--max-batch-size", kind=COUNT, help="Limit on the sequences in one step.")]
MaxNumTokens = Annotated[int | None, option("--max-num-tokens", kind=COUNT, help="Limit on the tokens in one step.")]
MaxSeqLen = Annotated[
    int | None,
    option("--max-seq-len", kind=count(least=2), help="Limit on the tokens of a prompt and its answer together."),
]
TensorParallel = Annotated[int, option("--tensor-parallel", kind=COUNT, help="GPUs for one model.  [default: 1]")]


class Engine(NamedTuple):
    """Engine."""

    engine_pythons: Annotated[
        list[str] | None,
        option(
            "--engine-python",
            metavar="[ENGINE=]PATH",
            help="Python of the environment that the engine is installed in; repeatable.",
        ),
    ] = None
    engine_args: Annotated[
        list[str] | None,
        option(
            "--engine-arg",
            metavar="[ENGINE=]'--opt value'",
            help="Option to pass on to the engine unchanged; repeatable.",
        ),
    ] = None
    tokenizer: Annotated[
        str | None, option("--tokenizer", metavar="PATH", help="Tokenizer, if the model's folder has none.")
    ] = None
    backend: Annotated[
        Literal["pytorch", "tensorrt"] | None,
        option("--backend", help="Backend of TensorRT-LLM.  [default: what fits the model]"),
    ] = None
    dtype: Annotated[
        str | None,
        option("--dtype", metavar="TYPE", help="Data type, such as bfloat16 or float16.  [default: the model's]"),
    ] = None
    max_batch_size: MaxBatchSize = None
    max_num_tokens: MaxNumTokens = None
    max_seq_len: MaxSeqLen = None
    kv_memory_fraction: Annotated[
        float | None,
        option(
            "--kv-memory-fraction",
            kind=share("90%"),
            help="Share for the KV cache of the memory that the weights leave free.",
        ),
    ] = None
    tensor_parallel: TensorParallel = 1
    prefix_caching: Annotated[
        Literal["on", "off"] | None, option("--prefix-caching", help="Prefix cache.  [default: the engine's choice]")
    ] = None
    device: Annotated[
        str | None,
        option(
            "--device",
            metavar="GPU",
            help="GPU by index or UUID, several with commas, or the UUID of a MIG slice.  [default: as many as needed]",
        ),
    ] = None
    engine_port: Annotated[
        int | None,
        option("--port", kind=count(most=65535), help="Port for the engine to listen on.  [default: a free one]"),
    ] = None
    start_timeout_s: Annotated[
        float,
        option("--start-timeout", kind=DURATION, help="Time limit for the engine to start.  [default: 30m]"),
    ] = 1800.0


class Simulator(NamedTuple):
    """Simulator."""

    sim_mode: Annotated[
        Literal["batch", "fixed"],
        option("--sim-mode", help="Timing. batch: a model of a GPU; fixed: exactly --sim-ttft and --sim-tpot."),
    ] = "batch"
    sim_gpu: Annotated[str, option("--sim-gpu", kind=SIM_GPU, help="GPU to simulate.  [default: a100-80gb]")] = (
        "a100-80gb"
    )
    sim_model: Annotated[
        str, option("--sim-model", kind=SIM_MODEL, help="Model to simulate.  [default: qwen1.5-4b]")
    ] = "qwen1.5-4b"
    sim_ttft_s: Annotated[
        float, option("--sim-ttft", kind=DURATION, help="Time to first token in mode fixed.  [default: 50ms]")
    ] = 0.05
    sim_tpot_s: Annotated[
        float, option("--sim-tpot", kind=DURATION, help="Time per output token in mode fixed.  [default: 10ms]")
    ] = 0.01


class Client(NamedTuple):
    """Client."""

    workers: Workers = None
    timeout: Annotated[
        str | None,
        option(
            "--timeout",
            metavar="NAME=TIME,...",
            help="Time limits of a request: connect (10s), first_token (5m), between_tokens (1m), request (1h).",
        ),
    ] = None
    watch: Annotated[
        bool, option("--watch/--no-watch", help="Sample the engine's own metrics and the GPUs during each level.")
    ] = True


class Output(NamedTuple):
    """Output."""

    folder: RunOutput = None
    json: Annotated[bool, option("--json", help="Print summary.json instead of the table.")] = False
