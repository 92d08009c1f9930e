"""Server-sent events, parsed incrementally.

The parser gives the same events however the bytes are split into reads; a property test holds it
to that. Source: WHATWG HTML, section 9.2 "Server-sent events" (event stream interpretation).
"""

from __future__ import annotations


class SseParser:
    """Turns pieces of an event stream into the ``data`` of its events.

    An event is complete at the blank line that ends it, so an event whose last byte has not come
    yet is not reported, and one cut off by the end of the stream never is. Comment lines
    (``: keep-alive``) and the fields ``event``, ``id`` and ``retry`` are skipped: no engine puts
    anything there that its JSON does not repeat. Several ``data`` lines of one event are joined
    with a line feed. CR LF, LF and CR end a line.
    """

    __slots__ = ("_data", "_line", "_skip_lf", "_started", "pending_bytes")

    def __init__(self) -> None:
        self._data: list[bytes] = []  # data lines of the event that is not complete yet
        self._line = b""  # the line that is not complete yet
        self._skip_lf = False  # the last byte was a CR: an LF that follows belongs to it
        self._started = False
        self.pending_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that ``chunk`` completes, in order."""
        # Engines write whole events nearly always; that case costs five C calls.
        if (
            not self.pending_bytes
            and not self._skip_lf
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
        ):
            events = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(events):
                self._started = True
                return events
        return self._feed_slow(chunk)

    def feed_reads(self, chunks: list[bytes], stamps: list[int]) -> tuple[list[bytes], list[int]]:
        """The same for several reads at once: the events, and for each its read's stamp."""
        if not self.pending_bytes and not self._skip_lf:
            text = b"".join(chunks)
            events = text[6:-2].split(b"\n\ndata: ")
            # One whole event in each read, when the lengths agree one by one.
            if (
                [len(event) + 8 for event in events] == [len(chunk) for chunk in chunks]
                and text.startswith(b"data: ")
                and text.endswith(b"\n\n")
                and b"\n" not in b"".join(events)
                and b"\r" not in text
            ):
                self._started = True
                return events, stamps
        all_events: list[bytes] = []
        all_stamps: list[int] = []
        for chunk, stamp in zip(chunks, stamps, strict=True):
            events = self.feed(chunk)
            all_events += events
            all_stamps += [stamp] * len(events)
        return all_events, all_stamps

    def _feed_slow(self, chunk: bytes) -> list[bytes]:
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if not chunk:
            return []
        text = self._line + chunk
        if not self._started:
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                self._line = text  # too short to tell whether a byte-order mark begins here
                self.pending_bytes = len(text)
                return []
            self._started = True
            text = text.removeprefix(b"\xef\xbb\xbf")
        if b"\r" in text:
            self._skip_lf = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = text.split(b"\n")
        self._line = lines.pop()
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
            elif line.startswith(b"data:"):
                value = line[5:]
                data.append(value[1:] if value.startswith(b" ") else value)
            elif line == b"data":
                data.append(b"")
        self.pending_bytes = len(self._line) + sum(map(len, data)) + len(data)
        return events
