#!/bin/sh
# Measures kernels on this machine's GPU, for reports/.
#
#   benchmarks/gpu_kernels.sh OUT goals     the sizes that reports/README.md quotes
#   benchmarks/gpu_kernels.sh OUT model     all kernels of one model at three levels, as a user would
#   benchmarks/gpu_kernels.sh OUT beside    vLLM serving the Qwen1.5-4B shape at 1, 8 and 64 in flight, its kernels beside
#   benchmarks/gpu_kernels.sh OUT profile   one kernel under torch.profiler, three ways, and under ncu
#   benchmarks/gpu_kernels.sh OUT tests     the kernels' tests, with the GPU; the program with unified memory
#   benchmarks/gpu_kernels.sh OUT recheck   in at most BUDGET seconds (520): the tests, every mode of profile, a case larger
#                                           than the memory, and a few sizes again; OUT/recheck.tar.gz has all of it
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
recheck)
    # What matters most comes first. Each step is alone: one that fails, dies or hangs costs no other, and what there is so
    # far is packed after each.
    WORK=$(mktemp -d)
    mkdir -p "$OUT"
    begun=$(date +%s)
    step() { # NAME SECONDS COMMAND...: its output goes to NAME.txt; the last lines are shown too
        name=$1 limit=$2
        shift 2
        before=$(date +%s)
        left=$((${BUDGET:-520} - before + begun))
        if [ "$left" -lt 20 ]; then
            echo "== $name: not run, no time was left" | tee -a "$WORK/steps.txt"
            return
        fi
        [ "$limit" -lt "$left" ] || limit=$left
        code=0
        timeout -k 5 "$limit" "$@" >"$WORK/$name.txt" 2>&1 || code=$?
        echo "== $name: exit code $code after $(($(date +%s) - before)) s (limit $limit)" | tee -a "$WORK/steps.txt"
        tail -n "${TAIL:-4}" "$WORK/$name.txt" | cut -c1-200
        tar -czf "$OUT/recheck.part" -C "$WORK" . && mv "$OUT/recheck.part" "$OUT/recheck.tar.gz"
    }
    again() { # NAME SECONDS ARGUMENTS...: kernels bench into the folder NAME
        name=$1 limit=$2
        shift 2
        step "$name" "$limit" "$PYTHON" -m loadgen kernels bench --output "$WORK/$name-run" \
            --seconds "${SECONDS_EACH:-0.3}" "$@"
    }
    tests() { # NAME SECONDS ARGUMENTS...
        name=$1 limit=$2
        shift 2
        step "$name" "$limit" "$PYTHON" -m pytest -q -m kernels -p no:cacheprovider "$@"
    }
    parallel=
    if "$PYTHON" -c 'import xdist' 2>/dev/null; then parallel="-n 8"; fi
    tests test-wrong-arguments 150 tests/kernels/test_extension.py -k wrong_arguments # builds the operators too
    for mode in toggle bare schedule; do
        step profile-$mode 60 "$PYTHON" -m loadgen kernels profile vector_add elements=1024000 --mode $mode \
            --output "$WORK/profile-$mode-run"
    done
    TAIL=30 step profile-ncu 90 "$PYTHON" -m loadgen kernels profile add_rms_norm tokens=8192 hidden=2560 dtype=bfloat16 \
        --tool ncu --output "$WORK/profile-ncu-run"
    tests test-extension 120 tests/kernels/test_extension.py
    # shellcheck disable=SC2086 # two words, or none
    tests test-profiled-worker 90 tests/kernels/test_profiled.py tests/kernels/test_worker.py $parallel
    # On 141 GB: more than it has; a reference in float64 that does not fit; and one that must be measured all the same.
    TAIL=12 again out-of-memory 60 vector_add --state hot --implementation triton --no-baselines \
        --case elements=13000000000 --case elements=4000000000 --case elements=1024000
    again vector-add 70 vector_add --state cold,hot
    again fp8-k18944 60 matmul_fp8 --case 'tokens=1 rows=3584 columns=18944' --case 'tokens=8 rows=3584 columns=18944' \
        --case 'tokens=64 rows=3584 columns=18944' --case 'tokens=4096 rows=3584 columns=18944'
    again int4-k18944 70 matmul_int4 --case 'tokens=1 rows=3584 columns=18944' --case 'tokens=8 rows=3584 columns=18944' \
        --case 'tokens=16 rows=3584 columns=18944'
    again bf16-cube 50 matmul_bf16 --case 'tokens=4096 rows=4096 columns=4096 dtype=bfloat16'
    again bf16-batch-1 60 matmul_bf16 --model qwen1.5-4b --concurrency 1 --context 64
    # shellcheck disable=SC2086
    tests test-kernels 100 tests/kernels/test_kernels.py $parallel
    # shellcheck disable=SC2086
    tests test-nvcc 90 tests/kernels/test_nvcc.py $parallel
    cat "$WORK/steps.txt"
    rm -rf "$WORK"
    ;;
esac
