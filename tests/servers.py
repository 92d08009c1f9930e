"""For tests with real processes: loadgen as a command, and a socket that says what a test tells it to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAKES = Path(__file__).resolve().parent / "fakes"
ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
TRTLLM_VERSIONS = ("0.21.0", "1.0.0", "1.2.1", "1.3.0rc5")
TTFT_S = 0.020
TPOT_S = 0.002


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "loadgen", *words]


def run(*words: str, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; it must end without a traceback."""
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout, env=ENV, **more)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


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
