"""An offline run beside a served one: the report of ``trtllm-bench throughput``.

Source: TensorRT-LLM 1.0 to 1.3, bench/dataclasses/reporting.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError

REPORT_FILE = "trtllm_bench.json"


class OfflineReport(msgspec.Struct, kw_only=True):
    """What ``trtllm-bench throughput`` measured: the engine without HTTP, all requests there at once.

    ``request_throughput_rps`` and the token throughputs count from the first start to the last end,
    ramp and drain included, as trtllm-bench does; TTFT and TPOT only when it streamed.
    """

    version: str | None
    backend: str | None
    requests: int
    mean_input_tokens: float | None
    mean_output_tokens: float | None
    mean_concurrency: float | None
    request_throughput_rps: float
    output_throughput_tps: float
    total_throughput_tps: float | None = None
    mean_ttft_s: float | None = None
    mean_tpot_s: float | None = None


def read_offline_report(path: Path) -> OfflineReport:
    """Reads a ``--report_json`` of trtllm-bench (1.0 to 1.3).

    Raises:
        UsageError: no such file, or it is none.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        performance, requests = report["performance"], report["request_info"]
        streaming = report.get("streaming_metrics") or {}
        engine = report.get("engine") or {}

        def seconds(name: str) -> float | None:
            value = streaming.get(name)
            return None if value is None else float(value) / 1e3

        return OfflineReport(
            version=engine.get("version"),
            backend=engine.get("backend"),
            requests=int(requests["num_requests"]),
            mean_input_tokens=requests.get("avg_input_length"),
            mean_output_tokens=requests.get("avg_output_length"),
            mean_concurrency=requests.get("avg_num_concurrent_requests"),
            request_throughput_rps=float(performance["request_throughput_req_s"]),
            output_throughput_tps=float(performance["system_output_throughput_tok_s"]),
            total_throughput_tps=performance.get("system_total_throughput_tok_s"),
            mean_ttft_s=seconds("avg_ttft_ms"),
            mean_tpot_s=seconds("avg_tpot_ms"),
        )
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: is no report of trtllm-bench throughput ({error})") from None
