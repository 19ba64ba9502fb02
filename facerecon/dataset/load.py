"""The parts of the pipeline by name: the open ones, and the paper's own, which are converted from its release.

| setting | open | FFHQ-UV |
|---|---|---|
| ``generator`` | ``mobile_stylegan`` | ``stylegan2_ffhq`` |
| ``encoder`` | ``linear``, the start of an optimization | ``e4e`` |
| ``editor`` | ``directions``, and a measured traversal | ``styleflow``, with DPR's light and the VGG-19 of FER2013 |
| ``pose`` | ``landmarks``, one head for all views | ``regressor``, N_enc on each view |
| ``template`` | ``open`` | ``ffhq_uv``, with its masks |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from facerecon import assets
from facerecon.correspond.resample import SOURCE, Retargeted, retarget
from facerecon.dataset.layout import RELEASED_MASKS, SHIPPED, Template, face_layout, load_template, with_masks
from facerecon.editing.attributes import AttributeMeter
from facerecon.editing.directions import load_directions
from facerecon.editing.flow import ConditionMeter, FlowNormalizer
from facerecon.editing.latent_traversal import AttributeNormalizer, TraversalSettings
from facerecon.editing.styleflow import load_expression_direction, load_styleflow
from facerecon.errors import ConfigError, nearest_name
from facerecon.imaging import files
from facerecon.modes import in_own_modes
from facerecon.morphable import MorphableModel, load_face_model
from facerecon.morphable.hifi3dpp import fill_sockets
from facerecon.perception import load_parser
from facerecon.perception.attributes import AttributeNet
from facerecon.perception.dpr import load_portrait_light
from facerecon.perception.vgg_expression import load_vgg_expression
from facerecon.stylegan.load import FACE_GENERATORS
from facerecon.stylegan.released_checkpoints import kept_pictures

__all__ = [
    "PARTS",
    "check_inversion",
    "check_parts",
    "describe_parts",
    "load_head",
    "load_normalizer",
    "needed_assets",
    "part_template",
]

PARTS: dict[str, tuple[str, ...]] = {
    "generator": tuple(FACE_GENERATORS),
    "encoder": ("linear", "e4e"),
    "editor": ("directions", "styleflow"),
    "pose": ("landmarks", "regressor"),
    "template": ("open", "ffhq_uv"),
}
"""{setting: its values}, the open pack's first."""

_TEMPLATE = "template_base_uv.png"


def check_parts(settings: Any) -> None:
    """Whether the parts of a :class:`~facerecon.dataset.pipeline.PipelineSettings` exist and fit each other.

    Raises:
        ConfigError: what does not, and what to set.
    """
    for name, values in PARTS.items():
        if getattr(settings, name) not in values:
            raise ConfigError(nearest_name(str(getattr(settings, name)), values, name))
    for name, value in (("encoder", "e4e"), ("editor", "styleflow")):
        if getattr(settings, name) == value and settings.generator != "stylegan2_ffhq":
            raise ConfigError(
                f"{name}={value} works on codes of StyleGAN2-FFHQ; got generator={settings.generator}. "
                f"Set generator=stylegan2_ffhq, or {name}={PARTS[name][0]}."
            )
    if settings.template == "ffhq_uv" and settings.face_model != "hifi3dpp":
        raise ConfigError(
            f"template=ffhq_uv is a map of hifi3dpp; got face_model={settings.face_model}. Set template=open."
        )


def check_inversion(settings: Any) -> None:
    """Whether photos can be inverted with these parts.

    Raises:
        ConfigError: the encoder is of another generator.
    """
    if settings.encoder != "e4e" and settings.generator != "mobile_stylegan":
        raise ConfigError(
            f"encoder={settings.encoder} inverts photos into mobile_stylegan only; got "
            f"generator={settings.generator}. Set encoder=e4e, or generator=mobile_stylegan editor=directions."
        )


