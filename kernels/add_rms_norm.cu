// Fused residual add and RMSNorm, in place: see add_rms_norm.py for the formula, kernels.h for the layout.
//
// One block, one row. The row stays in registers between the sum and the scaling, so that x, residual and weight are
// read once: (4 T H + H) s bytes, about 6 T H flops. The block's size follows from H alone: a row's sum is added up
// in the same order whatever the number of rows, so a token's result does not depend on its batch.

#include "elements.cuh"

namespace loadgen {
namespace {

constexpr int kMostThreads = 1024;

// Few warps a row make the barrier cheap and leave room for many rows on a multiprocessor; more vectors a thread than
// long rows need would leave it too few threads.
constexpr int most_threads(int per_thread) { return per_thread == 1 ? 128 : per_thread == 2 ? 512 : kMostThreads; }

// The sum over the block, in every thread. Called once a block: the shared memory is not guarded for a second call.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float of_warp[kMostThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  // Every warp adds the partial sums up itself, which saves a second barrier.
  value = lane < static_cast<int>(blockDim.x / kWarp) ? of_warp[lane] : 0.0f;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Rows of at most PER_THREAD * blockDim.x vectors; all loads of a thread are in flight together.
template <typename T, int PER_THREAD>
__global__ void __launch_bounds__(most_threads(PER_THREAD))
    add_rms_norm_vectors(Vector<T>* __restrict__ x, Vector<T>* __restrict__ residual,
                         const Vector<T>* __restrict__ weight, int vectors, float eps) {
  constexpr int kElements = Vector<T>::kElements;
  x += static_cast<std::int64_t>(blockIdx.x) * vectors;
  residual += static_cast<std::int64_t>(blockIdx.x) * vectors;

  Vector<T> total[PER_THREAD], other[PER_THREAD];
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < vectors) {
      total[i] = x[at];
      other[i] = residual[at];
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < vectors) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        total[i].element[j] = from_float<T>(to_float(total[i].element[j]) + to_float(other[i].element[j]));
        const float exact = to_float(total[i].element[j]);
        squares = fmaf(exact, exact, squares);
      }
      keep_packed(total[i]);
      residual[at] = total[i];
      other[i] = weight[at];  // on its way while the block adds up
    }
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(vectors * kElements) + eps);
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < vectors) {
#pragma unroll
      for (int j = 0; j < kElements; ++j)
        total[i].element[j] =
            from_float<T>(to_float(total[i].element[j]) * scale * to_float(other[i].element[j]));
      x[at] = total[i];
    }
  }
}

// Any row: odd, not aligned, or too long for registers. Each thread reads back what it wrote itself.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    add_rms_norm_elements(T* __restrict__ x, T* residual, const T* __restrict__ weight, std::int64_t hidden,
                          float eps) {
  x += blockIdx.x * hidden;
  residual += blockIdx.x * hidden;
  float squares = 0.0f;
  for (std::int64_t at = threadIdx.x; at < hidden; at += blockDim.x) {
    const T total = from_float<T>(to_float(x[at]) + to_float(residual[at]));
    residual[at] = total;
    squares = fmaf(to_float(total), to_float(total), squares);
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(hidden) + eps);
  for (std::int64_t at = threadIdx.x; at < hidden; at += blockDim.x)
    x[at] = from_float<T>(to_float(residual[at]) * scale * to_float(weight[at]));
}

template <typename T, int PER_THREAD>
void launch_vectors(T* x, T* residual, const T* weight, std::int64_t tokens, std::int64_t vectors, float eps,
                    cudaStream_t stream) {
  const auto threads = static_cast<unsigned>(whole_warps(ceil_div(vectors, PER_THREAD)));
  add_rms_norm_vectors<T, PER_THREAD><<<static_cast<unsigned>(tokens), threads, 0, stream>>>(
      reinterpret_cast<Vector<T>*>(x), reinterpret_cast<Vector<T>*>(residual),
      reinterpret_cast<const Vector<T>*>(weight), static_cast<int>(vectors), eps);
}

template <typename T>
cudaError_t launch(T* x, T* residual, const T* weight, std::int64_t tokens, std::int64_t hidden, float eps,
                   cudaStream_t stream) {
  const std::int64_t vectors = hidden / Vector<T>::kElements;
  const bool in_vectors = hidden % Vector<T>::kElements == 0 && aligned(kVectorBytes, x, residual, weight);
  if (in_vectors && vectors <= most_threads(1)) {
    launch_vectors<T, 1>(x, residual, weight, tokens, vectors, eps, stream);
  } else if (in_vectors && vectors <= 2 * most_threads(2)) {
    launch_vectors<T, 2>(x, residual, weight, tokens, vectors, eps, stream);
  } else if (in_vectors && vectors <= 4 * most_threads(4)) {
    launch_vectors<T, 4>(x, residual, weight, tokens, vectors, eps, stream);
  } else {
    const std::int64_t threads = whole_warps(hidden < kMostThreads ? hidden : kMostThreads);
    add_rms_norm_elements<T><<<static_cast<unsigned>(tokens), static_cast<unsigned>(threads), 0, stream>>>(
        x, residual, weight, hidden, eps);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t add_rms_norm(void* x, void* residual, const void* weight, std::int64_t tokens, std::int64_t hidden,
                         float eps, DType dtype, cudaStream_t stream) {
  if (tokens == 0 || hidden == 0) return cudaSuccess;
  return for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    return launch(static_cast<T*>(x), static_cast<T*>(residual), static_cast<const T*>(weight), tokens, hidden, eps,
                  stream);
  });
}

}  // namespace loadgen
