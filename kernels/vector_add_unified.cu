// The vector add as a program: what unified memory costs beside explicit copies, by one thread and by many (the streaming rung).
//
//   nvcc -O3 -arch=sm_80 vector_add_unified.cu -o vector_add_unified && ./vector_add_unified [ELEMENTS]
//
// Three ways for the data (float32; 3 x 4 MB unless ELEMENTS says otherwise) to get to the GPU and the sum back:
//   managed    cudaMallocManaged: pages move when the GPU, then the CPU, faults on them
//   prefetch   managed too, but moved ahead of the kernel and back by cudaMemPrefetchAsync
//   copies     cudaMalloc, and cudaMemcpy both ways
// Each is run twice. In the first run the inputs lie where the CPU has just written them; in the second, managed
// inputs have stayed on the GPU, and copies are made again. One JSON line a run:
//   kernel_ms   between two events around the kernel, page faults inside it included
//   total_ms    from the inputs in the CPU's hands to the sum in the CPU's hands
// Exit code: 0 if every sum is right, 1 if one is not, 2 for a CUDA error or a bad argument.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>

#include "vector_add.cu"

namespace {

using loadgen::VectorAddRung;
using Clock = std::chrono::steady_clock;

#define CHECK_CUDA(call)                                                                                   \
  do {                                                                                                     \
    const cudaError_t error_ = (call);                                                                     \
    if (error_ != cudaSuccess) {                                                                           \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));      \
      std::exit(2);                                                                                        \
    }                                                                                                      \
  } while (0)

constexpr std::int64_t kDefaultElements = std::int64_t{1} << 20;
constexpr std::int64_t kPageFloats = 4096 / sizeof(float);

enum class Variant { managed, prefetch, copies };
constexpr const char* kVariantNames[] = {"managed", "prefetch", "copies"};

struct Arrays {
  float *a, *b, *out;
};

// Exact in float32, different everywhere, and never what a missed element holds.
float input_a(std::int64_t i) { return static_cast<float>(i % 4093) * 0.5f; }
float input_b(std::int64_t i) { return static_cast<float>(i % 8191) * 0.25f + 1.0f; }

void fill(const Arrays& host, std::int64_t elements) {
  for (std::int64_t i = 0; i < elements; ++i) {
    host.a[i] = input_a(i);
    host.b[i] = input_b(i);
    host.out[i] = -1.0f;
  }
}

bool correct(const float* sum, std::int64_t elements) {
  for (std::int64_t i = 0; i < elements; ++i)
    if (sum[i] != input_a(i) + input_b(i)) return false;
  return true;
}

// The least that brings every page to the CPU.
void touch(const float* data, std::int64_t elements) {
  volatile float seen = 0.0f;
  for (std::int64_t i = 0; i < elements; i += kPageFloats) seen = seen + data[i];
}

void prefetch(const float* data, std::size_t bytes, bool to_gpu, int device, cudaStream_t stream) {
#if CUDART_VERSION >= 13000
  cudaMemLocation place{};
  place.type = to_gpu ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost;
  place.id = to_gpu ? device : 0;
  CHECK_CUDA(cudaMemPrefetchAsync(data, bytes, place, 0, stream));
#else
  CHECK_CUDA(cudaMemPrefetchAsync(data, bytes, to_gpu ? device : cudaCpuDeviceId, stream));
#endif
}

struct Timing {
  float kernel_ms;
  double total_ms;
};

// host and gpu are the same arrays where memory is managed.
Timing run(Variant variant, VectorAddRung rung, const Arrays& host, const Arrays& gpu, std::int64_t elements,
           int device, cudaStream_t stream) {
  const std::size_t bytes = elements * sizeof(float);
  cudaEvent_t before, after;
  CHECK_CUDA(cudaEventCreate(&before));
  CHECK_CUDA(cudaEventCreate(&after));
  CHECK_CUDA(cudaDeviceSynchronize());

  const Clock::time_point start = Clock::now();
  if (variant == Variant::copies) {
    CHECK_CUDA(cudaMemcpyAsync(gpu.a, host.a, bytes, cudaMemcpyHostToDevice, stream));
    CHECK_CUDA(cudaMemcpyAsync(gpu.b, host.b, bytes, cudaMemcpyHostToDevice, stream));
  } else if (variant == Variant::prefetch) {
    for (const float* data : {gpu.a, gpu.b, gpu.out}) prefetch(data, bytes, true, device, stream);
  }
  CHECK_CUDA(cudaEventRecord(before, stream));
  CHECK_CUDA(loadgen::vector_add(gpu.a, gpu.b, gpu.out, elements, rung, stream));
  CHECK_CUDA(cudaEventRecord(after, stream));
  if (variant == Variant::copies) {
    CHECK_CUDA(cudaMemcpyAsync(host.out, gpu.out, bytes, cudaMemcpyDeviceToHost, stream));
  } else if (variant == Variant::prefetch) {
    prefetch(gpu.out, bytes, false, device, stream);
  }
  CHECK_CUDA(cudaStreamSynchronize(stream));
  touch(host.out, elements);
  const std::chrono::duration<double, std::milli> total = Clock::now() - start;

  Timing timing{0.0f, total.count()};
  CHECK_CUDA(cudaEventElapsedTime(&timing.kernel_ms, before, after));
  CHECK_CUDA(cudaEventDestroy(before));
  CHECK_CUDA(cudaEventDestroy(after));
  return timing;
}

