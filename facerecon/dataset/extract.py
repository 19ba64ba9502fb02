"""UV extraction: the views of one person -> one texture of what they show (Sec. 3.1.2).

One head is fitted to all views at once, each view is unwrapped with true visibility and its masks, the side views take
the colors of the front view (Eq. 1), and all are joined by pyramids under masks that follow from the head itself.

Unlike FFHQ-UV: one fit instead of one regression a view; the unwrapped views follow the landmarks beyond what the head
model can bend to, so that features meet between views and between people; what light is left is divided out
(``delight``); the views are joined by Laplacian pyramids instead of a linear blend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from facerecon.dataset.layout import SHIPPED, FaceLayout, face_layout, load_template
from facerecon.errors import ConfigError, InputError, NoFaceError, check_shape
from facerecon.fitting.coefficients import coefficients_to_params
from facerecon.fitting.initialize import LandmarkStart, fit_landmarks, fit_light
from facerecon.fitting.tone import shared_tone
from facerecon.geometry.alignment import deep3d_crop_transform, invert_affine
from facerecon.geometry.camera import camera_in_photo, project
from facerecon.geometry.lighting import sh_basis
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging import masks
from facerecon.imaging.color import match_color, rgb_to_yuv
from facerecon.imaging.pyramid import laplacian_blend, push_pull
from facerecon.imaging.warp import crop_affine, crop_valid
from facerecon.morphable import MorphableModel
from facerecon.perception import Regressor, load_facemesh, load_landmarks68, load_parser
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.facemesh import aligned_look, fused_landmarks
from facerecon.perception.identity import landmark_box
from facerecon.perception.landmarks import map_points
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.perception.parsing import FaceMasks, face_outline
from facerecon.perception.tone import estimate_tone
from facerecon.render.interpolate import interpolate
from facerecon.render.uv import bake, uv_raster
from facerecon.types import Camera, Crop, FaceParams, SHLight, TensorStruct, ToneBelief, _struct

__all__ = ["FILTERED_COVERS", "AlignedViews", "ExtractSettings", "Extraction", "extract", "join_views", "measure_views"]

FILTERED_COVERS = ("glasses", "hat", "hair")
"""Classes of :data:`~facerecon.perception.parsing.COVERS` whose share of a face a set's filters know."""
_FIT = 224  # px of the crop whose camera the head is fitted under
_WIDER = 1.4  # of the full crop over it
_NOSTRIL = 0.72  # of the skin's brightness
_LIGHT_GRID = 128  # texels a side on which light is solved
_STRAND_GRID = 512  # texels a side on which strands of hair are looked for
_SHADOW = 512  # px of the z-buffer
_MIN_SCORE = 0.5  # of the face mesh


CLOSE_FIT = LandmarkStart(iterations=8, sigma=1.2, sigma_jaw=3.0, sigma_mesh=6.0, sigma_expression=0.35)
"""Nearer to the landmarks than a start of a fit: here the photo's pixels must land at their texels."""


@dataclass(frozen=True)
class ExtractSettings:
    """How views become a texture.

    Args:
        size: texels a side of the map.
        multi_view: use all views; False: the first alone (the ablation 'w/o multi-view').
        delight: divide the unwrapped views by the shading that their bands 1-8 of light leave on the head.
        blending: "poisson", or "naive" (each view pasted by its mask, the ablation 'naive blending').
        contrast: w of Eq. 1 between views. 1.5 in the paper lowers the contrast of the side views; they show the same
            skin as the front view, so here it is 1.
        shading_range: least and largest shading that is divided out.
        light_prior: strength of the pull to even light.
        follow: share of the residual of the landmark fit that the unwrapping follows, 0 to 1.
        fit: noise and priors of the landmark fit.
    """

    size: int = 512
    multi_view: bool = True
    delight: bool = True
    blending: str = "poisson"
    contrast: float = 1.0
    shading_range: tuple[float, float] = (0.5, 1.6)
    light_prior: float = 0.003
    follow: float = 1.0
    fit: LandmarkStart = CLOSE_FIT

    def __post_init__(self) -> None:
        if self.blending not in ("poisson", "naive"):
            raise ConfigError(f"blending must be 'poisson' or 'naive'; got {self.blending!r}.")
        if self.size < 64 or self.size % 4:
            raise ConfigError(f"size must be at least 64 texels and a multiple of 4; got {self.size}.")


