"""Record what the original runtime makes of two seeds: tests/stylegan/original_generator.json.

    pip install openvino==2026.4.1 && python tests/stylegan/original_generator.py FOLDER

FOLDER holds the package's own graphs (random-face 2021.7.21.1, ``random_face/data``). The runtime works in float32; the
pictures are kept as averages of 64 x 64 blocks. Prints how far our pictures are from its own, pixel by pixel.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino
import torch

from facerecon.stylegan.face_generator import load_generator

SEEDS = (0, 1)
OUTPUT = Path(__file__).with_name("original_generator.json")


def main(folder: Path) -> None:
    """Run both graphs, compare and write."""
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    mapping, synthesis = (
        core.compile_model(core.read_model(folder / f"{name}Network.xml"), "CPU", exact)
        for name in ("Mapping", "Synthesis")
    )
    generator = load_generator()
    blocks = []
    for seed in SEEDS:
        z = torch.randn(1, 512, generator=torch.Generator().manual_seed(seed))
        w = mapping(z.numpy())[0]
        original = np.clip(synthesis(w)[0] * 0.5 + 0.5, 0, 1)
        for fused in (False, True):
            generator.synthesis.fused = fused
            with torch.no_grad():
                ours = generator(generator.mapping(z)).numpy()
            print(f"seed {seed}, fused {fused}: at most {np.abs(ours - original).max():.1e} apart")
        blocks.append(original[0].astype(float).reshape(3, 16, 64, 16, 64).mean((2, 4)).round(5).tolist())
    record = {"runtime": f"openvino {openvino.__version__}", "seeds": SEEDS, "blocks": blocks}
    OUTPUT.write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
