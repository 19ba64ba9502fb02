"""How fast is the open generator, and how near are its shorter ways to the picture it makes in float32?

    python -m benchmarks.generator [--threads 1] [--faces 12]

One run, one process: every way of making the same faces, process time as a median, PSNR against the torch path in
float32, and what the attribute meter measures on the pictures of both. Windows are put back into their frame first;
previews are compared with the picture averaged to 256 px.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.editing.attributes import AttributeMeter, Attributes
from facerecon.stylegan.face_generator import FACE_WINDOW, MobileGenerator, framed, load_generator

FIRST_SEED = 5000
ROUNDS = 5


def ways() -> dict[str, tuple[torch.dtype, Callable[[MobileGenerator, Tensor], Tensor]]]:
    """Name -> precision, and the picture of w by that way."""

    def unfused(generator: MobileGenerator, w: Tensor) -> Tensor:
        generator.synthesis.fused = False
        try:
            return generator(w)
        finally:
            generator.synthesis.fused = True

    half = torch.bfloat16
    return {
        "torch, float32": (torch.float32, unfused),
        "fused, float32": (torch.float32, lambda generator, w: generator(w)),
        "torch, bfloat16": (half, unfused),
        "fused, bfloat16": (half, lambda generator, w: generator(w)),
        "window of the face": (half, lambda generator, w: framed(generator(w, window=FACE_WINDOW))),
        "preview, 256 px": (half, lambda generator, w: generator(w, preview=True)),
        "preview of the window": (half, lambda generator, w: framed(generator(w, window=FACE_WINDOW, preview=True))),
    }


def decibel(picture: Tensor, truth: Tensor) -> float:
    """PSNR over the window of the face, which all ways have."""
    if picture.shape != truth.shape:
        truth = F.interpolate(truth, picture.shape[-2:], mode="area")
    scale = picture.shape[-1] / 1024
    top, bottom, left, right = (round(v * scale) for v in FACE_WINDOW)
    error = (picture - truth)[:, :, top:bottom, left:right].square().mean()
    return -10 * float(error.clamp(min=1e-14).log10())


def differences(measured: Attributes, truth: Attributes, scale: float) -> list[float]:
    """Absolute, of one face: yaw, pitch (degrees), landmarks (px of 1024), P(happy), evenness, identity."""
    return [
        float((measured.yaw - truth.yaw).abs()),
        float((measured.pitch - truth.pitch).abs()),
        float((measured.landmarks68 * scale - truth.landmarks68).norm(dim=-1).mean()),
        float((measured.happy - truth.happy).abs()),
        float((measured.evenness - truth.evenness).abs()),
        float((measured.identity - truth.identity).norm()),
    ]


@torch.inference_mode()
def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--faces", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generators = {dtype: load_generator(dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    meter = AttributeMeter()
    codes = [generators[torch.float32].sample(FIRST_SEED + k, 0.8) for k in range(arguments.faces)]
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    for dtype, make in ways().values():
        make(generators[dtype], codes[0])  # compiles, and fills the caches
    for _ in range(ROUNDS):
        for name, (dtype, make) in ways().items():
            start = time.process_time()
            make(generators[dtype], codes[0])
            seconds[name].append(time.process_time() - start)
    print("| way | CPU s | of torch bfloat16 | PSNR dB (worst) | yaw, mean (worst) | pitch | landmarks px ", end="")
    print("| P(happy) | evenness | identity |\n" + "|---" * 10 + "|")
    base = statistics.median(seconds["torch, bfloat16"])
    truth: list[tuple[Tensor, Attributes]] = []
    for name, (dtype, make) in ways().items():
        quality, rows = [], []
        for k, w in enumerate(codes):
            picture = make(generators[dtype], w)
            measured = meter(picture)
            if len(truth) <= k:
                truth.append((picture, measured))
            quality.append(decibel(picture, truth[k][0]))
            rows.append(differences(measured, truth[k][1], 1024 / picture.shape[-1]))
        mean = torch.tensor(rows).mean(0).tolist()
        worst = torch.tensor(rows).amax(0).tolist()
        cost = statistics.median(seconds[name])
        print(
            f"| {name} | {cost:.3f} | {cost / base:.2f} | {statistics.mean(quality):.1f} ({min(quality):.1f}) "
            f"| {mean[0]:.2f} ({worst[0]:.2f}) | {mean[1]:.2f} | {mean[2]:.1f} | {mean[3]:.3f} "
            f"| {mean[4]:.3f} | {mean[5]:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
