// Launchers of the CUDA kernels in this folder. No torch: raw pointers of the current device, sizes in elements, a
// stream. Every launcher only enqueues (no allocation, no synchronisation), so each can be captured in a CUDA graph;
// it returns the launch's error, and does nothing for an empty input. 16-byte accesses where sizes and addresses
// allow, elements otherwise; offsets have 64 bits.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace loadgen {

enum class DType { float32, float16, bfloat16 };

// residual <- x + residual, rounded to the dtype; x <- residual / sqrt(mean(residual^2) + eps) * weight.
// x, residual: (tokens, hidden) contiguous; weight: (hidden).
cudaError_t add_rms_norm(void* x, void* residual, const void* weight, std::int64_t tokens, std::int64_t hidden,
                         float eps, DType dtype, cudaStream_t stream);

// out <- silu(x[:, :intermediate]) * x[:, intermediate:].
// out: (tokens, intermediate), x: (tokens, 2 intermediate), both contiguous.
cudaError_t silu_and_mul(void* out, const void* x, std::int64_t tokens, std::int64_t intermediate, DType dtype,
                         cudaStream_t stream);

// Copies token t's key and value to slot_mapping[t] of the paged caches; a negative slot is skipped.
// key, value: rows of `row` elements, `key_stride` and `value_stride` elements apart. key_cache, value_cache: blocks
// `block_stride` elements apart, of `page` slots of `row` elements. Slots lie below blocks * page; two tokens with
// the same slot leave it undefined which one stays.
cudaError_t kv_cache_write(const void* key, const void* value, void* key_cache, void* value_cache,
                           const std::int64_t* slot_mapping, std::int64_t tokens, std::int64_t row,
                           std::int64_t key_stride, std::int64_t value_stride, std::int64_t page,
                           std::int64_t block_stride, DType dtype, cudaStream_t stream);

// The same vector add, one idea faster from rung to rung.
enum class VectorAddRung {
  one_thread,    // <<<1, 1>>>
  one_block,     // one multiprocessor of many
  one_element,   // a thread for each element, blocks enough for all
  grid_stride,   // as many blocks as run at once, each thread loops
  streaming,     // several 16-byte loads in flight a thread, data marked as used once, as many blocks as run at once
  float4,        // 16 bytes a load, a thread for each: the hardware keeps more blocks coming than a loop does
};
constexpr int kVectorAddRungs = 6;

// out <- a + b, contiguous.
cudaError_t vector_add(const float* a, const float* b, float* out, std::int64_t elements, VectorAddRung rung,
                       cudaStream_t stream);

}  // namespace loadgen
