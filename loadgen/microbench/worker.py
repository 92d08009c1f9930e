"""The process that has the GPU: reads jobs, one JSON line each, and answers with JSON lines.

``python -m loadgen.microbench.worker``. It runs in whichever Python has torch (and vLLM, for its
operators), which need not be loadgen's own; the parent starts it anew when a kernel has broken it, so
that one bad kernel costs its own case and no other. Answers go to the file descriptor that standard
output was at the start; what a kernel file prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.microbench.cases import Case, ModelShape, State, Step
from loadgen.microbench.records import Attempt, CaseSamples, DeviceFacts, Peaks, Use

MEMORY_SHARE = 0.35  # of what is free, for further buffer sets


class Job(msgspec.Struct, kw_only=True):
    """One kernel file to measure.

    Attributes:
        file: its path.
        model, steps: where its cases come from; None and [] for a file with CASES of its own.
        cases: parameters that the user gave; instead of those.
        states: of the cache.
        implementations: only these, with the baselines; None for all.
        baselines: whether other people's are measured too.
        check: only compare with the reference, at CHECKS and at the cases.
        seconds: about what one case and state may take.
        skip: cases already done by a process that broke.
    """

    file: str
    model: ModelShape | None = None
    steps: list[Step] = []
    cases: list[dict[str, Any]] = []
    states: list[State] = []
    implementations: list[str] | None = None
    baselines: bool = True
    check: bool = False
    seed: int = 0
    seconds: float = 0.6
    skip: int = 0


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line from the worker.

    ``device`` and ``peaks`` once, ``begun`` before each case (``case`` counts them), ``samples`` after
    each case and state, ``checked`` for a check, ``error`` when the file cannot be used, ``done`` at a
    job's end.
    """

    kind: Literal["device", "peaks", "begun", "samples", "checked", "error", "done"]
    text: str | None = None
    case: int | None = None
    device: DeviceFacts | None = None
    peaks: Peaks | None = None
    samples: CaseSamples | None = None
    checked: list[Attempt] | None = None
    params: dict[str, Any] | None = None


class FoundCase(msgspec.Struct, kw_only=True):
    """A case and every step that runs it."""

    case: Case
    uses: list[Use]


def gather_cases(kernel: Any, model: ModelShape | None, steps: list[Step]) -> list[FoundCase]:
    """The cases of all steps; what several steps run alike is one case with several uses."""
    found: dict[bytes, FoundCase] = {}
    for step in steps or [None]:  # type: ignore[list-item]
        for case in kernel.cases(model, step):
            key = msgspec.json.encode((case.label, case.params), order="sorted")
            entry = found.setdefault(key, FoundCase(case=case, uses=[]))
            if step is not None and case.per_step:
                entry.uses.append(
                    Use(
                        phase=step.phase,
                        sequences=step.sequences,
                        context=step.context,
                        per_step=case.per_step,
                    )
                )
    return list(found.values())


