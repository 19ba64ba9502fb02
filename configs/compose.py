"""Compose a script's configuration with Hydra, run it, and turn what a user can mend into one line.

Scripts call :func:`run`; the library itself never sees Hydra. Overrides are Hydra's (``fitting=release seed=3``), but
text is taken as it stands: paths, names, lists of weights need no quoting beyond the shell's.
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

from facerecon.errors import ConfigError, FaceReconError, OutputError, nearest_name, output_closed, quietly

CONFIGS = Path(__file__).resolve().parent
PATHS = {
    "atlas",
    "cache",
    "data",
    "decoder",
    "decoders.finetune",
    "decoders.front",
    "decoders.linear",
    "decoders.ours",
    "decoders.part",
    "decoders.scratch",
    "dir",
    "face_model_path",
    "ict",
    "img",
    "init",
    "labels",
    "landmarks",
    "manifest",
    "maps",
    "mask",
    "measure.inception",
    "out",
    "params",
    "photos",
    "readme",
    "realy_dir",
    "realy_keypoints",
    "regressor",
    "source",
    "source_path",
    "synthetic.backgrounds",
    "synthetic.maps",
    "target",
    "target_path",
    "template",
    "texture",
    "weak.data",
}
"""Keys that take a path (or a name in its place): their value is taken as it stands, whatever is in it."""
TEXTS = {"decoder_space", "set"}
"""Keys that take other text though their default is null; of the other keys, the default says that they take text."""
SEVERAL = {"init"}
"""Keys that take ``[a, b]``, too."""


def _text(key: str, value: str, default: Any) -> Any:
    """The value of an override that is no matter of Hydra's grammar; _HYDRAS if it is.

    Args:
        key: of the configuration.
        value: as written.
        default: of the key.

    Raises:
        ConfigError: an empty path.
    """
    path, null = key in PATHS and not isinstance(default, int | float), value.lower() == "null"
    needed = isinstance(default, str) and not key.startswith(("decoders.", "photos"))
    if path and (not value or (null and needed)):
        raise ConfigError(f"{key}= is empty; give a path, or leave {key}= out. (A shell variable that is not set?)")
    if null or not (path or key in TEXTS or isinstance(default, str)):
        return _HYDRAS
    if key in SEVERAL and value[0] == "[" and value[-1] == "]":
        return [_text(key, item.strip().strip("'\""), default) for item in value[1:-1].split(",")]
    if not path:
        if value[:1] in ("[", "{") or re.fullmatch(r"(?i)true|false|[+-]?[\d.]+(e[+-]?\d+)?", value):
            return _HYDRAS
        if key not in TEXTS and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]  # quoted as Hydra asks for it
    # what OmegaConf would take for an interpolation
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", os.path.expanduser(value) if path else value)


_HYDRAS = object()


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
    """{dotted key: value, "???" where one must be given} of ``configs/NAME.yaml`` with nothing overridden."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        config = hydra_compose(config_name=name)
    return {key: OmegaConf.select(config, key, default="???") for key in _keys(config)}


TRAINING = ("texture_gan", "regressor", "uv_dataset")
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
    defaults = _defaults(name)
    known = list(defaults)
    grammar, texts = [], {}
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
        text = _HYDRAS
        if match[1] in ("", "++") and match[3] and key in known and key not in options:
            text = _text(key, item[match.end() :], defaults[key])
        texts.pop(key, None)
        if text is _HYDRAS:
            grammar.append(item)
        else:
            texts[key] = text
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        try:
            config = hydra_compose(config_name=name, overrides=grammar)
            for key, text in texts.items():
                OmegaConf.update(config, key, text)
            OmegaConf.to_container(config, resolve=True)  # an interpolation may lead nowhere
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"cannot read the overrides: {str(error)[:400]}") from None
    _check_kinds(config, defaults, name in TRAINING)
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
        KeyboardInterrupt: after SIGINT.
        Stopped: after SIGTERM or SIGHUP.
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
        numbers: row -> {name: number}, what is logged of it.
        step: key of the row that counts; None: rows count.

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
    SIGTERM with 143; a script that stops so may say what is kept in the exception's argument. Where nobody reads its
    output any more (``... | head -1``), it ends without a word, status 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the console cannot show stops nothing
    return quietly(lambda: _run(main, name, doc, list(sys.argv[1:] if argv is None else argv)))


def _run(main: Callable[[Any], int | None], name: str, doc: str, argv: list[str]) -> int:
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
        if error.errno is None or (isinstance(error, BrokenPipeError) and output_closed()):
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
