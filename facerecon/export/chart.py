"""Bars with intervals, and cumulated values, for the pages of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from facerecon.errors import InputError

__all__ = ["Bar", "bar_chart", "cumulative_chart"]

COLORS = ((46, 92, 153), (214, 120, 44), (74, 140, 92), (150, 90, 150), (140, 140, 140))
_INK, _PALE, _LINE = (40, 40, 40), (115, 115, 115), (224, 224, 224)
_SCALE = 3  # of the drawing, averaged down: smooth edges


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        label: at its left.
        value: its length.
        low, high: of its whisker, or None.
        series: which color.
        text: what is written at its end; the value with two digits if left out.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0
    text: str | None = None


def _ticks(most: float) -> list[float]:
    """About five round numbers from 0 on."""
    raw = most / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    return [k * step for k in range(math.floor(most / step + 1e-9) + 1)]


def bar_chart(
    title: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    axis: str = "",
    legend: Sequence[str] = (),
    width: int = 860,
) -> Image.Image:
    """Horizontal bars from 0, in groups, with whiskers: a picture as high as they need.

    Args:
        title: above.
        groups: (heading, bars); a heading may be "".
        axis: what the values are, below.
        legend: names of the series, one a color; none for one series.
        width: px.

    Raises:
        InputError: no bars, or a value that is negative or not finite.
    """
    bars = [bar for _, some in groups for bar in some]
    if not bars:
        raise InputError("a chart needs at least one bar; got none.")
    for bar in bars:
        if not math.isfinite(bar.value) or bar.value < 0:
            raise InputError(f"bars must be finite and not negative; got {bar.value} for '{bar.label}'.")
    s = _SCALE
    plain = ImageFont.load_default(13 * s)
    left = int(max(plain.getlength(bar.label) for bar in bars) / s) + 34
    left = min(max(left, 110), width // 2)
    row, gap, head, top = 24, 12, 24, 52 + (24 if len(legend) > 1 else 0)
    height = top + sum(row * len(some) + gap + (head if name else 0) for name, some in groups) + 54
    most = max(bar.high if bar.high is not None and math.isfinite(bar.high) else bar.value for bar in bars) * 1.02
    most = most or 1.0
    span = width - left - 78

    picture = Image.new("RGB", (width * s, height * s), (255, 255, 255))
    draw = ImageDraw.Draw(picture)

    def at(value: float) -> float:
        return (left + span * value / most) * s

    def write(x: float, y: float, text: str, color: tuple, anchor: str) -> None:
        draw.text((x, y), text, color, plain, anchor=anchor)

    draw.text((20 * s, 26 * s), title, _INK, ImageFont.load_default(16 * s), anchor="lm")
    if len(legend) > 1:
        x = 20.0 * s
        for k, name in enumerate(legend):
            draw.rectangle([x, 50 * s, x + 12 * s, 62 * s], COLORS[k % len(COLORS)])
            write(x + 18 * s, 56 * s, name, _INK, "lm")
            x += plain.getlength(name) + 44 * s
    bottom = (height - 50) * s
    for tick in _ticks(most):
        draw.line([(at(tick), (top - 4) * s), (at(tick), bottom)], _LINE, s)
        write(at(tick), bottom + 6 * s, f"{tick:g}", _PALE, "mt")
    write((left + span / 2) * s, (height - 14) * s, axis, _PALE, "mm")
    y = float(top)
    for name, some in groups:
        if name:
            write(20 * s, (y + head / 2) * s, name, _PALE, "lm")
            y += head
        for bar in some:
            label = bar.label
            while len(label) > 4 and plain.getlength(label) > (left - 30) * s:
                label = label[:-2].rstrip(" .…") + "…"
            middle = (y + row / 2) * s
            write((left - 10) * s, middle, label, _INK, "rm")
            write(_draw_bar(draw, bar, at, middle) + 8 * s, middle, bar.text or f"{bar.value:.2f}", _INK, "lm")
            y += row
        y += gap
    draw.line([(at(0), (top - 4) * s), (at(0), bottom)], _PALE, s)
    return picture.resize((width, height), Image.Resampling.BOX)


def _draw_bar(draw: ImageDraw.ImageDraw, bar: Bar, at: Callable[[float], float], middle: float) -> float:
    """One bar with its whisker, around the line ``middle``; returns where it ends."""
    s = _SCALE
    draw.rectangle(
        [at(0), middle - 8 * s, max(at(bar.value), at(0) + s), middle + 8 * s], COLORS[bar.series % len(COLORS)]
    )
    if bar.low is None or bar.high is None or not math.isfinite(bar.low + bar.high):
        return at(bar.value)
    low, high = at(max(bar.low, 0)), at(bar.high)
    draw.line([(low, middle), (high, middle)], _INK, 2 * s)
    for edge in (low, high):
        draw.line([(edge, middle - 4 * s), (edge, middle + 4 * s)], _INK, 2 * s)
    return max(at(bar.value), high)


def cumulative_chart(
    title: str, series: Sequence[tuple[str, Sequence[float]]], axis: str = "", width: int = 860, height: int = 380
) -> Image.Image:
    """For each series a curve: which share of its values is at most so large.

    Args:
        title: above.
        series: (name, values); values from 0 on.
        axis: what the values are, below.
        width, height: px.

    Raises:
        InputError: no series, one without values, or a value that is negative or not finite.
    """
    if not series or not all(values for _, values in series):
        raise InputError("cumulated values need at least one series, and values in each.")
    if bad := next((v for _, values in series for v in values if not math.isfinite(v) or v < 0), None):
        raise InputError(f"cumulated values must be finite and not negative; got {bad}.")
    s, left, top = _SCALE, 64, 84
    plain = ImageFont.load_default(13 * s)
    most = max(v for _, values in series for v in values) * 1.02 or 1.0
    picture = Image.new("RGB", (width * s, height * s), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    right, bottom = (width - 30) * s, (height - 56) * s

    def place(value: float, share: float) -> tuple[float, float]:
        return left * s + (right - left * s) * value / most, bottom - (bottom - top * s) * share

    draw.text((20 * s, 26 * s), title, _INK, ImageFont.load_default(16 * s), anchor="lm")
    for tick in _ticks(most):
        draw.line([place(tick, 0), place(tick, 1)], _LINE, s)
        draw.text((place(tick, 0)[0], bottom + 6 * s), f"{tick:g}", _PALE, plain, anchor="mt")
    for share in (0, 0.25, 0.5, 0.75, 1):
        draw.line([place(0, share), place(most, share)], _PALE if share == 0 else _LINE, s)
        draw.text((place(0, share)[0] - 8 * s, place(0, share)[1]), f"{100 * share:.0f} %", _PALE, plain, anchor="rm")
    draw.text(((left * s + right) / 2, (height - 16) * s), axis, _PALE, plain, anchor="mm")
    x = 20.0 * s
    for k, (name, values) in enumerate(series):
        color = COLORS[k % len(COLORS)]
        draw.rectangle([x, 50 * s, x + 12 * s, 62 * s], color)
        draw.text((x + 18 * s, 56 * s), name, _INK, plain, anchor="lm")
        x += plain.getlength(name) + 44 * s
        points, ordered = [place(0, 0)], sorted(values)
        for i, value in enumerate(ordered):
            points += [place(value, i / len(ordered)), place(value, (i + 1) / len(ordered))]
        draw.line([*points, place(most, 1)], color, 3 * s, joint="curve")
    return picture.resize((width, height), Image.Resampling.BOX)
