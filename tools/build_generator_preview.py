"""Fit the read-out of the open generator's previews: facerecon/data/generator_preview.safetensors.

    python tools/build_generator_preview.py

Least squares from the features at 256 px to the pictures averaged down, over 40 seeds; half a minute.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from facerecon.assets.store import seal_shipped
from facerecon.storage import safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import fit_preview, load_generator

SEEDS = range(40)
CHECKED = range(1000, 1010)
OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "generator_preview.safetensors"


def main() -> None:
    """Fit, write, and report the error on other seeds."""
    torch.set_num_threads(1)
    generator = load_generator()
    synthesis = generator.synthesis
    weight, bias = fit_preview(generator, SEEDS)
    write_whole(OUTPUT, safetensors_bytes({"weight": weight, "bias": bias}))
    seal_shipped()
    synthesis.preview_weight, synthesis.preview_bias = weight, bias
    with torch.no_grad():
        for seed in CHECKED:
            w = generator.sample(seed, 0.8)
            picture = F.interpolate(synthesis(w), (256, 256), mode="area")
            error = (synthesis(w, preview=True) - picture).square().mean()
            print(f"seed {seed}: {-10 * error.log10():.1f} dB")


if __name__ == "__main__":
    main()