// Both runs of one way, on arrays of its own. Whether both sums are right.
bool measure(Variant variant, VectorAddRung rung, const char* rung_name, std::int64_t elements, int device,
             cudaStream_t stream) {
  const std::size_t bytes = elements * sizeof(float);
  Arrays host{}, gpu{};
  std::vector<float> room;
  for (float** data : {&gpu.a, &gpu.b, &gpu.out})
    CHECK_CUDA(variant == Variant::copies ? cudaMalloc(data, bytes) : cudaMallocManaged(data, bytes));
  if (variant == Variant::copies) {
    room.resize(3 * elements);
    host = {room.data(), room.data() + elements, room.data() + 2 * elements};
  } else {
    host = gpu;
  }
  fill(host, elements);

  bool all_correct = true;
  for (const int which : {1, 2}) {
    const Timing timing = run(variant, rung, host, gpu, elements, device, stream);
    const bool right = correct(host.out, elements);
    all_correct = all_correct && right;
    std::printf("{\"variant\": \"%s\", \"rung\": \"%s\", \"run\": %d, \"elements\": %lld, \"kernel_ms\": %.4f, "
                "\"total_ms\": %.4f, \"correct\": %s}\n",
                kVariantNames[static_cast<int>(variant)], rung_name, which, static_cast<long long>(elements),
                timing.kernel_ms, timing.total_ms, right ? "true" : "false");
    // The second sum must be a new one. The GPU does the wiping, so that managed pages are there afterwards.
    if (variant == Variant::copies) std::fill(host.out, host.out + elements, -1.0f);
    CHECK_CUDA(cudaMemsetAsync(gpu.out, 0xff, bytes, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
  }
  for (float* data : {gpu.a, gpu.b, gpu.out}) CHECK_CUDA(cudaFree(data));
  return all_correct;
}

// Code is loaded at a kernel's first launch, which must not count as page faults.
void load_code(cudaStream_t stream) {
  float* data = nullptr;
  CHECK_CUDA(cudaMalloc(&data, 3 * 4096));
  for (const VectorAddRung rung : {VectorAddRung::one_thread, VectorAddRung::streaming})
    CHECK_CUDA(loadgen::vector_add(data, data + 1024, data + 2048, 1024, rung, stream));
  CHECK_CUDA(cudaMemsetAsync(data, 0, 4096, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaFree(data));
}

std::int64_t parse_elements(int argc, char** argv) {
  if (argc < 2) return kDefaultElements;
  char* end = nullptr;
  const std::int64_t elements = std::strtoll(argv[1], &end, 10);
  if (argc > 2 || *argv[1] == '\0' || *end != '\0' || elements < 1) {
    std::fprintf(stderr, "usage: %s [ELEMENTS]\n", argv[0]);
    std::exit(2);
  }
  return elements;
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t elements = parse_elements(argc, argv);
  int device = 0, concurrent = 0;
  std::size_t free_bytes = 0, all_bytes = 0;
  cudaDeviceProp properties{};
  cudaStream_t stream;
  CHECK_CUDA(cudaGetDevice(&device));
  CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
  CHECK_CUDA(cudaDeviceGetAttribute(&concurrent, cudaDevAttrConcurrentManagedAccess, device));
  CHECK_CUDA(cudaMemGetInfo(&free_bytes, &all_bytes));
  // More managed memory than the GPU has would be paged in and out without end.
  if (static_cast<std::size_t>(elements) > free_bytes / 2 / (3 * sizeof(float))) {
    std::fprintf(stderr, "%lld elements take 3 x %.0f MB, more than half of the %.0f MB that are free\n",
                 static_cast<long long>(elements), elements * 4e-6, free_bytes * 1e-6);
    return 2;
  }
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::fprintf(stderr, "%s, sm_%d%d, %s\n", properties.name, properties.major, properties.minor,
               concurrent ? "managed pages move on demand" : "managed memory moves whole before each kernel");
  load_code(stream);

  bool all_correct = true;
  for (const Variant variant : {Variant::managed, Variant::prefetch, Variant::copies}) {
    if (variant == Variant::prefetch && !concurrent) {
      std::printf("{\"variant\": \"prefetch\", \"skipped\": \"this GPU or system does not move pages on demand\"}\n");
      continue;
    }
    all_correct &= measure(variant, VectorAddRung::one_thread, "one_thread", elements, device, stream);
    all_correct &= measure(variant, VectorAddRung::streaming, "streaming", elements, device, stream);
  }
  CHECK_CUDA(cudaStreamDestroy(stream));
  return all_correct ? 0 : 1;
}
