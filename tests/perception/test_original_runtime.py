"""The torch ports against the packages' own runtimes, on a synthetic picture.

Recorded by original_runtime.mjs and original_tflite.py.
SFace's was recorded by onnxruntime 1.32 on the packaged file, of 255 times the picture.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from facerecon import perception

HERE = Path(__file__).parent
RECORDED = {
    name: outputs
    for file in ("original_runtime.json", "original_tflite.json")
    for name, outputs in json.loads((HERE / file).read_text()).items()
}


def pattern(size: int) -> Tensor:
    """(1, 3, size, size) in [0, 1]; the same formula as in original_runtime.mjs."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    c = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    wave = torch.sin(0.11 * x * (c + 1) + 0.07 * y + 0.9 * c) * torch.cos(0.05 * y - 0.0013 * x * y)
    return (0.5 + 0.5 * wave)[None].float()


def points() -> Tensor:
    """(1, 146, 2) px; the same formula as in original_tflite.py."""
    i = torch.arange(146, dtype=torch.float64)
    return torch.stack([120 + 60 * torch.sin(1.7 * i), 130 + 70 * torch.cos(2.3 * i)], -1)[None].float()


def graph(load: Callable, size: int, scale: float = 1.0) -> list[Tensor]:
    """Outputs of a converted graph, which takes (B, H, W, C)."""
    return load().net(pattern(size).permute(0, 2, 3, 1) * scale)


def detector_cells() -> Tensor:
    """(anchor, value, row, column) here, (row, column, anchor and value) there."""
    return perception.load_detector().net(pattern(224)).flatten(1, 2).permute(0, 2, 3, 1)


RUNS = {
    "face_detector": lambda: [detector_cells()],
    "landmarks68": lambda: [perception.load_landmarks68().net(pattern(112))],
    "expression7": lambda: [perception.load_expression().net(pattern(112))],
    "identity128": lambda: [perception.load_identity().net(pattern(150))],
    "facemesh478": lambda: graph(perception.load_facemesh, 256),
    "expression52": lambda: perception.load_expression_scores().net(points()),
    "sface": lambda: [perception.load_identity("sface").net(pattern(112))[1]],
    "faceres1024": lambda: graph(perception.load_eval_identity, 224, 255),
}


def assert_agree(output: Tensor, recorded: dict, tolerance: float = 1e-4) -> None:
    """Some values, all their number, and the norm of all; relative to the largest."""
    values, expected = output.flatten(), torch.tensor(recorded["values"])
    assert len(values) == recorded["length"]
    scale = max(recorded["norm"] / len(values) ** 0.5, expected.abs().max().item())
    assert (values[recorded["at"]] - expected).abs().max().item() <= tolerance * scale
    assert values.norm().item() == pytest.approx(recorded["norm"], rel=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("name", RUNS)
def test_agrees_with_the_original_runtime(asset, name: str) -> None:
    asset(name)
    for output, recorded in zip(RUNS[name](), RECORDED[name], strict=True):
        assert_agree(output, recorded)


@torch.no_grad()
def test_age_and_gender_agree_with_the_original_runtime(asset) -> None:
    asset("age_gender")
    age, male = perception.load_age_gender().net(pattern(112))
    recorded_age, recorded_gender = RECORDED["age_gender"]
    assert_agree(age, recorded_age)
    assert male.item() == pytest.approx(recorded_gender["values"][0], abs=1e-5)  # (male, female)
