"""``loadgen kernels bench``: kernel files x cases -> kernel records, through a worker that has the GPU."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from loadgen import environment
from loadgen.errors import LoadgenError, UsageError
from loadgen.gpus import nvml
from loadgen.microbench.cases import ModelShape, State, Step
from loadgen.microbench.kernel_file import describe, kernels_folder
from loadgen.microbench.records import (
    Attempt,
    CaseSamples,
    DeviceFacts,
    KernelManifest,
    KernelRecord,
    Peaks,
    records_of,
)
from loadgen.microbench.worker import Answer, Job
from loadgen.processes import LineProcess, child_environ, how_to_install
from loadgen.records import encode_line, write_json
from loadgen.run_folders import prepare_output

Say = Callable[[str], None]
# Above this a case is taken for hung: compiling a kernel for the first time takes some ten seconds.
CASE_TIMEOUT_S = 300.0
MOST_RESTARTS = 3  # of the worker, for one kernel file

_decode_answer = msgspec.json.Decoder(Answer).decode


class BenchSpec(msgspec.Struct, kw_only=True):
    """What is to be measured.

    Attributes:
        files: kernel files.
        model, steps: where cases come from; not needed by files with cases of their own.
        cases: parameters that the user gave, for a single file; instead of those.
        states: cache states.
        implementations, baselines, seconds, seed: as in :class:`loadgen.microbench.worker.Job`.
        python: a Python that has torch; None takes loadgen's own.
        output: the folder that is made.
        stopped: asked between cases; True ends the benchmark with what has been measured.
    """

    command: list[str]
    files: list[Path]
    model: ModelShape | None = None
    steps: list[Step] = []
    cases: list[dict[str, Any]] = []
    states: list[State] = []
    implementations: list[str] | None = None
    baselines: bool = True
    seconds: float = 0.6
    seed: int = 0
    python: str | None = None
    output: Path
    stopped: Callable[[], bool] = lambda: False


class BenchResult(msgspec.Struct, kw_only=True):
    """What came of it; ``exit_code`` 1 when something of loadgen's own was wrong or refused, or nothing has a time."""

    manifest: KernelManifest
    records: list[KernelRecord]

    @property
    def exit_code(self) -> int:
        bad = ("wrong", "impossible", "failed")
        measured = any(r.time_s is not None for r in self.records)
        return 1 if not measured or any(r.own and r.status in bad for r in self.records) else 0


class WorkerProcess:
    """The process with the GPU, as its parent sees it.

    Raises:
        UsageError: the Python does not run, or has no torch.
    """

    def __init__(self, python: str | None) -> None:
        program = python or sys.executable
        try:
            self._child = LineProcess(
                [program, "-m", "loadgen.microbench.worker"], child_environ(python), own_session=False
            )
        except OSError as error:
            raise UsageError(f"--python {program}: {error.strerror}") from None
        first = self.read(CASE_TIMEOUT_S)
        if first is None or first.kind == "error":
            text = first.text if first is not None else self.last_words()
            self.close()
            raise UsageError(f"{program}: {text}{how_to_install(program, text or '')}")
        self.device = first.device

    def send(self, line: bytes) -> None:
        self._child.send(line)

    def read(self, timeout_s: float) -> Answer | None:
        """The next answer; None when the worker has died, or said nothing for so long (and was ended)."""
        line = self._child.read_line(timeout_s)
        if line is None and not self._child.ended:
            self._child.process.kill()
        return None if line is None else _decode_answer(line)

    def last_words(self) -> str:
        """The last line of its standard error (which it empties before each case), or how it ended."""
        code = self._child.wait(10)
        line = self._child.last_line()
        ending = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"{line[:300]} ({ending})" if line else f"it ended ({ending})"

    def close(self) -> None:
        """Ends it, at once if it does not end by itself."""
        self._child.close()


