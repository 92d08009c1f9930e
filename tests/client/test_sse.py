"""The event stream parser, against the rules of the WHATWG standard, however the bytes are split."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.client.sse import SseParser

BOM = b"\xef\xbb\xbf"


def reference(stream: bytes) -> list[bytes]:
    """The data of each event of a whole stream: WHATWG HTML 9.2.6, line by line."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM))
    events = []
    buffer = b""
    for line in lines[:-1]:  # what follows the last line end is no line yet
        if not line:
            if buffer:
                events.append(buffer[:-1])
            buffer = b""
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            buffer += value.removeprefix(b" ") + b"\n"
    return events


def fed(reads: list[bytes]) -> list[bytes]:
    """The events of ``reads``, fed one by one."""
    parser = SseParser()
    return [event for read in reads for event in parser.feed(read)]


payloads = st.binary(max_size=12).map(lambda raw: raw.replace(b"\r", b"\xff").replace(b"\n", b"\x00"))
lines = st.one_of(
    st.just(b""),
    payloads.map(lambda payload: b"data: " + payload),
    payloads.map(lambda payload: b"data:" + payload),
    payloads.map(lambda payload: b": " + payload),
    payloads,
    st.sampled_from([b"data", b"data:", b"data: ", b"data:  two", b"dataset: x", b" data: x", b"event: x", b"id", BOM]),
)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """Some lines of one or of mixed line ends; often whole events as engines write them."""
    if draw(st.booleans()):
        return b"".join(b"data: %b\n\n" % payload for payload in draw(st.lists(payloads, max_size=4)))
    same = draw(st.none() | line_ends)
    return b"".join(draw(lines) + (same or draw(line_ends)) for _ in range(draw(st.integers(0, 6))))


@st.composite
def split_streams(draw: st.DrawFn) -> list[bytes]:
    """A stream, cut into reads at the ends of its blocks, or anywhere; some reads are empty."""
    pieces = [draw(st.sampled_from([b"", BOM])), *draw(st.lists(blocks(), max_size=4)), draw(payloads)]
    stream = b"".join(pieces)
    ends = [sum(map(len, pieces[:count])) for count in range(len(pieces))]
    cuts = draw(st.just(ends) | st.lists(st.sampled_from(ends) | st.integers(0, len(stream)), max_size=8))
    return [stream[a:b] for a, b in pairwise([0, *sorted(cuts), len(stream)])]


@settings(deadline=None, max_examples=200)
@given(split_streams())
def test_events_do_not_depend_on_how_the_bytes_are_split(reads: list[bytes]) -> None:
    assert fed(reads) == reference(b"".join(reads))


@settings(deadline=None)
@given(split_streams())
def test_events_are_the_same_byte_by_byte(reads: list[bytes]) -> None:
    stream = b"".join(reads)
    assert fed([stream[i : i + 1] for i in range(len(stream))]) == reference(stream)