@_struct
class AlignedViews(TensorStruct):
    """What B FFHQ-aligned images show.

    Args:
        image: (B, 3, S, S).
        landmarks68: (B, 68, 2), mesh468: (B, 468, 3), pixels of the image.
        face, eye, mouth: (B, 1, s, s) soft masks, s at most 512.
        score: (B,), of the face mesh.
        covered: (B, 3), shares of the face's outline that ``FILTERED_COVERS`` (glasses, a hat, hair) hide.
        tone: belief over the color of each face's skin.
    """

    image: Tensor
    landmarks68: Tensor
    mesh468: Tensor
    face: Tensor
    eye: Tensor
    mouth: Tensor
    score: Tensor
    covered: Tensor
    tone: ToneBelief


@_struct
class Extraction(TensorStruct):
    """One person's texture as the views show it.

    Args:
        texture: (1, 3, S, S) in [0, 1]; beyond ``observed`` the nearest seen color.
        observed: (1, 1, S, S) in [0, 1], how far a texel is taken from a view.
        views: (B, 3, S, S), each view unwrapped, evenly lit if asked.
        weights: (B, 1, S, S), what of each view can be trusted.
        iris: (1, 3) color of the irises.
        iris_seen: (1,), texels it was read from.
        params: of batch B, identity and expression shared, with the light of each view.
        shading: (B, 2), least and largest shading divided out of a view's skin.
        covered: (1, 3), of the front view, as of :class:`AlignedViews`.
        tone: of batch 1, the belief over the color of the skin that all views speak for together.
    """

    texture: Tensor
    observed: Tensor
    views: Tensor
    weights: Tensor
    iris: Tensor
    iris_seen: Tensor
    params: FaceParams
    shading: Tensor
    covered: Tensor
    tone: ToneBelief

    SHARED = ("texture", "observed", "iris", "iris_seen", "covered", "tone")


@torch.no_grad()
def measure_views(images: Tensor, precision: torch.dtype = torch.float32) -> AlignedViews:
    """Landmarks and masks of FFHQ-aligned images; no detector is needed where the face is known to be in the middle.

    Args:
        images: (B, 3, S, S) RGB in [0, 1].
        precision: of the face parser.

    Raises:
        NoFaceError: an image shows no face there.
    """
    check_shape("images", images, "B 3 H W", "Add a batch axis: images[None].")
    side = images.shape[-1]
    if images.shape[-2] != side or side < 128:
        raise InputError(f"views must be square and at least 128 px; got {tuple(images.shape[2:])}.")
    small, box = aligned_look(images)
    mesh, score = load_facemesh()(small, box)
    landmarks = load_landmarks68()(small, box)
    reach = (landmarks.amax(1) - landmarks.amin(1)).amax(1)
    apart = (mesh[..., :2].mean(1) - landmarks.mean(1)).norm(dim=1) > 0.35 * reach
    if apart.any():  # the mesh lost the face: look again where the landmarks are
        mesh, score = load_facemesh()(small, landmark_box(landmarks))
    if (score < _MIN_SCORE).any():
        number = int(score.argmin())
        raise NoFaceError(f"view {number} shows no face where an FFHQ-aligned image has it; align it first.")
    landmarks, mesh = fused_landmarks(landmarks, mesh), mesh[:, :468]
    parser = load_parser(precision)
    found = [parser(*part) for part in zip(small.split(1), mesh.split(1), strict=True)]
    up = side / small.shape[-1]
    outline = face_outline(mesh, tuple(small.shape[-2:]))
    hidden = torch.cat([torch.cat([m.classes == CLASSES.index(name) for name in FILTERED_COVERS], 1) for m in found])
    return AlignedViews(
        image=images,
        landmarks68=landmarks * up,
        mesh468=mesh * up,
        face=torch.cat([m.face for m in found]),
        eye=torch.cat([m.eye for m in found]),
        mouth=torch.cat([m.mouth for m in found]),
        score=score,
        covered=(hidden * outline).sum((2, 3)) / outline.sum((2, 3)).clamp(min=1),
        tone=ToneBelief.cat([_tone(*part) for part in zip(small.split(1), landmarks.split(1), found, strict=True)]),
    )