def needed_assets(settings: Any, photos: bool = True) -> dict[str, str]:
    """What of the release the parts need: {asset: the setting that does without it}.

    Args:
        settings: :class:`~facerecon.dataset.pipeline.PipelineSettings`.
        photos: photos are inverted, too.
    """
    without = "generator=mobile_stylegan encoder=linear editor=directions"
    needed = {}
    if settings.face_model == "hifi3dpp" and not settings.face_model_path:
        needed["hifi3dpp"] = "face_model=makehuman template=open"
    if settings.generator == "stylegan2_ffhq" and assets.status("e4e_generator").state != "ready":
        needed["stylegan2_ffhq"] = without
    if settings.encoder == "e4e" and photos:
        needed["e4e"] = without
    if settings.editor == "styleflow":
        names = ("styleflow", "expression_direction", "dpr", "expression_vgg19")
        needed |= dict.fromkeys(names, "editor=directions")
    if settings.pose == "regressor" and settings.face_model == "hifi3dpp":
        needed["ffhq_uv_regressor"] = "pose=landmarks"
    if settings.template == "ffhq_uv":
        needed["ffhq_uv_topology"] = "template=open"
    return needed


def describe_parts(settings: Any) -> list[str]:
    """Lines for the log: which part does what, and what stands in for one of the paper's."""
    parts = ", ".join(f"{name} {getattr(settings, name)}" for name in PARTS)
    lines = [f"parts: {settings.face_model}, {parts}; precision {settings.precision}"]
    if settings.editing and settings.editor == "directions":
        lines.append(
            "note: light is edited by ridge directions and measured on the fitted head, not by StyleFlow and DPR."
        )
    if settings.editing and settings.editor == "styleflow":
        lines.append(
            "note: StyleFlow is told DPR's light, the smile of the VGG-19 of FER2013, baldness by BiSeNet's hair, and "
            "yaw, pitch, age, gender and glasses as measured by ours, as the filters do; a beard is taken for none."
        )
    return lines


@in_own_modes
def load_normalizer(
    settings: Any, picture: Callable[[Tensor], Tensor], meter: AttributeMeter, editor: Any = None
) -> AttributeNormalizer | FlowNormalizer:
    """What edits codes (Sec. 3.1.1).

    Args:
        settings: ``editor`` and ``search``.
        picture: codes -> images.
        meter: of what images show.
        editor: for a :class:`AttributeNormalizer` of one's own directions.

    Raises:
        AssetError: a part is not in the cache; says how to get it.
    """
    traversal: TraversalSettings = settings.search
    if editor is not None or settings.editor == "directions":
        return AttributeNormalizer(picture, editor if editor is not None else load_directions(), meter, traversal)
    conditions = ConditionMeter(
        load_portrait_light(), AttributeNet(load_vgg_expression(), softmax=False), load_parser()
    )
    return FlowNormalizer(picture, load_styleflow(), load_expression_direction(), meter, conditions, traversal)


@in_own_modes
def load_head(settings: Any) -> tuple[MorphableModel, Retargeted | None]:
    """The head model with the regions that a map needs; how its texels lie in makehuman's atlas, where it is another.

    Raises:
        AssetError: its files are missing; says how to get them.
    """
    model = load_face_model(settings.face_model, None, settings.face_model_path or None)
    if model.topology.name == SOURCE:
        return model, None
    retargeted = retarget(model)
    return (fill_sockets(retargeted.model) if model.name == "hifi3dpp" else retargeted.model), retargeted


def part_template(settings: Any, model: MorphableModel, retargeted: Retargeted | None) -> Template:
    """The template of that head: shipped, carried over from makehuman's, or the release's with its masks.

    Raises:
        AssetError: the release's pictures are not in the cache; says how to get them.
    """
    if settings.template == "ffhq_uv":
        texture, *drawn = kept_pictures((_TEMPLATE, *RELEASED_MASKS))
        layout = with_masks(face_layout(model, settings.size), *drawn)
        return load_template(model, settings.size, texture[None], layout)
    if retargeted is None:
        return load_template(model, settings.size)
    source = load_face_model(SOURCE, 0)
    shipped = files.read_image(assets.shipped(SHIPPED[SOURCE]))[None]
    with torch.no_grad():
        return load_template(model, settings.size, retargeted.texture(shipped, source))
