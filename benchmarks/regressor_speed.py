"""Training of the regressor, ms an image by part, and images a second in all.

    python benchmarks/regressor_speed.py --sizes 112 224 --widths 0.5 0.7 1.0

Parts: drawing truth (coefficients, place in the crop, texture), rendering, hair and background and what hides the face,
wear by kornia, network forward and backward, supervised losses forward and backward, and the weak losses of a face
without truth (rendering, landmarks, identity features). CPU time of this process on one thread, which other work on the
machine changes little; the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from facerecon.errors import FaceReconError
from facerecon.fitting import params_to_coefficients
from facerecon.morphable import load_face_model
from facerecon.perception import load_identity
from facerecon.perception.regressor import Coefficients, Regressor, RegressorConfig
from facerecon.run import autocast, supports_bfloat16
from facerecon.stylegan.load import load_decoder
from facerecon.synthetic.faces import WITHIN_MODEL, SyntheticFaces
from facerecon.training.crops import PhotometricAugmentation
from facerecon.training.regressor import CoefficientLosses, PhotoBatch, SupervisedWeights, WeakLosses, WeakWeights


def milliseconds(work: Callable[[], object], images: int, rounds: int) -> float:
    """CPU time of one image."""
    work()
    found = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        found.append(1000 * (time.process_time() - started) / images)
    return statistics.median(found)


def leaves(c: Coefficients) -> Coefficients:
    return c.map(lambda t: t.detach().clone().requires_grad_())


def parts_of(size: int, widths: list[float], backbone: str, batch: int, rounds: int) -> dict[str, float]:
    """{part: ms an image}."""
    model, decoder = load_face_model(), load_decoder("linear", components=40)
    faces = SyntheticFaces(model, decoder, WITHIN_MODEL, size=size)
    numbers, found = range(batch), {}
    found["truth"] = milliseconds(lambda: faces.truth(numbers), batch, rounds)
    drawn = faces(numbers)
    found["picture in all"] = milliseconds(lambda: faces(numbers), batch, rounds)
    wear = PhotometricAugmentation()
    found["wear"] = milliseconds(lambda: wear(drawn.image, numbers), batch, rounds)
    dtype = torch.bfloat16 if supports_bfloat16("cpu") else torch.float32
    for width in widths:
        config = RegressorConfig(backbone, 80, 52, 40, width=width, size=size, expression_high=1.0)
        network = Regressor(config).to(memory_format=torch.channels_last)
        images = drawn.image.contiguous(memory_format=torch.channels_last)

        def learn(network: Regressor = network, images: torch.Tensor = images) -> None:
            network.zero_grad()
            with autocast("cpu", dtype):
                c = network(images)
            sum(getattr(c, key).sum() for key in ("identity", "expression", "texture", "angles", "light")).backward()

        found[f"network {backbone} x {width:g}"] = milliseconds(learn, batch, rounds)
    truth = params_to_coefficients(drawn.params, config, drawn.texture)
    losses = CoefficientLosses(model, decoder, 40)

    def compare() -> None:
        values = losses(leaves(truth), truth, drawn.landmarks68)
        sum(getattr(SupervisedWeights(), key) * value.sum() for key, value in values.items()).backward()

    found["losses"] = milliseconds(compare, batch, rounds)
    weak = WeakLosses(model, decoder, size, 40, load_identity())
    photos = PhotoBatch(drawn.image, torch.ones_like(drawn.image[:, :1]), drawn.landmarks68, torch.rand(batch, 128))

    def without_truth() -> None:
        weak.total(weak(leaves(truth), photos)[0], WeakWeights()).sum().backward()

    found["weak losses of a face without truth"] = milliseconds(without_truth, batch, rounds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--widths", type=float, nargs="+", default=[0.5, 0.7, 1.0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for size in args.sizes:
            found = parts_of(size, args.widths, args.backbone, args.batch, args.rounds)
            print(f"{size} px, ms an image on one core:")
            for part, value in found.items():
                print(f"  {part:40s} {value:7.2f}")
            for width in args.widths:
                cached = found["wear"] + found[f"network {args.backbone} x {width:g}"] + found["losses"]
                fresh = cached + found["picture in all"]
                print(
                    f"  {args.backbone} x {width:g}: {1000 / cached:.0f} images/s from the cache, "
                    f"{1000 / fresh:.0f} rendered on the fly"
                )
            print(json.dumps({"size": size} | {key: round(value, 3) for key, value in found.items()}))
    except FaceReconError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
