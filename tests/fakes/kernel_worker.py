#!/usr/bin/env python3
"""Stands in for a Python that has torch and a GPU: speaks the protocol of loadgen.microbench.worker.

What it does is in FAKE_WORKER, words with spaces: no-torch, no-gpu, silent, no-peaks; break-N: the process is
killed in case N (once: the next process skips it); break-always; wrong: its own implementation is wrong; short-N:
case N needs more memory than there is.
Two cases a file, each with an own implementation of 20 us and a baseline of 30.
"""

import json
import os
import signal
import sys
import time

ASKED = os.environ.get("FAKE_WORKER", "").split()
DEVICE = {
    "name": "Made-up GPU", "uuid": "GPU-1", "compute_capability": [9, 0], "multiprocessors": 132,
    "l2_bytes": 62914560, "memory_bytes": 150000000000, "versions": {"torch": "2.11.0"},
}  # fmt: skip
PEAKS = {
    "copy_bytes_per_s": 4e12, "read_bytes_per_s": 4.2e12, "matrix_flops": {"bfloat16": 7e14}, "empty_kernel_s": 1e-6,
}  # fmt: skip


SHORT = "48.43 GiB more wanted, 42.11 GiB free, for inputs or reference"


def say(**answer):
    print(json.dumps(answer), flush=True)


def attempt(name, own, us, status="ok"):
    return {"name": name, "own": own, "status": status, "samples_s": [us * 1e-6] * 40, "wall_s": us * 1e-6,
            "message": "out: 3 elements are off" if status == "wrong" else None}  # fmt: skip


def run(job):
    for case in range(job["skip"], 2):
        params = {"tokens": case + 1}
        say(kind="begun", case=case, params=params)
        if "break-always" in ASKED or f"break-{case}" in ASKED:
            print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if job["check"]:
            status = "wrong" if "wrong" in ASKED else "ok"
            checked = [
                {"name": "triton", "own": True, "status": status, "error_before": 1e-3},
                {"name": "vllm", "own": False, "status": "skipped", "message": "No module named 'vllm'"},
            ]
            say(kind="checked", case=case, params=params, checked=checked)
            continue
        attempts = [attempt("triton", True, 20, "wrong" if "wrong" in ASKED else "ok"), attempt("eager", False, 30)]
        if f"short-{case}" in ASKED:
            for one in attempts:
                one.update(status="out_of_memory", samples_s=[], message=SHORT)
        say(kind="samples", case=case, samples={
            "kernel": "made_up", "file": job["file"], "sha256": "0", "label": "", "params": params, "state": "serving",
            "seed": 0, "bytes": 4e7, "flops": 0, "attempts": attempts,
            "rotation": {"sets": 8, "calls": 96, "set_bytes": 40000000, "touched_bytes": 40000000,
                         "cache_bytes": 62914560, "flush_bytes": 0},
        })  # fmt: skip
    say(kind="done")


if "no-torch" in ASKED:
    say(kind="error", text="has no torch: pip install 'loadgen[kernels]'")
    sys.exit(3)
if "dies" in ASKED:
    print("ModuleNotFoundError: No module named 'msgspec'", file=sys.stderr)
    sys.exit(1)
say(kind="device", **({} if "no-gpu" in ASKED else {"device": DEVICE}))
for line in sys.stdin:
    if line.strip() == "peaks":
        if "no-peaks" in ASKED:
            sys.exit(1)
        say(kind="peaks", peaks=PEAKS)
    elif "silent" in ASKED:
        time.sleep(60)
    else:
        run(json.loads(line))
