"""All-reduce with one process a GPU: the kernels of kernels/all_reduce.py over peers' memory, beside NCCL.

``loadgen kernels all-reduce`` runs ``PYTHON -m loadgen.microbench.collective --ranks 8 --shape 1x5120``, which prints
one JSON object a line, a :class:`BusTime`. Every rank's input stands in symmetric memory
(:mod:`torch.distributed._symmetric_memory`), whose rendezvous maps it into all processes; NVLink multicast is not used.

Order between the ranks. The kernels do not synchronise; the handle's ``barrier`` before them waits until all ranks
have written their inputs, the one after them until all have read (and, in two shots, written). It is a launch of
its own, so it can be captured in a graph: each rank puts a signal into each peer's pad with release at system scope
and waits for theirs with acquire. What a rank wrote in earlier launches on the stream is thereby visible to the
peers' next launch, whose L1 caches start empty. Two launches more than a barrier inside the kernel would take: for
small messages they are most of the time.

Correctness is checked before and after timing, on inputs that change from call to call without waiting in between,
so that a barrier that does not hold shows.

What could not be run: several GPUs. The timing and NCCL's part are written but have never run. ``--one-gpu`` puts
all processes on one GPU, for correctness alone: its barriers spin while the GPU is shared in time slices, and NCCL
refuses two ranks on one GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import LoadgenError, UsageError
from loadgen.microbench.kernel_file import KernelFile, find
from loadgen.processes import child_environ, how_to_install

SHAPES = [(1, 5120), (8, 5120), (64, 5120), (256, 5120), (2048, 5120), (8192, 5120)]
WINDOWS = 30  # samples of each implementation
WINDOW_SECONDS = 500e-6  # at least; an event ticks in microseconds
CHECKED_CALLS = 4
DEADLINE_SECONDS = 300.0

# Of every element, of its row, of the norm. NCCL rounds to bfloat16 between ranks; the kernels once.
NCCL_TOLERANCE = (5e-2, 5e-2, 2e-2)

Run = Callable[[], None]


class BusTime(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation at one size.

    Attributes:
        implementation: ``one_shot``, ``two_shot`` or ``nccl``.
        ranks: p.
        tokens, hidden: of the bfloat16 message.
        bytes: of the message, n = 2 T H.
        timer: ``graph``: events around a graph of many calls; ``events``: around the calls themselves, where a graph
            could not be captured, launches included; None: not timed.
        seconds: of one call, the slowest rank's, a sample for each window.
        bus_bytes_per_second: 2 (p - 1) / p n / t at the median t; comparable over p and with a link's bandwidth.
        complaint: what is wrong with the result, and then nothing was timed, or None.
    """

    implementation: str
    ranks: int
    tokens: int
    hidden: int
    bytes: int
    timer: Literal["graph", "events"] | None = None
    seconds: list[float] = []
    bus_bytes_per_second: float | None = None
    complaint: str | None = None


def bus_bandwidth(ranks: int, nbytes: int, seconds: float) -> float:
    """Bytes a second that each rank's links must carry, whatever the algorithm: 2 (p - 1) / p n / t."""
    return 2 * (ranks - 1) / ranks * nbytes / seconds


