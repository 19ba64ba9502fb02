"""What a training script keeps beside its steps: rows of metrics, checkpoints, snapshots, stop and resume.

The script holds the loop itself::

    loop = TrainingLoop(training, folder, config, snapshots)
    loop.resume()
    with loop.until(total):
        while loop.running():
            ...                      # next batch, loss, backward, step, average
            loop.end_step(metrics)
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from tqdm import tqdm

from facerecon.errors import FitError, InputError
from facerecon.run.checkpoint import Checkpoints, is_due
from facerecon.run.directory import RunDirectory
from facerecon.run.metrics import drop_after, read_metrics
from facerecon.run.processes import Processes
from facerecon.run.signals import Stopped, check_stop, names_kept, patient_stops, stop_status
from facerecon.run.wandb_logger import row_logger
from facerecon.storage import all_finite

__all__ = ["Snapshots", "Training", "TrainingLoop", "diverged", "fits_run", "training_folder"]


class Training(Protocol):
    """What the loop asks of networks, optimizers and counters.

    Attributes:
        processes: the ranks.
        images: samples seen, over all ranks.
        steps: turns of the loop.
        progress: plain values that begin each row of metrics.
        shown: {metric: its unit}, what the progress bar shows.
        remedy: settings that help where numbers are not finite.
    """

    processes: Processes
    images: int
    steps: int
    progress: dict[str, Any]
    shown: Mapping[str, str]
    remedy: str

    def networks(self) -> list[nn.Module]: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: Mapping[str, Any], name: str) -> None: ...


class Snapshots(Protocol):
    """Measurements and files of a snapshot."""

    def begin(self) -> None:
        """Before the first step of a run."""

    def make(self, row: dict[str, Any], final: bool) -> dict[str, Any]:
        """Measure and write; returns the row with the measurements."""

    def describe(self, row: Mapping[str, Any]) -> str:
        """The measurements that are worth a line."""


@contextlib.contextmanager
def training_folder(
    config: Mapping[str, Any],
    processes: Processes,
    fixed: Sequence[str],
    aliases: Mapping[str, str | None] | None = None,
) -> Iterator[RunDirectory | None]:
    """The run's folder, held by the first rank; a run that ends early tells what is kept of it.

    Args:
        config: plain values, ``out``, ``resume`` and ``keep`` among them; written as config.json and compared with what
            a run that is there was begun with, see :class:`facerecon.run.RunDirectory`.
        processes: the ranks; all but the first get None.
        fixed: keys that cannot change, not even with ``resume="force"``.
        aliases: {dotted key of an earlier version: today's}.

    Raises:
        KeyboardInterrupt, Stopped, OutputError: as within, with the last checkpoint in the message.
    """
    if not processes.first:
        try:
            yield None
        except (KeyboardInterrupt, Stopped) as stop:
            raise SystemExit(stop_status(stop)) from None  # the first rank tells what is kept
        return
    resume = config["resume"]
    again = {"resume": resume, "overwrite": not resume, "fixed": fixed, "aliases": aliases}
    with RunDirectory(config["out"], config, keep_checkpoints=config["keep"], **again).alone() as folder:

        def kept() -> str:
            steps = folder.checkpoints.steps()
            return f"the last checkpoint in {folder.path} is of step {steps[-1]}" if steps else "no checkpoint yet"

        with names_kept(kept):
            yield folder


@contextlib.contextmanager
def fits_run(name: str) -> Iterator[None]:
    """Turn what a checkpoint of other networks raises into one line.

    Raises:
        InputError: ``name`` is of other networks.
    """
    try:
        yield
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{name} does not fit this run ({reason}); use the same settings or another out=.") from None


class TrainingLoop:
    """Bookkeeping of one training, on every rank.

    Args:
        training: networks, optimizers and counters, on every rank.
        folder: of the run; None on ranks that do not write.
        config: plain values: ``out``, ``resume``, ``keep``, ``logger``; ``log_kimg`` and ``snapshot_kimg``, thousands
            of images between two rows of metrics and between two snapshots; ``max_minutes``.
        snapshots: what is measured and written at a snapshot.
        mean: rows of metrics hold means over the steps since the last row; False: each metric's last value.
        longer: keys that make the run longer, for a message.
    """

    def __init__(
        self,
        training: Training,
        folder: RunDirectory | None,
        config: Mapping[str, Any],
        snapshots: Snapshots,
        mean: bool = False,
        longer: str = "kimg",
    ) -> None:
        self.training, self.processes, self.folder = training, training.processes, folder
        self.config, self.snapshots, self.mean, self.longer = config, snapshots, mean, longer
        self.metrics: dict[str, Tensor] = {}  # of the steps since the last row
        self.count = 0  # of these steps
        self.unfinished = self.stopped = self.over = False

    def resume(self) -> None:
        """Load the last checkpoint, on every rank, and drop the rows of metrics that come after it."""
        t = self.training
        checkpoints = Checkpoints(Path(self.config["out"]) / "checkpoints", self.config["keep"])
        found = checkpoints.latest(self.processes.device) if self.config["resume"] else None
        snapshot = False
        if found is not None:
            step, state = found
            t.load_state(state, str(checkpoints.path(step)))
            self.metrics = dict(state.get("metrics", state.get("figures", {})))
            self.count, snapshot = state.get("count", 0), state.get("snapshot", False)
        if self.folder is None:
            return
        if found is not None:
            print(f"goes on from step {t.steps}, {t.images / 1000:.1f} kimg")
        drop_after(self.folder.metrics.path, t.images, "images")
        rows = read_metrics(self.folder.metrics.path) if snapshot else []
        self.unfinished = snapshot and not any("snapshot" in row and row["images"] == t.images for row in rows)

    def nothing_to_do(self, total: int) -> bool:
        """Whether all images are seen and the last snapshot is made; then the run ends with a line."""
        t = self.training
        if t.images < total or self.processes.any(self.unfinished):
            return False
        if self.folder is not None:
            print(f"nothing to do: {t.images / 1000:.1f} kimg are trained; raise {self.longer} to go on.")
        return True

    @contextlib.contextmanager
    def until(self, total: int) -> Iterator[None]:
        """Train until ``total`` images are seen, ``max_minutes`` have passed, or the run is asked to end.

        Raises:
            KeyboardInterrupt, Stopped: this rank or another one was asked to end; a checkpoint is written.
        """
        t, first = self.training, self.folder is not None
        self.total, self.started = total, time.perf_counter()
        self.log = row_logger(self.config, step="images") if first else None
        if first and t.images == 0:
            self.snapshots.begin()
        self._mark()
        self.bar = tqdm(total=total, initial=t.images, unit="img", unit_scale=True, disable=None if first else True)
        with self.bar, patient_stops() as self.asked:
            stopped = self.unfinished and not self.snapshot(t.images >= total)
            self.stopped = self.processes.any(stopped)
            yield
        if self.stopped:
            check_stop()
            raise Stopped  # another rank was asked
        if first:
            minutes = f"stopped after {self.config['max_minutes']} minutes; the same command goes on"
            seconds = time.perf_counter() - self.started
            end = "done" if t.images >= total else minutes
            print(f"{end}: {t.images / 1000:.1f} kimg in {self.folder.path}, {seconds / 60:.1f} min")

    def running(self) -> bool:
        """Whether there is a next step."""
        return self.training.images < self.total and not self.stopped and not self.over

    def end_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep what is due after a step.

        Args:
            metrics: {name: () tensor} of this rank.

        Raises:
            FitError: metrics or weights are not finite; the last checkpoint is kept.
        """
        t, config, first = self.training, self.config, self.folder is not None
        self._add(metrics)
        batch, self.images = t.images - self.images, t.images
        self.bar.update(min(batch, self.total - self.bar.n))
        done, limit = t.images >= self.total, config["max_minutes"]
        late = limit is not None and time.perf_counter() - self.started > 60 * limit
        self.over = self.processes.any(late or self.asked())  # all ranks end at the same step
        stopped = self.over and not done and self.processes.any(self.asked())
        last = done or (self.over and not stopped)
        if is_due(t.images, batch, config["log_kimg"]) or last:
            row = self._row()
            if first:
                self.folder.metrics.write(row)
                self.log(row)
                self._report(row)
        due = is_due(t.images, batch, config["snapshot_kimg"]) or last
        if due or stopped:
            self._check_weights()
            self._keep(due)
            if first and due and not stopped:
                stopped = not self.snapshot(done)
            self.stopped = self.processes.any(stopped)  # and no rank leaves before the checkpoint is written
            self._mark()

    def snapshot(self, final: bool) -> bool:
        """Make what belongs to a checkpoint, and at last its row of metrics.

        Args:
            final: the run is finished.

        Returns:
            Whether it was made; False if the run was asked to end before.
        """
        try:
            with patient_stops(False):  # it can be made again from the checkpoint
                row = self.snapshots.make({**self.training.progress, "snapshot": True}, final)
                self.folder.metrics.write(row)
                self.log(row)
                text = self.snapshots.describe(row)
                self.bar.write(f"snapshot at {self.training.images / 1000:.1f} kimg" + (f": {text}" if text else ""))
        except (KeyboardInterrupt, Stopped):
            return False
        return True

    # -- small parts -------------------------------------------------------------------------------------

    def _mark(self) -> None:
        self.images, self.marked = self.training.images, (time.perf_counter(), self.training.images)

    def _add(self, metrics: Mapping[str, Tensor]) -> None:
        if self.processes.device.type == "cpu" or self.training.steps % 8 == 0:  # to look is to wait for the device
            for name, value in metrics.items():
                if not math.isfinite(float(value)):
                    raise diverged(self.training, f"'{name}' is not finite ({float(value)})")
        for name, value in metrics.items():
            self.metrics[name] = self.metrics[name] + value if self.mean and name in self.metrics else value
        self.count += 1

    def _row(self) -> dict[str, Any]:
        """One row of metrics: means over the ranks."""
        t, count = self.training, self.count if self.mean else 1
        averages = {name: self.processes.average(value / count) for name, value in sorted(self.metrics.items())}
        values = {name: round(float(value), 6) for name, value in averages.items()}
        self.metrics, self.count = {}, 0
        speed = (t.images - self.marked[1]) / max(time.perf_counter() - self.marked[0], 1e-9)
        self._mark()
        timing = {"images_per_second": round(speed, 3), "eta_minutes": round((self.total - t.images) / speed / 60, 2)}
        return t.progress | values | timing

    def _report(self, row: Mapping[str, Any]) -> None:
        """Losses beside the progress bar; where there is none, a line."""
        shown = [f"{key} {row[key]:.3g} {unit}".strip() for key, unit in self.training.shown.items() if key in row]
        text = ", ".join(shown if "phase" not in row else [row["phase"], *shown])
        if not self.bar.disable:
            self.bar.set_postfix_str(text)
            return
        print(
            f"{row['images'] / 1000:.1f} kimg, {row['images_per_second']:.1f} img/s, "
            f"{row['eta_minutes']:.0f} min left; {text}",
            flush=True,
        )

    def _keep(self, snapshot: bool) -> None:
        """Write a checkpoint, with the metrics since the last row; ``snapshot``: one belongs to it."""
        metrics = {name: self.processes.average(value) for name, value in sorted(self.metrics.items())}
        state = self.training.state() | {"metrics": metrics, "count": self.count, "snapshot": snapshot}
        if self.folder is not None:
            self.folder.checkpoints.save(self.training.steps, state)

    def _check_weights(self) -> None:
        """Before a checkpoint or a snapshot replaces an older one."""
        for network in self.training.networks():
            for name, value in network.state_dict().items():
                if not all_finite(value):
                    raise diverged(self.training, f"weights '{name}' is not finite")


def diverged(training: Training, what: str) -> FitError:
    """The error of a training that has gone wrong: the last checkpoint is kept, and a setting may help."""
    return FitError(
        f"training stopped at step {training.steps}, {training.images / 1000:.1f} kimg: {what}. The last checkpoint is "
        f"kept; go on from it by resume=force with {training.remedy}."
    )
