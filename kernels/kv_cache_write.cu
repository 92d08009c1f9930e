// Writes the new tokens' keys and values into the paged KV cache, at the slots that the scheduler gave them.
//
// key, value: (T, Hkv, D); key_cache, value_cache: (blocks, page, Hkv, D); slot_mapping: (T) int64. A copy, bit for
// bit: 4 T Hkv D s + 8 T bytes, no flops.

#include "elements.cuh"

namespace loadgen {
namespace {

constexpr int kThreads = 256;
constexpr int kMostThreadsOfRow = 512;

// V: what one access moves. All lengths and strides count V. Block: x along the row, y tokens.
template <typename V>
__global__ void __launch_bounds__(kMostThreadsOfRow)
    kv_cache_write_rows(const V* __restrict__ key, const V* __restrict__ value, V* __restrict__ key_cache,
                        V* __restrict__ value_cache, const std::int64_t* __restrict__ slot_mapping,
                        std::int64_t tokens, std::int64_t row, std::int64_t key_stride, std::int64_t value_stride,
                        std::int64_t page, std::int64_t block_stride) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (token >= tokens) return;
  const std::int64_t slot = slot_mapping[token];
  key += token * key_stride;
  value += token * value_stride;
  const std::int64_t block = slot / page;
  const std::int64_t at_cache = block * block_stride + (slot - block * page) * row;
  for (std::int64_t at = threadIdx.x; at < row; at += 2 * blockDim.x) {
    const std::int64_t next = at + blockDim.x;
    // The loads do not wait for the slot: a skipped token's row is there too.
    const V key_first = key[at], value_first = value[at];
    V key_second{}, value_second{};
    if (next < row) {
      key_second = key[next];
      value_second = value[next];
    }
    if (slot < 0) return;
    key_cache[at_cache + at] = key_first;
    value_cache[at_cache + at] = value_first;
    if (next < row) {
      key_cache[at_cache + next] = key_second;
      value_cache[at_cache + next] = value_second;
    }
  }
}

struct Bytes {  // what decides the width of an access
  const void *key, *value, *key_cache, *value_cache;
  std::int64_t row, key_stride, value_stride, block_stride;

  bool in(std::int64_t width) const {
    return aligned(width, static_cast<const char*>(key), static_cast<const char*>(value),
                   static_cast<const char*>(key_cache), static_cast<const char*>(value_cache)) &&
           row % width == 0 && key_stride % width == 0 && value_stride % width == 0 && block_stride % width == 0;
  }
};

template <typename V>
cudaError_t launch(const Bytes& bytes, const std::int64_t* slot_mapping, std::int64_t tokens, std::int64_t page,
                   cudaStream_t stream) {
  constexpr std::int64_t kWidth = sizeof(V);
  const std::int64_t row = bytes.row / kWidth;
  const std::int64_t wanted = whole_warps(ceil_div(row, 2));
  const std::int64_t of_row = wanted < kMostThreadsOfRow ? wanted : kMostThreadsOfRow;
  const std::int64_t rows = of_row < kThreads ? kThreads / of_row : 1;
  const dim3 block(static_cast<unsigned>(of_row), static_cast<unsigned>(rows));
  kv_cache_write_rows<V><<<static_cast<unsigned>(ceil_div(tokens, rows)), block, 0, stream>>>(
      static_cast<const V*>(bytes.key), static_cast<const V*>(bytes.value),
      static_cast<V*>(const_cast<void*>(bytes.key_cache)), static_cast<V*>(const_cast<void*>(bytes.value_cache)),
      slot_mapping, tokens, row, bytes.key_stride / kWidth, bytes.value_stride / kWidth, page,
      bytes.block_stride / kWidth);
  return cudaGetLastError();
}

}  // namespace

cudaError_t kv_cache_write(const void* key, const void* value, void* key_cache, void* value_cache,
                           const std::int64_t* slot_mapping, std::int64_t tokens, std::int64_t row,
                           std::int64_t key_stride, std::int64_t value_stride, std::int64_t page,
                           std::int64_t block_stride, DType dtype, cudaStream_t stream) {
  if (tokens == 0 || row == 0) return cudaSuccess;
  const std::int64_t size = dtype == DType::float32 ? 4 : 2;
  const Bytes bytes{key,        value,      key_cache,         value_cache,
                    row * size, key_stride * size, value_stride * size, block_stride * size};
  if (bytes.in(16)) return launch<uint4>(bytes, slot_mapping, tokens, page, stream);
  if (bytes.in(4)) return launch<std::uint32_t>(bytes, slot_mapping, tokens, page, stream);
  return launch<std::uint16_t>(bytes, slot_mapping, tokens, page, stream);
}

}  // namespace loadgen
