// What the kernels share: the three dtypes as floats, 16 bytes of them at once, dispatch by dtype.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels.h"

namespace loadgen {

constexpr int kWarp = 32;
constexpr int kVectorBytes = 16;

// 16 bytes, loaded and stored by one instruction.
template <typename T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kElements = kVectorBytes / sizeof(T);
  T element[kElements];
};

// By intrinsics: torch compiles extensions with the implicit conversions switched off.
__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// A load of data that nobody reads again: it is the first to leave the caches.
template <typename T>
__device__ __forceinline__ Vector<T> load_once(const Vector<T>* address) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(address));
  Vector<T> loaded;
  *reinterpret_cast<uint4*>(&loaded) = raw;
  return loaded;
}

// Keeps the 16 bytes as they are: without it the compiler would hold the floats that it has made of them, which takes
// twice the registers for 16-bit types and spills.
template <typename T>
__device__ __forceinline__ void keep_packed(Vector<T>& vector) {
  auto* words = reinterpret_cast<std::uint32_t*>(&vector);
  asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
}

template <typename... Pointers>
bool aligned(std::uintptr_t bytes, const Pointers*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % bytes == 0) && ...);
}

constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }
constexpr std::int64_t whole_warps(std::int64_t threads) { return ceil_div(threads, kWarp) * kWarp; }

// launch(a value of the element type): its type is what counts.
template <typename Launch>
cudaError_t for_dtype(DType dtype, Launch&& launch) {
  switch (dtype) {
    case DType::float32: return launch(float{});
    case DType::float16: return launch(__half{});
    case DType::bfloat16: return launch(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace loadgen