@settings(deadline=None, max_examples=200)
@given(split_streams(), st.integers(1, 5))
def test_feed_reads_gives_what_feed_gives_with_each_events_stamp(reads: list[bytes], batch: int) -> None:
    one_by_one, at_once = SseParser(), SseParser()
    expected, found = [], []
    for start in range(0, len(reads), batch):
        group = reads[start : start + batch]
        stamps = [1000 + start + i for i in range(len(group))]
        expected += [
            (event, stamp) for read, stamp in zip(group, stamps, strict=True) for event in one_by_one.feed(read)
        ]
        found += zip(*at_once.feed_reads(group, stamps), strict=True)
        assert at_once.pending_bytes == one_by_one.pending_bytes
    assert found == expected


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\n", [b"a"], id="LF"),
        pytest.param(b"data: a\r\n\r\n", [b"a"], id="CR LF"),
        pytest.param(b"data: a\r\r", [b"a"], id="CR"),
        pytest.param(b"data: a\r\n\ndata: b\r\r\n", [b"a", b"b"], id="mixed line ends"),
        pytest.param(b"data: a\rdata: b\n\n", [b"a\nb"], id="CR inside what looks like a whole event"),
        pytest.param(b"data:a\n\n", [b"a"], id="no space after the colon"),
        pytest.param(b"data:  a \n\n", [b" a "], id="only the first space goes"),
        pytest.param(b"data: a\ndata: b\ndata:c\n\n", [b"a\nb\nc"], id="several data lines"),
        pytest.param(b"data: a\ndata\ndata:\n\n", [b"a\n\n"], id="empty data lines inside an event"),
        pytest.param(b"data\n\ndata:\n\ndata: \n\n", [b"", b"", b""], id="events of one empty data line"),
        pytest.param(b"\n\n\n", [], id="blank lines alone"),
        pytest.param(b": ping\n\n:\ndata: a\n: ping\n\n", [b"a"], id="comments"),
        pytest.param(b"event: x\nid: 1\nretry: 5\ndata: a\n\nid: 2\n\n", [b"a"], id="other fields"),
        pytest.param(b"dataset: a\n data: b\nDATA: c\n\n", [], id="names that only look like data"),
        pytest.param(BOM + b"data: a\n\n", [b"a"], id="byte-order mark"),
        pytest.param(BOM + BOM + b"data: a\n\ndata: b\n\n", [b"b"], id="only one byte-order mark goes"),
        pytest.param(b"data: a\n\n" + BOM + b"data: b\n\n", [b"a"], id="a byte-order mark later is content"),
        pytest.param(b"data: \x00\xff:data: \xe2\x80\xa8\n\n", [b"\x00\xff:data: \xe2\x80\xa8"], id="any other byte"),
        pytest.param(b"data: a\n\ndata: b", [b"a"], id="cut inside a line"),
        pytest.param(b"data: a\n\ndata: b\n", [b"a"], id="cut before the blank line"),
    ],
)
def test_rules_of_the_standard(stream: bytes, events: list[bytes]) -> None:
    assert fed([stream]) == events
    assert fed([stream[i : i + 1] for i in range(len(stream))]) == events
    assert reference(stream) == events


def test_an_event_is_reported_by_the_read_that_brings_its_blank_line() -> None:
    parser = SseParser()
    reads = [b"da", b"ta: a\r", b"\n\r", b"\ndata: b", b"\n\ndata: c\n\n"]
    assert [parser.feed(read) for read in reads] == [[], [], [b"a"], [], [b"b", b"c"]]


def test_feed_reads_stamps_an_event_with_the_read_that_completed_it() -> None:
    reads = [b"data: a\n\ndata: b\n\n", b"data: c", b"", b"\n\n", b"data: d\n\n"]
    events, stamps = SseParser().feed_reads(reads, [10, 20, 30, 40, 50])
    assert events == [b"a", b"b", b"c", b"d"]
    assert stamps == [10, 10, 40, 50]


@pytest.mark.parametrize(
    ("reads", "events"),
    [
        pytest.param([b"data: a\n", b"data: b\n\n"], [b"a\nb"], id="a data line is open"),
        pytest.param([b"data: a", b"data: b\n\n"], [b"adata: b"], id="a line is open"),
        pytest.param([b"data: a\r", b"\ndata: b\n\n"], [b"a\nb"], id="a CR LF is open"),
        pytest.param([b"data: a\n\n", BOM + b"data: b\n\n"], [b"a"], id="the stream has begun"),
        pytest.param([b"data: a\rdata: b\n\n"], [b"a\nb"], id="CR inside"),
        pytest.param([b"data: a\ndata: b\n\n"], [b"a\nb"], id="two lines"),
        pytest.param([b"data: a\n\n\n\n", b"data: b\n\n"], [b"a", b"b"], id="blank lines between"),
    ],
)
def test_a_read_that_looks_like_a_whole_event_is_taken_for_what_it_is(reads: list[bytes], events: list[bytes]) -> None:
    assert fed(reads) == events
    parser = SseParser()
    assert [event for read in reads for event in parser.feed_reads([read], [0])[0]] == events
    assert SseParser().feed_reads(reads, [0] * len(reads))[0] == events


def test_feed_reads_of_no_read_gives_no_event() -> None:
    assert SseParser().feed_reads([], []) == ([], [])


def test_pending_bytes_grow_until_the_event_is_complete() -> None:
    parser = SseParser()
    seen = []
    for read in (b"data: abc", b"def", b"\n", b"data: gh\n", b"\n"):
        parser.feed(read)
        seen.append(parser.pending_bytes)
    assert seen[0] == 9
    assert seen[1] == 12
    assert seen[2] >= 6
    assert seen[3] >= 8
    assert seen[4] == 0


def test_skipped_lines_leave_nothing_pending() -> None:
    parser = SseParser()
    assert parser.feed(b": ping\nevent: x\n") == []
    assert parser.pending_bytes == 0
