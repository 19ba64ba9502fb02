"""Tables of an evaluation: means with bootstrap intervals, published numbers beside them, as Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from facerecon.errors import InputError
from facerecon.storage import csv_bytes

__all__ = ["Metric", "PUBLISHED", "Row", "Summary", "Table", "bootstrap_interval", "bootstrap_summary", "write_csv"]

BOOTSTRAP = 2000
LEAST = 3
"""So many values are needed for an interval to be shown."""


def bootstrap_interval(
    values: Tensor, statistic: Callable[[Tensor], Tensor] | None = None, draws: int = BOOTSTRAP
) -> tuple[float, float, float]:
    """A statistic of some values, and its interval of 95 % by the bootstrap's percentiles (Efron 1979).

    Args:
        values: (N,) or (N, ...), one row an item; items are drawn with replacement, the same ones in every call.
        statistic: (N, ...) -> scalar; the mean of (N,) values if left out.
        draws: how many samples.

    Returns:
        The statistic, and the 2.5th and 97.5th percentiles; all three are the same for one item.

    Raises:
        InputError: no values.
    """
    if len(values) == 0:
        raise InputError("an interval needs at least one value; got none.")
    rows = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    if statistic is None:
        value, found = values.mean(), values[rows].mean(1)
    else:
        value, found = statistic(values), torch.stack([statistic(values[some]) for some in rows])
    found = found[found.isfinite()].sort().values
    if len(found) == 0:
        return float(value), math.nan, math.nan
    return float(value), found[int(0.025 * len(found))].item(), found[int(0.975 * len(found))].item()


@dataclass(frozen=True)
class Summary:
    """One cell of a table.

    Args:
        value: the mean, or another statistic.
        count: of items.
        low, high: of the interval of 95 %, or None.
        std: sample standard deviation over the items (divided by N - 1), or None.
    """

    value: float
    count: int | None = None
    low: float | None = None
    high: float | None = None
    std: float | None = None


def bootstrap_summary(values: Sequence[float] | Tensor, statistic: Callable[[Tensor], Tensor] | None = None) -> Summary:
    """Mean, or another statistic, of some items; with an interval from three items on.

    Args:
        values: (N,), or (N, ...) with a statistic; those that are not finite are left out.
        statistic: see :func:`bootstrap_interval`.

    Raises:
        InputError: no finite values.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    values = values[values.flatten(1).isfinite().all(1) if values.ndim > 1 else values.isfinite()]
    value, low, high = bootstrap_interval(values, statistic)
    few = len(values) < LEAST
    std = values.std().item() if statistic is None and len(values) > 1 else None
    return Summary(value, len(values), None if few else low, None if few else high, std)


