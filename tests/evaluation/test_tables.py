"""Intervals against the normal approximation and a slow bootstrap; tables and charts as text and pixels."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch

from facerecon.errors import InputError
from facerecon.evaluation.tables import Metric, Row, Summary, Table, bootstrap_interval, bootstrap_summary, write_csv
from facerecon.export.chart import COLORS, Bar, bar_chart, cumulative_chart


def test_interval_of_a_mean_is_the_normal_one_for_many_values() -> None:
    values = torch.randn(400, dtype=torch.float64) * 3 + 5
    mean, low, high = bootstrap_interval(values)
    error = 1.96 * values.std().item() / 20
    assert mean == pytest.approx(values.mean().item())
    assert low == pytest.approx(mean - error, abs=0.06) and high == pytest.approx(mean + error, abs=0.06)


def test_interval_of_a_statistic_resamples_whole_items() -> None:
    values = torch.rand(12, 2, dtype=torch.float64)

    def ratio(some: torch.Tensor) -> torch.Tensor:
        return some[:, 0].sum() / some[:, 1].sum()

    found = bootstrap_interval(values, ratio, draws=300)
    rows = torch.randint(12, (300, 12), generator=torch.Generator().manual_seed(0))
    slow = sorted(float(sum(values[i, 0] for i in r) / sum(values[i, 1] for i in r)) for r in rows.tolist())
    assert found == pytest.approx((ratio(values).item(), slow[7], slow[292]))
    mean = bootstrap_interval(values[:, 0], lambda v: v.mean())
    assert bootstrap_interval(values[:, 0]) == pytest.approx(mean)
    with pytest.raises(InputError, match="at least one"):
        bootstrap_interval(values[:0])


def test_summaries_leave_out_what_was_not_measured() -> None:
    cell = bootstrap_summary([1.0, math.nan, 3.0, 5.0])
    assert (cell.value, cell.count) == (3.0, 3) and cell.std == pytest.approx(2.0)
    assert cell.low is not None and 1 <= cell.low < 3 < cell.high <= 5
    two = bootstrap_summary([1.0, 2.0])
    assert two.low is None and two.high is None and two.std == pytest.approx(math.sqrt(0.5))
    assert bootstrap_summary([4.0]) == Summary(4.0, 1)


def example() -> Table:
    metrics = [Metric("nose", "nose, mm", std=True), Metric("share", "share, %", 100, 0), Metric("gone", "?")]
    return Table(
        "shape", "Shape", metrics,
        [
            Row("ours", {"nose": Summary(1.234, 5, 1.1, 1.4, 0.2), "share": Summary(0.5, 5)}),
            Row("theirs", {"nose": Summary(1.9, 100)}, source="a paper"),
            Row("other weights", note="give decoders.part=FILE"),
        ],
        first="method", notes=["A note."],
    )  # fmt: skip


def test_a_table_as_markdown() -> None:
    assert example().to_markdown(3) == "\n".join([
        "### Shape", "",
        "| method | nose, mm | share, % | n |",
        "|---|---|---|---|",
        "| ours | 1.23 ± 0.20 (1.10 to 1.40) | 50 | 5 |",
        "| *published: theirs* | *1.90* |  | *100* |", "",
        "A note. Published, on the same data: theirs (a paper). Not run: other weights (give decoders.part=FILE).", "",
    ])  # fmt: skip


def test_a_table_without_counts() -> None:
    table = example()
    table.counted = False
    assert (
        "| method | nose, mm | share, % |\n|---|---|---|\n| ours | 1.23 ± 0.20 (1.10 to 1.40) | 50 |\n"
        in table.to_markdown()
    )


def test_tables_as_csv_read_back() -> None:
    rows = list(csv.DictReader(io.StringIO(write_csv([example(), example()]).decode())))
    assert len(rows) == 8
    first = rows[0]
    assert (first["table"], first["row"], first["metric"], first["n"]) == ("shape", "ours", "nose", "5")
    assert [float(first[k]) for k in ("value", "std", "low", "high")] == [1.234, 0.2, 1.1, 1.4]
    assert (rows[2]["published"], rows[2]["value"]) == ("a paper", "1.9")
    assert rows[3]["note"] == "give decoders.part=FILE" and rows[3]["value"] == ""


def test_bars_are_as_long_as_their_values() -> None:
    picture = bar_chart("A title", [("", [Bar("one", 1.0), Bar("two", 2.0, 1.5, 3.0), Bar("three", 3.0)])], "mm")
    pixels = np.asarray(picture).astype(int)
    colored = (np.abs(pixels - COLORS[0]).max(2) < 12).sum(1)  # whiskers cut a few off
    runs = [int(run.max()) for run in np.split(colored, np.flatnonzero(colored == 0)) if run.any()]
    assert len(runs) == 3
    assert runs[1] / runs[0] == pytest.approx(2, rel=0.05) and runs[2] / runs[0] == pytest.approx(3, rel=0.05)
    for bars in ([], [Bar("a", math.nan)], [Bar("a", -1.0)]):
        with pytest.raises(InputError):
            bar_chart("A title", [("", bars)])


def test_cumulated_values_rise_where_they_are() -> None:
    picture = cumulative_chart("A title", [("one", [1.0, 1.0, 3.0, 3.0]), ("two", [4.0])], "mm")
    pixels = np.asarray(picture).astype(int)[75:320, 70:]  # below the legend, right of the axis
    first, second = ((np.abs(pixels - color).max(2) < 12) for color in COLORS[:2])
    heights = [np.flatnonzero(first[:, x]).mean() for x in (350, 700)]  # between 1 and 3, beyond 3
    assert heights[0] == pytest.approx(84 + 240 / 2 - 75, abs=2) and heights[1] == pytest.approx(84 - 75, abs=2)
    assert np.flatnonzero(second.any(0))[0] == pytest.approx(64 + 766 * 4 / 4.08 - 70, abs=3)  # upright at 4
    for series in ([], [("a", [])], [("a", [math.nan])], [("a", [-1.0])]):
        with pytest.raises(InputError):
            cumulative_chart("A title", series)
