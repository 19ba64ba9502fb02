"""BS Error and observed texels of the data set's ablations, on the same subjects (Sec. 3.2).

    python benchmarks/uv_ablations.py SET/manifest.safetensors [--n 60] [--out outputs/uv_ablations]

Each row makes the maps of the first N subjects of a manifest again with one thing changed, by train/uv_dataset.py, and
averages over all of them: filters are off. 'Light' is the division by the remaining shading, which FFHQ-UV does not do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facerecon.dataset.pipeline import ABLATIONS

SCRIPT = Path(__file__).resolve().parents[1] / "train" / "uv_dataset.py"
COLUMNS = {
    "BS Error, whole map": "bs_error_map",
    "BS Error, observed": "bs_error",
    "observed": "observed",
    "identity map - front": "identity_map",
}


def overrides_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested settings as train/uv_dataset.py takes them: extract.delight=false."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from overrides_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value) if isinstance(value, bool) else value}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("outputs/uv_ablations"))
    options = parser.parse_args()
    print("| " + " | ".join(["", *COLUMNS, "subjects"]) + " |\n|" + "---|" * (len(COLUMNS) + 2), flush=True)
    for name, settings in ABLATIONS.items():
        folder = options.out / name.replace("/", "").replace(", ", "-").replace(" ", "_")
        command = [
            sys.executable, str(SCRIPT), "source=manifest", f"manifest={options.manifest.resolve()}", f"n={options.n}",
            "check=false", f"out={folder.resolve()}", *overrides_of(settings),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        summary = json.loads((folder / "summary.json").read_text())
        cells = [f"{summary['mean'].get(key, float('nan')):.3f}" for key in COLUMNS.values()]
        print("| " + " | ".join([name, *cells, str(summary["accepted"])]) + " |", flush=True)


if __name__ == "__main__":
    main()
