"""Learn the linear UV texture basis ('PCA tex basis', Table 5) from a set of normalized maps.

    python train/uv_dataset.py n=1000 out=uv
    python tools/build_texture_basis.py uv --look pictures [--regressors facerecon/data/regressor_*.safetensors]

Every map is averaged with its mirror image (the atlas is symmetric, and so are the components as they are stored), then
the principal components are taken. Writes facerecon/data/texture_linear.safetensors (then: python -m facerecon.assets
seal), ``decoder=linear``. Regressors whose texture is a code of the basis that stood there before are rewritten, so
that they say the same textures, as nearly as it can, in the new one: the change of basis is linear, as their last
layer is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from facerecon.dataset import UVMaps
from facerecon.imaging import files
from facerecon.storage import read_safetensors, safetensors_bytes, write_whole
from facerecon.stylegan.linear_basis import (
    change_of_basis,
    principal_components,
    read_linear_basis,
    write_linear_basis,
)

OUTPUT = Path(__file__).resolve().parents[1] / "facerecon" / "data" / "texture_linear.safetensors"
HEAD = "heads.texture"


def build(folder: Path, output: Path, count: int, size: int, look: Path | None) -> None:
    """From the set to the file."""
    maps = UVMaps(folder, size=size)
    textures = torch.stack([maps[i]["texture"] for i in tqdm(range(len(maps)), desc="maps")])
    textures = (textures + textures.flip(-1)) / 2
    mean, basis, variance = principal_components(textures, count)
    share = (variance.cumsum(0) / variance.sum())[:count]
    facts = {
        "maps": len(textures),
        "numbers": [path.stem for path in maps.paths],
        "source": "train/uv_dataset.py",
        "face_model": "makehuman",
        "explained_variance": [round(v, 5) for v in share.tolist()],
    }
    write_linear_basis(output, mean, basis, facts)
    bytes_ = output.stat().st_size
    print(f"{len(textures)} maps, {count} components hold {share[-1]:.1%} of their variance; {bytes_ / 1e6:.2f} MB")
    if look:
        _look(look, output, textures)


def change_texture_basis(path: Path, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> float:
    """Rewrite a regressor's file for codes of the ``new`` basis, as many as before; nothing else in it changes.

    Returns:
        What is lost of the textures that its codes of one standard deviation mean: root mean square, gray levels.
    """
    tensors, meta = read_safetensors(path, "a face regressor", "give a regressor.safetensors")
    weight, bias = (tensors[f"{HEAD}.{kind}"] for kind in ("weight", "bias"))
    (mean, basis), (new_mean, new_basis) = ((m, b[: len(weight)]) for m, b in (old, new))
    matrix, offset = change_of_basis(mean, basis, new_mean, new_basis)
    tensors[f"{HEAD}.weight"] = (matrix @ weight.float().flatten(1)).view_as(weight).to(weight.dtype)
    tensors[f"{HEAD}.bias"] = matrix @ bias + offset
    header = json.loads(meta["facerecon"])
    header["about"]["texture"] = "carried over from another linear basis by tools/build_texture_basis.py"
    write_whole(path, safetensors_bytes(tensors, {"facerecon": json.dumps(header, sort_keys=True)}))
    center = new_mean - mean + torch.einsum("l,lcij->cij", offset, new_basis)
    apart = torch.einsum("lk,lcij->kcij", matrix, new_basis) - basis
    return 255 * (center.square() + apart.square().sum(0)).mean().sqrt().item()


def _look(folder: Path, path: Path, textures: Tensor) -> None:
    """Pictures to judge the basis by."""
    mean, basis = read_linear_basis(path)
    flat = basis.flatten(1)
    some = textures[:: max(1, len(textures) // 50)]
    codes = torch.linalg.lstsq(flat.T, (some - mean).flatten(1).T, driver="gels").solution
    error = (mean.flatten() + codes.T @ flat - some.flatten(1)).square().mean()
    print(f"stored basis explains its own maps to {-10 * error.log10():.1f} dB")
    files.write_png(folder / "mean.png", files.contact_sheet([mean.clamp(0, 1)], size=1024))
    pairs = [(mean + sign * 2 * component).clamp(0, 1) for component in basis[:8] for sign in (-1, 1)]
    labels = [f"{sign}2 sigma of {k}" for k in range(8) for sign in "-+"]
    files.write_jpg(folder / "components.jpg", files.contact_sheet(pairs, 4, labels, size=320))
    codes = torch.randn(16, len(basis), generator=torch.Generator().manual_seed(0))
    samples = (mean + torch.einsum("nk,kcij->ncij", codes, basis)).clamp(0, 1)
    files.write_jpg(folder / "samples.jpg", files.contact_sheet(samples, 4, size=320))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a set with uv-maps/, or a folder of maps")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--size", type=int, default=256, help="texels a side")
    parser.add_argument("--regressors", type=Path, nargs="*", default=[], help="files to rewrite for the new basis")
    parser.add_argument("--look", type=Path, help="folder for pictures to judge the result by")
    options = parser.parse_args()
    old = read_linear_basis(options.output) if options.regressors else None
    build(options.folder, options.output, options.components, options.size, options.look)
    for path in options.regressors:
        lost = change_texture_basis(path, old, read_linear_basis(options.output))
        print(f"{path.name}: its textures in the new basis, {lost:.1f} levels off on average")


if __name__ == "__main__":
    main()