class Session:
    """Workers, one after another, that answer the jobs of one benchmark."""

    def __init__(self, python: str | None, need_gpu: bool) -> None:
        self._python = python
        self._worker = WorkerProcess(self._python)
        if need_gpu and self._worker.device is None:
            self.close()
            raise UsageError(
                "no GPU: torch finds none here (engines doctor says why); without one, kernels list, kernels build and "
                "kernels bench --check still work"
            )

    @property
    def device(self) -> DeviceFacts | None:
        return self._worker.device

    def peaks(self) -> Peaks:
        """Measures the device.

        Raises:
            LoadgenError: the worker died of it.
        """
        self._worker.send(b"peaks")
        answer = self._worker.read(CASE_TIMEOUT_S)
        if answer is None or answer.peaks is None:
            raise LoadgenError(f"the device's rates could not be measured: {self._worker.last_words()}")
        return answer.peaks

    def run(self, job: Job) -> Iterator[Answer]:
        """Every answer to a job. A case that kills the worker gives an ``error`` answer, and the next worker
        goes on behind it."""
        restarts = 0
        begun: Answer | None = None
        self._worker.send(msgspec.json.encode(job))
        while True:
            answer = self._worker.read(CASE_TIMEOUT_S)
            if answer is not None:
                if answer.kind == "done":
                    return
                if answer.kind == "begun":
                    begun = answer
                yield answer
                continue
            words = self._worker.last_words()
            restarts += 1
            skip = begun.case + 1 if begun is not None and begun.case is not None else job.skip
            yield Answer(
                kind="error",
                text=f"the process with the GPU broke: {words}",
                case=begun.case if begun else None,
                params=begun.params if begun else None,
            )
            self._worker.close()
            self._worker = WorkerProcess(self._python)
            if restarts > MOST_RESTARTS or begun is None:
                return
            job = msgspec.structs.replace(job, skip=skip)
            begun = None
            self._worker.send(msgspec.json.encode(job))

    def close(self) -> None:
        self._worker.close()


@contextlib.contextmanager
def session(python: str | None, need_gpu: bool = True) -> Iterator[Session]:
    """A session that is closed again.

    Raises:
        UsageError: no torch, or no GPU where one is needed.
    """
    opened = Session(python, need_gpu)
    try:
        yield opened
    finally:
        opened.close()


def _job(spec: BenchSpec, path: Path, check: bool = False) -> Job:
    return Job(
        file=str(path.resolve()),
        model=spec.model,
        steps=spec.steps,
        cases=spec.cases,
        states=spec.states,
        implementations=spec.implementations,
        baselines=spec.baselines,
        check=check,
        seed=spec.seed,
        seconds=spec.seconds,
    )


def run_bench(spec: BenchSpec, say: Say) -> BenchResult:
    """Measures every case; each record is in the folder as soon as it is known.

    Raises:
        UsageError: no torch or no GPU; a kernel file that cannot be used, before anything is measured.
        RunFolderError: the output folder cannot be used.
    """
    for path in spec.files:
        describe(path)
    started = time.monotonic()
    with session(spec.python) as worker:
        prepare_output(spec.output)
        with nvml() as cards:
            gpus = [msgspec.to_builtins(gpu) for gpu in cards.gpus()] if cards is not None else []
            driver = cards.driver if cards is not None else None
        assert worker.device is not None
        peaks = worker.peaks()
        manifest = KernelManifest(
            command=spec.command,
            started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            host=environment.host(),
            gpus=gpus,
            driver=driver,
            device=worker.device,
            peaks=peaks,
            model=spec.model,
            steps=spec.steps,
            states=spec.states,
            seed=spec.seed,
        )
        write_json(spec.output / "manifest.json", manifest)
        say(
            f"{worker.device.name}: copy {peaks.copy_bytes_per_s / 1e9:,.0f} GB/s, "
            f"read {peaks.read_bytes_per_s / 1e9:,.0f} GB/s, "
            f"bf16 {peaks.matrix_flops['bfloat16'] / 1e12:,.0f} TFLOP/s, "
            f"empty kernel {peaks.empty_kernel_s * 1e6:.2f} us"
        )
        records: list[KernelRecord] = []
        with (spec.output / "samples.jsonl").open("ab") as raw, (spec.output / "kernels.jsonl").open("ab") as out:
            for path in spec.files:
                if spec.stopped():
                    manifest.notes.append("it was ended before its end")
                    break
                for answer in worker.run(_job(spec, path)):
                    samples = answer.samples
                    if answer.kind == "error":
                        say(f"{path.stem}: {answer.text}")
                        manifest.notes.append(f"{path.stem}: {answer.text}")
                        samples = None if answer.params is None else _broken(path, answer)
                    if samples is None:
                        continue
                    samples.file = _shown(path)
                    raw.write(encode_line(samples))
                    made = records_of(samples, peaks)
                    for record in made:
                        out.write(encode_line(record))
                    out.flush()
                    records += made
                    say(progress_line(samples, made))
                    if spec.stopped():
                        break
    manifest.took_s = time.monotonic() - started
    write_json(spec.output / "manifest.json", manifest)
    return BenchResult(manifest=manifest, records=records)


