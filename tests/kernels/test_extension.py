"""The CUDA kernels as operators: right, registered as torch wants them, and safe to call from a server's step."""

from __future__ import annotations

import pytest
import torch

from loadgen.microbench.extension import RUNGS, operators

# torch's own warnings, of its compiler above all, are no errors of these kernels.
pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("default")]

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-6


@pytest.fixture(scope="module")
def ops():
    try:
        return operators()
    except ImportError as error:
        pytest.skip(str(error))


def normal(*shape, dtype=torch.bfloat16, device="cuda"):
    return torch.randn(*shape, device=device).to(dtype)


def norm_arguments(tokens=5, hidden=2560, dtype=torch.bfloat16, device="cuda"):
    x, residual = (normal(tokens, hidden, dtype=dtype, device=device) for _ in range(2))
    return x, residual, normal(hidden, dtype=dtype, device=device), EPS


def silu_arguments(tokens=5, intermediate=6912, dtype=torch.bfloat16, device="cuda"):
    out = torch.full((tokens, intermediate), torch.nan, dtype=dtype, device=device)
    return out, normal(tokens, 2 * intermediate, dtype=dtype, device=device)


def cache_arguments(tokens=7, heads=4, head_size=128, blocks=5, page=16, dtype=torch.bfloat16, device="cuda"):
    key, value = (normal(tokens, heads, head_size, dtype=dtype, device=device) for _ in range(2))
    key_cache, value_cache = (torch.zeros(blocks, page, heads, head_size, dtype=dtype, device=device) for _ in range(2))
    slots = torch.randperm(blocks * page, device=device)[:tokens]
    return key, value, key_cache, value_cache, slots


def add_arguments(elements=4099, device="cuda"):
    a, b = torch.randn(elements, device=device), torch.randn(elements, device=device)
    return a, b, torch.full((elements,), torch.nan, device=device), RUNGS.index("float4")


ARGUMENTS = {
    "add_rms_norm": norm_arguments,
    "silu_and_mul": silu_arguments,
    "kv_cache_write": cache_arguments,
    "vector_add": add_arguments,
    "add": lambda **where: add_arguments(**where)[:2],
}
WRITTEN = {"add_rms_norm": (0, 1), "silu_and_mul": (0,), "kv_cache_write": (2, 3), "vector_add": (2,)}


def call(ops, name, arguments):
    """The operator's results: what it wrote, or what it gave."""
    given = getattr(ops, name)(*arguments)
    return [arguments[i] for i in WRITTEN[name]] if name in WRITTEN else [given]


def copies(arguments):
    return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)


def close(got, want, dtype):
    room = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(got.double(), want, rtol=room, atol=room)


