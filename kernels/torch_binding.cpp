// The kernels as PyTorch operators, torch.ops.loadgen.*: checks of every argument, the current stream, no logic.
//
// Schemas say what is written, so that torch.compile can functionalise the operators; the fake kernels are registered
// from Python, in loadgen/microbench/extension.py. Streams come from c10 rather than ATen/cuda/CUDAContext.h, whose
// headers of cuBLAS and cuSOLVER a small CUDA toolkit has not.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels.h"

namespace {

using at::Tensor;

loadgen::DType dtype_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return loadgen::DType::float32;
    case at::kHalf: return loadgen::DType::float16;
    case at::kBFloat16: return loadgen::DType::bfloat16;
    default:
      TORCH_CHECK(false, name, " must be float32, float16 or bfloat16, not ", tensor.scalar_type());
  }
}

void check_cuda(const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.is_cuda(), name, " must be on a CUDA device, not on ", tensor.device());
}

void check_dimensions(const char* name, const Tensor& tensor, int64_t dimensions) {
  TORCH_CHECK(tensor.dim() == dimensions, name, " must have ", dimensions, " dimensions, not shape ", tensor.sizes());
}

void check_contiguous(const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous, not of strides ", tensor.strides(), " for shape ",
              tensor.sizes());
}

void check_shape(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.sizes() == shape, name, " must have shape ", shape, ", not ", tensor.sizes());
}

// The same device and dtype as another argument.
void check_like(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  TORCH_CHECK(tensor.device() == other.device(), name, " is on ", tensor.device(), ", ", other_name, " on ",
              other.device());
  TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), name, " is ", tensor.scalar_type(), ", ", other_name, " ",
              other.scalar_type());
}

// A launcher's own error, then what torch's device-side assertions have to say.
void check_launch(cudaError_t result) {
  C10_CUDA_CHECK(result);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  check_cuda("x", x);
  const loadgen::DType dtype = dtype_of("x", x);
  check_like("residual", residual, "x", x);
  check_like("weight", weight, "x", x);
  check_dimensions("x", x, 2);
  check_shape("residual", residual, x.sizes());
  check_shape("weight", weight, {x.size(1)});
  check_contiguous("x", x);
  check_contiguous("residual", residual);
  check_contiguous("weight", weight);
  const c10::cuda::OptionalCUDAGuard guard(x.device());
  check_launch(loadgen::add_rms_norm(x.data_ptr(), residual.data_ptr(), weight.const_data_ptr(), x.size(0), x.size(1),
                                     static_cast<float>(eps), dtype, c10::cuda::getCurrentCUDAStream()));
}

void silu_and_mul(const Tensor& out, const Tensor& x) {
  check_cuda("x", x);
  const loadgen::DType dtype = dtype_of("x", x);
  check_like("out", out, "x", x);
  check_dimensions("x", x, 2);
  TORCH_CHECK(x.size(1) % 2 == 0, "x holds two halves a row: its width must be even, not ", x.size(1));
  check_shape("out", out, {x.size(0), x.size(1) / 2});
  check_contiguous("x", x);
  check_contiguous("out", out);
  const c10::cuda::OptionalCUDAGuard guard(x.device());
  check_launch(loadgen::silu_and_mul(out.data_ptr(), x.const_data_ptr(), x.size(0), out.size(1), dtype,
                                     c10::cuda::getCurrentCUDAStream()));
}

// Rows of (heads, head size) must be whole; the rows themselves may be apart, as the thirds of a fused qkv are.
void check_rows(const char* name, const Tensor& tensor, int64_t heads, int64_t head_size) {
  const auto strides = tensor.strides().slice(tensor.dim() - 2);
  TORCH_CHECK(strides[1] == 1 && strides[0] == head_size, name, " must be contiguous within a token (strides ",
              head_size, ", 1), not of strides ", tensor.strides());
  TORCH_CHECK(tensor.size(-2) == heads && tensor.size(-1) == head_size, name, " must have ", heads, " heads of ",
              head_size, ", not shape ", tensor.sizes());
}

void check_cache(const char* name, const Tensor& cache, int64_t heads, int64_t head_size) {
  check_dimensions(name, cache, 4);
  check_rows(name, cache, heads, head_size);
  TORCH_CHECK(cache.stride(1) == heads * head_size, name, " must be contiguous within a block, not of strides ",
              cache.strides());
}