@dataclass(frozen=True)
class Metric:
    """One column.

    Args:
        key: in the rows' cells and in the CSV.
        title: its heading.
        scale: factor of what is shown.
        digits: after the point.
        std: show the standard deviation.
        interval: show the interval.
        signed: show the sign.
    """

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2
    std: bool = False
    interval: bool = True
    signed: bool = False

    def text(self, cell: Summary | None) -> str:
        """A cell as Markdown."""
        if cell is None or not math.isfinite(cell.value):
            return ""

        def number(value: float) -> str:
            return f"{self.scale * value:{'+' if self.signed else ''}.{self.digits}f}"

        text = number(cell.value)
        if self.std and cell.std is not None:
            text += f" ± {number(cell.std)}"
        if self.interval and cell.low is not None and cell.high is not None:
            text += f" ({number(cell.low)} to {number(cell.high)})"
        return text


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        label: what was measured.
        cells: {metric's key: summary}.
        note: in place of the cells (why it was not run).
        source: where published numbers come from; "" for our own measurements.
        optimized: keys of the metrics that were optimized, whose cells are marked.
    """

    label: str
    cells: Mapping[str, Summary] = field(default_factory=dict)
    note: str = ""
    source: str = ""
    optimized: frozenset[str] = frozenset()

    @property
    def count(self) -> int | None:
        """Of items behind the row; None where it is not known."""
        counts = [cell.count for cell in self.cells.values() if cell.count is not None]
        return max(counts) if counts else None


@dataclass
class Table:
    """A table with our rows, then published ones.

    Args:
        name: short, of the CSV.
        title: of the Markdown section.
        metrics: columns.
        rows: ours and published ones.
        first: heading of the first column.
        notes: sentences below it.
        counted: whether the last column is the number of items behind a row.
    """

    name: str
    title: str
    metrics: Sequence[Metric]
    rows: list[Row] = field(default_factory=list)
    first: str = ""
    notes: list[str] = field(default_factory=list)
    counted: bool = True

    def shown(self) -> list[Metric]:
        """Columns that some row has a value for."""
        return [f for f in self.metrics if any(f.text(row.cells.get(f.key)) for row in self.rows)]

    def to_markdown(self, level: int = 2) -> str:
        """A section: heading, table, notes; published rows in italics at the end, their sources in the notes."""
        metrics = self.shown()
        lines = [f"{'#' * level} {self.title}", ""]
        if metrics:
            titles = [self.first, *[f.title for f in metrics], *["n"][: self.counted]]
            lines += ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
        later, sources, marked = [], {}, False
        for row in sorted(self.rows, key=lambda row: bool(row.source)):
            if row.note or not metrics:
                later.append(f"{row.label} ({row.note})")
                continue
            count = "" if row.count is None else f"{row.count:,}"
            cells = [row.label]
            for metric in metrics:
                text = metric.text(row.cells.get(metric.key))
                mark = " †" if text and metric.key in row.optimized else ""
                marked, cells = marked or bool(mark), [*cells, text + mark]
            cells += [count][: self.counted]
            if row.source:
                cells = [f"*{cell}*" if cell else "" for cell in cells]
                cells[0] = f"*published: {row.label}*"
                sources.setdefault(row.source, []).append(row.label)
            lines.append("| " + " | ".join(cells) + " |")
        notes = [*self.notes, *["† is what these fits optimized."][: int(marked)]]
        notes += [f"Published, on the same data: {', '.join(labels)} ({source})." for source, labels in sources.items()]
        notes += [f"Not run: {', '.join(later)}."] if later else []
        if notes:
            lines += ["", " ".join(notes)]
        return "\n".join([line for i, line in enumerate(lines) if line or (i and lines[i - 1])]) + "\n"


def write_csv(tables: Sequence[Table]) -> bytes:
    """All cells of all tables, one a line: table, row, metric, value, std, low, high, n, published, note.

    Values are as measured, without the scale of their columns; ``published`` names the source, or is empty.
    """
    lines = [["table", "row", "metric", "value", "std", "low", "high", "n", "published", "note"]]
    for table in tables:
        for row in table.rows:
            if row.note:
                lines.append([table.name, row.label, *[""] * 6, row.source, row.note])
                continue
            for metric in table.metrics:
                cell = row.cells.get(metric.key)
                if cell is not None:
                    numbers = [cell.value, cell.std, cell.low, cell.high]
                    shown = ["" if v is None else f"{v:.6g}" for v in numbers]
                    note = "optimized" if metric.key in row.optimized else ""
                    lines.append([table.name, row.label, metric.key, *shown, cell.count, row.source, note])
    return csv_bytes(lines)


PUBLISHED: dict[str, tuple[Row, ...]] = {
    "realy": tuple(
        Row(name, {"mean": Summary(mean, 100)}, source="REALY, 100 scans, mean of four regions; arXiv:2312.00311")
        for name, mean in (("3DDFA-v2", 1.926), ("DECA", 2.010))
    ),
    "fair": (Row("HUST", {"mean": Summary(11.20), "bias_score": Summary(1.58)}, source="FAIR; ICCV 2025, abstract"),),
}
"""{benchmark: rows}, in the units of the tables' columns: shown where that very benchmark was measured.

Only numbers of a source at hand: the cells of the paper's Tables 4 to 6 are in arXiv:2211.13874, which was read in a
translation without its tables. Rows of who has it belong here.
"""
