"""Write the shipped set's manifest: facerecon/data/open_uv_manifest.safetensors.

    python train/uv_dataset.py n=1200 out=uv
    python tools/build_manifest.py uv/manifest.safetensors

Keeps the codes and the figures of a set's manifest, about 4 KB a subject; then: python -m facerecon.assets seal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from facerecon.dataset import Manifest

OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "open_uv_manifest.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="manifest.safetensors of a set")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    manifest = Manifest.load(options.manifest)
    path = manifest.compact().save(options.output)
    print(f"{len(manifest)} subjects, {path.stat().st_size / 1e6:.2f} MB in {path}")


if __name__ == "__main__":
    main()