void kv_cache_write(const Tensor& key, const Tensor& value, const Tensor& key_cache, const Tensor& value_cache,
                    const Tensor& slot_mapping) {
  check_cuda("key", key);
  const loadgen::DType dtype = dtype_of("key", key);
  check_like("value", value, "key", key);
  check_like("key_cache", key_cache, "key", key);
  check_like("value_cache", value_cache, "key", key);
  check_dimensions("key", key, 3);
  check_shape("value", value, key.sizes());
  const int64_t heads = key.size(1), head_size = key.size(2);
  check_rows("key", key, heads, head_size);
  check_rows("value", value, heads, head_size);
  check_cache("key_cache", key_cache, heads, head_size);
  check_cache("value_cache", value_cache, heads, head_size);
  TORCH_CHECK(key_cache.sizes() == value_cache.sizes() && key_cache.strides() == value_cache.strides(),
              "key_cache and value_cache must have one shape and one layout, not ", key_cache.sizes(), " and ",
              value_cache.sizes());
  TORCH_CHECK(slot_mapping.device() == key.device(), "slot_mapping is on ", slot_mapping.device(), ", key on ",
              key.device());
  TORCH_CHECK(slot_mapping.scalar_type() == at::kLong, "slot_mapping must be int64, not ", slot_mapping.scalar_type());
  check_dimensions("slot_mapping", slot_mapping, 1);
  check_contiguous("slot_mapping", slot_mapping);
  // A step that is padded to a CUDA graph's size has more rows than tokens.
  TORCH_CHECK(slot_mapping.size(0) <= key.size(0), "slot_mapping has ", slot_mapping.size(0), " tokens, key ",
              key.size(0));
  const c10::cuda::OptionalCUDAGuard guard(key.device());
  check_launch(loadgen::kv_cache_write(key.const_data_ptr(), value.const_data_ptr(), key_cache.data_ptr(),
                                       value_cache.data_ptr(), slot_mapping.const_data_ptr<int64_t>(),
                                       slot_mapping.size(0), heads * head_size, key.stride(0), value.stride(0),
                                       key_cache.size(1), key_cache.stride(0), dtype,
                                       c10::cuda::getCurrentCUDAStream()));
}

void vector_add(const Tensor& a, const Tensor& b, const Tensor& out, int64_t rung) {
  check_cuda("a", a);
  TORCH_CHECK(a.scalar_type() == at::kFloat, "a must be float32, not ", a.scalar_type());
  check_like("b", b, "a", a);
  check_like("out", out, "a", a);
  check_shape("b", b, a.sizes());
  check_shape("out", out, a.sizes());
  check_contiguous("a", a);
  check_contiguous("b", b);
  check_contiguous("out", out);
  TORCH_CHECK(rung >= 0 && rung < loadgen::kVectorAddRungs, "there are rungs 0 to ", loadgen::kVectorAddRungs - 1,
              ", not ", rung);
  const c10::cuda::OptionalCUDAGuard guard(a.device());
  check_launch(loadgen::vector_add(a.const_data_ptr<float>(), b.const_data_ptr<float>(), out.data_ptr<float>(),
                                   a.numel(), static_cast<loadgen::VectorAddRung>(rung),
                                   c10::cuda::getCurrentCUDAStream()));
}

Tensor add(const Tensor& a, const Tensor& b) {
  check_cuda("a", a);
  const c10::cuda::OptionalCUDAGuard guard(a.device());
  Tensor out = at::empty_like(a);
  vector_add(a, b, out, loadgen::kVectorAddRungs - 1);
  return out;
}

}  // namespace

TORCH_LIBRARY(loadgen, m) {
  m.def("add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()");
  m.def("silu_and_mul(Tensor(a!) out, Tensor x) -> ()");
  m.def(
      "kv_cache_write(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_mapping) "
      "-> ()");
  m.def("vector_add(Tensor a, Tensor b, Tensor(a!) out, int rung) -> ()");
  m.def("add(Tensor a, Tensor b) -> Tensor");
}

TORCH_LIBRARY_IMPL(loadgen, CUDA, m) {
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("silu_and_mul", &silu_and_mul);
  m.impl("kv_cache_write", &kv_cache_write);
  m.impl("vector_add", &vector_add);
  m.impl("add", &add);
}
