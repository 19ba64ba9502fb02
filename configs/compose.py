"""Compose a script's configuration with Hydra, run it, and turn what a user can mend into one line.

Scripts call :func:`run`; the library itself never sees Hydra. Overrides are Hydra's (``fitting=release seed=3``);
values of path keys need no quoting.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from facerecon.errors import ConfigError, FaceReconError, OutputError, nearest_name

CONFIGS = Path(__file__).resolve().parent
PATH_KEYS = {
    "decoder",
    "regressor",
    "face_model_path",
    "img",
    "out",
    "params",
    "data",
    "dir",
    "manifest",
    "landmarks",
    "mask",
    "texture",
    "source",
    "target",
    "source_path",
    "target_path",
    "maps",
    "resume",
    "init",
    "ict",
    "photos",
    "readme",
    "realy_dir",
    "realy_keypoints",
    "set",
    "decoders.ours",
    "decoders.linear",
    "decoders.front",
    "decoders.part",
    "decoders.scratch",
    "decoders.finetune",
}


def _quoted(override: str) -> str:
    key, sign, value = override.partition("=")
    if (
        sign
        and key.lstrip("+~") in PATH_KEYS
        and value
        and value[0] not in "'\"["
        and value not in ("null", "true", "false")
    ):
        return key + "='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return override


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    from omegaconf import DictConfig

    for key in config:
        name = f"{prefix}{key}"
        yield name
        value = config._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _keys(value, name + ".")


def groups() -> dict[str, list[str]]:
    """{config group: its options}, read from the folders beside this file."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    """{dotted key: value as written} of ``configs/NAME.yaml`` with nothing overridden."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        config = hydra_compose(config_name=name)
    return {key: OmegaConf.select(config, key, throw_on_missing=False) for key in _keys(config)}


TRAINING = ("texture_gan", "regressor", "edit_directions", "uv_dataset")
"""Scripts whose ``resume`` may also be ``force``."""

_KINDS = {bool: "true or false", float: "a number", list: "a list", dict: "a group of keys"}


def _check_kinds(config: Any, defaults: dict[str, Any], forced: bool = False) -> None:
    """Numbers where numbers belong, lists where lists do; null is left to whoever reads the key.

    Raises:
        ConfigError: names the key and what it takes.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    def kind_of(value: Any) -> type:
        return {DictConfig: dict, ListConfig: list, int: float}.get(type(value), type(value))

    for key, default in defaults.items():
        value, kind = OmegaConf.select(config, key, default=None), kind_of(default)
        force = forced and key == "resume"
        if kind in _KINDS and value is not None and kind_of(value) is not kind and not (force and value == "force"):
            wanted = "true, false or force" if force else _KINDS[kind]
            raise ConfigError(f"{key} must be {wanted}; got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be finite; got {value!r}.")


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration ``configs/NAME.yaml`` with overrides applied.

    Raises:
        ConfigError: an unknown key, group option or a value that does not parse; the nearest known one is named.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    options = groups()
    known = list(_defaults(name))
    numbers = {key for key, value in _defaults(name).items() if type(value) in (int, float)}
    overrides = [item if item.partition("=")[0] in numbers else _quoted(item) for item in overrides]
    for item in overrides:
        match = re.match(r"^([+~]{0,2})([\w.@/-]+)(=?)", item)
        if not match or (not match[3] and match[1] != "~"):
            raise ConfigError(f"'{item}' is not key=value; for example: img=face.jpg fitting=release. See --help.")
        key = match[2]
        if not match[1] and key not in known and key not in options:
            raise ConfigError(nearest_name(key, _short(known, key, options), "config key"))
        value = item.partition("=")[2].strip("'\"")
        if key in options and key not in ("hydra",) and value not in options[key]:
            raise ConfigError(nearest_name(value, options[key], f"option of '{key}'"))
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        try:
            config = hydra_compose(config_name=name, overrides=overrides)
            OmegaConf.to_container(config, resolve=True)  # an interpolation may lead nowhere
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"cannot read the overrides: {str(error)[:400]}") from None
    _check_kinds(config, _defaults(name), name in TRAINING)
    with open_dict(config):
        config.pop("hydra", None)
    return config


def _short(known: list[str], key: str, options: dict[str, list[str]]) -> list[str]:
    """Names worth listing in an error: those on the level of the unknown key."""
    parent = key.rpartition(".")[0]
    level = [name for name in known if name.rpartition(".")[0] == parent]
    return sorted(set(level or [name for name in known if "." not in name]) | (set(options) if not parent else set()))


def _help(name: str, doc: str) -> str:
    text = [doc.strip(), "", "Keys and defaults:", ""]
    text += ["  " + line for line in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()]
    text += ["", "Groups (choose with group=option, change with group.key=value):"]
    text += [f"  {group}: {', '.join(options)}" for group, options in groups().items()]
    text += ["", "--cfg prints the composed configuration, --help this text."]
    return "\n".join(text)


class Stopped(BaseException):
    """The process was asked to end (SIGTERM, SIGHUP); like KeyboardInterrupt, no ``except Exception`` holds it up."""

    number = int(signal.SIGTERM)


_asked: list[int] = []  # signals that asked this run to end
_SAME = 1.0  # s: `timeout`, torchrun and a terminal send one process the same request twice
_patient, _asked_at = False, 0.0


def _stop(number: int, frame: Any) -> None:
    global _asked_at
    now = time.monotonic()
    if _patient and _asked and now - _asked_at < _SAME:
        return
    _asked.append(number)
    _asked_at = now
    if not _patient or len(_asked) > 1:
        check_stop()


def check_stop() -> None:
    """Raise again what a signal asked for: Python drops an exception that a handler raises while a weak reference's
    callback or a ``__del__`` runs, so long work looks here between its steps.

    Raises:
        KeyboardInterrupt: after SIGINT. Stopped: after SIGTERM or SIGHUP.
    """
    if _asked:
        if _asked[-1] == signal.SIGINT:
            raise KeyboardInterrupt
        Stopped.number = _asked[-1]
        raise Stopped


def stop_status(stop: BaseException) -> int:
    """Exit status of a run that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 130 if isinstance(stop, KeyboardInterrupt) else 128 + Stopped.number