def _shown(path: Path) -> str:
    """A kernel file's path for the records: of one that comes along, without where loadgen is installed."""
    return f"kernels/{path.name}" if path.parent == kernels_folder() else str(path)


def _broken(path: Path, answer: Answer) -> CaseSamples:
    """The case during which the worker died, as data."""
    return CaseSamples(
        kernel=path.stem,
        file=str(path),
        sha256="",
        label="",
        params=answer.params or {},
        state="serving",
        seed=0,
        bytes=0,
        flops=0,
        attempts=[Attempt(name="?", own=True, status="failed", message=answer.text)],
    )


def case_name(params: dict[str, Any], label: str) -> str:
    """A case in few words."""
    words = [label] if label else []
    return " ".join(words + [f"{key}={value}" for key, value in params.items()])


def progress_line(samples: CaseSamples, records: list[KernelRecord]) -> str:
    """One line while it runs: the kernel, the case, the time of each implementation."""
    words = []
    for record in records:
        if record.time_s is not None:
            words.append(f"{record.implementation} {record.time_s * 1e6:,.1f} us")
        elif record.status != "skipped":
            words.append(f"{record.implementation} {record.status.replace('_', ' ').upper()}")
    short = next((r.message for r in records if r.status == "out_of_memory" and r.message), None)
    if short is not None:
        words.append(short)
    name = case_name(samples.params, samples.label)
    return f"{samples.kernel} [{samples.state}] {name}: {', '.join(words) or 'nothing could be run'}"


def run_checks(spec: BenchSpec, say: Say) -> tuple[int, int]:
    """Compares every implementation with its reference at the files' CHECKS: on a GPU, or in Triton's interpreter.

    Returns:
        How many were compared, and how many were wrong.

    Raises:
        UsageError: no torch, or a kernel file that cannot be used.
    """
    for path in spec.files:
        describe(path)
    compared = wrong = 0
    with session(spec.python, need_gpu=False) as worker:
        where = worker.device.name if worker.device else "no GPU: in Triton's interpreter, on the CPU"
        say(f"Checking against references ({where})")
        for path in spec.files:
            for answer in worker.run(_job(spec, path, check=True)):
                if answer.kind == "error":
                    say(f"{path.stem}: {answer.text}")
                    wrong += 1
                for attempt in answer.checked or []:
                    name = f"{path.stem} {attempt.name} {case_name(answer.params or {}, '')}"
                    if attempt.status in ("wrong", "failed"):
                        wrong += attempt.own
                        say(f"{name}: {attempt.status.upper()}: {attempt.message}")
                    elif attempt.status == "ok":
                        compared += 1
                        say(f"{name}: right, within {attempt.error_before:.1e}")
                    else:
                        say(f"{name}: {attempt.status}: {attempt.message}")
    return compared, wrong
