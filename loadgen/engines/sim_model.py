"""A continuous-batching model of one GPU that serves one model: pure, no clock, no sockets.

A step takes as long as the slower of moving its bytes and doing its arithmetic, plus a fixed
overhead of the host:

    bytes  = weights + KV of every running token + KV written
    flops  = 2 * parameters * tokens of the step + 4 * heads * head size * layers * attended tokens
    step_s = max(bytes / (bandwidth * MEMORY_SHARE), flops / (peak * COMPUTE_SHARE)) + overhead_s

The shares are what tuned engines reach of the data sheet. The model leaves out preemption (the KV
cache for the whole answer is reserved at admission), prefix caching, sampling, and the padding of
CUDA graphs. It shows what load does to an engine's latencies; it predicts no real engine.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

MEMORY_SHARE = 0.80
COMPUTE_SHARE = 0.65
STEP_OVERHEAD_S = 0.0015
GPU_MEMORY_UTILIZATION = 0.9
MAX_PARTIAL_PREFILLS = 64


class Gpu(NamedTuple):
    """Data-sheet figures: memory in bytes, bandwidth in bytes/s, dense bf16 peak in flop/s."""

    memory_bytes: float
    bandwidth: float
    peak_flops: float


class Model(NamedTuple):
    """Shape of a decoder in bf16. ``weight_bytes``: read in each decode step (layers and LM head)."""

    parameters: float
    weight_bytes: float
    kv_bytes_per_token: int
    layers: int
    query_heads: int
    head_size: int


GPUS = {
    "a100-80gb": Gpu(80e9, 2039e9, 312e12),
    "h100": Gpu(80e9, 3350e9, 989e12),
    "h200": Gpu(141e9, 4800e9, 989e12),
}
MODELS = {
    "qwen1.5-4b": Model(3.95e9, 7.12e9, 409_600, 40, 20, 128),
    "qwen2.5-7b": Model(7.62e9, 14.14e9, 57_344, 28, 28, 128),
    "llama-3.1-8b": Model(8.03e9, 15.01e9, 131_072, 32, 32, 128),
}


class Sequence:
    """One request inside the engine."""

    __slots__ = ("generated", "input_tokens", "output_tokens", "prefilled")

    def __init__(self, input_tokens: int, output_tokens: int) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.prefilled = 0
        self.generated = 0

    @property
    def reserved_tokens(self) -> int:
        """KV-cache tokens held from admission to the end."""
        return self.input_tokens + self.output_tokens


class BatchModel:
    """Which sequences run in the next step, and how long it takes.

    Args:
        gpu, model: what is modelled.
        max_batch_size: sequences in one step.
        max_num_tokens: token budget of one step; decoding sequences come first, what is left goes
            to prefill chunks in order of arrival.
    """

    def __init__(self, gpu: Gpu, model: Model, max_batch_size: int, max_num_tokens: int) -> None:
        self._gpu = gpu
        self._model = model
        self._max_batch_size = max_batch_size
        self._max_num_tokens = max_num_tokens
        free = GPU_MEMORY_UTILIZATION * gpu.memory_bytes - 2 * model.parameters
        self.kv_capacity_tokens = int(free / model.kv_bytes_per_token)
        self._kv_used = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._chunks: list[tuple[Sequence, int]] = []
        self._decoding: list[Sequence] = []

    @property
    def waiting(self) -> int:
        """Sequences that are queued."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that have been admitted."""
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache that is reserved, 0 to 1."""
        return min(1.0, self._kv_used / self.kv_capacity_tokens)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, finished or aborted; one that is in the current step too."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._kv_used -= sequence.reserved_tokens
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._chunks = [c for c in self._chunks if c[0] is not sequence]
        self._decoding = [s for s in self._decoding if s is not sequence]

    def begin_step(self) -> float | None:
        """Forms the next step's batch; its duration in seconds, or None when there is no work."""
        while self._waiting and len(self._running) < self._max_batch_size:
            head = self._waiting[0]
            # A sequence larger than the whole cache runs alone rather than block the queue for ever.
            if self._running and self._kv_used + head.reserved_tokens > self.kv_capacity_tokens:
                break
            self._running.append(self._waiting.popleft())
            self._kv_used += head.reserved_tokens
        if not self._running:
            return None
        self._decoding = [s for s in self._running if s.prefilled == s.input_tokens]
        budget = self._max_num_tokens - len(self._decoding)
        self._chunks = []
        for sequence in self._running:
            if budget <= 0 or len(self._chunks) == MAX_PARTIAL_PREFILLS:
                break
            left = sequence.input_tokens - sequence.prefilled
            if left:
                chunk = min(left, budget)
                self._chunks.append((sequence, chunk))
                budget -= chunk
        return self._step_s()

    def _step_s(self) -> float:
        gpu, model = self._gpu, self._model
        tokens = len(self._decoding)
        context = attended = sum(s.input_tokens + s.generated for s in self._decoding)
        for sequence, chunk in self._chunks:
            end = sequence.prefilled + chunk
            tokens += chunk
            context += end
            attended += chunk * end - chunk * (chunk - 1) // 2
        moved = model.weight_bytes + model.kv_bytes_per_token * (context + tokens)
        flops = 2 * model.parameters * tokens
        flops += 4 * model.query_heads * model.head_size * model.layers * attended
        return max(moved / (gpu.bandwidth * MEMORY_SHARE), flops / (gpu.peak_flops * COMPUTE_SHARE)) + STEP_OVERHEAD_S

    def end_step(self) -> list[Sequence]:
        """Ends the step; the sequences that have one token more, in order."""
        emitted = list(self._decoding)
        for sequence, chunk in self._chunks:
            sequence.prefilled += chunk
            if sequence.prefilled == sequence.input_tokens:
                emitted.append(sequence)
        for sequence in emitted:
            sequence.generated += 1
        self._chunks = []
        self._decoding = []
        return emitted