def _tone(image: Tensor, landmarks: Tensor, masks_: FaceMasks) -> ToneBelief:
    """The belief of one view (1, 3, s, s), from crops such as :func:`facerecon.observe` cuts."""
    to_image = deep3d_crop_transform(landmarks, MEAN_FIVE_POINTS, _FIT)
    wide = to_image @ torch.tensor(
        [[_WIDER, 0, (1 - _WIDER) * _FIT / 2], [0, _WIDER, (1 - _WIDER) * _FIT / 2], [0, 0, 1]]
    )
    layers = crop_affine(torch.cat([image, masks_.skin], 1), wide, _FIT)
    at = (F.affine_grid(torch.eye(2, 3)[None], (1, 1, _FIT, _FIT), align_corners=False) + 1) * (_FIT / 2)
    at = at @ wide[0, :, :2].mT + wide[0, :, 2]
    classes = F.grid_sample(masks_.classes.float(), at / image.shape[-1] * 2 - 1, "nearest", align_corners=False)
    blank = torch.zeros(1, 1, _FIT, _FIT)
    valid = crop_valid(tuple(image.shape[-2:]), wide, _FIT)
    full = Crop(layers[:, :3], wide, valid, blank, layers[:, 3:], blank, blank, blank, classes.byte())
    fit = Crop(crop_affine(image, to_image, _FIT), to_image, *[blank] * 6)
    return estimate_tone(full, fit, map_points(invert_affine(to_image), landmarks))


@torch.no_grad()
def extract(
    images: Tensor | AlignedViews,
    model: MorphableModel,
    settings: ExtractSettings | None = None,
    albedo: Tensor | None = None,
    regressor: Regressor | None = None,
    layout: FaceLayout | None = None,
) -> Extraction:
    """Unwrap the views of one person and join them.

    Args:
        images: (B, 3, S, S) FFHQ-aligned views in [0, 1], the front view first, or what :func:`measure_views` made of
            them.
        model: head model with regions.
        settings: of the extraction.
        albedo: (1, 3, s, s), a usual face in even light, which tells light from skin; None: the head's shipped
            template, or plain skin where it has none.
        regressor: N_enc of that head, which then says shape and pose of each view for itself, as in the paper; None:
            one head is fitted to the landmarks of all views.
        layout: of the atlas at that size; None: what :func:`~facerecon.dataset.layout.face_layout` derives.

    Raises:
        NoFaceError: a view shows no face.
    """
    settings = settings or ExtractSettings()
    views = images if isinstance(images, AlignedViews) else measure_views(images)
    if not settings.multi_view:
        views = views[:1]
    layout = face_layout(model, settings.size) if layout is None else layout
    if albedo is None and model.topology.name in SHIPPED:
        albedo = load_template(model, settings.size).texture
    params, camera = _fit(views, model, settings, regressor)
    vertices = model(params)
    offset = _residual(views, vertices, camera, model) * settings.follow
    rgb, weight, eyes = _unwrapped(views, vertices, camera, offset, layout, model)
    light, shading = _lights(rgb, weight, vertices, layout, model, albedo, settings)
    params = params.replace(light=SHLight(light))
    if settings.delight:
        rgb = rgb / shading
    weight = _without_strangers(rgb, weight, layout)
    texture, observed = join_views(rgb, weight, layout, settings)
    iris, iris_seen = _iris(rgb[:1], eyes[:1], layout)
    inside = (weight * layout.plain).flatten(1) > 0.5
    bright = shading.mean(1).flatten(1)
    limits = [torch.stack(b[i].aminmax()) if i.any() else b.new_ones(2) for b, i in zip(bright, inside, strict=True)]
    return Extraction(
        texture, observed, rgb, weight, iris, iris_seen, params, torch.stack(limits), views.covered[:1],
        shared_tone(views.tone)[:1],
    )  # fmt: skip


