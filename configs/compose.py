"""Compose a script's configuration with Hydra, run it, and turn what a user can mend into one line.

Scripts call :func:`run`; the library itself never sees Hydra. Overrides are Hydra's (``fitting=release seed=3``), but
text is taken as it stands: paths, names, lists of weights need no quoting beyond the shell's.
"""

from __future__ import annotations

import atexit
import functools
import gc
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from facerecon.errors import ConfigError, nearest_name
from facerecon.run.signals import exit_status
from facerecon.settings import rename_keys, today_key

from . import schema

# threads that wait must not spin on a busy machine: before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
atexit.register(gc.freeze)  # else Python looks at all that torch has loaded, seconds long, before it ends

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
    "fair_dir",
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
    "released_dir",
    "realy_keypoints",
    "regressor",
    "source",
    "source_path",
    "synthetic.backgrounds",
    "synthetic.maps",
    "synthetic.scans",
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
ALIASES: dict[str, dict[str, str | None]] = {
    "*": {"pack.judge": "pack.eval_identity", "pack.perceptual": None, "pack.parsing": None, "parsing": None},
    "uv_dataset": {"complete.tint": None},
    "texture_gan": {
        "warm.rate": "pretrain.lr",
        "warm.code_rate": "pretrain.code_lr",
        "warm.": "pretrain.",
        "adversarial.rate": "adversarial.lr",
        "collapse.spread": "collapse.sample_std",
    },
    "regressor": {
        "wear.": "augment.",
        "loss.spread": "loss.intra_inter_ratio",
        "step.rate": "step.lr",
        "synthetic.around": "synthetic.p_full_sphere_lights",
        "synthetic.directional": "synthetic.p_directional",
        "synthetic.relief": "synthetic.shape_residual",
        "synthetic.slip": "synthetic.uv_jitter",
        "synthetic.stark": None,
        "synthetic.stain": None,
        "weak.parsing": None,
    },
}
"""{script, "*" for all: {key of before: today's}}, gone in version 0.3.0. A key that ends in a dot stands for all below
it; None: the setting is gone."""


def aliases(name: str) -> dict[str, str | None]:
    """Keys of before of a script, as :func:`~facerecon.settings.rename_keys` takes them."""
    return ALIASES["*"] | ALIASES.get(name, {})


def _today(key: str, name: str, known: Sequence[str]) -> str:
    """Today's name of a key that a user wrote; where it has another one, a line says so.

    Raises:
        ConfigError: the key of an earlier version is gone.
    """
    new = key if key in known else today_key(key, aliases(name))
    if new is None:
        raise ConfigError(f"key '{key}' is gone since version 0.2.0; leave it out (CHANGELOG.md).")
    if new == key:
        return key
    print(f"note: key '{key}' is now '{new}'; the old name goes in 0.3.0.", file=sys.stderr)
    return new


def _text(key: str, value: str, default: Any) -> Any:
    """The value of an override, as written, that is no matter of Hydra's grammar; _HYDRAS if it is."""
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


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def groups() -> dict[str, list[str]]:
    """{config group: its options}, read from the folders beside this file."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def _hydra(name: str, overrides: Sequence[str] = ()) -> Any:
    """``configs/NAME.yaml`` as Hydra composes it, over the settings' defaults (``settings/NAME`` of its list)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="settings", name=name, node=schema.defaults(name), package="_global_")
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return hydra_compose(config_name=name, overrides=list(overrides))


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    """{dotted key: value, "???" where one must be given} of ``configs/NAME.yaml`` with nothing overridden."""
    from omegaconf import OmegaConf

    return dict(_flat(OmegaConf.to_container(_hydra(name), resolve=True)))


def composed_defaults(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Nested mapping of all keys of ``configs/NAME.yaml`` and their values, as they are written."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(_hydra(name, overrides))


TRAINING = ("texture_gan", "regressor", "uv_dataset")
"""Scripts whose ``resume`` may also be ``force``."""

_KINDS = {bool: "true or false", float: "a number", list: "a list", dict: "a group of keys"}


def _check_kinds(config: Any, defaults: dict[str, Any], forced: bool = False) -> None:
    """Refuse what is no number or list where one belongs; null is left to whoever reads the key."""
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
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    options, defaults = groups(), _defaults(name)
    known = list(defaults)
    grammar, texts = [], {}
    for item in overrides:
        match = re.match(r"^([+~]{0,2})([\w.@/-]+)(=?)", item)
        if not match or (not match[3] and match[1] != "~"):
            raise ConfigError(f"'{item}' is not key=value; for example: img=face.jpg fitting=release. See --help.")
        key = _today(match[2], name, known)
        item = f"{match[1]}{key}{item[match.end(2) :]}"
        if not match[1] and key not in known and key not in options:
            raise ConfigError(nearest_name(key, _short(known, key, options), "config key"))
        value = item.partition("=")[2].strip("'\"")
        if key in options and value not in options[key]:
            raise ConfigError(nearest_name(value, options[key], f"option of '{key}'"))
        texts.pop(key, None)
        plain = match[1] in ("", "++") and match[3] and key in known and key not in options
        text = _text(key, item.partition("=")[2], defaults[key]) if plain else _HYDRAS
        if text is _HYDRAS:
            grammar.append(item)
        else:
            texts[key] = text
    try:
        config = _hydra(name, grammar)
        written = OmegaConf.to_container(config)
        if (renamed := rename_keys(written, aliases(name))) != written:  # an option file of one's own
            config = OmegaConf.create(renamed, flags={"struct": True})
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


def run(main: Callable[[Any], int | None], name: str, doc: str, argv: Sequence[str] | None = None) -> int:
    """Compose ``configs/NAME.yaml``, run a script's ``main(config)`` and return its exit status.

    See :func:`facerecon.run.signals.exit_status`.
    """
    words = list(sys.argv[1:] if argv is None else argv)

    def script() -> int | None:
        if any(word in ("-h", "--help") for word in words):
            from .describe import help_text

            print(help_text(name, doc))
            return 0
        config = compose(name, [word for word in words if word != "--cfg"])
        if "--cfg" in words:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(config))
            return 0
        return main(config)

    return exit_status(script)