def measure(ranks: int, shapes: list[tuple[int, int]], one_gpu: bool = False) -> list[BusTime]:
    """Starts ``ranks`` processes, and gives what they measured.

    Args:
        shapes: (T, H) of the messages.
        one_gpu: all on the first GPU, without NCCL and without timing.

    Raises:
        UsageError: fewer than two ranks, or fewer GPUs than ranks.
        LoadgenError: a process failed or hung.
    """
    import torch
    import torch.multiprocessing as processes

    there = torch.cuda.device_count()
    if ranks < 2:
        raise UsageError(f"an all-reduce takes two ranks or more, not {ranks}, one on each GPU; there are {there} GPUs")
    if one_gpu and not there:
        raise UsageError("there is no GPU")
    if not one_gpu and there < ranks:
        raise UsageError(
            f"an all-reduce over {ranks} ranks needs {ranks} GPUs, and there are {there}; "
            "--one-gpu checks the kernels, without timing, on one"
        )
    with tempfile.TemporaryDirectory(prefix="loadgen-collective-") as folder:
        workers = processes.spawn(  # type: ignore[no-untyped-call, unused-ignore]
            _worker, args=(ranks, shapes, one_gpu, folder), nprocs=ranks, join=False
        )
        end = time.monotonic() + DEADLINE_SECONDS
        try:
            # join() ends the others where one fails.
            while not workers.join(timeout=1.0):
                if time.monotonic() > end:
                    raise LoadgenError(f"the all-reduce over {ranks} ranks did not end within {DEADLINE_SECONDS:.0f} s")
        except (processes.ProcessRaisedException, processes.ProcessExitedException) as error:
            raise LoadgenError(f"a rank of the all-reduce failed: {error}") from error
        finally:
            for process in workers.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return msgspec.json.decode((Path(folder) / "measured.json").read_bytes(), type=list[BusTime])


def _worker(rank: int, ranks: int, shapes: list[tuple[int, int]], one_gpu: bool, folder: str) -> None:
    # All on one host; without a name server too.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if one_gpu:
        # Before the library is loaded, which reads it.
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(0 if one_gpu else rank)
    # gloo, on the host, for the rendezvous and to collect results; NCCL is what is measured.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    try:
        nccl = None if one_gpu else dist.new_group(backend="nccl")
        found: list[BusTime] = []
        for tokens, hidden in shapes:
            message = _Message(rank, ranks, tokens, hidden, nccl)
            found += message.measure(timed=not one_gpu)
        if rank == 0:
            (Path(folder) / "measured.json").write_bytes(msgspec.json.encode(found))
    finally:
        dist.destroy_process_group()


