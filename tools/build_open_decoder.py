"""Build the open pack's texture decoder from a training run: facerecon/data/texture_open.safetensors.

    python tools/build_open_decoder.py outputs/texture_gan/decoder.safetensors
    python -m facerecon.assets seal             (writes its checksum)

The file holds the synthesis network in half precision, its linear part in 8 bits, the statistics of W, and what the
training says of itself. A mapping network that is the open face generator's is left out: where latent space z is asked
for, it is read from the fetched generator.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from facerecon.stylegan.texture_decoder import save_decoder
from facerecon.stylegan.weights import read_generator

TARGET = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "texture_open.safetensors"
LIMIT = 12_000_000
"""Bytes that the file may have."""


def main() -> None:
    """Read a run's decoder, measure its W, write the data file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder", type=Path, help="decoder.safetensors of train/texture_gan.py")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--note", default="", help="kept in the file: hardware, time, versions")
    options = parser.parse_args()
    generator, facts = read_generator(options.decoder)
    about = facts["about"]
    if generator.mapping is None:
        parser.error(f"{options.decoder} holds no mapping network; give one of train/texture_gan.py.")
    with tqdm(unit="map") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        about |= {"note": options.note}
        save_decoder(options.out, generator, about, mapping=about["mapping"], progress=progress, compact=True)
    size = options.out.stat().st_size
    print(f"{options.out}: {size / 1e6:.2f} MB, {generator.size} px, rows {generator.rows} x {generator.config.w_dim}")
    if size > LIMIT:
        raise SystemExit(f"{options.out} is larger than {LIMIT / 1e6:.0f} MB; train with fewer channels.")


if __name__ == "__main__":
    main()
