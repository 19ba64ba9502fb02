"""Speed of color matching, Poisson editing and completion, against a plain scipy implementation of the same steps.

    python -m benchmarks.completion --views front.jpg left.jpg right.jpg [--size 1024] [--repeats 5]

Both start from the same three unwrapped views and their masks and end with a whole map. The plain one follows the
description of the release step by step, without its tricks or ours: each view matched to what has been accumulated
(Eq. 1), its mask eroded, blurred and blended; eyes, mouth, nostrils and what else of the center is missing edited by a
sparse system for this map's mask, solved by ``scipy.sparse.linalg.spsolve``; the template matched and joined by a
Laplacian pyramid of 5 levels with ``scipy.ndimage``; the scalp covered through a blurred mask. Process CPU time of one
thread, so that other processes do not count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve

from facerecon import load_face_model
from facerecon.dataset.complete import Template, complete, load_template
from facerecon.dataset.extract import Extraction, ExtractSettings, extract, join_views, measure_views
from facerecon.imaging.files import read_image
from facerecon.render.uv import region_texels

YUV = np.array([[0.299, 0.587, 0.114], [-0.14714119, -0.28886916, 0.43601035], [0.61497538, -0.51496512, -0.10001026]])


def plain_match(source: np.ndarray, target: np.ndarray, mask: np.ndarray, w: float = 1.5) -> np.ndarray:
    """Eq. 1 on (S, S, 3) images; mean and deviation of both over the mask."""
    a, b = source @ YUV.T, target @ YUV.T
    inside = mask > 0.5
    mean_a, std_a, mean_b, std_b = a[inside].mean(0), a[inside].std(0), b[inside].mean(0), b[inside].std(0)
    return ((a - mean_a) / (w * std_a) * std_b + mean_b) @ np.linalg.inv(YUV).T


def plain_poisson(base: np.ndarray, guide: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradients of the guide inside a mask, values of the base around it."""
    inside = mask > 0.5
    number = np.full(mask.shape, -1)
    number[inside] = np.arange(inside.sum())
    row, column = np.nonzero(inside)
    rows, columns, values = [number[inside]], [number[inside]], [np.full(len(row), 4.0)]
    right = np.zeros((len(row), 3))
    for dr, dc in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        r, c = row + dr, column + dc
        right += guide[row, column] - guide[r, c]
        both = inside[r, c]
        rows.append(number[row[both], column[both]])
        columns.append(number[r[both], c[both]])
        values.append(np.full(both.sum(), -1.0))
        right[~both] += base[r[~both], c[~both]]
    system = coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))).tocsc()
    result = base.copy()
    result[inside] = spsolve(system, right)
    return result


