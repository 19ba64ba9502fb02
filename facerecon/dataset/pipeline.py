"""One subject from its source to a normalized UV map, with every measurement on the way (Sec. 3.1).

    source code (a seed, or a photo's inversion) -> search: edited front, left and right views -> filters
    -> extraction over the views -> correction and completion -> filters -> files

The search is the costly part; its result is kept (``search/NNNNNN.safetensors``), so that maps can be made again
with other settings, or from a manifest, without it.
"""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon.dataset.complete import CompleteSettings, UVMap, complete
from facerecon.dataset.engines import Item, Outcome, Refused
from facerecon.dataset.extract import FILTERED_COVERS, Extraction, ExtractSettings, extract, measure_views
from facerecon.dataset.filters import FilterSettings, refusals
from facerecon.dataset.layout import FaceLayout
from facerecon.dataset.load import check_inversion, check_parts, load_head, load_normalizer, part_template
from facerecon.editing.attributes import AttributeMeter, Attributes
from facerecon.editing.e4e import load_e4e
from facerecon.editing.inversion import InversionSettings, encode, ffhq_crop, invert
from facerecon.editing.latent_traversal import TraversalSettings
from facerecon.errors import ConfigError, FaceReconError, InputError, check_number, nearest_name
from facerecon.evaluation.texture import brightness_symmetry_error, evenly_lit, octave_sharpness
from facerecon.imaging import masks
from facerecon.imaging.files import contact_sheet, load_image, to_pil
from facerecon.perception import load_identity, load_regressor, observe
from facerecon.perception.landmarks import map_points
from facerecon.perception.skin_tone import skin_color, skin_tone
from facerecon.run import choose_device
from facerecon.settings import build_settings, check_keys
from facerecon.storage import parse_json, safetensors_bytes
from facerecon.stylegan.load import load_face_generator

__all__ = ["ABLATIONS", "PipelineSettings", "Search", "UVPipeline", "make_worker", "view_sharpness"]

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ACCESSORIES = {"glasses": "glasses", "fringe": "fringe", "occluder": "headwear"}  # a filter, and what it looks at
VIEWS = ("front", "left", "right")
_SIDE_LEAST = 0.002  # share of a map's texels that only a side view shows, for these to speak for it
_FRONT_INSIDE = 0.4  # hundredths of the map: rim of the front view's texels that does not speak for it

ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "w/o light": {"extract": {"delight": False}},
    "w/o editing": {"editing": False},
    "w/o editing, w/o light": {"editing": False, "extract": {"delight": False}},
    "w/o multi-view": {"multi_view": False},
    "naive blending": {"blending": "naive"},
}
"""What is changed in the settings of each row of Table 4 (Sec. 3.2), and of ours: 'light' is the division by the
remaining shading, which FFHQ-UV does not do."""


