"""Seconds of fit/reconstruct.py by part, of this checkout and, in turns with it, of another one.

    python -m benchmarks.reconstruct
    python -m benchmarks.reconstruct --other /path/to/another/checkout --runs 4
    python -m benchmarks.reconstruct --img photos/ --runs 1

Each run is a process of its own, as a user starts it, and writes every file. "wall" is its time; "observe" to "export"
are those of metrics.jsonl, added up over the faces (those that are fitted at the same time count twice), and "start-up"
is what is left of a run of one photo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]


def measure(checkout: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds by part of one run of a checkout's script."""
    with tempfile.TemporaryDirectory() as out:
        script = checkout / "fit" / "reconstruct.py"
        command = [sys.executable, str(script), *arguments, f"out={out}", "resume=false"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        clock, before = time.perf_counter(), os.times()
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - clock, os.times()
        if done.returncode not in (0, 1):
            raise SystemExit(f"{checkout}: {done.stderr.strip()}")
        rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    parts: dict[str, float] = {"wall": wall, "CPU": cpu, "wall a face": wall / len(rows)}
    for row in rows:
        for part, seconds in row["seconds"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    if len(rows) == 1:
        parts["start-up"] = wall - sum(rows[0]["seconds"].values())
    return parts


def main(arguments: list[str] | None = None) -> None:
    """Run in turns; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img", default=str(HERE / "samples" / "astronaut.jpg"), help="photo or folder")
    parser.add_argument("--other", type=Path, help="another checkout, which runs first")
    parser.add_argument("--runs", type=int, default=3, help="of each checkout")
    parser.add_argument("--set", nargs="*", default=[], help="more keys, such as fitting=fast")
    options = parser.parse_args(arguments)
    checkouts = [HERE] if options.other is None else [options.other.resolve(), HERE]
    keys = [f"img={Path(options.img).resolve()}", *options.set]
    found: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for _ in range(options.runs):
        for checkout in checkouts:
            found[checkout].append(measure(checkout, keys))
    print("| seconds, median of " + str(options.runs) + " | " + " | ".join(c.name for c in checkouts) + " |")
    print("|---|" + "---|" * len(checkouts))
    for part in found[HERE][0]:
        values = [[run.get(part, 0.0) for run in found[checkout]] for checkout in checkouts]
        cells = [f"{median(of):.1f} ({min(of):.1f} to {max(of):.1f})" for of in values]
        print(f"| {part} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