def plain_blend(first: np.ndarray, second: np.ndarray, mask: np.ndarray, levels: int = 5) -> np.ndarray:
    """Burt and Adelson: 5 x 5 binomial filter, every second pixel."""
    kernel = np.array([1.0, 4, 6, 4, 1]) / 16

    def blur(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
        return ndimage.convolve1d(ndimage.convolve1d(x, kernel * scale, 0), kernel * scale, 1)

    def up(x: np.ndarray, like: np.ndarray) -> np.ndarray:
        larger = np.zeros_like(like)
        larger[::2, ::2] = x
        return blur(larger, 2.0)

    def gaussian(x: np.ndarray) -> list[np.ndarray]:
        result = [x]
        for _ in range(levels - 1):
            result.append(blur(result[-1])[::2, ::2])
        return result

    def laplacian(x: np.ndarray) -> list[np.ndarray]:
        steps = gaussian(x)
        return [fine - up(small, fine) for fine, small in pairwise(steps)] + [steps[-1]]

    bands = [
        w[..., None] * a + (1 - w[..., None]) * b
        for a, b, w in zip(laplacian(first), laplacian(second), gaussian(mask), strict=True)
    ]
    result = bands[-1]
    for band in bands[-2::-1]:
        result = band + up(result, band)
    return result


def plain(views: np.ndarray, weights: np.ndarray, template: np.ndarray, masks: dict[str, np.ndarray]) -> np.ndarray:
    """Left, right, front into the template; Poisson; completion."""
    size = template.shape[0]

    def kernel(k: int) -> float:
        return (0.3 * ((k * size / 1024 - 1) * 0.5 - 1) + 0.8) or 0.5

    total, seen = template, np.zeros((size, size))
    disk = ndimage.generate_binary_structure(2, 1)
    for index in (1, 2, 0):
        valid = weights[index] > 0.5
        total = plain_match(total, views[index], valid)
        eroded = ndimage.binary_erosion(valid, disk, iterations=round(9 * size / 1024)).astype(float)
        soft = ndimage.gaussian_filter(eroded, kernel(51), truncate=3) * 0.8
        soft = np.where(masks["major"] * (index == 0) > 0.5, 1.0, soft)
        soft = ndimage.gaussian_filter(soft, kernel(31), truncate=3) * eroded
        soft = ndimage.gaussian_filter(soft, kernel(21), truncate=3)[..., None]
        total = views[index] * soft + total * (1 - soft)
        seen = np.maximum(seen, eroded)
    brightness = total @ YUV[0]
    nostrils = ndimage.binary_dilation(brightness < brightness.mean(), iterations=5) & (masks["nose"] > 0.5)
    wrong = ((seen < 0.5) & (masks["center"] > 0.5)) | nostrils | (masks["corrected"] > 0.5)
    total = plain_poisson(total, template, wrong)
    matched = plain_match(template, total, seen)
    face = ndimage.gaussian_filter(np.maximum(seen, wrong), kernel(21), truncate=3)
    whole = plain_blend(total, matched, face)
    hair = ndimage.gaussian_filter(ndimage.binary_erosion(masks["hair"] > 0.5, iterations=9) * 1.0, kernel(51))
    return whole + hair[..., None] * (template - whole)


def ours(extraction: Extraction, template: Template, settings: ExtractSettings) -> torch.Tensor:
    """The same steps, from the same unwrapped views."""
    texture, observed = join_views(extraction.views, extraction.weights, template.layout, settings)
    return complete(extraction.replace(texture=texture, observed=observed), template).texture


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Least CPU time of several calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=Path, nargs=3, required=True, metavar=("FRONT", "LEFT", "RIGHT"))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_face_model("makehuman")
    settings = ExtractSettings(size=arguments.size)
    template = load_template(model, arguments.size)
    seen = measure_views(torch.stack([read_image(path) for path in arguments.views]))
    extraction = extract(seen, model, settings)
    ours(extraction, template, settings)

    def image(x: torch.Tensor) -> np.ndarray:
        return x.permute(1, 2, 0).double().numpy()

    views, weights = np.stack([image(v) for v in extraction.views]), extraction.weights[:, 0].numpy()
    layout, hair = template.layout, region_texels(model.topology, "scalp", arguments.size)
    masks = {"corrected": layout.corrected, "major": layout.front, "nose": layout.nose_base, "hair": hair}
    masks = {name: mask[0, 0].numpy() for name, mask in (masks | {"center": layout.front * layout.face}).items()}
    base = image(template.texture[0])
    metrics = {
        "size": arguments.size,
        "plain scipy, s": cpu_seconds(lambda: plain(views, weights, base, masks), max(1, arguments.repeats // 2)),
        "ours, s": cpu_seconds(lambda: ours(extraction, template, settings), arguments.repeats),
        "measure three views, s": cpu_seconds(lambda: measure_views(seen.image), 2),
        "extract, s": cpu_seconds(lambda: extract(seen, model, settings), 2),
    }
    metrics["ratio"] = metrics["plain scipy, s"] / metrics["ours, s"]
    print(json.dumps({key: round(value, 3) for key, value in metrics.items()}, indent=1))


if __name__ == "__main__":
    main()
