"""What `make` needs of Python: a virtual environment that pip fills with the pinned packages, with progress.

    python tools/install.py .venv dev
    python tools/install.py .venv test_all

The second argument is an extra of setup.py. pip's settings apply (PIP_INDEX_URL, PIP_FIND_LINKS, https_proxy, ...), and
its whole output is kept in pip.log of the environment. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = 20.0  # MB; a smaller package is no line of its own


def main(arguments: list[str] | None = None) -> int:
    """Make and fill it; the exit status, 2 after one line on what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the environment; made where it is missing")
    parser.add_argument("extra", nargs="?", default="dev", help="of setup.py (default: dev)")
    given = parser.parse_args(arguments)
    python = given.folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(given.folder)], capture_output=True, text=True)
        if made.returncode:
            why = " ".join((made.stdout + made.stderr).split())[:300]
            print(f"error: no environment could be made in {given.folder}: {why}", file=sys.stderr)
            return 2
    print(
        f"set-up, 1 of 2: Python packages into {given.folder}, some minutes; about 6 GB on disk where torch is built "
        "for CUDA, as PyPI's is on Linux",
        flush=True,
    )
    started, log = time.monotonic(), given.folder / "pip.log"
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch, open(log, "w", encoding="utf-8") as record:
        view = _View(Path(scratch))
        options = [
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar=off",
            "-c",
            str(ROOT / "constraints.txt"),
        ]
        command = [str(python), "-m", "pip", "install", *options, "-e", f"{ROOT}[{given.extra}]"]
        environment = {**os.environ, "TMPDIR": scratch, "PYTHONUNBUFFERED": "1"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **streams, text=True, errors="replace", env=environment) as pip:
            for line in pip.stdout:
                record.write(line)
                view.read(line)
        view.end()
    if pip.returncode:
        print(f"error: {explained(log.read_text(encoding='utf-8'), log)}", file=sys.stderr)
        return 2
    print(f"set-up, 1 of 2: done in {time.monotonic() - started:.0f} s; next: the models")
    return 0


class _View:
    """What is shown of pip's output: big packages, and on a terminal how much of the one that runs is there."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.text, self.ended = scratch, "looking for versions that fit", threading.Event()
        if sys.stdout.isatty():
            threading.Thread(target=self._tick, daemon=True).start()

    def read(self, line: str) -> None:
        """One line of pip's."""
        if got := re.match(r"\s*(Downloading|Using cached) (\S+) \(([\d.]+) (kB|MB|GB)\)", line):
            size = float(got[3]) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[got[4]]
            name = "-".join(got[2].rpartition("/")[2].split("-")[:2])
            self.text = f"{name}, {size:.0f} MB"
            if size >= SMALL:
                self._say(f"  {'cached: ' if got[1] == 'Using cached' else ''}{self.text}")
        elif line.startswith("Installing collected packages:"):
            self.text = f"unpacking {line.count(',') + 1} packages"
            self._say(f"  {self.text}")

    def end(self) -> None:
        """Nothing more comes."""
        self.ended.set()
        self._say("")

    def _say(self, text: str) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r\033[K")
        if text:
            print(text, flush=True)

    def _tick(self) -> None:
        started = time.monotonic()
        while not self.ended.wait(0.5):
            there, seconds = 0, time.monotonic() - started
            for parent, _, names in os.walk(self.scratch):  # pip's own file, and its cache's copy
                with contextlib.suppress(OSError):  # gone again
                    there = max(there, *(os.stat(os.path.join(parent, name)).st_size for name in names), 0)
            sys.stdout.write(f"\r\033[K  ... {self.text} ({there / 1e6:.0f} MB there), {seconds:.0f} s")
            sys.stdout.flush()


def explained(output: str, log: Path) -> str:
    """One line on why pip failed, with the package and what to do.

    Args:
        output: of pip.
        log: where it is kept, for the message.
    """
    sys.path.insert(0, str(ROOT))
    from facerecon.assets.store import failure_reason

    wanted = re.findall(r"No matching distribution found for (\S+)|Failed to build '?([\w.-]+)", output)
    what = next(filter(None, wanted[-1]), "") if wanted else "the packages"
    return (
        f"pip could not install {what} ({failure_reason(output)}). To go on: check the connection (https_proxy sets a "
        "proxy, PIP_INDEX_URL a mirror) and run the same command again; finished downloads are in pip's cache. Without "
        "a connection: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER of wheels (elsewhere, pip download -d FOLDER "
        f"-c constraints.txt '.[dev]' setuptools wheel fills it). pip's own words: {log}"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