def _device_facts(torch: Any) -> DeviceFacts:
    versions = {"python": sys.version.split()[0], "torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
    for name in ("triton", "vllm", "flashinfer"):
        try:
            from importlib.metadata import version

            versions[name] = version(name)
        except Exception:
            continue
    properties = torch.cuda.get_device_properties(0)
    return DeviceFacts(
        name=properties.name,
        uuid=f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else None,
        compute_capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        memory_bytes=properties.total_memory,
        versions=versions,
    )


class Bench:
    """Measures the cases of kernel files on one device.

    Args:
        answer: takes each answer.
        device: ``cuda:0``, or ``cpu`` for checks in Triton's interpreter.
        facts: of the device; None on the CPU.
    """

    def __init__(self, answer: Callable[[Answer], None], device: str, facts: DeviceFacts | None) -> None:
        self._answer = answer
        self._device = device
        self._facts = facts
        self._uuid = facts.uuid if facts else None

    def run(self, job: Job) -> None:
        """One kernel file; every failure of a case is data.

        Raises:
            LoadgenError: the file cannot be used at all.
        """
        from loadgen.microbench.kernel_file import KernelFile

        path = Path(job.file)
        kernel = KernelFile(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        chosen = self._chosen(kernel, job)
        if job.check:
            for index, params in enumerate(kernel.checks):
                if index >= job.skip:
                    self._answer(Answer(kind="begun", case=index, text=kernel.name, params=params))
                    attempts = [Attempt(name=name, own=own) for name, own, _ in chosen]
                    self._check_all(kernel, chosen, attempts, params, job.seed)
                    self._answer(Answer(kind="checked", case=index, text=kernel.name, params=params, checked=attempts))
            return
        given = [FoundCase(case=Case(params), uses=[]) for params in job.cases]
        found = given or gather_cases(kernel, job.model, job.steps)
        for index, entry in enumerate(found):
            if index < job.skip:
                continue
            self._answer(Answer(kind="begun", case=index, text=kernel.name, params=entry.case.params))
            for state in job.states:
                samples = self._case(kernel, chosen, entry, state, job)
                samples.file, samples.sha256 = str(path), digest
                self._answer(Answer(kind="samples", case=index, samples=samples))

    def _chosen(self, kernel: Any, job: Job) -> list[tuple[str, bool, Callable[..., Any]]]:
        from loadgen.errors import UsageError

        own = kernel.implementations
        for name in job.implementations or []:
            if name not in own:
                raise UsageError(f"{kernel.path}: no implementation {name!r}; there are {', '.join(own)}")
        chosen = [(n, True, f) for n, f in own.items() if job.implementations is None or n in job.implementations]
        if job.baselines:
            chosen += [(n, False, f) for n, f in kernel.baselines.items()]
        return chosen

    def _check_all(
        self,
        kernel: Any,
        chosen: list[tuple[str, bool, Callable[..., Any]]],
        attempts: list[Attempt],
        params: dict[str, Any],
        seed: int,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None:
        """Each implementation on fresh inputs; their outcome goes into the attempts.

        Returns the inputs, a pristine copy of what is written, and the reference.
        """
        import torch

        from loadgen.microbench.check import judge, run_once
        from loadgen.microbench.tensors import Make, clone, restore

        def give_up(status: Any, message: str) -> None:
            for attempt in attempts:
                attempt.status, attempt.message = status, message

        need = kernel.needs(params)
        if need is not None and self._facts is not None and self._facts.compute_capability < need[0]:
            give_up("skipped", f"needs compute capability {need[0][0]}.{need[0][1]}: {need[1]}")
            return None
        try:
            tensors = kernel.inputs(Make(self._device, seed), params)
            pristine = clone({name: tensors[name] for name in kernel.outputs})
            want = kernel.reference(tensors)
        except LoadgenError:
            raise
        except Exception as error:
            shortage = out_of_memory(error)
            if shortage is None:
                give_up("failed", f"inputs or reference: {type(error).__name__}: {_first_line(error)}")
            else:
                give_up("out_of_memory", f"{shortage}, for inputs or reference")
            return None
        for attempt, (_, _, function) in zip(attempts, chosen, strict=True):
            restore(tensors, pristine)
            try:
                got = run_once(kernel, function, tensors)
                self._synchronize()
                outcome = judge(kernel, got, want)
            except (ImportError, NotImplementedError) as error:
                attempt.status, attempt.message = "skipped", _first_line(error)
            except Exception as error:
                if self._device != "cpu":
                    torch.cuda.synchronize()  # a broken context raises here, and ends the process
                shortage = out_of_memory(error)
                if shortage is None:
                    attempt.status, attempt.message = "failed", f"{type(error).__name__}: {_first_line(error)}"
                else:
                    attempt.status, attempt.message = "out_of_memory", shortage
            else:
                attempt.error_before = outcome.error
                if outcome.complaint:
                    attempt.status, attempt.message = "wrong", outcome.complaint
        return tensors, pristine, want

    def _synchronize(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()

    def _case(
        self,
        kernel: Any,
        chosen: list[tuple[str, bool, Callable[..., Any]]],
        entry: FoundCase,
        state: State,
        job: Job,
    ) -> CaseSamples:
        import torch

        params = entry.case.params
        moved, flops = kernel.traffic(params)
        attempts = [Attempt(name=name, own=own) for name, own, _ in chosen]
        samples = CaseSamples(
            kernel=kernel.name,
            file="",
            sha256="",
            label=entry.case.label,
            params=params,
            uses=entry.uses,
            state=state,
            seed=job.seed,
            bytes=moved,
            flops=flops,
            matrix_dtype=kernel.matrix_dtype(params),
            attempts=attempts,
        )
        checked = self._check_all(kernel, chosen, attempts, params, job.seed)
        if checked is not None:
            try:
                self._time(kernel, chosen, samples, *checked, job)
            except torch.cuda.OutOfMemoryError as error:
                # Also those that were timed, but not compared with the reference after it: no time without that.
                for attempt in attempts:
                    if attempt.status == "ok":
                        attempt.status, attempt.message = "out_of_memory", f"{out_of_memory(error)}, while timing"
        del checked
        torch.cuda.empty_cache()
        return samples

    def _time(
        self,
        kernel: Any,
        chosen: list[tuple[str, bool, Callable[..., Any]]],
        samples: CaseSamples,
        tensors: dict[str, Any],
        pristine: dict[str, Any],
        want: dict[str, Any],
        job: Job,
    ) -> None:
        import torch

        from loadgen.gpus import nvml
        from loadgen.microbench.check import judge, run_once
        from loadgen.microbench.rotation import plan
        from loadgen.microbench.tensors import clone, nbytes, restore
        from loadgen.microbench.timing import Timed, estimate_s, kernel_times, run_windows

        assert self._facts is not None
        every = {name for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        turning = {"cold": every, "serving": every & set(kernel.streamed), "hot": set()}[samples.state]
        set_bytes = nbytes(tensors, turning)
        samples.staying_bytes = nbytes(tensors, every - turning)
        # What is left of the kernel's traffic when all that stays is taken off: no call can touch less.
        touched = min(set_bytes, max(int(samples.bytes) - samples.staying_bytes, 0))
        right = [
            (attempt, function)
            for attempt, (_, _, function) in zip(samples.attempts, chosen, strict=True)
            if attempt.status == "ok"
        ]
        if not right:
            return
        restore(tensors, pristine)
        rough = min(estimate_s(function, tensors) for _, function in right)
        free, _ = torch.cuda.mem_get_info()
        rotation = plan(set_bytes, touched, rough, self._facts.l2_bytes, int(free * MEMORY_SHARE))
        if rotation is None:
            for attempt, _ in right:
                attempt.status = "out_of_memory"
                attempt.message = (
                    f"no room for a second set of {set_bytes / 2**30:.1f} GiB, without which it is no cold figure"
                )
            return
        samples.rotation = rotation
        restore(tensors, pristine)
        sets = [tensors]
        for _ in range(rotation.sets - 1):
            sets.append({**tensors, **clone({name: tensors[name] for name in turning})})
        timed = []
        for attempt, function in right:
            one = Timed(attempt.name, function, sets, rotation.calls)
            attempt.timer = one.timer  # type: ignore[assignment]
            attempt.message = one.why_not
            timed.append(one)
        with nvml() as session:

            def sample_clocks() -> None:
                if session is not None:
                    reading = session.sample(0, {self._uuid} if self._uuid else None)
                    samples.clocks += [msgspec.to_builtins(gpu) for gpu in reading.gpus]

            run_windows(timed, rotation, job.seconds, random.Random(job.seed), sample_clocks)
        times = kernel_times(timed, rotation)
        for (attempt, function), one in zip(right, timed, strict=True):
            attempt.samples_s = one.samples_s
            attempt.cupti = times.get(one.name)
            attempt.wall_s = one.host_s()
            # On the buffers that were timed, the last set's: what was written there while timing is gone.
            last = sets[-1]
            restore(last, pristine)
            try:
                outcome = judge(kernel, run_once(kernel, function, last), want)
                complaint = outcome.complaint or self._after_replay(kernel, one, sets, pristine, want)
            except torch.cuda.OutOfMemoryError as error:
                attempt.status, attempt.message = "out_of_memory", f"{out_of_memory(error)}, comparing it after timing"
                continue
            attempt.error_after = outcome.error
            if complaint:
                attempt.status, attempt.message = "wrong", f"after timing: {complaint}"

    def _after_replay(
        self, kernel: Any, one: Any, sets: list[dict[str, Any]], pristine: dict[str, Any], want: dict[str, Any]
    ) -> str | None:
        """Did the very graph that was timed do the work? Poisons the outputs, replays, and looks.

        Not for a kernel that overwrites its input, whose result depends on how often it ran.
        """
        import torch

        from loadgen.microbench.check import judge
        from loadgen.microbench.tensors import poison, restore

        poisoned = {name: value.clone() for name, value in pristine.items() if isinstance(value, torch.Tensor)}
        for value in poisoned.values():
            poison(value)
        same = all(
            torch.equal(value.view(torch.uint8), pristine[name].view(torch.uint8)) for name, value in poisoned.items()
        )
        if not same:
            return None
        for one_set in sets:
            restore(one_set, pristine)
        one.window()
        torch.cuda.synchronize()
        got = {name: sets[-1][name] for name in kernel.outputs}
        if one.kept is not None:
            values = one.kept if isinstance(one.kept, tuple | list) else (one.kept,)
            got = dict(zip(kernel.outputs, values, strict=True))
        return judge(kernel, got, want).complaint


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


# What CUDA itself and its libraries say, whose errors have no type of their own in torch.
_SHORTAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_WANTED = re.compile(r"Tried to allocate ([\d.]+ \w+)\..*? of which ([\d.]+ \w+) is free")


def out_of_memory(error: BaseException) -> str | None:
    """How much of the GPU's memory was wanted and free, in a line; None where an error has another cause.

    An error may hide it: a CUDA graph whose capture ran out of memory says that the capture was invalidated, and
    torch.compile wraps what went wrong.
    """
    import torch

    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, torch.cuda.OutOfMemoryError) or any(words in str(cause) for words in _SHORTAGES):
            line = _first_line(cause)
            found = _WANTED.search(line)
            return f"{found[1]} more wanted, {found[2]} free" if found else line
        cause = cause.__cause__ or cause.__context__
    return None


def serve(lines: BinaryIO, out: BinaryIO) -> int:
    """Answers every job of ``lines``; 0 at the end of input."""
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Job)

    def answer(value: Answer) -> None:
        if value.kind == "begun":
            # What earlier cases said is no cause of this one's death. A file, as the parent gives one, or nothing.
            with contextlib.suppress(OSError):
                sys.stderr.flush()
                os.ftruncate(2, 0)
                os.lseek(2, 0, os.SEEK_SET)
        out.write(encoder.encode(value) + b"\n")
        out.flush()

    try:
        import torch
    except ImportError:
        answer(Answer(kind="error", text=f"{sys.executable} has no torch: pip install 'loadgen[kernels]', or name a "
                      "Python that has it with --python"))  # fmt: skip
        return 3
    facts = None
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False
        facts = _device_facts(torch)
        answer(Answer(kind="device", device=facts))
    else:
        # Without a GPU only checks are run; triton reads this when it is imported, which is later.
        os.environ["TRITON_INTERPRET"] = "1"
        answer(Answer(kind="device"))
    bench = Bench(answer, "cuda:0" if facts else "cpu", facts)
    for line in lines:
        if line.strip() == b"peaks":
            from loadgen.microbench.peaks import measure_peaks

            answer(Answer(kind="peaks", peaks=measure_peaks()))
            torch.cuda.empty_cache()
            continue
        job = decoder.decode(line)
        started = time.monotonic()
        try:
            bench.run(job)
        except LoadgenError as error:
            answer(Answer(kind="error", text=str(error)))
        answer(Answer(kind="done", text=f"{time.monotonic() - started:.1f}"))
    return 0


def main() -> int:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return serve(sys.stdin.buffer, out)


if __name__ == "__main__":
    sys.exit(main())
