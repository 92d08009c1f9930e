#!/bin/sh
# Measures kernels on this machine's GPU, for reports/.
#
#   benchmarks/gpu_kernels.sh OUT goals     the sizes that reports/README.md quotes
#   benchmarks/gpu_kernels.sh OUT model     all kernels of one model at three levels, as a user would
#   benchmarks/gpu_kernels.sh OUT beside    vLLM serving the Qwen1.5-4B shape at 1, 8 and 64 in flight, its kernels beside
#   benchmarks/gpu_kernels.sh OUT profile   one kernel under torch.profiler, three ways, and under ncu
#   benchmarks/gpu_kernels.sh OUT tests     the kernels' tests, with the GPU; the program with unified memory
#
# PYTHON names a Python that has loadgen's dependencies, torch and vLLM. vLLM's options for a machine without
# FlashInfer come from ENGINE_ARGS.
set -eu
OUT=$1
PYTHON=${PYTHON:-python3}
ENGINE_ARGS=${ENGINE_ARGS---attention-backend FLASH_ATTN}
loadgen() { "$PYTHON" -m loadgen "$@"; }
# A kernel that is refused or wrong ends with exit code 1; the others are to be measured all the same.
bench() {
    name=$1
    shift
    loadgen kernels bench --output "$OUT/$name" --seconds "${SECONDS_EACH:-0.6}" "$@" || test $? -eq 1
}
case $2 in
goals)
    bench prompt-8192 add_rms_norm silu_and_mul rotary_embedding kv_cache_write quantize_fp8 quantize_int8 \
        prefill_attention --model qwen1.5-4b --concurrency 64 --context 8192
    bench decode-4b paged_decode_attention matmul_bf16 --model qwen1.5-4b --concurrency 1,8,64 --context 4096
    bench decode-7b paged_decode_attention prefill_attention matmul_bf16 matmul_fp8 \
        --model qwen2.5-7b --concurrency 1,8,64 --context 4096
    bench prefill-7b prefill_attention --model qwen2.5-7b --concurrency 1 --context 8192
    bench int4-4b matmul_int4 --model qwen1.5-4b --concurrency 1,4,8,16 --context 4096
    bench int4-7b matmul_int4 --model qwen2.5-7b --concurrency 1,4,8,16 --context 4096
    bench cube matmul_bf16 --case 'tokens=4096 rows=4096 columns=4096 dtype=bfloat16'
    bench sampling sample_top_k_top_p argmax --model qwen1.5-4b --concurrency 1,256 --context 512
    bench vector-add vector_add --state cold,hot
    ;;
model)
    bench model --model qwen1.5-4b --concurrency 1,8,64 --context 512,4096
    ;;
beside)
    loadgen sweep --engine vllm --engine-python "$PYTHON" --engine-arg "$ENGINE_ARGS" --model shape:qwen1.5-4b \
        --prefix-caching off --concurrency 1,8,64 --duration "${DURATION:-30s}" \
        --input-tokens 256 --output-tokens 128 --kernels --output "$OUT/beside"
    ;;
profile)
    for mode in bare schedule toggle; do
        loadgen kernels profile vector_add elements=1024000 --mode $mode --output "$OUT/profile-$mode"
    done
    loadgen kernels profile add_rms_norm tokens=8192 hidden=2560 dtype=bfloat16 --tool ncu --output "$OUT/profile-ncu"
    ;;
tests)
    "$PYTHON" -m pytest -q -m kernels tests/kernels -p no:cacheprovider
    loadgen kernels build vector_add_unified --arch "${ARCH:-sm_90}" --output "$OUT/build"
    "$OUT/build/vector_add_unified"
    ;;
esac
