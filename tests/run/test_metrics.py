"""JSON lines that survive crashes and several writers."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from facerecon.errors import InputError, OutputError
from facerecon.run import MetricsWriter, drop_after, read_metrics


def test_rows_come_back_as_numbers(tmp_path):
    writer = MetricsWriter(tmp_path / "new" / "metrics.jsonl")
    assert writer.read() == []
    weight = torch.ones(2, requires_grad=True)
    writer.write(step=1, loss=torch.tensor(0.5), batch=weight * 2, score=np.float32(0.25), path=Path("a"))
    writer.write({"step": 2, "loss": float("nan"), "range": [float("-inf"), 1.0]}, note="é\n")
    first, second = writer.read()
    assert first == {"step": 1, "loss": 0.5, "batch": [2.0, 2.0], "score": 0.25, "path": "a"}
    assert math.isnan(second["loss"]) and second["range"] == [-math.inf, 1.0] and second["note"] == "é\n"
    assert len((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()) == 2
    assert "NaN" not in (tmp_path / "new" / "metrics.jsonl").read_text(), "strict JSON"


def test_a_torn_last_line_is_skipped_and_then_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    writer = MetricsWriter(path)
    writer.write(step=2)
    writer.write(step=3)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_missing_and_foreign_files_are_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_metrics(tmp_path / "none.jsonl")
    (tmp_path / "text.jsonl").write_text("not\njson\n")
    with pytest.raises(InputError, match="holds no JSON object"):
        read_metrics(tmp_path / "text.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        MetricsWriter(tmp_path / "file" / "metrics.jsonl").write(step=1)


def test_processes_that_write_at_once_do_not_mix(tmp_path):
    path = tmp_path / "metrics.jsonl"
    code = (
        "import sys\nfrom facerecon.run.metrics import MetricsWriter\nw = MetricsWriter(sys.argv[1])\n"
        "for i in range(200): w.write(who=sys.argv[2], step=i, text='x' * 3000)"
    )
    cwd = Path(__file__).resolve().parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who], cwd=cwd) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    rows = read_metrics(path)
    assert len(rows) == path.read_text().count("\n") == 400
    for who in "ab":
        assert [row["step"] for row in rows if row["who"] == who] == list(range(200))


def test_rows_after_a_step_can_be_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert drop_after(path, 3) == 0
    writer = MetricsWriter(path)
    for step in range(6):
        writer.write(step=step, loss=float("inf") if step == 0 else 1.0)
    writer.write(note="no step")
    assert drop_after(path, 3) == 2
    rows = read_metrics(path)
    assert [row.get("step") for row in rows] == [0, 1, 2, 3, None] and rows[0]["loss"] == math.inf


def test_a_line_that_another_process_is_writing_is_not_a_torn_one(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write('{"step": ')
        other.flush()
        writer = threading.Thread(target=MetricsWriter(path).write, kwargs={"step": 1})
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()  # it waits for the rest
        other.write("0}\n")
    writer.join(10)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