class _Message:
    """One size on one rank: buffers, the implementations that reduce them, and their check."""

    def __init__(self, rank: int, ranks: int, tokens: int, hidden: int, nccl: Any) -> None:
        import torch
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric_memory

        self.rank, self.ranks, self.tokens, self.hidden = rank, ranks, tokens, hidden
        self.elements = tokens * hidden
        device = torch.device("cuda", torch.cuda.current_device())
        # One allocation, input and output: rendezvous maps allocations, not tensors. Outputs start on 16 bytes.
        room = -(-self.elements // 64) * 64
        self._symmetric = symmetric_memory.empty(2 * room, dtype=torch.bfloat16, device=device)
        assert dist.group.WORLD is not None
        self._handle = symmetric_memory.rendezvous(self._symmetric, dist.group.WORLD.group_name)
        bases = [self._handle.get_buffer(peer, (2 * room,), torch.bfloat16).data_ptr() for peer in range(ranks)]
        assert bases[rank] == self._symmetric.data_ptr(), "the tensor does not begin where its rendezvous says"
        assert all(base % 16 == 0 for base in bases)
        self.x = self._symmetric[: self.elements].view(tokens, hidden)
        self.out = self._symmetric[room : room + self.elements].view(tokens, hidden)
        size = room * self.x.element_size()
        self._sources = torch.tensor(bases, dtype=torch.int64, device=device)
        self._targets = torch.tensor([base + size for base in bases], dtype=torch.int64, device=device)
        self._target = self._targets[rank : rank + 1].clone()
        self._kernels = KernelFile(find(["all_reduce"])[0]).module
        self._nccl = nccl
        # Every rank makes every rank's inputs: the sum that is wanted is known without communication.
        self._inputs: list[Any] = []
        self._wanted: list[Any] = []
        for call in range(CHECKED_CALLS):
            total = torch.zeros(tokens, hidden, dtype=torch.float32, device=device)
            for peer in range(ranks):
                generator = torch.Generator(device).manual_seed(1000 * call + peer)
                drawn = torch.randn(tokens, hidden, dtype=torch.float32, device=device, generator=generator)
                values = drawn.to(torch.bfloat16)
                total += values.float()
                if peer == rank:
                    self._inputs.append(values)
            self._wanted.append(total)

    def implementations(self) -> dict[str, Run]:
        """By name: from ``x`` of all ranks to ``out`` of this one."""
        found: dict[str, Run] = {"one_shot": self._one_shot, "two_shot": self._two_shot}
        if self._nccl is not None:
            found["nccl"] = self._by_nccl
        return found

    def _one_shot(self) -> None:
        self._handle.barrier(channel=0)
        self._kernels.one_shot_rank(self._sources, self._target, self.elements)
        self._handle.barrier(channel=0)

    def _two_shot(self) -> None:
        self._handle.barrier(channel=0)
        self._kernels.two_shot_rank(self._sources, self._targets, self.rank, self.elements)
        self._handle.barrier(channel=0)

    def _by_nccl(self) -> None:
        import torch.distributed as dist

        # In place, as a server calls it. Call after call of a graph the values grow and overflow at last; moving and
        # adding them takes as long.
        dist.all_reduce(self.out, group=self._nccl)

    def complaint(self, name: str, run: Run) -> str | None:
        """What is wrong on any rank with ``CHECKED_CALLS`` calls in a row, each with inputs of its own."""
        import torch

        from loadgen.microbench.check import Tolerance, compare

        outputs = []
        for values in self._inputs:
            if name == "nccl":
                self.out.copy_(values)
            else:
                self.out.fill_(torch.nan)
                # All have read the last input by now: the call ended with a barrier. And the poison is written
                # before any peer writes here: the call starts with one.
                self.x.copy_(values)
            run()
            outputs.append(self.out.clone())
        torch.cuda.synchronize()
        tolerances = {"out": Tolerance(*NCCL_TOLERANCE)} if name == "nccl" else {}
        here = None
        for call, (got, want) in enumerate(zip(outputs, self._wanted, strict=True)):
            wrong = compare({"out": got}, {"out": want}, tolerances).complaint
            if wrong and here is None:
                here = f"rank {self.rank}, call {call}: {wrong}"
        return next((text for text in self._from_all(here) if text), None)

    def _from_all(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def measure(self, timed: bool) -> list[BusTime]:
        """Checked, timed window by window in turns, and checked again."""
        runs = self.implementations()
        complaints = {name: self.complaint(name, run) for name, run in runs.items()}
        right = {name: run for name, run in runs.items() if complaints[name] is None}
        timers: dict[str, Literal["graph", "events"]] = {}
        seconds: dict[str, list[float]] = {}
        if timed and right:
            timers, seconds = self._time(right)
            complaints |= {name: self.complaint(name, run) for name, run in right.items()}
        nbytes = 2 * self.elements
        found = []
        for name in runs:
            complaint = complaints[name]
            samples = seconds.get(name, []) if complaint is None else []
            median = sorted(samples)[len(samples) // 2] if samples else None
            found.append(
                BusTime(
                    implementation=name,
                    ranks=self.ranks,
                    tokens=self.tokens,
                    hidden=self.hidden,
                    bytes=nbytes,
                    timer=timers.get(name) if samples else None,
                    seconds=samples,
                    bus_bytes_per_second=None if median is None else bus_bandwidth(self.ranks, nbytes, median),
                    complaint=complaint,
                )
            )
        return found

    def _time(self, runs: dict[str, Run]) -> tuple[dict[str, Literal["graph", "events"]], dict[str, list[float]]]:
        import torch

        calls: dict[str, int] = {}
        windows: dict[str, Run] = {}
        timers: dict[str, Literal["graph", "events"]] = {}
        for name, run in runs.items():
            # All ranks must make as many calls: the slowest one's estimate decides.
            once = max(self._from_all(self._elapsed(partial(_repeat, run, 10)) / 10))
            calls[name] = min(max(int(WINDOW_SECONDS / once), 4), 200)
            graph = self._captured(run, calls[name])
            if graph is None:
                timers[name] = "events"
                windows[name] = partial(_repeat, run, calls[name])
            else:
                timers[name] = "graph"
                windows[name] = graph.replay
        taken: dict[str, list[float]] = {name: [] for name in runs}
        order = list(runs)
        for number in range(-2, WINDOWS):
            for name in order:
                elapsed = self._elapsed(windows[name])
                if number >= 0:  # the first ones warm up
                    taken[name].append(elapsed / calls[name])
            order.reverse()  # ABBA: none is always after the same other
        torch.cuda.synchronize()
        everywhere = self._from_all(taken)
        slowest = {name: [max(at) for at in zip(*(ranks[name] for ranks in everywhere), strict=True)] for name in runs}
        return timers, slowest

    def _elapsed(self, window: Run) -> float:
        """Seconds on the device. A barrier on the device comes first: the ranks' hosts are not in step."""
        import torch
        import torch.distributed as dist

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        dist.barrier()
        self._handle.barrier(channel=1)
        start.record()
        window()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _captured(self, run: Run, calls: int) -> Any:
        """A graph of that many calls, or None where a rank could not capture it."""
        import torch

        graph: Any = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            # NCCL's watchdog thread queries events, which a capture in the strictest mode would not survive.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                _repeat(run, calls)
        except RuntimeError:
            torch.cuda.synchronize()
            graph = None
        return graph if all(self._from_all(graph is not None)) else None


def _repeat(run: Run, calls: int) -> None:
    for _ in range(calls):
        run()


def _shape(text: str) -> tuple[int, int]:
    tokens, _, hidden = text.partition("x")
    if not (tokens.isdecimal() and hidden.isdecimal() and int(tokens) and int(hidden)):
        raise UsageError(f"--shape takes tokens x hidden, such as 256x5120, not {text}")
    if int(tokens) * int(hidden) >= 1 << 31:
        raise UsageError(f"--shape {text}: the kernels take fewer than 2^31 elements")
    return int(tokens), int(hidden)


def main(argv: list[str]) -> int:
    """The child process of :func:`measure_apart`: answers with a JSON line for each result.

    Without click, which a Python that has torch need not have.

    Returns:
        The exit code: 1 when a result is wrong.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--one-gpu", action="store_true")
    asked = parser.parse_args(argv)
    ranks, one_gpu = asked.ranks, asked.one_gpu
    try:
        wanted = [_shape(text) for text in asked.shape] or SHAPES
        try:
            import torch
        except ImportError:
            raise UsageError(
                f"{sys.executable} has no torch: pip install 'loadgen[kernels]', or name a Python that has it with "
                "--python"
            ) from None
        count = (2 if one_gpu else torch.cuda.device_count()) if ranks is None else ranks
        found = measure(count, wanted, one_gpu)
    except LoadgenError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    for row in found:
        sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
    sys.stdout.flush()
    return int(any(row.complaint for row in found))


def measure_apart(
    python: str | None, ranks: int | None, shapes: tuple[str, ...], one_gpu: bool
) -> tuple[list[BusTime], int]:
    """:func:`main` in a process of its own, for torch stays out of loadgen's; what it measured, and its exit code.

    Args:
        python: one that has torch; None takes this one.

    Raises:
        UsageError: the Python does not run or has no torch, a shape is none, or there are too few GPUs.
        LoadgenError: a rank failed or hung.
    """
    program = python or sys.executable
    words = [word for text in shapes for word in ("--shape", text)] + (["--one-gpu"] if one_gpu else [])
    command = [program, "-m", "loadgen.microbench.collective", *words]
    if ranks is not None:
        command += ["--ranks", str(ranks)]
    try:
        done = subprocess.run(command, env=child_environ(python), capture_output=True, text=True)
    except OSError as error:
        raise UsageError(f"--python {program}: {error.strerror}") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return [msgspec.json.decode(line, type=BusTime) for line in lines], done.returncode
    said = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode} and said nothing"]
    told = next((line.removeprefix("Error: ") for line in said if line.startswith("Error: ")), None)
    if told is None:
        raise UsageError(f"{program}: {said[-1]}{how_to_install(program, said[-1])}")
    raise (UsageError if done.returncode == UsageError.exit_code else LoadgenError)(told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
