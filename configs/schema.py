"""What settings the configurations hold: names, defaults and comments, read from the source of the dataclasses.

Their modules are not imported for it: torch, which they need, must see the number of threads first.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import facerecon

PACKAGE = Path(facerecon.__file__).resolve().parent


class Source(NamedTuple):
    """Where a group of keys is defined."""

    module: str  # below facerecon
    name: str  # of a dataclass, or of a class whose constructor has the keys
    only: tuple[str, ...] = ()  # names of the keys; empty: all that have a default
    without: tuple[str, ...] = ()  # names that are set elsewhere


SETTINGS: dict[str, dict[str, Source]] = {
    "invert_texture": {"inversion": Source("fitting.invert", "TextureInversionSettings")},
    "reconstruct": {
        "fitting": Source(
            "fitting.fitter", "Fitter",
            (
                "photometric", "landmark_weighting", "latent_prior", "shape_prior", "identity_alignment", "tone",
                "light_space",
            ),
        ),
        "fitting.renderer": Source(
            "render.renderer", "Renderer", ("filter", "shading", "antialias", "texture_level")
        ),
        "fitting.start": Source("fitting.initialize", "LandmarkStart"),
        "fitting.regressor": Source("fitting.initialize", "RegressorStart"),
        "fitting.stages.texture": Source("fitting.stage", "Stage"),
        "fitting.stages.joint": Source("fitting.stage", "Stage"),
        "fitting.detail": Source("fitting.stage", "DetailSettings"),
        "fitting.occlusion": Source("fitting.occlusion", "OcclusionSettings"),
        "fitting.smoothness": Source("fitting.stage", "SmoothnessSettings"),
    },
    "regressor": {
        "synthetic": Source("synthetic.settings", "SyntheticSettings"),
        "augment": Source("training.crops", "PhotometricSettings"),
        "loss": Source("training.regressor", "SupervisedWeights"),
        "weak.loss": Source("training.regressor", "WeakWeights"),
        "step": Source("training.regressor", "StepSettings"),
    },
    "texture_gan": {
        "pretrain": Source("training.texture_gan", "PretrainSettings"),
        "adversarial": Source("training.texture_gan", "AdversarialSettings"),
        "pair_loss": Source("training.texture_gan", "PairWeights"),
        "adversarial_pair_loss": Source("training.texture_gan", "PairWeights"),
        "augment": Source("training.ada", "ADASettings"),
    },
    "uv_dataset": {
        "": Source("dataset.pipeline", "PipelineSettings"),
        "search": Source("editing.latent_traversal", "TraversalSettings"),
        "inversion": Source("editing.inversion", "InversionSettings"),
        "extract.fit": Source(  # of other values: extract.CLOSE_FIT
            "fitting.initialize", "LandmarkStart",
            ("iterations", "sigma", "sigma_jaw", "sigma_mesh", "sigma_expression"),
        ),
        "extract": Source("dataset.extract", "ExtractSettings", without=("size", "multi_view", "blending")),
        "complete": Source("dataset.complete", "CompleteSettings", without=("blending",)),
        "filters": Source("dataset.filters", "FilterSettings"),
    },
}  # fmt: skip
"""{script: {dotted group of keys, "" for the top: where it is defined}}."""


@functools.cache
def _module(name: str) -> tuple[dict[str, ast.ClassDef], dict[str, ast.expr]]:
    """Classes and constants of a module, by name."""
    body = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    constants = {t.id: n.value for n in body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}, constants


def _value(node: ast.expr, module: str) -> Any:
    """Plain value of literals, constants of the module, and settings with other values, ``Settings(key=value)``."""
    constants = _module(module)[1]
    if isinstance(node, ast.Name):
        return _value(constants[node.id], module)
    if isinstance(node, ast.Call):
        return {word.arg: _value(word.value, module) for word in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(k, module): _value(v, module) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, module) for item in node.elts]
    return ast.literal_eval(node)


def _fields(source: Source) -> dict[str, Any]:
    """{name: default} of a source; settings within settings are sources of their own."""
    node = _module(source.module)[0][source.name]
    found = {n.target.id: n.value for n in node.body if isinstance(n, ast.AnnAssign) and n.value is not None}
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            arguments, values = function.args.args, function.args.defaults
            found = {a.arg: v for a, v in zip(arguments[len(arguments) - len(values) :], values, strict=True)}
    return {
        name: _value(value, source.module)
        for name, value in found.items()
        if (name in source.only or not source.only)
        and name not in source.without
        and not (isinstance(value, ast.Call) and ast.unparse(value.func) == "field")
    }


def _stage(name: str) -> dict[str, Any]:
    """One fitting stage, with every term and variable that it might have."""
    constants = _module("fitting.stage")[1]
    given, terms, variables = (_value(constants[of], "fitting.stage") for of in ("STAGES", "TERMS", "VARIABLES"))
    stage = _fields(Source("fitting.stage", "Stage")) | given[name]
    stage["weights"] = dict.fromkeys(terms) | stage["weights"]
    stage["rate_scale"] = dict.fromkeys(variables, 1) | stage.get("rate_scale", {})
    return stage


def defaults(script: str) -> dict[str, Any]:
    """Nested mapping of all settings of a script with their defaults."""
    result: dict[str, Any] = {}
    for group, source in SETTINGS.get(script, {}).items():
        holder = result
        for key in group.split(".") if group else ():
            holder = holder.setdefault(key, {})
        holder.update(_stage(group.rpartition(".")[2]) if source.name == "Stage" else _fields(source))
    return result


def comments(script: str) -> dict[str, str]:
    """{dotted key: what its dataclass says of it}, and of each group what the dataclass is."""
    result: dict[str, str] = {}
    for group, source in SETTINGS.get(script, {}).items():
        text = ast.get_docstring(_module(source.module)[0][source.name]) or ""
        prefix = f"{group}." if group else ""
        if group and source.name not in ("Fitter", "Stage", "Renderer"):
            result[group] = _plain(text.split("\n\n")[0])
        args = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        for names, comment in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", args[1] if args else "", re.M):
            names = [name for name in names.split(", ") if not source.only or name in source.only]
            result |= {f"{prefix}{name}": _plain(comment) for name in names}
    if script != "reconstruct":
        return result
    constants = _module("fitting.stage")[1]
    terms, variables = (_value(constants[of], "fitting.stage") for of in ("TERMS", "VARIABLES"))
    result["fitting.stages"] = "stages 2 and 3; a stage of null is left out"
    for stage, text in (("texture", "stage 2, Eq. 4"), ("joint", "stage 3, Eq. 5")):
        result[f"fitting.stages.{stage}"] = text
        result |= {f"fitting.stages.{stage}.weights.{term}": _plain(text) for term, text in terms.items()}
        for variable in variables:
            result[f"fitting.stages.{stage}.rate_scale.{variable}"] = "factor on the learning rate"
        for term in _value(constants["STAGES"], "fitting.stage")[stage]["every"]:
            what = "decode at each k-th step" if term == "texture" else "at each k-th step that decodes"
            result[f"fitting.stages.{stage}.every.{term}"] = f"{what}; 1: every one"
    return result


def _plain(text: str) -> str:
    """A docstring's words in one line, without its marks."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return " ".join(text.replace("``", "").split()).removesuffix(".")
