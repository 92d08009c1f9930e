"""``sim``, the embedded engine: a real HTTP server whose timing is known.

It speaks vLLM's dialect (endpoints, stream format, error shapes, Prometheus names) and has two
modes:

``fixed``
    The first token and every gap come exactly as commanded, on an absolute schedule that starts
    at the read which completed the request. What the server itself was late by is measured and
    given at ``/sim/lateness``; its own stamps of each request are at ``/sim/requests``.
``batch``
    A continuous-batching model of one GPU and one model, see :mod:`loadgen.engines.sim_model`.

One thread, one epoll loop, no asyncio: an arrival is stamped before anything is parsed, tokens are
written with ``socket.send`` at their due time, and between any 16 writes the sockets are looked at
again. A request asks for faults in its body's field ``sim``; :class:`loadgen.engines.sim_config.Fault`
lists them. They can also be set for all requests.

It computes nothing: every token is the same word, and every figure measured on it is SIMULATED.
"""

from __future__ import annotations

import gc
import heapq
import resource
import select
import socket
import sys
from array import array
from collections import deque
from itertools import count

import msgspec

from loadgen import __version__
from loadgen.clock import now_ns
from loadgen.engines.sim_config import NO_FAULT, Fault, SimConfig
from loadgen.engines.sim_http import (
    Connection,
    Reply,
    Timed,
    decode_body,
    encode,
    failure,
    http_response,
    shaped_failure,
)
from loadgen.engines.sim_model import GPUS, MODELS, BatchModel, Sequence
from loadgen.units import NS_PER_S

__all__ = ["Fault", "SimConfig", "SimServer"]

SPIN_NS = 100_000
MAX_LOGGED = 200_000


class BatchEngine:
    """Steps of a continuous-batching engine; each step's tokens are written when it ends."""

    def __init__(self, server: SimServer, model: BatchModel) -> None:
        self._server = server
        self.model = model
        self._replies: dict[Sequence, Reply] = {}
        self._stepping = False

    def add(self, reply: Reply) -> None:
        sequence = Sequence(reply.input_tokens, reply.output_tokens)
        reply.sequence = sequence
        self._replies[sequence] = reply
        self.model.add(sequence)
        if not self._stepping:
            self._step(now_ns())

    def drop(self, reply: Reply) -> None:
        assert reply.sequence is not None
        if self._replies.pop(reply.sequence, None) is not None:
            self.model.remove(reply.sequence)

    def _step(self, start_ns: int) -> None:
        seconds = self.model.begin_step()
        self._stepping = seconds is not None
        if seconds is not None:
            self._server.at(start_ns + int(seconds * NS_PER_S), self)

    def fire(self, due_ns: int, now: int) -> None:
        self._server.late(now - due_ns)
        for sequence in self.model.end_step():
            reply = self._replies.get(sequence)  # None: its connection broke during this step
            if reply is not None and reply.token_fast(now_ns()):
                self._replies.pop(sequence, None)
                self.model.remove(sequence)
        self._step(due_ns)


