"""Fit the encoder that inversions start from: facerecon/data/inversion_encoder.safetensors.

    python tools/build_inversion_encoder.py CACHE [--faces 3900]      (resumable; a third of a second a face)

Each face is a seed of the open generator; CACHE keeps what was measured of them, a file for every hundred. The last
tenth is held out: its share of the variance of W that the encoder explains is printed before all are fitted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from facerecon.assets.store import seal_shipped
from facerecon.editing.inversion import LinearEncoder
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import MobileGenerator, load_generator

OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "inversion_encoder.safetensors"
FIRST_SEED = 0
TRUNCATION = 0.8
CHUNK = 100


@torch.inference_mode()
def measured(generator: MobileGenerator, seeds: range) -> dict[str, Tensor]:
    """Features and w of some seeds."""
    w = generator.sample(seeds, TRUNCATION)
    features = torch.cat([LinearEncoder.features(generator(code[None])) for code in w])
    return {"features": features, "w": w}


def collect(cache: Path, faces: int) -> tuple[Tensor, Tensor]:
    """(N, F) features and (N, 512) w, measured or read."""
    generator = load_generator(dtype=torch.bfloat16)
    parts = []
    for start in tqdm(range(FIRST_SEED, FIRST_SEED + faces, CHUNK), unit="00 faces"):
        path = cache / f"{start}.safetensors"
        if not path.is_file():
            write_whole(path, safetensors_bytes(measured(generator, range(start, start + CHUNK))))
        parts.append(read_safetensors(path, "measured faces", "remove it", ("features", "w"))[0])
    return torch.cat([part["features"] for part in parts]), torch.cat([part["w"] for part in parts])


def main() -> None:
    """Collect, report and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--faces", type=int, default=3900)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    features, w = collect(arguments.cache, arguments.faces)
    held = len(w) // 10
    guess = LinearEncoder.fit(features[:-held], w[:-held]).decode(features[-held:])
    left = (guess - w[-held:]).square().sum() / (w[-held:] - w[:-held].mean(0)).square().sum()
    print(f"{len(w)} faces; of {held} held out, {1 - left:.3f} of the variance of w is explained")
    LinearEncoder.fit(features, w).save(OUTPUT)
    seal_shipped()


if __name__ == "__main__":
    main()
