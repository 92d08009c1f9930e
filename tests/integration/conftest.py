"""Real servers for the tests: the embedded engine, and a socket that says what a test tells it to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadgen.engines.launch import RunningSim, launch_sim
from loadgen.engines.sim import SimConfig

FAKES = Path(__file__).resolve().parents[1] / "fakes"
TRTLLM_VERSIONS = ("0.21.0", "1.0.0", "1.2.1", "1.3.0rc5")
LAUNCHES = ("test_launch", "test_trtllm", "test_engine_sweeps")
TTFT_S = 0.020
TPOT_S = 0.002


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
        if item.path.stem in LAUNCHES:
            item.add_marker(pytest.mark.launches)


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSim]:
    """The embedded engine with a fixed timing of 20 ms and 2 ms."""
    with launch_sim(SimConfig(mode="fixed", ttft_s=TTFT_S, tpot_s=TPOT_S)) as launched:
        yield launched


@pytest.fixture(scope="session")
def trtllm_installs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The Python of a fake environment of each version."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import trtllm; "
    code += "print(trtllm.install(Path(sys.argv[2]), sys.argv[3]))"
    found = {}
    for version in TRTLLM_VERSIONS:
        folder = tmp_path_factory.mktemp(f"trtllm-{version}")
        done = subprocess.run(
            [sys.executable, "-c", code, str(FAKES), str(folder), version], capture_output=True, text=True, check=True
        )
        found[version] = Path(done.stdout.strip())
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Returns when the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextmanager
def scripted(answer: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server whose every connection is handled by ``answer(socket, number)``; gives its URL.

    ``answer`` is called when the connection is accepted; the socket is closed when it returns.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def handle(sock: socket.socket, number: int) -> None:
        with sock:
            sock.settimeout(10)
            try:
                answer(sock, number)
            except OSError:
                pass  # the client has gone, as some tests want

    def accept() -> None:
        number = 0
        while not stopped.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(sock, number), daemon=True).start()
            number += 1

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def read_request(sock: socket.socket) -> bytes:
    """One whole request from a socket; b"" when the client has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    length = lengths[0] if lengths else 0
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body