# By vectors, by elements (odd sizes), in one, two and four vectors a thread, and too long for registers.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "hidden"), [(1, 8), (3, 100), (2, 101), (5, 512), (64, 2560), (3, 5120), (2, 16384), (2, 40960)]
)
def test_add_rms_norm(ops, tokens, hidden, dtype):
    x, residual, weight, _ = norm_arguments(tokens, hidden, dtype)
    total = (x.float() + residual.float()).to(dtype)
    exact = total.double()
    want = exact * (exact.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()
    ops.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    close(x, want, dtype)


def test_a_token_does_not_depend_on_its_batch(ops):
    x, residual, weight, _ = norm_arguments(64)
    alone = x[17:18].clone(), residual[17:18].clone()
    ops.add_rms_norm(x, residual, weight, EPS)
    ops.add_rms_norm(*alone, weight, EPS)
    assert torch.equal(x[17:18], alone[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "intermediate"), [(1, 1), (3, 101), (2, 2056), (5, 6912), (64, 18944)])
def test_silu_and_mul(ops, tokens, intermediate, dtype):
    out, x = silu_arguments(tokens, intermediate, dtype)
    x[0, 0] = -200.0  # exp overflows
    x[-1, 0] = 200.0
    gate, up = x.double().chunk(2, dim=-1)
    ops.silu_and_mul(out, x)
    close(out, gate / (1 + (-gate).exp()) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_size"), [(1, 1), (3, 5), (2, 64), (8, 128), (20, 128), (20, 256)])
def test_kv_cache_write(ops, heads, head_size, dtype):
    key, value, key_cache, value_cache, slots = cache_arguments(70, heads, head_size, 6, 16, dtype)
    slots[3], slots[-1] = -1, -1
    want = [cache.clone() for cache in (key_cache, value_cache)]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            want[0][slot // 16, slot % 16], want[1][slot // 16, slot % 16] = key[token], value[token]
    ops.kv_cache_write(key, value, key_cache, value_cache, slots)
    assert torch.equal(key_cache, want[0]) and torch.equal(value_cache, want[1])


def test_kv_cache_write_from_a_fused_qkv_to_a_cache_of_both(ops):
    heads, head_size, page = 4, 64, 16
    qkv = normal(9, 3 * heads, head_size)  # the last two rows are padding
    key, value = qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
    cache = torch.zeros(4, 2, page, heads, head_size, dtype=qkv.dtype, device="cuda")
    slots = torch.randperm(4 * page, device="cuda")[:7]
    ops.kv_cache_write(key, value, cache[:, 0], cache[:, 1], slots)
    assert torch.equal(cache[:, 0].reshape(-1, heads, head_size)[slots], key[:7])
    assert torch.equal(cache[:, 1].reshape(-1, heads, head_size)[slots], value[:7])
    assert int(cache.count_nonzero()) <= 2 * 7 * heads * head_size


@pytest.mark.parametrize("rung", range(len(RUNGS)))
@pytest.mark.parametrize("elements", [0, 1, 3, 4, 1023, 1024, 4096, 4099, 100_003])
def test_vector_add(ops, elements, rung):
    a, b, out, _ = add_arguments(elements)
    ops.vector_add(a, b, out, rung)
    assert torch.equal(out, a + b)


def test_sizes_at_which_a_grid_loops(ops):
    a, b, out, _ = add_arguments(40_000_003)
    for rung in range(RUNGS.index("one_element"), len(RUNGS)):
        ops.vector_add(a, b, out.fill_(torch.nan), rung)
        assert torch.equal(out, a + b)


def test_addresses_that_are_not_aligned(ops):
    """Slices that start between two 16-byte addresses."""
    a, b, out, rung = add_arguments(1000)
    ops.vector_add(a[1:], b[1:], out[1:], rung)
    assert torch.equal(out[1:], a[1:] + b[1:])
    out, x = silu_arguments(1, 64)
    room = torch.empty(129, dtype=x.dtype, device="cuda")
    shifted = room[1:].view(1, 128).copy_(x)
    ops.silu_and_mul(out, x)
    again = torch.empty_like(out)
    ops.silu_and_mul(again, shifted)
    assert torch.equal(out, again)
    x, residual, weight, _ = norm_arguments(1, 64)
    shifted = torch.empty(65, dtype=x.dtype, device="cuda")[1:].view(1, 64).copy_(x)
    shifted_residual = residual.clone()
    ops.add_rms_norm(x, residual, weight, EPS)
    ops.add_rms_norm(shifted, shifted_residual, weight, EPS)
    close(shifted, x.double(), x.dtype)


@pytest.mark.parametrize("name", ["add_rms_norm", "silu_and_mul", "kv_cache_write"])
def test_an_operator_accepts_no_tokens(ops, name):
    call(ops, name, ARGUMENTS[name](tokens=0))
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_opcheck_accepts_the_registration(ops, name):
    """Schema, mutability, fake kernel and functionalisation, by torch's own check."""
    torch.library.opcheck(getattr(ops, name).default, ARGUMENTS[name]())


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_captured_in_a_cuda_graph(ops, name):
    arguments = ARGUMENTS[name]()
    pristine = copies(arguments)
    want = call(ops, name, copies(arguments))
    call(ops, name, copies(arguments))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(ops, name, arguments)
    for argument, value in zip(arguments, pristine, strict=True):
        if isinstance(argument, torch.Tensor):
            argument.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_compiled_as_one_graph(ops, name):
    arguments = ARGUMENTS[name]()
    want = call(ops, name, copies(arguments))
    operator, written = getattr(ops, name).default, WRITTEN.get(name)

    def step(*given):
        result = operator(*given)
        return [result] if written is None else [given[i] for i in written]

    got = torch.compile(step, fullgraph=True)(*arguments)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


def test_runs_on_the_current_stream(ops):
    """What was enqueued on a side stream before it has been done when it runs, and it waits for nothing else."""
    a, b, out, rung = add_arguments(1 << 20)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        a.fill_(3.0)
        ops.vector_add(a, b, out, rung)
        done = torch.cuda.Event()
        done.record()
    assert not done.query()
    side.synchronize()
    assert torch.equal(out, b + 3.0)


def test_runs_on_the_tensors_device(ops):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        for name, arguments in ARGUMENTS.items():
            got = call(ops, name, arguments(device="cuda:1"))
            torch.cuda.synchronize(1)
            assert all(value.device.index == 1 and not value.isnan().any() for value in got)


def test_wrong_arguments_are_refused(ops):
    x, residual, weight, _ = norm_arguments()
    out, gate_up = silu_arguments()
    key, value, key_cache, value_cache, slots = cache_arguments()
    a, b, total, rung = add_arguments()
    twice = torch.empty(x.shape[0], 2 * x.shape[1], dtype=x.dtype, device="cuda")
    wrong = [
        ("x must be contiguous", ops.add_rms_norm, twice[:, ::2], residual, weight, EPS),
        ("residual must be contiguous", ops.add_rms_norm, x, twice[:, ::2], weight, EPS),
        ("weight is Float, x BFloat16", ops.add_rms_norm, x, residual, weight.float(), EPS),
        ("float32, float16 or bfloat16, not Double", ops.add_rms_norm, x.double(), residual, weight, EPS),
        ("residual is on cpu, x on cuda", ops.add_rms_norm, x, residual.cpu(), weight, EPS),
        ("weight must have shape", ops.add_rms_norm, x, residual, weight[:-8].clone(), EPS),
        ("x must have 2 dimensions", ops.add_rms_norm, x[0], residual, weight, EPS),
        ("must be even", ops.silu_and_mul, out, gate_up[:, :-1].contiguous()),
        ("out must have shape", ops.silu_and_mul, out[:-1].clone(), gate_up),
        ("out is Half, x BFloat16", ops.silu_and_mul, out.half(), gate_up),
        ("x must be contiguous", ops.silu_and_mul, out, gate_up.t().contiguous().t()),
        ("slot_mapping must be int64", ops.kv_cache_write, key, value, key_cache, value_cache, slots.int()),
        ("contiguous within a token", ops.kv_cache_write, key.mT, value.mT, key_cache, value_cache, slots),
        ("one layout", ops.kv_cache_write, key, value, key_cache, value_cache[1:], slots),
        ("heads of", ops.kv_cache_write, key, value, key_cache[:, :, 1:], value_cache[:, :, 1:], slots),
        ("tokens, key", ops.kv_cache_write, key[1:], value[1:], key_cache, value_cache, slots),
        ("a must be float32", ops.vector_add, a.half(), b, total, rung),
        ("b must have shape", ops.vector_add, a, b[1:], total, rung),
        ("rungs 0 to 5, not 6", ops.vector_add, a, b, total, 6),
    ]
    for words, function, *arguments in wrong:
        with pytest.raises(RuntimeError, match=words):
            function(*arguments)
    with pytest.raises(NotImplementedError, match="CPU"):
        ops.add(a.cpu(), b.cpu())
