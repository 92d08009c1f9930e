#!/bin/sh
# Measures vLLM on this machine's GPU with the Qwen1.5-4B shape (dummy weights), for reports/.
#
#   benchmarks/gpu_vllm.sh OUT levels     1, 8, 64 and 256 in flight, 256 tokens in, 128 out, no prefix cache
#   benchmarks/gpu_vllm.sh OUT find       the capacity under an SLO, searched for over the rate and confirmed
#   benchmarks/gpu_vllm.sh OUT prefix     prompts that share prefixes: prefix caching off, then on
#   benchmarks/gpu_vllm.sh OUT twice      two vLLM in one sweep, one after the other, with the same prompts
#   benchmarks/gpu_vllm.sh OUT killed     loadgen is killed in mid-sweep: the GPU must be empty soon after
#   benchmarks/gpu_vllm.sh OUT doctor     what the machine is
#
# PYTHON names a Python that has loadgen's dependencies and vLLM. vLLM's options for a machine without
# FlashInfer come from ENGINE_ARGS.
set -eu
OUT=$1
PYTHON=${PYTHON:-python3}
ENGINE_ARGS=${ENGINE_ARGS---attention-backend FLASH_ATTN}
loadgen() { "$PYTHON" -m loadgen "$@"; }
case $2 in
doctor)
    loadgen engines doctor --json > "$OUT/doctor.json"
    loadgen engines doctor
    ;;
levels)
    loadgen sweep --engine vllm --engine-python "$PYTHON" --engine-arg "$ENGINE_ARGS" --model shape:qwen1.5-4b \
        --prefix-caching off --concurrency "${LEVELS:-1,8,64,256}" --duration "${DURATION:-40s}" \
        --input-tokens 256 --output-tokens 128 --output "$OUT/levels"
    ;;
find)
    loadgen sweep --engine vllm --engine-python "$PYTHON" --engine-arg "$ENGINE_ARGS" --model shape:qwen1.5-4b \
        --prefix-caching off --find capacity --slo "${SLO:-ttft=500ms,tpot=15ms}" --attainment 95% --rate 20 \
        --duration "${DURATION:-12s}" --max-duration 30s --max-find "${MAX_FIND:-7m}" \
        --input-tokens 256 --output-tokens 128 --output "$OUT/find"
    ;;
prefix)
    test -f "$OUT/prefixed.jsonl" || loadgen dataset make prefixed --prompts 4096 --output "$OUT/prefixed.jsonl"
    for caching in off on; do
        loadgen sweep --engine vllm --engine-python "$PYTHON" --engine-arg "$ENGINE_ARGS" --model shape:qwen1.5-4b \
            --prefix-caching $caching --concurrency 8,64 --duration "${DURATION:-20s}" \
            --dataset "$OUT/prefixed.jsonl" --output "$OUT/prefix-$caching"
    done
    ;;
twice)
    loadgen sweep --engine vllm --engine vllm --engine-python "$PYTHON" --engine-arg "$ENGINE_ARGS" \
        --model shape:qwen1.5-4b --prefix-caching off --concurrency 64 --duration "${DURATION:-15s}" \
        --input-tokens 256 --output-tokens 128 --output "$OUT/twice"
    ;;
killed)
    # Not the function above: in the background it would be a shell that is killed, and not loadgen.
    "$PYTHON" -m loadgen sweep --engine vllm --engine-python "$PYTHON" --engine-arg "$ENGINE_ARGS" \
        --model shape:qwen1.5-4b --concurrency 64 --duration 600s --output "$OUT/killed" &
    pid=$!
    until [ "$(wc -l < "$OUT/killed/records.jsonl" 2>/dev/null || echo 0)" -gt 200 ]; do sleep 1; done
    nvidia-smi --query-gpu=memory.used --format=csv,noheader
    kill -9 $pid
    for second in 1 2 3 4 5 6 7 8 9 10; do
        sleep 1
        echo "after $second s: $(nvidia-smi --query-gpu=memory.used --format=csv,noheader)," \
            "$(pgrep -fc 'vllm.entrypoints|VLLM::|engines/guard|loadgen.client.worker' || true) processes"
    done
    loadgen report "$OUT/killed" | tail -20
    ;;
esac
