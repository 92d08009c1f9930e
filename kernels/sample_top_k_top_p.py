"""Softmax with top-k and top-p, and one token drawn from each row.

    K      = {i : x_i >= the k-th largest x}                      (all ties of the k-th kept)
    P      = {i in K : sum of w_j over j in K with x_j > x_i  <  p * sum of w_j over K},  w = exp(x - max x)
    token  = the first i, in vocabulary order, with  sum of w_j over j <= i in P  >  u * sum of w_j over P

P is the smallest set of largest probabilities that reaches p, with all ties of the smallest one in it; it always
has the largest logit. logits: (B, V) contiguous float32, already divided by the temperature; -inf masks a token
out, at least one of a row is finite, none is NaN or +inf. top_k: (B,) int32, off if <= 0 or >= V. top_p: (B,)
float32, off if >= 1; 0 or less keeps the largest logit alone. uniform: (B,) float32 in [0, 1). tokens: (B,) int64.

Bytes: read the logits once, 4 B V, and 20 B of parameters and tokens. Flops: about 4 B V. Eight launches, of which
four go over the logits, three of them only where they must:

1. ``_stats``: maximum, minimum and sum of exponentials of each chunk, and the maximum of each group of 64 logits.
2. ``_plan``: a bound that the threshold cannot lie below. For top-k it is the k-th largest group maximum: k
   groups reach it, so k logits do. For top-p it is where V logits together could not make up the dropped 1 - p.
   Groups whose maximum is below the bound are not read again; for a small k, or a peaked row, that is nearly all
   of them. A row without filters is done.
3. ``_narrow`` and ``_choose``, twice, for rows of which many groups reach the bound: how many logits, or what
   weight, reach each of 15 pivots; the two pivots that the threshold lies between are the next low and high.
4. ``_collect``: in each chunk the sum of the weights from high on, and the logits between low and high, the
   candidates.
5. ``_draw``: the threshold, by bisection over the candidates' bits; the chunk that u falls into; the token in it.

Pivots rather than a histogram: Triton's histogram takes instructions in proportion to its bins, has no weights,
and float atomics would not be deterministic. Where there are more candidates than room (values that crowd together
far from the maximum, many that tie, a top-p above 0.9999 of a flat row, top-p of a k in the thousands), ``_draw``
bisects over the row itself: right, but slow, one program reading the row some twenty times.

Weights of filtered rows are summed as integers in units of 2^-40 of the largest. Integer sums do not depend on
their order, so the result is deterministic although candidates arrive in any order, and the chunks' sums agree
with the sums inside a chunk to the last unit. What it costs: tokens below 10^-12 of the largest are never drawn.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import Case

OUTPUTS = ("tokens",)
STREAMED = ()

# Right for any top-p within this of the one asked for, and with the uniform number within this of the token's piece
# of the CDF: float32 sums over 150,000 probabilities are no better than 1e-5.
EPSILON = 5e-5

GROUP = 64  # logits under one maximum: 256 bytes, so that a group that is skipped saves whole sectors of memory
PIVOTS = 16  # pieces that a pass cuts the range of the threshold into
UNIT = tl.constexpr(float(2**40))  # of the fixed-point weights: 2^22 logits fit into 63 bits

OFF = 0
# What rows ask for, by row index: a server's mixture (half of it 50 and 0.9), and values at the edges.
SETTINGS = {
    "server": [(50, 0.9), (OFF, 0.95), (50, 0.9), (100, 1.0), (50, 0.9), (OFF, 1.0)],
    "greedy": [(1, 1.0), (1, 0.5)],
    "top_k": [(2, 1.0), (7, 1.0), (64, 1.0), (500, 1.0)],
    "top_p": [(OFF, 0.5), (OFF, 0.9), (OFF, 0.99), (OFF, 0.99999)],
    "none": [(OFF, 1.0)],
    "edges": [(-1, 0.8), (3, 0.0), (OFF, -1.0), (1 << 30, 0.3), (20, 0.999), (OFF, 1e-6), (5, 2.0), (90, 0.7)],
}

CHECKS = [
    {"sequences": 1, "vocab": 1, "settings": "edges"},
    {"sequences": 6, "vocab": 1000, "settings": "server"},
    {"sequences": 8, "vocab": 3001, "settings": "edges"},
    {"sequences": 2, "vocab": 1500, "settings": "greedy"},
    {"sequences": 1, "vocab": 4099, "settings": "server"},
    {"sequences": 4, "vocab": 2049, "settings": "top_p", "shape": "flat", "room": 512},
    {"sequences": 6, "vocab": 2500, "settings": "server", "shape": "peaked"},
    {"sequences": 8, "vocab": 1030, "settings": "edges", "shape": "ties"},
    {"sequences": 6, "vocab": 1030, "settings": "server", "shape": "equal"},
    {"sequences": 6, "vocab": 5000, "settings": "server", "shape": "masked"},
    {"sequences": 3, "vocab": 700, "settings": "none", "shape": "masked"},
    {"sequences": 4, "vocab": 2200, "settings": "top_k", "shape": "outlier", "room": 512},
    {"sequences": 8, "vocab": 2200, "settings": "edges", "shape": "outlier", "room": 64},
    {"sequences": 4, "vocab": 2200, "settings": "top_p", "shape": "ties", "room": 300},
]


def cases(model, step):
    # One token for each sequence of a decode step, and at the end of each prompt.
    yield Case({"sequences": step.sequences, "vocab": model.vocab}, per_step=1)


def inputs(make, sequences, vocab, settings="server", shape="model", room=4096):
    chunk = _chunk(sequences, vocab)
    chunks = triton.cdiv(vocab, chunk)
    rule = SETTINGS[settings]
    asked = [rule[row % len(rule)] for row in range(sequences)]
    # vLLM writes V where top-k is off; the edges keep what stands there.
    top_k = [vocab if k == OFF or (k > vocab and settings != "edges") else k for k, _ in asked]
    return {
        "logits": _logits(make, sequences, vocab, shape),
        "top_k": torch.tensor(top_k, dtype=torch.int32, device=make.device),
        "top_p": torch.tensor([p for _, p in asked], dtype=torch.float32, device=make.device),
        "uniform": make.uniform(sequences),
        "tokens": make.empty(sequences, dtype="int64"),
        "group_max": make.empty(sequences, chunks * chunk // GROUP, dtype="float32"),
        "chunk_stats": make.empty(3, sequences, chunks, dtype="float32"),  # maximum, minimum, sum of exponentials
        "chunk_mass": make.empty(sequences, chunks, dtype="int64"),  # from high on
        "chunk_part": make.empty(3, sequences, chunks, dtype="int32"),  # first candidate, how many, how many above
        "plan": make.empty(4, sequences, dtype="float32"),  # maximum, sum of exponentials, low, high
        "state": make.empty(2, sequences, dtype="int32"),  # what is to be done, see _plan; candidates so far
        "reached": make.empty(sequences, chunks, PIVOTS, dtype="float32"),
        "candidates": make.empty(sequences, room, dtype="float32"),
        "prefix": make.empty(sequences, room, dtype="int64"),
        "scratch": make.empty(sequences, vocab, dtype="float32"),  # of vLLM, which masks in place
    }


def _logits(make, sequences, vocab, shape):
    values = make.normal(sequences, vocab, dtype="float32")
    if shape == "model":
        # From flat (0.95 of the probability on most of the vocabulary) to peaked (on a few hundred tokens).
        spread = 1.0 + torch.arange(sequences, device=make.device, dtype=torch.float32)[:, None] % 7 / 2
        return values.mul_(spread)
    if shape == "flat":
        return values.mul_(0.01)
    if shape == "peaked":
        return values.mul_(40.0)
    if shape == "ties":
        return values.mul_(2.0).round_()  # some 15 different values, -0.0 and 0.0 among them
    if shape == "equal":
        return values.fill_(-3.25)
    if shape == "masked":
        masked = make.uniform(sequences, vocab) < 0.9
        masked[:, : vocab // 3] = True  # whole chunks, in a large vocabulary
        masked[::2, vocab // 2 :] = True
        masked[:, vocab // 2 - 1] = False
        return values.masked_fill_(masked, -torch.inf)
    assert shape == "outlier", shape
    values[:, vocab // 2] = 12.0  # all others crowd in a few bins
    values[1::2, 3] = -1e30
    return values.mul_(0.02)


def reference(logits, top_k, top_p, uniform, **_):
    # Which tokens may be drawn, (B, V): those in whose piece of the CDF the uniform number falls, for the top-p asked
    # for and for one a little smaller and larger; between neighbouring thresholds the kept set jumps.
    allowed = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    vocab = logits.shape[1]
    for row, (k, p) in enumerate(zip(top_k.tolist(), top_p.tolist(), strict=True)):
        x = logits[row].double()
        weight = (x - x.max()).exp()
        if 0 < k < vocab:
            weight[x < x.sort(descending=True).values[k - 1]] = 0.0
        values, inverse = torch.unique(x, return_inverse=True)  # ascending
        each = torch.zeros_like(values).index_add_(0, inverse, weight)
        larger = (each.flip(0).cumsum(0).flip(0) - each)[inverse] / weight.sum()
        for border in (p - EPSILON, p, p + EPSILON) if p < 1 else (2.0,):
            kept = weight * ((larger < border) | (x == x.max()))
            cdf = kept.cumsum(0) / kept.sum()
            u = float(uniform[row])
            after = torch.cat([cdf.new_zeros(1), cdf[:-1]]) - EPSILON <= u
            allowed[row] |= (kept > 0) & after & (u < cdf + EPSILON)
    return {"tokens": allowed}


def compare(got, want):
    tokens, allowed = got["tokens"], want["tokens"]
    if tokens.shape != allowed.shape[:1]:
        return [f"tokens: shape {tuple(tokens.shape)} instead of {tuple(allowed.shape[:1])}"]
    inside = (tokens >= 0) & (tokens < allowed.shape[1])
    right = inside & allowed.gather(1, tokens.clamp(0, allowed.shape[1] - 1)[:, None])[:, 0]
    wrong = (~right).nonzero()[:, 0].tolist()
    return [f"tokens: {len(wrong):,} of {len(tokens):,} are wrong, the first in row {wrong[0]}"] if wrong else []


def traffic(sequences, vocab, settings="server", shape="model", room=0):
    return 4 * sequences * vocab + 20 * sequences, 4 * sequences * vocab


def _chunk(sequences, vocab):
    # Enough programs for every SM of a large GPU even at one sequence, and fewer, larger ones where there are many.
    return 2048 if sequences * triton.cdiv(vocab, 4096) >= 4096 else 1024


@triton.jit
def _key(x):
    """int32 in the order of the floats; -0.0 and 0.0 are one value."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _middle(low, high):
    """(low + high) / 2, rounded up, without overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def _mass(x, top, UNIT: tl.constexpr):
    return (tl.exp(x - top) * UNIT).to(tl.int64)


@triton.jit
def _stats(logits_ptr, group_max_ptr, chunk_stats_ptr, vocab, chunks, stride, CHUNK: tl.constexpr, GROUP: tl.constexpr):
    """One program, one chunk of a row. ``stride``: of the three chunk statistics."""
    pid = tl.program_id(0)
    row, chunk = pid // chunks, pid % chunks
    groups = tl.arange(0, CHUNK // GROUP)
    columns = chunk * CHUNK + groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(logits_ptr + row.to(tl.int64) * vocab + columns, mask=columns < vocab, other=-float("inf"))
    peaks = tl.max(x, axis=1)
    tl.store(group_max_ptr + pid.to(tl.int64) * (CHUNK // GROUP) + groups, peaks)
    top = tl.max(peaks, axis=0)
    low = tl.min(tl.min(tl.where(x == -float("inf"), float("inf"), x), axis=1), axis=0)
    finite_top = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(tl.sum(tl.exp(x - finite_top), axis=1), axis=0)
    tl.store(chunk_stats_ptr + pid, top)
    tl.store(chunk_stats_ptr + stride + pid, low)
    tl.store(chunk_stats_ptr + 2 * stride + pid, total)


@triton.jit
def _plan(
    top_k_ptr, top_p_ptr, group_max_ptr, chunk_stats_ptr, plan_ptr, state_ptr,
    vocab, chunks, rows, groups, stride, room,
    CHUNKS: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program, one row. States: 0, nothing to filter; 1, candidates to be collected; 2, first to be narrowed."""
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    at = chunk_stats_ptr + row.to(tl.int64) * chunks + chunk
    peaks = tl.load(at, mask=chunk < chunks, other=-float("inf"))
    low = tl.min(tl.load(at + stride, mask=chunk < chunks, other=float("inf")), axis=0)
    sums = tl.load(at + 2 * stride, mask=chunk < chunks, other=0.0)
    top = tl.max(peaks, axis=0)
    total = tl.sum(sums * tl.exp(peaks - top), axis=0)
    k = tl.load(top_k_ptr + row)
    p = tl.load(top_p_ptr + row)
    use_k = (k > 0) & (k < vocab)
    state = 0
    if use_k | (p < 1.0):
        lane = tl.arange(0, GROUPS)
        inside = lane < groups
        maxima = tl.load(group_max_ptr + row.to(tl.int64) * groups + lane, mask=inside, other=-float("inf"))
        if use_k:
            if k <= groups:
                keys = _key(maxima)
                at_least = tl.min(tl.where(inside, keys, 2147483647), axis=0)
                at_most = tl.max(keys, axis=0)
                # Any value that k maxima reach will do, so the bisection may stop short of the largest.
                for _ in range(20):
                    middle = _middle(at_least, at_most)
                    enough = tl.sum((inside & (keys >= middle)).to(tl.int32), axis=0) >= k
                    at_least = tl.where(enough, middle, at_least)
                    at_most = tl.where(enough | (at_least == at_most), at_most, middle - 1)
                bits = at_least ^ ((at_least >> 31) & 0x7FFFFFFF)
                low = tl.maximum(low, bits.to(tl.float32, bitcast=True))
        else:
            # V logits below it weigh less than V exp(low - top) <= (1 - p) total; a little lower, for rounding.
            least = top + tl.log((1.0 - tl.maximum(p, 0.0)) * total / vocab * 0.99) - tl.abs(top) * 2.5e-7
            low = tl.maximum(low, least)
        reaching = tl.sum((maxima >= low).to(tl.int32), axis=0)
        # Enough room for certain, or almost: where few of the groups reach low, most of these have one or two
        # logits that do. Logits in sorted order are otherwise, and take the slow way of _draw in the worst case.
        scattered = (reaching * (GROUP // 4) <= room) & (reaching * 4 <= groups)
        state = tl.where((reaching * GROUP <= room) | scattered, 1, 2)
    tl.store(plan_ptr + row, top)
    tl.store(plan_ptr + rows + row, total)
    tl.store(plan_ptr + 2 * rows + row, low)
    tl.store(plan_ptr + 3 * rows + row, float("inf"))
    tl.store(state_ptr + row, state)
    tl.store(state_ptr + rows + row, 0)


@triton.jit
def _reaching(
    logits_ptr, group_max_ptr, row, chunk, pid, low, vocab,
    CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The logits of a chunk's groups that reach low, in whatever order suits; -inf for the others."""
    groups = tl.arange(0, CHUNK // GROUP)
    needed = tl.load(group_max_ptr + pid.to(tl.int64) * (CHUNK // GROUP) + groups) >= low
    columns = chunk * CHUNK + groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = (columns < vocab) & needed[:, None]
    x = tl.load(logits_ptr + row.to(tl.int64) * vocab + columns, mask=mask, other=-float("inf"))
    return tl.ravel(x, can_reorder=True)


@triton.jit
def _pivot(low, high, top, index, PIVOTS: tl.constexpr):
    """Pivot 0 is low. A weighted mean rather than low + a part of the difference, which can overflow."""
    part = index.to(tl.float32) / PIVOTS
    return tl.where(index == 0, low, low * (1.0 - part) + tl.minimum(high, top) * part)


@triton.jit
def _narrow(
    logits_ptr, top_k_ptr, group_max_ptr, chunk_stats_ptr, plan_ptr, state_ptr, reached_ptr, vocab, chunks, rows,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """One program, one chunk: the number of its logits that reach each pivot, or their weight where only top-p is."""
    pid = tl.program_id(0)
    row, chunk = pid // chunks, pid % chunks
    if tl.load(state_ptr + row) != 2:
        return
    top = tl.load(plan_ptr + row)
    low = tl.load(plan_ptr + 2 * rows + row)
    high = tl.load(plan_ptr + 3 * rows + row)
    k = tl.load(top_k_ptr + row)
    lane = tl.arange(0, PIVOTS)
    pivots = _pivot(low, high, top, lane, PIVOTS)
    reached = tl.zeros([PIVOTS], tl.float32)
    if tl.load(chunk_stats_ptr + pid) >= low:
        x = _reaching(logits_ptr, group_max_ptr, row, chunk, pid, low, vocab, CHUNK, GROUP)
        value = tl.where((k > 0) & (k < vocab), 1.0, tl.exp(x - top))
        for index in tl.static_range(PIVOTS):
            pivot = tl.sum(tl.where(lane == index, pivots, 0.0), axis=0)
            found = tl.sum(tl.where(x >= pivot, value, 0.0), axis=0)
            reached = tl.where(lane == index, found, reached)
    tl.store(reached_ptr + pid.to(tl.int64) * PIVOTS + lane, reached)


@triton.jit
def _choose(
    top_k_ptr, top_p_ptr, plan_ptr, state_ptr, reached_ptr, vocab, chunks, rows, room, rounds_left,
    CHUNKS: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """One program, one row: the last pivot that enough reach is low, the first that too little reaches is high."""
    row = tl.program_id(0)
    if tl.load(state_ptr + row) != 2:
        return
    k = tl.load(top_k_ptr + row)
    p = tl.load(top_p_ptr + row)
    top = tl.load(plan_ptr + row)
    low = tl.load(plan_ptr + 2 * rows + row)
    high = tl.load(plan_ptr + 3 * rows + row)
    lane = tl.arange(0, PIVOTS)
    chunk = tl.arange(0, CHUNKS)
    at = reached_ptr + row.to(tl.int64) * chunks * PIVOTS + chunk[:, None] * PIVOTS + lane[None, :]
    reached = tl.sum(tl.load(at, mask=(chunk < chunks)[:, None], other=0.0), axis=0)
    use_k = (k > 0) & (k < vocab)
    # Counts are exact. Weights are not: what is nearer to the border than their rounding stays between low and high.
    needed = tl.where(use_k, k.to(tl.float32), tl.maximum(p, 0.0) * tl.load(plan_ptr + rows + row))
    slack = tl.where(use_k, 0.0, 5e-6)
    enough = (lane == 0) | (reached >= needed * (1.0 + slack))
    short = (lane > 0) & (reached < needed * (1.0 - slack))
    pivots = _pivot(low, high, top, lane, PIVOTS)
    low = tl.max(tl.where(enough, pivots, -float("inf")), axis=0)
    above = tl.min(tl.where(short, pivots, float("inf")), axis=0)
    high = tl.minimum(high, above)
    count = tl.max(tl.where(pivots == low, reached, 0.0), axis=0)
    if use_k & (p < 1.0):
        # Top-p needs the sum over the k largest: they are candidates all.
        tl.store(plan_ptr + 3 * rows + row, tl.where((count <= room) | (rounds_left == 0), float("inf"), high))
    else:
        count -= tl.max(tl.where(pivots == high, reached, 0.0), axis=0)
        tl.store(plan_ptr + 3 * rows + row, high)
    tl.store(plan_ptr + 2 * rows + row, low)
    tl.store(state_ptr + row, tl.where((use_k & (count <= room)) | (rounds_left == 0), 1, 2))


@triton.jit
def _collect(
    logits_ptr, group_max_ptr, chunk_stats_ptr, plan_ptr, state_ptr, chunk_mass_ptr, chunk_part_ptr, candidates_ptr,
    vocab, chunks, rows, stride, room,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row, chunk = pid // chunks, pid % chunks
    if tl.load(state_ptr + row) != 1:
        return
    low = tl.load(plan_ptr + 2 * rows + row)
    if tl.load(chunk_stats_ptr + pid) < low:
        tl.store(chunk_mass_ptr + pid, 0)
        tl.store(chunk_part_ptr + pid, 0)
        tl.store(chunk_part_ptr + stride + pid, 0)
        tl.store(chunk_part_ptr + 2 * stride + pid, 0)
        return
    top = tl.load(plan_ptr + row)
    high = tl.load(plan_ptr + 3 * rows + row)
    x = _reaching(logits_ptr, group_max_ptr, row, chunk, pid, low, vocab, CHUNK, GROUP)
    above = x >= high
    tl.store(chunk_mass_ptr + pid, tl.sum(tl.where(above, _mass(x, top, UNIT), 0), axis=0))
    tl.store(chunk_part_ptr + 2 * stride + pid, tl.sum(above.to(tl.int32), axis=0))
    inside = (x >= low) & (x < high)
    rank = tl.cumsum(inside.to(tl.int32), axis=0)
    found = tl.sum(inside.to(tl.int32), axis=0)
    # In whatever order the chunks come: nothing after this depends on it.
    begin = tl.atomic_add(state_ptr + rows + row, found, sem="relaxed")
    tl.store(chunk_part_ptr + pid, begin)
    tl.store(chunk_part_ptr + stride + pid, found)
    to = begin + rank - 1
    tl.store(candidates_ptr + row.to(tl.int64) * room + to, x, mask=inside & (to < room))


@triton.jit
def _row_above(
    logits_ptr, chunk_stats_ptr, threshold, top, vocab, chunks,
    CHUNK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """How many logits of a row have keys that reach the threshold, and what they weigh."""
    counts = tl.zeros([CHUNK], tl.int32)
    masses = tl.zeros([CHUNK], tl.int64)
    chunk = 0
    while chunk < chunks:
        if _key(tl.load(chunk_stats_ptr + chunk)) >= threshold:
            columns = chunk * CHUNK + tl.arange(0, CHUNK)
            x = tl.load(logits_ptr + columns, mask=columns < vocab, other=-float("inf"))
            reaches = (columns < vocab) & (_key(x) >= threshold)
            counts += reaches.to(tl.int32)
            masses += tl.where(reaches, _mass(x, top, UNIT), 0)
        chunk += 1
    return tl.sum(counts, axis=0), tl.sum(masses, axis=0)


@triton.jit
def _draw(
    logits_ptr, top_k_ptr, top_p_ptr, uniform_ptr, tokens_ptr,
    chunk_stats_ptr, plan_ptr, state_ptr, chunk_mass_ptr, chunk_part_ptr, candidates_ptr, prefix_ptr,
    vocab, chunks, rows, stride,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, ROOM: tl.constexpr, ROOM_BLOCK: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One program, one row. Both thresholds are the largest key that keys enough, or weights enough, reach."""
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * vocab
    chunk_stats_ptr += row.to(tl.int64) * chunks
    chunk_mass_ptr += row.to(tl.int64) * chunks
    chunk_part_ptr += row.to(tl.int64) * chunks
    candidates_ptr += row.to(tl.int64) * ROOM
    prefix_ptr += row.to(tl.int64) * ROOM
    state = tl.load(state_ptr + row)
    top = tl.load(plan_ptr + row)
    total = tl.load(plan_ptr + rows + row)
    high_edge = tl.load(plan_ptr + 3 * rows + row)  # logits from here on are kept whatever the threshold
    found = tl.load(state_ptr + rows + row)
    fits = found <= ROOM
    k = tl.load(top_k_ptr + row)
    p = tl.load(top_p_ptr + row)
    use_k = (k > 0) & (k < vocab)
    use_p = p < 1.0
    share = tl.maximum(p, 0.0).to(tl.float64)
    lane = tl.arange(0, CHUNKS)
    valid = lane < chunks
    peaks = tl.load(chunk_stats_ptr + lane, mask=valid, other=-float("inf"))
    sums = tl.load(chunk_stats_ptr + 2 * stride + lane, mask=valid, other=0.0)
    masses = (sums * tl.exp(peaks - top) * UNIT).to(tl.int64)
    needed = (total * UNIT * share).to(tl.int64)  # by top-p alone
    threshold = -2147483647  # below every key
    if (state == 1) & fits:
        before = tl.sum(tl.load(chunk_part_ptr + 2 * stride + lane, mask=valid, other=0), axis=0)
        above = tl.load(chunk_mass_ptr + lane, mask=valid, other=0)
        above_all = tl.sum(above, axis=0)
        slot = tl.arange(0, ROOM_BLOCK)
        inside = slot < found
        x = tl.load(candidates_ptr + slot, mask=inside, other=-float("inf"))
        keys = tl.where(inside, _key(x), -2147483648)
        weights = tl.where(inside, _mass(x, top, UNIT), 0)
        threshold = tl.min(tl.where(inside, keys, 2147483647), axis=0)
        largest = tl.max(keys, axis=0)
        if use_k:
            high = largest
            while threshold < high:
                middle = _middle(threshold, high)
                enough = before + tl.sum((keys >= middle).to(tl.int32), axis=0) >= k
                threshold = tl.where(enough, middle, threshold)
                high = tl.where(enough, high, middle - 1)
            kept = above_all + tl.sum(tl.where(keys >= threshold, weights, 0), axis=0)
            needed = (kept.to(tl.float64) * share).to(tl.int64)
        if use_p:
            high = largest
            while threshold < high:
                middle = _middle(threshold, high)
                enough = above_all + tl.sum(tl.where(keys >= middle, weights, 0), axis=0) >= needed
                threshold = tl.where(enough, middle, threshold)
                high = tl.where(enough, high, middle - 1)
        # A chunk's candidates stand side by side: their sum is a difference of two prefix sums.
        prefix = tl.cumsum(tl.where(keys >= threshold, weights, 0), axis=0)
        tl.store(prefix_ptr + slot, prefix, mask=inside)
        tl.debug_barrier()  # other threads of this program read them
        begin = tl.load(chunk_part_ptr + lane, mask=valid, other=0)
        size = tl.load(chunk_part_ptr + stride + lane, mask=valid, other=0)
        end = tl.minimum(begin + size, ROOM)
        here = tl.load(prefix_ptr + end - 1, mask=size > 0, other=0)
        earlier = tl.load(prefix_ptr + begin - 1, mask=(size > 0) & (begin > 0), other=0)
        masses = above + here - earlier
    if (state == 1) & (found > ROOM):
        high_edge = float("inf")
        threshold = _key(tl.load(plan_ptr + 2 * rows + row))
        largest = _key(top)
        if use_k:
            high = largest
            while threshold < high:
                middle = _middle(threshold, high)
                reach, _mass_k = _row_above(logits_ptr, chunk_stats_ptr, middle, top, vocab, chunks, CHUNK, UNIT)
                threshold = tl.where(reach >= k, middle, threshold)
                high = tl.where(reach >= k, high, middle - 1)
            _count_k, kept = _row_above(logits_ptr, chunk_stats_ptr, threshold, top, vocab, chunks, CHUNK, UNIT)
            needed = (kept.to(tl.float64) * share).to(tl.int64)
        if use_p:
            high = largest
            while threshold < high:
                middle = _middle(threshold, high)
                _count_p, mass = _row_above(logits_ptr, chunk_stats_ptr, middle, top, vocab, chunks, CHUNK, UNIT)
                threshold = tl.where(mass >= needed, middle, threshold)
                high = tl.where(mass >= needed, high, middle - 1)
        chunk = 0
        while chunk < chunks:
            _count_c, mass = _row_above(
                logits_ptr + chunk * CHUNK, chunk_stats_ptr + chunk, threshold, top, vocab - chunk * CHUNK, 1,
                CHUNK, UNIT,
            )  # fmt: skip
            masses = tl.where(lane == chunk, mass, masses)
            chunk += 1

    uniform = tl.load(uniform_ptr + row).to(tl.float64)
    mass_all = tl.sum(masses, axis=0)
    target = tl.minimum((uniform * mass_all.to(tl.float64)).to(tl.int64), mass_all - 1)
    chosen = tl.sum((valid & (tl.cumsum(masses, axis=0) <= target)).to(tl.int32), axis=0)
    rest = target - tl.sum(tl.where(lane < chosen, masses, 0), axis=0)
    columns = chosen * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + columns, mask=columns < vocab, other=-float("inf"))
    # A row without filters has float32 sums of its chunks, each relative to the chunk's own maximum: place the
    # target by its share of the chunk. Otherwise the chunk's sum is exactly that of these integers.
    filtered = state != 0
    peak = tl.load(chunk_stats_ptr + chosen)
    keep = (columns < vocab) & ((_key(x) >= threshold) | (x >= high_edge))
    inner = tl.cumsum(tl.where(keep, _mass(x, tl.where(filtered, top, peak), UNIT), 0), axis=0)
    inner_all = tl.max(inner, axis=0)
    mass_here = tl.sum(tl.where(lane == chosen, masses, 0), axis=0)
    scaled = (rest.to(tl.float64) / mass_here.to(tl.float64) * inner_all.to(tl.float64)).to(tl.int64)
    rest = tl.where(filtered, rest, tl.minimum(scaled, inner_all - 1))
    within = tl.sum((inner <= rest).to(tl.int32), axis=0)
    tl.store(tokens_ptr + row, (chosen * CHUNK + within).to(tl.int64))


def triton_kernel(
    logits, top_k, top_p, uniform, tokens, group_max, chunk_stats, chunk_mass, chunk_part, plan, state, reached,
    candidates, prefix, scratch,
):  # fmt: skip
    rows, vocab = logits.shape
    assert logits.is_contiguous() and vocab < 1 << 22
    chunk = _chunk(rows, vocab)
    chunks = triton.cdiv(vocab, chunk)
    groups, stride, room = group_max.shape[1], rows * chunks, candidates.shape[1]
    programs, chunks_block = (rows * chunks,), triton.next_power_of_2(chunks)
    # 4,096 floats: 32 a thread where they are only read, 16 where more is held beside them.
    warps, more_warps = 4, 8 if chunk == 4096 else 4
    _stats[programs](
        logits, group_max, chunk_stats, vocab, chunks, stride, CHUNK=chunk, GROUP=GROUP, num_warps=warps,
    )  # fmt: skip
    _plan[(rows,)](
        top_k, top_p, group_max, chunk_stats, plan, state, vocab, chunks, rows, groups, stride, room,
        CHUNKS=chunks_block, GROUPS=triton.next_power_of_2(groups), GROUP=GROUP, num_warps=8,
    )  # fmt: skip
    for rounds_left in (1, 0):
        _narrow[programs](
            logits, top_k, group_max, chunk_stats, plan, state, reached, vocab, chunks, rows,
            CHUNK=chunk, GROUP=GROUP, PIVOTS=PIVOTS, num_warps=more_warps,
        )  # fmt: skip
        _choose[(rows,)](
            top_k, top_p, plan, state, reached, vocab, chunks, rows, room, rounds_left,
            CHUNKS=chunks_block, PIVOTS=PIVOTS, num_warps=4,
        )  # fmt: skip
    _collect[programs](
        logits, group_max, chunk_stats, plan, state, chunk_mass, chunk_part, candidates,
        vocab, chunks, rows, stride, room, CHUNK=chunk, GROUP=GROUP, UNIT=UNIT, num_warps=more_warps,
    )  # fmt: skip
    _draw[(rows,)](
        logits, top_k, top_p, uniform, tokens,
        chunk_stats, plan, state, chunk_mass, chunk_part, candidates, prefix, vocab, chunks, rows, stride,
        CHUNK=chunk, CHUNKS=chunks_block, ROOM=room, ROOM_BLOCK=triton.next_power_of_2(room), UNIT=UNIT,
        num_warps=8,  # two rows to an SM: one wave of rows up to a batch of twice the SMs
    )  # fmt: skip


def _draw_from(masked, uniform, tokens):
    cdf = masked.softmax(-1).cumsum(-1)
    total = cdf[:, -1:]
    # Below the total even after rounding, or the token after the last would be drawn.
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens.copy_(torch.searchsorted(cdf, target, right=True)[:, 0])


def sort(logits, top_k, top_p, uniform, tokens, **_):
    # The steps of vLLM's path without kernels of its own, but for the draw: vLLM's is a race of exponentials. Of
    # logits that tie at the border of top-p it keeps some, which compare() refuses where their weight matters; the
    # cases' logits hardly tie.
    vocab = logits.shape[1]
    values, index = logits.sort(-1)
    k = torch.where((top_k <= 0) | (top_k > vocab), vocab, top_k).long()
    smallest = values.gather(1, (vocab - k)[:, None])
    values = values.masked_fill(values < smallest, -torch.inf)
    dropped = values.softmax(-1).cumsum(-1) <= 1 - top_p[:, None]
    dropped[:, -1] = False
    values = values.masked_fill(dropped, -torch.inf)
    _draw_from(torch.empty_like(values).scatter_(1, index, values), uniform, tokens)


def vllm(logits, top_k, top_p, uniform, tokens, scratch, **_):
    # It masks in place and so works on a copy, which its time includes: one read and one write of the logits. Where
    # top-k is off it takes V, which is what inputs() gives. vLLM itself takes the path by sorting below 8 rows.
    from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton

    scratch.copy_(logits)
    _draw_from(apply_top_k_top_p_triton(scratch, top_k, top_p), uniform, tokens)


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"sort": sort, "compile": compiled(sort), "vllm": vllm}