class SimServer:
    """The server: sockets, clock and routes."""

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.created = 1_700_000_000
        self.name_json = encode(config.served_name)
        self._serial = count()
        self.serial = self._serial.__next__
        self._heap: list[tuple[int, int, Timed]] = []
        self._arrived: deque[tuple[int, Connection, bytes]] = deque()
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._default_fault = msgspec.convert(config.fault, Fault) if config.fault else NO_FAULT
        self._batch = (
            BatchEngine(
                self,
                BatchModel(GPUS[config.gpu], MODELS[config.model], config.max_batch_size, config.max_num_tokens),
            )
            if config.mode == "batch"
            else None
        )
        self._lateness = array("q")
        self._log: deque[tuple[bytes, int, int, int, int]] = deque(maxlen=MAX_LOGGED)
        self._counters = {"prompt": 0, "generation": 0, "stop": 0, "length": 0, "aborted": 0}
        self._sums = {"ttft": 0.0, "e2e": 0.0, "tpot": 0.0}
        self._running = 0
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._listener = socket.create_server((config.host, config.port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self.port: int = self._listener.getsockname()[1]

    # The loop.

    def run(self) -> None:
        """Serves for ever."""
        heap, arrived, poll = self._heap, self._arrived, self._epoll.poll
        connections = self._connections
        listener = self._listener.fileno()
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            now = now_ns()
            fired = 0
            while heap and heap[0][0] <= now:
                due, _, timed = heapq.heappop(heap)
                timed.fire(due, now)
                now = now_ns()
                fired += 1
                if fired == 16:
                    break  # arrivals must be stamped in time too
            if arrived:
                stamp, connection, data = arrived.popleft()
                connection.feed(stamp, data)
            if arrived or (heap and heap[0][0] - now_ns() < SPIN_NS):
                ready = poll(0)
            else:
                ready = self._wait()
            for fd, mask in ready:
                if fd == listener:
                    self._accept()
                else:
                    one = connections.get(fd)
                    if one is None:
                        continue
                    if mask & select.EPOLLOUT:
                        one.flush()
                    if mask & ~select.EPOLLOUT:
                        self._read(one)

    def _wait(self) -> list[tuple[int, int]]:
        """Sleeps until a socket is ready or the next deadline is near.

        epoll's own time-out has a resolution of 1 ms; select's has one of 1 us.
        """
        if not self._heap:
            return self._epoll.poll(1.0)
        seconds = (self._heap[0][0] - now_ns() - SPIN_NS) / NS_PER_S
        if seconds > 0:
            select.select([self._epoll.fileno()], [], [], seconds)
        return self._epoll.poll(0)

    def at(self, due_ns: int, timed: Timed) -> None:
        """Calls ``timed.fire`` at ``due_ns``."""
        heapq.heappush(self._heap, (due_ns, self.serial(), timed))

    def late(self, ns: int) -> None:
        if len(self._lateness) < 5 * MAX_LOGGED:
            self._lateness.append(ns)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                print(f"sim: cannot accept a connection: {error}", file=sys.stderr, flush=True)
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = Connection(self, sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._arrived.append((now_ns(), connection, data))
        else:
            self.drop(connection)

    def want_write(self, connection: Connection, wanted: bool) -> None:
        mask = select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
        if connection.sock.fileno() >= 0:
            self._epoll.modify(connection.sock.fileno(), mask)

    def drop(self, connection: Connection) -> None:
        """Forgets a connection; a request on it is aborted, as vLLM does."""
        fd = connection.sock.fileno()
        if fd < 0:
            return
        del self._connections[fd]
        self._epoll.unregister(fd)
        connection.sock.close()
        reply, connection.reply = connection.reply, None
        if reply is not None:
            self._running -= 1
            self._counters["aborted"] += 1
            self._counters["prompt"] += reply.input_tokens
            self._counters["generation"] += reply.emitted
            if self._batch is not None and reply.sequence is not None:
                self._batch.drop(reply)

    # Routes.

    def request(self, connection: Connection, method: bytes) -> None:
        path = connection.url.partition(b"?")[0]
        if path in (b"/v1/completions", b"/v1/chat/completions"):
            if method != b"POST":
                connection.write(http_response(405, b'{"detail":"Method Not Allowed"}'))
            else:
                self._complete(connection, chat=b"chat" in path)
            return
        answers = {
            b"/health": lambda: b"",
            b"/version": lambda: encode({"version": __version__}),
            b"/v1/models": self._models,
            b"/sim/lateness": self._lateness_report,
            b"/sim/requests": self._request_log,
        }
        if path == b"/metrics":
            connection.write(http_response(200, self._metrics().encode(), b"text/plain; version=0.0.4"))
        elif path in answers:
            connection.write(http_response(200, answers[path]()))
        else:
            connection.write(http_response(404, b'{"detail":"Not Found"}'))

    def _complete(self, connection: Connection, chat: bool) -> None:
        raw = b"".join(connection.body)
        try:
            body = decode_body(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            connection.write(failure(400, str(error), "Bad Request"))
            return
        name = self.config.served_name
        wanted = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
        if body.model is not None and body.model != name:
            text = f"The model `{body.model}` does not exist. Valid aliases: {name}."
            connection.write(failure(404, text, "NotFoundError", "model"))
        elif not bytes(body.messages if chat else body.prompt).strip(b'"[] '):
            connection.write(failure(400, f"{'messages' if chat else 'prompt'} is missing or empty", "Bad Request"))
        elif wanted is not None and wanted < 1:
            connection.write(failure(400, f"max_tokens must be at least 1, got {wanted}", "BadRequestError"))
        else:
            fault = body.sim or self._default_fault
            if fault.status is not None:
                connection.write(shaped_failure(fault.status, fault.error_shape))
                return
            reply = Reply(self, connection, body, chat, fault)
            connection.reply = reply
            self._running += 1
            reply.start()
            if self._batch is not None:
                self._batch.add(reply)
            else:
                self.at(reply.first_due_ns, reply)

    def finished(self, reply: Reply, now: int) -> None:
        self._running -= 1
        self._counters["prompt"] += reply.input_tokens
        self._counters["generation"] += reply.emitted
        self._counters["stop" if reply.fault.output_tokens is not None else "length"] += 1
        self._sums["ttft"] += (reply.first_write_ns - reply.arrival_ns) / NS_PER_S
        self._sums["e2e"] += (now - reply.arrival_ns) / NS_PER_S
        if reply.emitted > 1:
            self._sums["tpot"] += (now - reply.first_write_ns) / NS_PER_S / (reply.emitted - 1)
        self._log.append((reply.request_id, reply.arrival_ns, reply.first_write_ns, reply.last_write_ns, reply.emitted))

    def _models(self) -> bytes:
        name = self.config.served_name
        entry = {"id": name, "object": "model", "created": self.created, "owned_by": "loadgen-sim", "root": name}
        return encode({"object": "list", "data": [entry]})

    def _lateness_report(self) -> bytes:
        """Seconds by which token writes came after their due time, since the last call."""
        late = sorted(self._lateness)
        self._lateness = array("q")
        report: dict[str, float] = {"count": len(late)}
        if late:
            report["mean_s"] = sum(late) / len(late) / NS_PER_S
            for q in (50, 99):
                report[f"p{q}_s"] = late[min(len(late) - 1, len(late) * q // 100)] / NS_PER_S
            report["max_s"] = late[-1] / NS_PER_S
        return encode(report)

    def _request_log(self) -> bytes:
        """``[id, arrival_ns, first_write_ns, last_write_ns, tokens]`` of each request since the last call."""
        rows = [(row[0].decode("latin-1"), *row[1:]) for row in self._log]
        self._log.clear()
        return encode(rows)

    def _metrics(self) -> str:
        labels = f'engine="0",model_name={self.name_json.decode()}'
        waiting = kv_used = 0.0
        if self._batch is not None:
            waiting, kv_used = float(self._batch.model.waiting), self._batch.model.kv_usage
        finished = self._counters["stop"] + self._counters["length"]
        lines = []

        def series(name: str, kind: str, value: float, more: str = "") -> None:
            lines.append(f"# TYPE {name} {kind}")
            lines.append(f"{name}{{{labels}{more}}} {value}")

        series("vllm:num_requests_running", "gauge", self._running - waiting)
        series("vllm:num_requests_waiting", "gauge", waiting)
        series("vllm:kv_cache_usage_perc", "gauge", kv_used)
        series("vllm:prompt_tokens_total", "counter", self._counters["prompt"])
        series("vllm:generation_tokens_total", "counter", self._counters["generation"])
        series("vllm:num_preemptions_total", "counter", 0)
        for reason in ("stop", "length"):
            series("vllm:request_success_total", "counter", self._counters[reason], f',finished_reason="{reason}"')
        for name, key in (
            ("vllm:time_to_first_token_seconds", "ttft"),
            ("vllm:e2e_request_latency_seconds", "e2e"),
            ("vllm:request_time_per_output_token_seconds", "tpot"),
        ):
            lines.append(f"# TYPE {name} histogram")
            lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {finished}')
            lines.append(f"{name}_sum{{{labels}}} {self._sums[key]}")
            lines.append(f"{name}_count{{{labels}}} {finished}")
        return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """``python -m loadgen.engines.sim CONFIG_JSON PORT``: serves until it is ended."""
    config = msgspec.json.decode(argv[1], type=SimConfig)
    SimServer(msgspec.structs.replace(config, port=int(argv[2]))).run()


if __name__ == "__main__":
    main(sys.argv)