def _fit(
    views: AlignedViews, model: MorphableModel, settings: ExtractSettings, regressor: Regressor | None
) -> tuple[FaceParams, Camera]:
    """One head for all views, or N_enc's of each, and its cameras in pixels of the views."""
    to_image = deep3d_crop_transform(views.landmarks68, MEAN_FIVE_POINTS, _FIT)
    camera = camera_in_photo(Camera.deep3d(_FIT, batch=views.batch), to_image, tuple(views.image.shape[-2:]))
    if regressor is not None:
        crops = regressor.sized(crop_affine(views.image, to_image, _FIT))
        return coefficients_to_params(regressor(crops), model), camera
    from_image = invert_affine(to_image)
    points, dense = (map_points(from_image, x) for x in (views.landmarks68, views.mesh468[..., :2]))
    shared = {"shared_identity": True, "shared_expression": True}
    return fit_landmarks(model, points, mesh_points=dense, settings=settings.fit, **shared), camera


def _residual(views: AlignedViews, vertices: Tensor, camera: Camera, model: MorphableModel) -> Tensor:
    """(B, V, 2) px: a smooth field through what the fit leaves between its points and the measured ones: a Gaussian
    process, given the residuals at the inner landmarks and the stable points of the mesh, whose noise is larger."""
    topology = model.topology
    points = model.landmarks3d(vertices, camera)[:, 17:]
    target = views.landmarks68[:, 17:]
    noise = vertices.new_full((points.shape[1],), 1.5)
    if topology.mesh_points.numel():
        points = torch.cat([points, model.mesh_points3d(vertices)], 1)
        target = torch.cat([target, views.mesh468[:, topology.mesh_points, :2]], 1)
        noise = torch.cat([noise, noise.new_full((len(topology.mesh_points),), 4.0)])
    places = project(camera, points)[..., :2]
    face = (views.landmarks68.amax(1) - views.landmarks68.amin(1)).amax(1)  # (B,) px
    reach = 0.10 * face[:, None, None]
    kernel = (-0.5 * (torch.cdist(places, places) / reach).square()).exp()
    kernel = kernel + torch.diag_embed((noise / 2.0).square().expand(len(places), -1))
    weights = torch.cholesky_solve(target - places, torch.linalg.cholesky_ex(kernel)[0])
    pixels = project(camera, vertices)[..., :2]
    side, cells = views.image.shape[-1], 64
    center = (torch.arange(cells) + 0.5) * (side / cells)
    grid = torch.stack(torch.meshgrid(center, center, indexing="xy"), -1).view(1, -1, 2).to(places)
    field_ = (-0.5 * (torch.cdist(grid.expand(len(places), -1, -1), places) / reach).square()).exp() @ weights
    field_ = field_.mT.reshape(len(places), 2, cells, cells)
    look = (pixels / side * 2 - 1)[:, None]
    moved = F.grid_sample(field_, look, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved[:, :, 0].mT


def _unwrapped(
    views: AlignedViews, vertices: Tensor, camera: Camera, offset: Tensor, layout: FaceLayout, model: MorphableModel
) -> tuple[Tensor, Tensor, Tensor]:
    """Each view in UV: colors (B, 3, S, S), trust (B, 1, S, S) of the skin, and of the eyeballs."""
    side = views.image.shape[-1]
    scale = side / views.face.shape[-1]
    pixel = side / 1024 / scale  # of an image of 1024 px, in those of the masks
    face = masks.erode(views.face, 10 * pixel)  # hair and background bleed over the border
    eye = masks.dilate(views.eye, 5 * pixel)  # lashes, lid rims
    mouth = masks.dilate(views.mouth, 4 * pixel)
    layers = torch.cat([face * (1 - eye) * (1 - mouth), views.eye], 1)
    if scale != 1:
        layers = F.interpolate(layers, (side, side), mode="bilinear", align_corners=False)
    layers, size = torch.cat([views.image, layers], 1), layout.skin.shape[-1]
    options = {"padding": 0, "offset": offset, "texels": (layout.face + layout.eyes)[0, 0] > 0, "shadow": _SHADOW}
    baked, seen = bake(layers, vertices, model.topology, camera, size, **options)
    weight = seen * baked[:, 3:4] * layout.face
    eyes = seen * baked[:, 4:] * layout.eyes
    soft = masks.feather(layout.coarse(weight), max(1.0, 0.6 * layout.grid_unit))
    return baked[:, :3], torch.minimum(weight, layout.fine(soft)), eyes


def _lights(
    rgb: Tensor,
    weight: Tensor,
    vertices: Tensor,
    layout: FaceLayout,
    model: MorphableModel,
    albedo: Tensor | None,
    settings: ExtractSettings,
) -> tuple[Tensor, Tensor]:
    """Light of each view (B, 9, 3) under the usual albedo, and the shading (B, 3, S, S) that bands 1-8 make, whose mean
    over the seen skin is 1."""
    found = uv_raster(model.topology, _LIGHT_GRID)

    def small(x: Tensor) -> Tensor:
        return F.interpolate(x, (_LIGHT_GRID, _LIGHT_GRID), mode="area")

    colors, skin = small(rgb), small(layout.skin)
    use = small(weight * layout.plain) > 0.9
    usual = torch.full_like(colors[:1], 0.6) if albedo is None else small(albedo)
    lights, shadings = [], []
    for b in range(len(rgb)):
        at = use[b, 0]
        if at.sum() < 64:
            lights.append(SHLight.ambient(1).coefficients[0])
            shadings.append(torch.ones_like(colors[b]))
            continue
        normals = interpolate(found, vertex_normals(vertices[b : b + 1], model.topology.faces), model.topology.faces)
        # light of the broad shape: creases, lips and the underside of the nose keep their tone
        normals = masks.gaussian_blur(normals.permute(0, 3, 1, 2) * skin, 2 * round(0.06 * _LIGHT_GRID) + 1)
        normal = F.normalize(normals[0].permute(1, 2, 0), dim=-1)
        color, base, there = colors[b][:, at].T, usual[0][:, at].T, normal[at]
        tone = (color / base.clamp(min=0.02)).median(0).values * base.mean(0)
        # brightness is the skin's: relative to it, band 0 stays near the ambient light
        level = sh_basis(there)[:, 0].mean() * SHLight.AMBIENT
        flat = base / base.mean(0) * (0.5 / level)
        gamma = fit_light(color / tone * 0.5, flat, there, prior=settings.light_prior, color_prior=0.02)
        mean = (sh_basis(there) @ gamma).mean(0)
        shading = (sh_basis(normal) @ gamma / mean).clamp(*settings.shading_range)
        lights.append(gamma)
        shadings.append(shading.permute(2, 0, 1))
    shading = F.interpolate(torch.stack(shadings), rgb.shape[-2:], mode="bilinear", align_corners=False)
    return torch.stack(lights), torch.where(layout.skin > 0, shading, 1.0)


def _without_strangers(rgb: Tensor, weight: Tensor, layout: FaceLayout) -> Tensor:
    """Trust without what is no skin: nostrils, dark at the base of the nose (Sec. 3.1.3); and what comes down from the
    hairline and lies far from the median color of this face's plain texels, strands of hair and shadows of a fringe.
    Freckles, moles and wrinkles, which the hair does not reach, stay."""
    size = rgb.shape[-1]
    if size > _STRAND_GRID:
        rgb = F.interpolate(rgb, (_STRAND_GRID, _STRAND_GRID), mode="area")
    grid = rgb.shape[-1]

    def small(x: Tensor) -> Tensor:
        return x if grid == size else F.interpolate(x, (grid, grid), mode="area")

    yuv = rgb_to_yuv(rgb)
    plain = small(weight * layout.plain)
    hair_zone = small(layout.upper * (1 - layout.around_eyes))[0]
    nose_base = small(layout.nose_base)[0]
    unseen = (small(weight)[:, 0] < 0.5) & (small(layout.face)[:, 0] > 0.5)
    hairline = (unseen & (small(layout.forehead)[:, 0] > 0.5)).cpu().numpy()
    radius = 0.004 * grid
    result = []
    for one, at, hair in zip(yuv, plain, hairline, strict=True):
        pixels = one[:, at[0] > 0.5]
        if pixels.shape[1] < 64:
            result.append(torch.zeros_like(one[:1]))
            continue
        center = pixels.median(1, keepdim=True).values
        level = center[0]
        spread = (pixels - center).abs().median(1, keepdim=True).values * 1.5
        floor = pixels.new_tensor([[0.04], [0.02], [0.03]]) * level
        spread = spread.maximum(floor).minimum(2.5 * floor)[..., None]
        distance = ((one - center[..., None]).abs() / spread).amax(0, keepdim=True)
        strange = (distance - 3).clamp(0, 1) * hair_zone
        found = strange[0].cpu().numpy() > 0
        hanging = ndimage.binary_propagation(ndimage.binary_dilation(hair, iterations=3), mask=found)
        strange = strange * torch.from_numpy(hanging).to(strange)
        nostril = ((_NOSTRIL + 0.05 - one[:1] / level) / 0.05).clamp(0, 1) * nose_base
        strange = torch.maximum(strange, nostril)
        result.append(masks.gaussian_blur(masks.dilate(strange[None], radius), 2 * round(radius) + 1)[0])
    strange = torch.stack(result)
    if grid != size:
        strange = F.interpolate(strange, (size, size), mode="bilinear", align_corners=False)
    return weight * (1 - strange)


@torch.no_grad()
def join_views(
    views: Tensor, weights: Tensor, layout: FaceLayout, settings: ExtractSettings | None = None
) -> tuple[Tensor, Tensor]:
    """One texture of several unwrapped views of a face.

    The others take the colors of the first, the front view (Eq. 1), over the skin that both show. They are mixed by
    what each can be trusted for; the front view comes over them where the normals of the head prefer it.

    Args:
        views: (B, 3, S, S) in [0, 1].
        weights: (B, 1, S, S) in [0, 1], what of each can be trusted.
        layout: of the atlas at that size.
        settings: ``contrast`` and ``blending``.

    Returns:
        texture (1, 3, S, S), continued where nothing was seen; observed (1, 1, S, S) in [0, 1].
    """
    settings = settings or ExtractSettings()
    weight = layout.crop(weights)
    rgb = _matched(layout.crop(views), weight, layout.crop(layout.plain), settings.contrast)
    observed = weight.amax(0, keepdim=True)
    major = weights[:1] * layout.front
    if settings.blending == "naive":
        texture = rgb[:1]
        for view, trust in zip(rgb[1:], weight[1:], strict=True):
            texture = torch.where((trust > 0.5) & (layout.crop(major) < 0.5), view[None], texture)
    else:
        first = weight[:1] if len(weight) == 1 else weight[:1] * 0.02  # the front, where no other shows anything
        known = torch.cat([first, weight[1:]])
        total = known.sum(0, keepdim=True)
        texture = torch.einsum("bchw,bdhw->dchw", rgb, known) / total.clamp(min=1e-6)
        texture = torch.where(total > 1e-3, texture, push_pull(texture, observed, 64))
        if len(rgb) > 1:
            blurred = masks.gaussian_blur(layout.coarse(major), 2 * round(1.5 * layout.grid_unit) + 1)
            mask = torch.minimum(layout.crop(layout.fine(blurred)), weight[:1])
            front = torch.where(weight[:1] > 0.05, rgb[:1], texture)
            texture = laplacian_blend(front, texture, mask, levels=4)
    whole = texture.mean((2, 3), keepdim=True).repeat(1, 1, *views.shape[2:])
    layout.crop(whole)[:] = texture
    seen = weights.new_zeros(1, *weights.shape[1:])
    layout.crop(seen)[:] = observed
    return whole, seen


def _matched(rgb: Tensor, weight: Tensor, plain: Tensor, contrast: float) -> Tensor:
    result = [rgb[:1]]
    for b in range(1, len(rgb)):
        both = (torch.minimum(weight[:1], weight[b : b + 1]) * plain > 0.5).float()
        one = rgb[b : b + 1]
        result.append(match_color(one, rgb[:1], both, w=contrast) if both.sum() > 64 else one)
    return torch.cat(result)


def _iris(rgb: Tensor, eyes: Tensor, layout: FaceLayout) -> tuple[Tensor, Tensor]:
    """Color of the irises in the front view, (1, 3), and how many texels show eyeballs: of what shows between the lids
    the pupil is darkest, the white brightest, the iris between."""
    shown = (eyes[0, 0] > 0.5) & (layout.gaze < 40)
    pixels = rgb[0][:, shown]
    count = pixels.shape[1]
    if count < 8:
        return rgb.new_zeros(1, 3), rgb.new_zeros(1)
    order = rgb_to_yuv(rgb)[0, 0][shown].argsort()
    iris = pixels[:, order[int(0.15 * count) : int(0.4 * count) + 1]]
    return iris.median(1).values[None], rgb.new_tensor([float(count)])