@contextlib.contextmanager
def patient_stops(patient: bool = True) -> Iterator[Callable[[], bool]]:
    """Meanwhile a first signal raises nothing, so that the work can keep what it has; a second one stops at once.

    Within, ``patient_stops(False)`` marks what may be cut off: there, a signal raises at once, also one from before.

    Yields:
        Whether the run was asked to end; to be looked at where it can. It raises after a second signal, as
        :func:`check_stop`, which the work calls once all is kept.
    """
    global _patient

    def asked() -> bool:
        if len(_asked) > 1:
            check_stop()
        return bool(_asked)

    before, _patient = _patient, patient
    try:
        if not patient:
            check_stop()
        yield asked
    finally:
        _patient = before


@contextlib.contextmanager
def names_checkpoint(folder: Any) -> Iterator[None]:
    """A training run that ends early says what is kept of it.

    Args:
        folder: its :class:`~facerecon.run.RunDirectory`.

    Raises:
        KeyboardInterrupt, Stopped, OutputError: as within, with the last checkpoint in the message.
    """
    try:
        yield
    except (KeyboardInterrupt, Stopped, OutputError) as stop:
        steps = folder.checkpoints.steps()
        kept = f"the last checkpoint in {folder.path} is of step {steps[-1]}" if steps else "no checkpoint yet"
        if isinstance(stop, OutputError):
            raise OutputError(f"{stop} {kept[0].upper()}{kept[1:]}; the same command goes on.") from None
        raise type(stop)(kept) from None


def row_logger(
    config: Any, numbers: Callable[[dict[str, Any]], dict[str, float]], step: str | None = None
) -> Callable[[dict[str, Any]], None]:
    """A function that logs one row of figures, as ``logger=`` says: nowhere, or in Weights & Biases, offline unless
    WANDB_MODE says otherwise.

    Args:
        config: of the run; ``logger`` and ``out`` are looked at, all of it is kept with the figures.
        numbers: row -> {name: number}, what is logged of it. step: key of the row that counts; None: rows count.

    Raises:
        ConfigError: an unknown logger.
    """
    if config.logger == "none":
        return lambda row: None
    if config.logger != "wandb":
        raise ConfigError(nearest_name(config.logger, ("none", "wandb"), "logger"))
    os.environ.setdefault("WANDB_MODE", "offline")
    import wandb
    from omegaconf import OmegaConf

    wandb_run = wandb.init(
        project="facerecon", dir=str(config.out), config=OmegaConf.to_container(config, resolve=True)
    )
    return lambda row: wandb_run.log(numbers(row), step=None if step is None else row[step])


def run(main: Callable[[Any], int | None], name: str, doc: str, argv: Sequence[str] | None = None) -> int:
    """Run a script's ``main(config)`` and return its exit status.

    What a user can mend is printed as one line on standard error: status 2. Ctrl-C ends with one line and status 130,
    SIGTERM with 143; a script that stops so may say what is kept in the exception's argument.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    _asked.clear()
    if threading.current_thread() is threading.main_thread():
        for signal_name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, signal_name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _stop)
    try:
        if any(arg in ("-h", "--help") for arg in argv):
            print(_help(name, doc))
            return 0
        config = compose(name, [arg for arg in argv if arg != "--cfg"])
        if "--cfg" in argv:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(config))
            return 0
        return int(main(config) or 0)
    except FaceReconError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}; check the path, its permissions and the free space.",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        kept = str(stop) or "what was finished is kept"
        print(f"interrupted; {kept}; run the same command again to go on.", file=sys.stderr)
        return stop_status(stop)
    finally:
        _asked.clear()  # answered: whoever called this goes on
