"""Durations in, milliseconds, counts and bytes out."""

from __future__ import annotations

import math

import pytest

from loadgen.errors import UsageError
from loadgen.units import format_count, format_ms, parse_duration_s, parse_money, parse_share


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250us", 0.00025),
        ("500ms", 0.5),
        ("60s", 60),
        ("5m", 300),
        ("5min", 300),
        ("1h", 3600),
        ("1.5s", 1.5),
        ("1m30s", 90),
        ("2min30s", 150),
        ("1h1m1s500ms", 3661.5),
        (" 10 s ", 10),
    ],
)
def test_duration_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", " ", "60", "s", "-5s", "+5s", "5 sec", "5S", "1e3s", ".5s", "5.s", "1m 30s", "5s!", "x5s", "infs", "٣s"],
)
def test_no_duration_is_refused_and_the_message_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match="60s") as caught:
        parse_duration_s(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("0.5", 0.5), (" 60 ", 60), ("60s", 60), ("1m30s", 90)])
def test_an_option_takes_a_bare_number_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration_s(text, bare_seconds=True) == seconds


@pytest.mark.parametrize("text", ["", "-5", "+5", "1e3", ".5", "5.", "10 20", "nan", "inf", "٣"])
def test_what_is_no_bare_number_stays_refused(text: str) -> None:
    with pytest.raises(UsageError, match="number of seconds"):
        parse_duration_s(text, bare_seconds=True)


@pytest.mark.parametrize("text", ["0", "0.0", "9" * 400])
def test_a_bare_number_must_be_a_length_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="above zero"):
        parse_duration_s(text, bare_seconds=True)


@pytest.mark.parametrize("text", ["0s", "0ms", "0h0m0.0s"])
def test_duration_of_zero_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="above zero"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "n/a"),
        (math.nan, "n/a"),
        (math.inf, "n/a"),
        (0.0, "0"),
        (0.00123456, "1.23"),
        (0.0123456, "12.3"),
        (0.123456, "123"),
        (1.23456, "1,235"),
        (1234.5678, "1,234,568"),
        (0.000123456, "0.123"),
        (0.00000123, "0.001"),
        (-0.0123456, "-12.3"),
    ],
)
def test_milliseconds_without_an_interval_have_three_digits(seconds: float | None, text: str) -> None:
    assert format_ms(seconds) == text


@pytest.mark.parametrize(
    ("half_width_s", "text"),
    [
        (0.2, "12"),
        (0.02, "12"),
        (0.002, "12"),
        (0.0009, "12.3"),
        (0.0002, "12.3"),
        (0.00009, "12.35"),
        (0.000009, "12.346"),
        (1e-12, "12.346"),
        (0.0, "12.3"),
        (None, "12.3"),
    ],
)
def test_milliseconds_end_at_the_first_uncertain_digit(half_width_s: float | None, text: str) -> None:
    assert format_ms(0.0123456, half_width_s) == text


def test_unknown_milliseconds_stay_unknown_beside_an_interval() -> None:
    assert format_ms(None, 0.001) == "n/a"


def test_no_decimals_from_ten_seconds_on() -> None:
    assert format_ms(9.99912, 1e-5) == "9,999.12"
    assert format_ms(13.23555, 1e-5) == "13,236"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (7.0, "7"),
        (0.12345, "0.123"),
        (9.8765, "9.88"),
        (98.765, "98.8"),
        (100.4, "100"),
        (1234.5, "1,234"),
        (1_234_567, "1,234,567"),
        (-2.345678, "-2.35"),
    ],
)
def test_count(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("20%", 0.2),
        ("0%", 0),
        (" 99.9 % ", 0.999),
        ("150%", 1.5),
        ("95%", 0.95),
        ("95", 0.95),
        ("0.95", 0.95),
        ("1", 1),
        ("1%", 0.01),
        ("1.5", 0.015),
        ("0", 0),
        ("5", 0.05),
    ],
)
def test_a_share_is_a_percentage_or_a_number_up_to_1(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("text", ["", "%", "-5%", "+5%", "5%%", "٣%", "-0.2", "1e-2", ".5", "nan"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write it as 20%"):
        parse_share(text)


@pytest.mark.parametrize(
    "text", ["2.5", "2.50", "$2.50", "$ 2.50", "€2.50", "2.50€", "2.50 €", "2.50 USD", "2.50USD", " 2.5 "]
)
def test_money_with_or_without_a_currency(text: str) -> None:
    assert parse_money(text) == 2.5


@pytest.mark.parametrize("text", ["", "$", "2,50", "-2", "$-2", "$2.50 USD", "2.50 dollars", "2.50 usd", "1e3", "٣"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write it as 2\.50"):
        parse_money(text)


@pytest.mark.parametrize("text", ["0", "$0.00"])
def test_a_price_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="above zero"):
        parse_money(text)