@dataclass(frozen=True)
class PipelineSettings:
    """How maps are made.

    Args:
        truncation: truncation of the generator's samples; 1 is its full variety, with its artifacts.
        precision: precision of the generator and the face parser, bfloat16 or float32.
        device: where the generator runs: cpu, auto, cuda, ...; the rest runs on the CPU.
        face_model: head model.
        face_model_path: file or folder of the head model (ICT-FaceKit, hifi3dpp_model_info.mat); None: the cache's.
        generator: face generator by name, see :mod:`facerecon.dataset.load`.
        encoder: photo to latent code, by name.
        editor: latent edits by name.
        pose: shape and pose of the views by name.
        template: what a map falls back to, by name.
        size: texels a side of the maps.
        editing: normalize the face in latent space first; False unwraps the source as it is ("w/o editing").
        multi_view: blend three views; False takes the front view alone ("w/o multi-view").
        blending: poisson (Poisson editing and Laplacian pyramids) or naive ("naive blending").
        search: latent traversal to the normalized views.
        inversion: inversion of photos by optimization.
        extract: extraction of a texture over the views.
        complete: completion of the texture.
        filters: limits beyond which items are refused.
        residual: photos: share of what an inversion by optimization adds to w layer by layer (its W+ residual) that is
            edited on. All of it is nearest to the photo, but its artifacts grow as the face is turned. Of e4e's code
            all is.
        check: refuse items by the filters; False keeps all of them, with their reasons in manifest.jsonl.
    """

    truncation: float = 0.7
    precision: str = "bfloat16"
    device: str = "cpu"
    face_model: str = "makehuman"
    face_model_path: str | None = None
    generator: str = "mobile_stylegan"
    encoder: str = "linear"
    editor: str = "directions"
    pose: str = "landmarks"
    template: str = "open"
    size: int = 512
    editing: bool = True
    multi_view: bool = True
    blending: str = "poisson"
    residual: float = 0.5
    search: TraversalSettings = field(default_factory=TraversalSettings)
    inversion: InversionSettings = field(default_factory=InversionSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    complete: CompleteSettings = field(default_factory=CompleteSettings)
    filters: FilterSettings = field(default_factory=FilterSettings)
    check: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(nearest_name(self.precision, PRECISIONS, "precision"))
        check_parts(self)
        if not 0 < self.truncation <= 1.5:
            raise ConfigError(f"truncation must be above 0 and at most 1.5; got {self.truncation}.")
        check_number("size", self.size, 64, 4096, whole=True, unit="texels")
        self.extracting, self.completing  # noqa: B018  their values are checked

    @property
    def extracting(self) -> ExtractSettings:
        """``extract`` with what is shared."""
        return replace(self.extract, size=self.size, multi_view=self.multi_view, blending=self.blending)

    @property
    def completing(self) -> CompleteSettings:
        """``complete`` with what is shared; HiFi3D++ has sockets, no eyeballs, so the template's stay."""
        eyes = self.complete.eyes and self.face_model != "hifi3dpp"
        return replace(self.complete, blending=self.blending, eyes=eyes)


@dataclass
class Search:
    """What a search found: the codes of the source and of its normalized views.

    Args:
        source: (512,), or (N, 512) with the rows of the generator's W+.
        views: (V, ...), front first. Both are exact in half precision.
        figures: measurements.
        trace: one plain mapping a step.
        images: (V, 3, 1024, 1024) if they are at hand.
        source_image: (3, H, W) likewise.
        descriptors: {"source", "front"}: (128,) identity embeddings.
        made: now, not read.
    """

    source: Tensor
    views: Tensor
    figures: dict[str, Any] = field(default_factory=dict)
    trace: list[dict] = field(default_factory=list)
    images: Tensor | None = None
    source_image: Tensor | None = None
    descriptors: dict[str, Tensor] = field(default_factory=dict)
    made: bool = True

    def to_bytes(self) -> bytes:
        """The content of ``search/NNNNNN.safetensors``."""
        tensors = {"source": self.source.half(), "views": self.views.half()}
        tensors |= {f"descriptor_{key}": value for key, value in self.descriptors.items()}
        plain = {"figures": self.figures, "trace": self.trace}
        return safetensors_bytes(tensors, {"type": "Search", "facts": json.dumps(plain, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Search:
        """Read it back; anything else is an InputError."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = {key: value.float() for key, value in load(content).items()}
            length = int.from_bytes(content[:8], "little")
            facts = parse_json(parse_json(content[8 : 8 + length])["__metadata__"]["facts"])
            descriptors = {key[11:]: value for key, value in tensors.items() if key.startswith("descriptor_")}
            return cls(tensors["source"], tensors["views"], **facts, descriptors=descriptors, made=False)
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"a saved search is not readable ({error}); remove search/ and run again.") from None


class UVPipeline:
    """Makes UV maps, one subject at a time. Everything it needs is loaded once.

    Args:
        settings: how.
        editor: what proposes steps in latent space, in the place of the shipped directions.
        encoder: photo to start code, see :mod:`facerecon.editing.inversion`, in the place of the one by name.
    """

    def __init__(self, settings: PipelineSettings | None = None, editor: Any = None, encoder: Any = None) -> None:
        self.settings = settings = settings or PipelineSettings()
        self.device = choose_device(settings.device)
        self.generator = load_face_generator(settings.generator, self.device, PRECISIONS[settings.precision])
        self.model, retargeted = load_head(settings)
        self.meter = AttributeMeter()
        self.normalizer = load_normalizer(settings, self._picture, self.meter, editor)
        self.template = part_template(settings, self.model, retargeted)
        self.regressor = load_regressor(self.model) if settings.pose == "regressor" else None
        self.encoder = encoder

    def changed(self, **changes: Any) -> UVPipeline:
        """One with the same models and other settings of what follows the search.

        Args:
            changes: fields of :class:`PipelineSettings`, among editing, multi_view, blending, extract, complete,
                filters and check.

        Raises:
            ConfigError: another field, which needs models of its own.
        """
        free = ("editing", "multi_view", "blending", "extract", "complete", "filters", "check")
        check_keys(changes, free, "setting of a pipeline that is loaded")
        other = copy.copy(self)
        other.settings = replace(self.settings, **changes)
        return other

    def __call__(self, item: Item) -> Outcome:
        """One item; what goes wrong with it is in the outcome, never raised."""
        outcome = Outcome(item.name, item.origin)
        seconds: dict[str, float] = {}
        search = None
        try:
            with torch.no_grad():
                search = self.search(item, seconds)
                outcome.figures |= search.figures
                if search.made:
                    outcome.files[f"search/{item.name}.safetensors"] = search.to_bytes()
                outcome.reasons = refusals(search.figures, self.settings.filters, "search")
                if outcome.reasons and self.settings.check:
                    raise Refused(outcome.reasons)
                self.make_map(item, search, outcome, seconds)
                outcome.kept = True
        except Refused as refused:
            outcome.reasons = refused.reasons
        except FaceReconError as error:
            outcome.error = str(error).splitlines()[0]
        if search is not None and search.images is not None:
            where = "views" if outcome.accepted else "refused"
            outcome.files[f"{where}/{item.name}.jpg"] = self._strip(search, outcome)
        outcome.seconds = {key: round(value, 3) for key, value in seconds.items()}
        return outcome

    # -- search ------------------------------------------------------------------------------------------

    def search(self, item: Item, seconds: dict[str, float]) -> Search:
        """The codes of the normalized views: from an earlier search, or by a new one."""
        saved = Search.from_bytes(item.search) if item.search else None
        if saved is not None and not self.settings.editing and len(saved.views) > 1:  # of a set that was normalized
            return replace(self._unedited(saved.source, {}, seconds), made=False)
        if saved is not None and (not self.settings.editing or len(saved.views) > 1):
            with _timed(seconds, "generate"):
                saved.images = self.generate(saved.views)
                saved.source_image = self.generate(saved.source[None])[0]
            with _timed(seconds, "search"):  # seen anew: the meter may know more than it did
                seen = self.meter(saved.images)
                saved.figures |= _view_figures(seen)
                if "front" not in saved.descriptors:  # of a compact manifest
                    source = self.meter(saved.source_image[None])
                    saved.descriptors = {"source": source.identity[0], "front": seen.identity[0]}
            return saved
        figures: dict[str, Any] = {}
        crop = None
        if item.path is not None:
            with _timed(seconds, "observe"):
                crop = photo_crop(item.path, self.generator.resolution)
        if saved is not None:  # an inversion that was too poor to be edited, by the filters of then
            code, figures = saved.source, saved.figures
        elif crop is not None:
            with _timed(seconds, "invert"):
                code, quality = self._inverted(crop)
            figures |= {"inversion": quality["csim"], "inversion_error": quality["error"]}
        else:
            with _timed(seconds, "generate"):
                code = _half(self.generator.sample(item.seed, self.settings.truncation)[0].cpu())
        if not self.settings.editing:
            return self._unedited(code, figures, seconds)
        if self.settings.check and refusals(figures, self.settings.filters, "search"):  # a poor inversion
            return Search(code, code[None], figures)
        with _timed(seconds, "search"):
            found = self.normalizer(code)
        search = Search(code, _half(found.codes), figures, list(found.trace), found.images)
        if not torch.equal(search.views, found.codes):
            with _timed(seconds, "generate"):
                search.images = self.generate(search.views)
        search.source_image = found.source_image if crop is None else crop[0]
        search.descriptors = {"source": found.source.identity[0], "front": found.attributes.identity[0]}
        figures |= _search_figures(found.source, found.attributes)
        return search

    def _inverted(self, crop: Tensor) -> tuple[Tensor, dict[str, float]]:
        """A photo's code, rounded, and how well it shows the photo."""
        settings = self.settings
        if settings.encoder == "e4e":
            found = encode(crop, self._picture, load_e4e() if self.encoder is None else self.encoder)
            return _half(found.code), found.quality
        check_inversion(settings)
        with torch.enable_grad():
            found = invert(crop, self.generator, settings.inversion, encoder=self.encoder)
        return _half(torch.lerp(found.w, found.code, settings.residual)), found.quality

    def _unedited(self, code: Tensor, figures: dict[str, Any], seconds: dict[str, float]) -> Search:
        with _timed(seconds, "generate"):
            images = self.generate(code[None])
        with _timed(seconds, "search"):
            source = self.meter(images)
        figures |= _search_figures(source, source)
        descriptors = {"source": source.identity[0], "front": source.identity[0]}
        return Search(code, code[None], figures, [], images, images[0], descriptors)

    def generate(self, codes: Tensor) -> Tensor:
        """Pictures (V, 3, 1024, 1024) of codes, one at a time: a code gives the same picture in any batch."""
        return torch.cat([self._picture(code[None]) for code in codes])

    def _picture(self, codes: Tensor) -> Tensor:
        return self.generator(codes.to(self.device)).cpu()

    # -- map ---------------------------------------------------------------------------------------------

    def make_map(self, item: Item, search: Search, outcome: Outcome, seconds: dict[str, float]) -> None:
        """Extract and complete the map, measure it, and put its files into the outcome."""
        settings = self.settings
        with _timed(seconds, "extract"):
            views = measure_views(search.images, PRECISIONS[settings.precision])
            extraction = extract(
                views, self.model, settings.extracting, self.template.texture,
                regressor=self.regressor, layout=self.template.layout,
            )  # fmt: skip
        with _timed(seconds, "complete"):
            made = complete(extraction, self.template, settings.completing)
        with _timed(seconds, "measure"):
            layout = self.template.layout
            figures = {
                f"covered_{name}": share for name, share in zip(FILTERED_COVERS, extraction.covered[0], strict=True)
            }
            figures |= {
                "bs_error_map": brightness_symmetry_error(made.texture)[0],
                "bs_error": brightness_symmetry_error(made.texture, made.observed)[0],
                "observed": made.observed_share[0],
                "skin_tone": skin_tone(skin_color(made.texture, made.observed * layout.plain))[0],
            }
            outcome.figures |= {key: round(float(value), 4) for key, value in figures.items()}
            outcome.figures |= view_sharpness(extraction, made, layout)
            image, landmarks = evenly_lit(self.model, made.params[:1], made.texture)  # the head before plain gray
            head = load_identity()(image, landmarks)[0]
            if "front" in search.descriptors:
                outcome.figures["identity_map"] = float((head - search.descriptors["front"]).norm())
        outcome.reasons += refusals(outcome.figures, settings.filters, "map")
        if outcome.reasons and settings.check:
            raise Refused(outcome.reasons)
        with _timed(seconds, "write"):
            name = item.name
            outcome.files[f"thumbs/{name}.jpg"] = _jpg(F.interpolate(made.texture, (256, 256), mode="area")[0])
            outcome.files[f"uv-maps/{name}.png"] = _png(made.texture[0])
            outcome.files[f"observed/{name}.png"] = _png(made.observed[0])
            outcome.files[f"face-latents/{name}.npy"] = _npy(search.views)
            fit = {key: getattr(made.params, key) for key in ("expression", "rotation", "translation")}
            fit |= {"identity": made.params.identity[0], "light": made.params.light.coefficients}  # one, and per view
            tensors = {"source": search.source, "views": search.views} | fit
            tensors |= {f"descriptor_{key}": value for key, value in search.descriptors.items()}
            tensors["descriptor_map"] = head
            outcome.files[f"fit/{name}.safetensors"] = safetensors_bytes(tensors)

    def _strip(self, search: Search, outcome: Outcome) -> bytes:
        """A JPEG of the source and the views."""
        pictures, labels = list(search.images), [*VIEWS[: len(search.images)]]
        if search.source_image is not None and self.settings.editing:
            pictures, labels = [search.source_image, *pictures], [outcome.origin[-24:], *labels]
        small = [F.interpolate(p[None], (256, 256), mode="area")[0] for p in pictures]
        return _jpg(contact_sheet(small, len(small), labels, size=256))


def view_sharpness(extraction: Extraction, made: UVMap, layout: FaceLayout) -> dict[str, Any]:
    """How sharp a map is beside the views that it is of, over texels that it says it observed.

    Args:
        extraction: with the unwrapped views, the front view first.
        made: the map.
        layout: of its atlas.

    Returns:
        ``sharpness_front`` and ``coherence_front``, ``sharpness_side`` and ``coherence_side``: by octave, see
        :func:`~facerecon.evaluation.texture.octave_sharpness`. Front: against the front view, where it is preferred;
        side: mean over the side views, each where the front view shows nothing. And ``sharpness`` and ``coherence``,
        the least of the front from the second octave on. What no texel counts for is left out.
    """
    face = layout.crop(layout.face)
    seen = layout.crop(extraction.weights > 0.5) * face
    preferred, observed = layout.crop(layout.front), layout.crop(made.observed > 0.5)
    zones = seen * (preferred < 0.5) * (1 - seen[:1])
    few = zones.sum((1, 2, 3), keepdim=True) <= _SIDE_LEAST * layout.skin.numel()
    zones = torch.where(few, seen * (preferred < 0.2), zones)
    zones[:1] = masks.erode(seen[:1] * (preferred > 0.5), _FRONT_INSIDE * layout.unit)
    texture, views = layout.crop(made.texture), layout.crop(extraction.views)
    found = octave_sharpness(texture.expand_as(views), views, seen, zones * observed)
    figures: dict[str, Any] = {}
    for name, values in zip(("sharpness", "coherence"), found, strict=True):
        for zone, rows in (("front", values[:1]), ("side", values[1:])):
            mean = rows.nanmean(0)
            if bool(mean.isfinite().all()):
                figures[f"{name}_{zone}"] = [round(value, 4) for value in mean.tolist()]
        if f"{name}_front" in figures:
            figures[name] = min(figures[f"{name}_front"][1:])
    return figures


def photo_crop(path: str, size: int = 1024) -> Tensor:
    """(1, 3, S, S): the largest face of a photo, aligned as FFHQ is.

    Raises:
        NoFaceError, InputError: see :func:`facerecon.observe`.
    """
    photo = observe(path)
    loaded = load_image(path)
    points = map_points(photo.fit.to_photo, photo.landmarks68) * loaded.scale
    return ffhq_crop(loaded.image[None], points, size)


def _search_figures(source: Attributes, views: Attributes) -> dict[str, Any]:
    """Measurements of the source and its views, as plain numbers."""
    figures = _view_figures(views) | {
        "identity": float((views.identity[:1] - source.identity).norm()),
        "age": source.age.item(),
        "male": source.male.item(),
    }
    figures["source_happy"] = source.smiling[0].item()  # as "happy" of the views
    for name in ("yaw", "pitch", "neutral", "opening", "evenness"):
        figures[f"source_{name}"] = getattr(source, name)[0].item()
    return {key: round(value, 5) for key, value in figures.items()}


def _view_figures(views: Attributes) -> dict[str, Any]:
    """Measurements of the views that the filters ask for."""
    front = views[:1]
    figures = {
        "happy": float(views.smiling.max()),
        "opening": float(views.opening.max()),
        "front_yaw": abs(front.yaw.item()),
        "front_pitch": abs(front.pitch.item()),
        "evenness": front.evenness.item(),
        "score": float(views.score.min()),
    }
    figures |= {name: front.probability(worn).item() for name, worn in ACCESSORIES.items()}
    if len(views.yaw) > 1:
        left, right = views.yaw[1].item(), views.yaw[2].item()
        figures |= {"left_yaw": left, "right_yaw": right, "side_yaw": min(left, -right)}
        figures["side_identity"] = float((views.identity[1:] - front.identity).norm(dim=1).max())
    return {key: round(value, 5) for key, value in figures.items()}


def _half(code: Tensor) -> Tensor:
    """What a manifest can hold: a map can be made again from it exactly."""
    return code.half().float()


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started


def _encoded(image: Tensor, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, kind, **options)
    return buffer.getvalue()


_png = partial(_encoded, kind="PNG", compress_level=4)
_jpg = partial(_encoded, kind="JPEG", quality=88)


def _npy(values: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy().astype(np.float16))
    return buffer.getvalue()


def make_worker(values: Mapping[str, Any]) -> UVPipeline:
    """A pipeline from plain values: what travels to worker processes and machines."""
    return UVPipeline(build_settings(PipelineSettings, values))
