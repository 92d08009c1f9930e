// The activation between an MLP's two matrix products: out = silu(x[:, :I]) * x[:, I:], silu(v) = v / (1 + exp(-v)).
//
// x: (T, 2 I), out: (T, I), contiguous; computed in float32, rounded once. 3 T I s bytes, about 5 T I flops.

#include "elements.cuh"

namespace loadgen {
namespace {

constexpr int kMostThreads = 256;
constexpr int kPerThread = 2;  // vectors of each half: four 16-byte loads in flight a thread

template <typename T>
__device__ __forceinline__ T gated(T gate, T up) {
  const float value = to_float(gate);
  float sigmoid_of;
  if constexpr (sizeof(T) == 4) {
    sigmoid_of = value / (1.0f + expf(-value));
  } else {
    // Approximations far finer than the 16-bit result. Where exp overflows this is -0, as it should be.
    sigmoid_of = __fdividef(value, 1.0f + __expf(-value));
  }
  return from_float<T>(sigmoid_of * to_float(up));
}

// grid: (rows, pieces of a row); a block does kPerThread * blockDim.x vectors of each half.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    silu_and_mul_vectors(Vector<T>* __restrict__ out, const Vector<T>* __restrict__ x, std::int64_t vectors) {
  out += blockIdx.x * vectors;
  x += blockIdx.x * 2 * vectors;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kPerThread * blockDim.x + threadIdx.x;
  Vector<T> gate[kPerThread], up[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const std::int64_t at = first + i * blockDim.x;
    if (at < vectors) {
      gate[i] = load_once(x + at);
      up[i] = load_once(x + vectors + at);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const std::int64_t at = first + i * blockDim.x;
    if (at < vectors) {
#pragma unroll
      for (int j = 0; j < Vector<T>::kElements; ++j)
        gate[i].element[j] = gated(gate[i].element[j], up[i].element[j]);
      out[at] = gate[i];  // not streamed: the next matrix product reads it
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    silu_and_mul_elements(T* __restrict__ out, const T* __restrict__ x, std::int64_t intermediate) {
  out += blockIdx.x * intermediate;
  x += blockIdx.x * 2 * intermediate;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.y) * blockDim.x;
  for (std::int64_t at = first; at < intermediate; at += step)
    out[at] = gated(x[at], x[intermediate + at]);
}

constexpr std::int64_t kMostPieces = 65'535;  // of a grid's second dimension

template <typename T>
cudaError_t launch(T* out, const T* x, std::int64_t tokens, std::int64_t intermediate, cudaStream_t stream) {
  const std::int64_t vectors = intermediate / Vector<T>::kElements;
  const std::int64_t pieces = ceil_div(vectors, kMostThreads * kPerThread);
  if (intermediate % Vector<T>::kElements == 0 && aligned(kVectorBytes, out, x) && pieces <= kMostPieces) {
    // The pieces of a row are of one size, so that no block is left with a small rest.
    const std::int64_t threads = whole_warps(ceil_div(ceil_div(vectors, pieces), kPerThread));
    const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(pieces));
    silu_and_mul_vectors<T><<<grid, static_cast<unsigned>(threads), 0, stream>>>(
        reinterpret_cast<Vector<T>*>(out), reinterpret_cast<const Vector<T>*>(x), vectors);
  } else {
    const std::int64_t most = ceil_div(intermediate, kMostThreads);
    const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(most < kMostPieces ? most : kMostPieces));
    silu_and_mul_elements<T><<<grid, kMostThreads, 0, stream>>>(out, x, intermediate);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t silu_and_mul(void* out, const void* x, std::int64_t tokens, std::int64_t intermediate, DType dtype,
                         cudaStream_t stream) {
  if (tokens == 0 || intermediate == 0) return cudaSuccess;
  return for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    return launch(static_cast<T*>(out), static_cast<const T*>(x), tokens, intermediate, stream);
  });
}

}  // namespace loadgen
