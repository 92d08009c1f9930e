// The vector add of the tutorials as a ladder: the same work, from one thread to near the memory's speed.
//
// a, b, out: (n) float32. 12 n bytes, n flops: nothing but memory traffic, so that each rung shows one thing that
// memory wants: many multiprocessors, many threads, wide accesses, many accesses in flight.

#include "elements.cuh"

namespace loadgen {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksAtOnce = 2048 / kThreads;  // on one multiprocessor

// Rungs one_thread, one_block and grid_stride: they differ in the launch alone.
__global__ void __launch_bounds__(kThreads)
    add_in_steps(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ out,
                 std::int64_t elements) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements; i += step)
    out[i] = a[i] + b[i];
}

__global__ void __launch_bounds__(kThreads)
    add_one_element(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ out,
                    std::int64_t elements) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < elements) out[i] = a[i] + b[i];
}

__device__ __forceinline__ ::float4 sum(const ::float4 a, const ::float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// The up to three elements after the last whole float4.
__device__ __forceinline__ void add_rest(const float* a, const float* b, float* out, std::int64_t elements) {
  const std::int64_t i = elements / 4 * 4 + threadIdx.x;
  if (blockIdx.x == 0 && i < elements) out[i] = a[i] + b[i];
}

__global__ void __launch_bounds__(kThreads)
    add_float4(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ out,
               std::int64_t elements) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < elements / 4)
    reinterpret_cast<::float4*>(out)[i] =
        sum(reinterpret_cast<const ::float4*>(a)[i], reinterpret_cast<const ::float4*>(b)[i]);
  add_rest(a, b, out, elements);
}

constexpr int kInFlight = 4;  // float4 of a and of b each: 128 bytes a thread

// A block does pieces of kInFlight * kThreads float4, the grid strides over the pieces.
__global__ void __launch_bounds__(kThreads)
    add_streaming(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ out,
                  std::int64_t elements) {
  const auto* a4 = reinterpret_cast<const ::float4*>(a);
  const auto* b4 = reinterpret_cast<const ::float4*>(b);
  auto* out4 = reinterpret_cast<::float4*>(out);
  constexpr std::int64_t kPiece = kInFlight * kThreads;
  const std::int64_t vectors = elements / 4, step = gridDim.x * kPiece;
  std::int64_t first = blockIdx.x * kPiece;
  for (; first + kPiece <= vectors; first += step) {
    ::float4 left[kInFlight], right[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      left[j] = __ldcs(a4 + first + j * kThreads + threadIdx.x);
      right[j] = __ldcs(b4 + first + j * kThreads + threadIdx.x);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) __stcs(out4 + first + j * kThreads + threadIdx.x, sum(left[j], right[j]));
  }
  for (std::int64_t i = first + threadIdx.x; i < vectors && i < first + kPiece; i += kThreads)
    out4[i] = sum(a4[i], b4[i]);
  add_rest(a, b, out, elements);
}

}  // namespace

cudaError_t vector_add(const float* a, const float* b, float* out, std::int64_t elements, VectorAddRung rung,
                       cudaStream_t stream) {
  if (elements == 0) return cudaSuccess;
  int device = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess)
    return error;
  if (rung >= VectorAddRung::streaming && !aligned(kVectorBytes, a, b, out)) rung = VectorAddRung::grid_stride;

  // Blocks that cover n items with `each` items a thread; at most `most`.
  const auto blocks = [](std::int64_t n, std::int64_t each, std::int64_t most = 0x7fffffff) {
    const std::int64_t wanted = ceil_div(n, kThreads * each);
    return static_cast<unsigned>(wanted < 1 ? 1 : wanted < most ? wanted : most);
  };
  switch (rung) {
    case VectorAddRung::one_thread:
      add_in_steps<<<1, 1, 0, stream>>>(a, b, out, elements);
      break;
    case VectorAddRung::one_block:
      add_in_steps<<<1, kThreads, 0, stream>>>(a, b, out, elements);
      break;
    case VectorAddRung::one_element:
      add_one_element<<<blocks(elements, 1), kThreads, 0, stream>>>(a, b, out, elements);
      break;
    case VectorAddRung::grid_stride:
      add_in_steps<<<blocks(elements, 1, multiprocessors * kBlocksAtOnce), kThreads, 0, stream>>>(a, b, out, elements);
      break;
    case VectorAddRung::float4:
      add_float4<<<blocks(elements / 4, 1), kThreads, 0, stream>>>(a, b, out, elements);
      break;
    case VectorAddRung::streaming: {
      // Four times as many blocks as run at once: those that end early are followed by others, so that no
      // multiprocessor waits long for the last one.
      const std::int64_t most = static_cast<std::int64_t>(multiprocessors) * kBlocksAtOnce * 4;
      add_streaming<<<blocks(elements / 4, kInFlight, most), kThreads, 0, stream>>>(a, b, out, elements);
      break;
    }
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace loadgen
