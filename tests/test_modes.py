"""Torch's modes of the caller: whatever is on, the library loads the same weights, keeps the same tables, and fits."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import facerecon
from facerecon.errors import AssetError
from facerecon.fitting import DetailSettings, Fitter, OcclusionSettings
from facerecon.geometry.mesh import laplacian
from facerecon.modes import ordinary, own_modes
from facerecon.morphable import load_face_model
from facerecon.perception import load_identity, observe
from facerecon.render import Renderer
from facerecon.stylegan.load import load_decoder
from facerecon.types import Observation

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "astronaut.jpg"
PLAIN = {"_installed", "_warn_of_no_cache"}  # caches that hold no tensor
OF_A_CALL = {"found"}  # the renderer's views belong to the call that made them, gradients and all


@contextlib.contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": float64,
    "meta": lambda: torch.device("meta"),
}


@contextlib.contextmanager
def every_mode() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mode in MODES.values():
            stack.enter_context(mode())
        yield


def things() -> Iterator[Any]:
    """Every function and class of the library's modules."""
    for info in pkgutil.walk_packages(facerecon.__path__, "facerecon."):
        if info.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # an optional package that is not here
            continue
        yield from (value for value in vars(module).values() if getattr(value, "__module__", None) == info.name)


def cached_properties() -> Iterator[Callable]:
    """What classes keep of their objects."""
    for kind in filter(inspect.isclass, things()):
        yield from (v.func for v in vars(kind).values() if isinstance(v, functools.cached_property))


LOADERS = {f"{f.__module__}.{f.__name__}": f for f in things() if inspect.isroutine(f) or hasattr(f, "cache_info")}


def test_all_that_loads_or_keeps_does_so_in_the_librarys_own_modes() -> None:
    wrong = [
        name for name, function in LOADERS.items()
        if (function.__name__.startswith("load_") or hasattr(function, "cache_info")) and function.__name__ not in PLAIN
        and not getattr(function, "in_own_modes", False)
    ]  # fmt: skip
    wrong += [
        f.__qualname__ for f in cached_properties()
        if f.__name__ not in OF_A_CALL and not getattr(f, "in_own_modes", False)
    ]  # fmt: skip
    assert not wrong, wrong
    assert sum(hasattr(f, "cache_info") for f in LOADERS.values()) > 12 and len(list(cached_properties())) >= 3


@pytest.mark.parametrize(
    "name",
    [n for n, f in LOADERS.items() if hasattr(f, "cache_info") and f.__name__.startswith("load_")],
)
def test_a_network_is_the_same_under_every_mode(name: str) -> None:
    try:
        usual = LOADERS[name]()
        with every_mode():
            other = LOADERS[name].__wrapped__()
    except AssetError as error:
        pytest.skip(str(error))
    tensors = [*other.parameters(), *other.buffers()]
    assert tensors
    for one, two in zip([*usual.parameters(), *usual.buffers()], tensors, strict=True):
        assert (one.dtype, one.device) == (two.dtype, two.device)
        assert not two.is_inference() and torch.equal(one, two)


def test_the_modes_of_the_caller_are_back_afterwards() -> None:
    with every_mode():
        with own_modes():
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            assert torch.zeros(1).dtype == torch.float32 and torch.zeros(1).device.type == "cpu"
            assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.zeros(1).dtype == torch.float64 and torch.zeros(1).device.type == "meta"
        with pytest.raises(ZeroDivisionError), own_modes():
            1 / 0  # noqa: B018
        assert torch.get_default_dtype() == torch.float64


def test_tables_kept_under_a_mode_serve_gradients_later() -> None:
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    decoder = load_decoder("linear", 3)
    with every_mode():
        laplacian(torch.zeros(1, 4, 3, device="cpu", dtype=torch.float32), faces)
        decoder(torch.zeros(1, 1, 3, device="cpu", dtype=torch.float32), 64)
    codes, points = torch.ones(1, 1, 3, requires_grad=True), torch.rand(1, 4, 3, requires_grad=True)
    (decoder(codes, 64).square().sum() + laplacian(points, faces).square().sum()).backward()
    assert codes.grad.abs().sum() > 0 and points.grad.abs().sum() > 0


# -- observing and fitting ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo() -> Observation:
    try:
        return observe(SAMPLE)
    except AssetError as error:
        pytest.skip(str(error))


def made() -> Fitter:
    """A fitter of two steps, its models loaded anew."""
    load_identity()
    steps = {"texture": None, "joint": {"steps": 2, "weights": {"pix": 4, "id": 1, "lm": 4e-3, "silhouette": 1}}}
    return Fitter(
        load_face_model(num_identity=4), load_decoder("linear", 3), Renderer(224, antialias=True), stages=steps,
        detail=DetailSettings(enabled=False), occlusion=OcclusionSettings(enabled=False),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(photo: Observation) -> Tensor:
    return made()(photo).face.history["joint.total"]


def test_a_photo_is_observed_the_same_under_every_mode(photo: Observation) -> None:
    with every_mode():
        other = observe(SAMPLE)
    assert not other.landmarks68.is_inference() and other.image.dtype == torch.float32
    torch.testing.assert_close(other.landmarks68, photo.landmarks68, atol=1e-2, rtol=0)  # px
    torch.testing.assert_close(other.identity, photo.identity, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_is_the_same_under_a_mode_and_after_it(mode: str, photo: Observation, expected: Tensor) -> None:
    with MODES[mode]():
        fitter = made()
        seen = Observation.cat([photo])  # in inference mode of tensors that no gradient may touch
        found = fitter(seen).face.history["joint.total"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    if mode == "inference_mode":
        assert seen.image.is_inference()
        torch.testing.assert_close(fitter(seen).face.history["joint.total"], expected, rtol=1e-3, atol=1e-4)


def test_only_tensors_of_inference_mode_are_copied() -> None:
    plain = torch.zeros(2)
    with torch.inference_mode():
        other = torch.zeros(2)
    assert ordinary(plain) is plain and not ordinary(other).is_inference()


def test_a_model_made_in_inference_mode_is_one_line(photo: Observation) -> None:
    fitter = made()
    with torch.inference_mode():
        fitter.model = nn.Module.to(fitter.model, torch.float64).to(torch.float32)
    with pytest.raises(facerecon.FaceReconError, match="head model was made in torch"):
        fitter(photo)
