"""Torch as the library needs it, whatever modes the caller has switched on.

What is loaded in inference mode can never be differentiated, and what is loaded under another default type has other
weights; much of it is kept for the whole process. So everything that loads, keeps or fits runs in :func:`own_modes`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["in_own_modes", "kept", "ordinary", "own_modes", "without_numbers"]

Function = TypeVar("Function", bound=Callable[..., Any])


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """Meanwhile gradients are on, inference mode and autocast off, the default type float32, the default device the
    CPU; afterwards all is as the caller had it."""
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


class _Unfilled(TorchFunctionMode):
    """Nothing is drawn at random, nor scaled afterwards."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.div, torch.Tensor.__truediv__):
            return args[0]
        return (torch.empty if function is torch.randn else function)(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Networks that are built meanwhile have shapes and no weights; those of a file follow.

    Beside ``torch.device("meta")`` nothing is drawn or divided: on that device torch would import its compiler, which
    takes seconds.
    """
    with torch.device("meta"), _Unfilled():
        yield


def in_own_modes(function: Function) -> Function:
    """A function that runs in :func:`own_modes`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with own_modes():
            return function(*args, **kwargs)

    call.in_own_modes = True
    return call


def kept(count: int = 1) -> Callable[[Function], Any]:
    """``functools.lru_cache`` of what a function makes in :func:`own_modes`: the way to keep anything in a process."""
    return lambda function: functools.lru_cache(maxsize=count)(in_own_modes(function))


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of one made in inference mode, which could not take part in a gradient."""
    return tensor.clone() if tensor.is_inference() else tensor
