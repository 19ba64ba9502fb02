"""benchmarks/fit_settings.py: its differences are paired, and a run goes on where one stopped."""

from __future__ import annotations

import pytest
import torch

from benchmarks import fit_settings


def row(face: int, better: float) -> dict[str, float]:
    """Figures of a face, worse for a later one, all of them ``better`` by a share of the first face's."""
    signs = {metric.key: 1 if metric.key.endswith("identity") else -1 for metric in fit_settings.METRICS}
    return {"seconds": 10.0} | {key: 1 + sign * better - sign * face / 10 for key, sign in signs.items()}


def test_differences_are_of_the_same_faces_in_percent() -> None:
    now = {i: row(i, 0.0) for i in range(6)}
    # two faces less, the worst: alone, they would make the means of the others better
    other = {i: row(i, 0.1 if i < 3 else -0.05) for i in range(4)}
    means, differences = fit_settings.tables({"now": now, "other": other})
    assert [r.label for r in means.rows] == ["now", "other"] and means.rows[0].count == 6
    (found,) = differences.rows
    assert found.label == "other (better on 3, 3, 3, 3, 3, 3 of 4)" and found.count == 4
    for key, cell in found.cells.items():
        sign = 1 if key.endswith("identity") else -1
        assert cell.value == pytest.approx(sign * 0.0625 / (1 - sign * 0.15)), key


@pytest.mark.parametrize("threads", ["one_thread", "two_threads"])
def test_a_run_goes_on_where_one_stopped(monkeypatch, tmp_path, capsys, request, threads) -> None:
    request.getfixturevalue(threads)
    made, stopped = [], []

    def measured(photo, fitter, *_):
        fit = (photo.number, fitter)
        if fit == (1, "fast") and not stopped:
            stopped.append(fit)
            raise KeyboardInterrupt
        made.append(fit)
        return row(photo.number, 0.0)

    class Photo:
        def __init__(self, number: int) -> None:
            self.number = number

        def to(self, _):
            return self

    monkeypatch.setattr(fit_settings, "faces", lambda count: [Photo(i) for i in range(count)])
    monkeypatch.setattr(fit_settings, "build_fitter", lambda config, _: config.fitting.preset)
    for name in ("load_eval_identity", "load_perceptual"):
        monkeypatch.setattr(fit_settings, name, lambda *_: Photo(0))
    monkeypatch.setattr(fit_settings, "measured", measured)
    monkeypatch.setattr(fit_settings, "prepare", lambda _: torch.device("cpu"))  # leaves the threads alone
    words = ["--variant", "fast", "fitting=fast", "--faces", "2", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        fit_settings.main(words)
    fit_settings.main(words)
    assert sorted(made) == [(0, "default"), (0, "fast"), (1, "default"), (1, "fast")]
    assert "| fast (better on 0, 0, 0, 0, 0, 0 of 2) |" in capsys.readouterr().out
    assert (tmp_path / "tables.md").exists()
