"""What hides a face is left out, what belongs to it stays; held against rendered heads whose truth is known."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from facerecon.errors import ConfigError
from facerecon.fitting import (
    DetailSettings,
    Fitter,
    LandmarkStart,
    OcclusionSettings,
    add_detail,
    find_occlusion,
    mask_occluders,
    photometric_residual,
)
from facerecon.fitting.detail import fit_to_full, full_crop_camera
from facerecon.geometry.camera import project
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.masks import gaussian_blur
from facerecon.imaging.warp import crop_affine
from facerecon.morphable import load_face_model
from facerecon.render import Renderer
from facerecon.render.uv import bake
from facerecon.stylegan.load import load_decoder
from facerecon.types import Camera, Crop, FaceParams, Observation, SHLight

FULL = 448  # px, side of the full crop; the fit crop sees its middle 320 px
OFFSET, RATIO = 64.0, 320 / 224


@pytest.fixture(scope="module")
def model(asset):
    asset("makehuman")
    return load_face_model("makehuman", num_identity=20)


@pytest.fixture(scope="module")
def decoder():
    return load_decoder("linear")


def parameters(model, yaw: float = 0.15) -> FaceParams:
    generator = torch.Generator().manual_seed(3)
    light = SHLight.ambient()
    light.coefficients[0, 1:4] = torch.tensor([[0.05], [0.15], [-0.2]])
    return FaceParams(
        identity=0.5 * torch.randn(1, model.num_identity, generator=generator),
        expression=torch.zeros(1, model.num_expression),
        albedo=torch.zeros(1, 0),
        rotation=torch.tensor([[0.05, yaw, 0.0]]),
        translation=torch.zeros(1, 3),
        light=light,
    )


def observation(model, params, texture, paint=lambda image: image) -> Observation:
    """An observation of a rendered head, made without any network: image, masks and landmarks are exact.

    ``paint`` changes the picture of the full crop, as an occluder does.
    """
    vertices, camera = model(params), Camera.deep3d()
    to_photo = torch.eye(2, 3)[None]
    fit_to_photo = torch.tensor([[[RATIO, 0.0, OFFSET], [0.0, RATIO, OFFSET]]])
    points = project(camera, model.landmarks3d(vertices, camera))[..., :2]
    blank = torch.zeros(1, 1, FULL, FULL)
    full = Crop(blank.expand(-1, 3, -1, -1), to_photo, blank + 1, *[blank] * 5)
    shell = Observation(
        full.replace(image=torch.zeros(1, 3, 224, 224), to_photo=fit_to_photo), full, points, torch.zeros(1, 468, 3),
        *torch.zeros(4, 1, 1), path=("head",), photo_size=((FULL, FULL),), mask_given=(False,),
    )  # fmt: skip
    view = Renderer(FULL).prepare(
        vertices, model.topology, full_crop_camera(camera, shell), params.light, face_region="face"
    )
    mask = view.rendering.mask
    image = paint((view.shade(texture).image * mask + 0.3 * (1 - mask)).clamp(0, 1))
    # eyeballs are drawn by their own texels, so no eye mask is needed but for the lids
    crops = [Crop(image, to_photo, blank + 1, mask, mask, blank, blank, blank)]
    affine = fit_to_full(shell)
    small = crop_affine(torch.cat([image, mask], 1), affine, 224)
    crops.append(
        Crop(
            small[:, :3], fit_to_photo, torch.ones(1, 1, 224, 224), small[:, 3:], small[:, 3:], *[small[:, :1] * 0] * 3
        )
    )
    return shell.replace(full=crops[0], fit=crops[1])


def disk(center, radius: float) -> torch.Tensor:
    """(1, 1, FULL, FULL) in {0, 1}; center in pixels of the full crop."""
    y, x = torch.meshgrid(*[torch.arange(FULL) + 0.5] * 2, indexing="ij")
    return ((x - center[0]).square() + (y - center[1]).square() < radius**2).float()[None, None]


@pytest.fixture(scope="module")
def head(model, decoder):
    """Parameters, a texture of the decoder, and landmarks (68, 2) in the full crop."""
    params = parameters(model)
    codes = 0.6 * torch.randn(1, decoder.rows, decoder.dim, generator=torch.Generator().manual_seed(5))
    texture = decoder(codes).detach().clamp(0, 1)
    photo = observation(model, params, texture)
    return params, texture, photo.landmarks68[0] * RATIO + OFFSET


def noisy(image: torch.Tensor) -> torch.Tensor:
    """Grain, and light that no spherical harmonics of a head explain."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(0.85, 1.15, FULL)
    grain = gaussian_blur(torch.randn(image.shape, generator=generator), 3)
    return (image * slope + 0.015 * grain).clamp(0, 1)


def found_in(model, head, paint) -> tuple[torch.Tensor, torch.Tensor]:
    """What is found in the painted picture of a head against its true render, and the face there."""
    params, texture, *_ = head
    photo = observation(model, params, texture, lambda image: paint(noisy(image)))
    hidden = find_occlusion(photo, model(params), texture, params.light, Camera.deep3d(), model.topology)
    return hidden, photo.full.face_mask


def test_a_clean_face_keeps_its_skin(model, head) -> None:
    hidden, face = found_in(model, head, lambda image: image)
    assert hidden.sum() < 0.002 * face.sum()


@pytest.mark.parametrize("color", [(0.1, 0.1, 0.11), (0.95, 0.95, 0.92), (0.1, 0.25, 0.8), (0.2, 0.6, 0.2)])
@pytest.mark.parametrize("place", [48, 31, 21, 3])  # corner of the mouth, nose, brow, jaw
def test_things_in_front_of_the_face_are_found(model, head, color, place) -> None:
    spot = disk(head[2][place], 24)
    hidden, face = found_in(model, head, lambda image: image * (1 - spot) + spot * torch.tensor(color).view(1, 3, 1, 1))
    wanted, near = spot * face, disk(head[2][place], 28)  # with a margin of 4 px
    assert (hidden.round() * wanted).sum() > 0.9 * wanted.sum()
    assert (hidden.round() * near).sum() > 0.97 * hidden.round().sum()


def test_beards_shadows_blush_and_moles_stay(model, head) -> None:
    points = head[2]
    chin, cheek = points[8] + torch.tensor([0.0, -25.0]), points[[2, 31]].mean(0)

    def share(paint) -> float:
        hidden, face = found_in(model, head, paint)
        return float(hidden.sum() / face.sum())

    beard = gaussian_blur(disk(chin, 55), 21)
    assert share(lambda image: image * (1 - 0.75 * beard)) < 0.01
    half = gaussian_blur((torch.arange(FULL) < points[30, 0]).float().expand(1, 1, FULL, FULL), 9)
    assert share(lambda image: image * (1 - 0.4 * half)) < 0.01
    rouge = gaussian_blur(disk(cheek, 18), 25) * torch.tensor([0.1, -0.08, -0.05]).view(1, 3, 1, 1)
    assert share(lambda image: image + rouge) < 0.01
    mole = disk(cheek, 2.5)
    assert share(lambda image: image * (1 - 0.7 * mole)) < 0.002


def test_faces_of_a_batch_are_judged_alone(model, head) -> None:
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(2, 3, 96, 96, generator=generator) * 0.1 + 0.5
    render = torch.full_like(photo, 0.55)
    photo[1, :, 20:50, 30:60] = 0.0
    face = torch.ones(2, 1, 96, 96)
    points = (head[2] * (96 / FULL)).expand(2, -1, -1)
    both = photometric_residual(photo, render, face, points)
    assert (both[:1] - photometric_residual(photo[:1], render[:1], face[:1], points[:1])).abs().mean() < 1e-3
    assert both[1, 0, 22:48, 32:58].min() == 1
    assert photometric_residual(photo, render, face * 0, points).sum() == 0
    assert photometric_residual(photo, render, face, points * torch.nan).sum() == 0


def test_hidden_pixels_leave_all_masks_of_both_crops(model, head) -> None:
    photo = observation(model, head[0], head[1])
    photo = photo.replace(full=photo.full.replace(eye_mask=photo.full.face_mask))
    hidden = disk((FULL / 2, FULL / 2), 40)
    less = mask_occluders(photo, hidden)
    assert torch.allclose(less.full.face_mask, photo.full.face_mask * (1 - hidden), atol=1e-5)
    assert torch.allclose(less.full.eye_mask, photo.full.eye_mask * (1 - hidden), atol=1e-5)
    assert less.fit.face_mask[0, 0, 112, 112] == 0  # the middle of the one is the middle of the other
    lost = (photo.fit.face_mask - less.fit.face_mask).sum() * RATIO**2 / (hidden * photo.full.face_mask).sum()
    assert abs(lost - 1) < 0.02
    assert torch.equal(less.full.image, photo.full.image)


class _NoIdentity(torch.nn.Module):
    metric = "cosine"


def test_an_occluder_does_not_paint_the_texture(model, decoder, head) -> None:
    """One head, one disk on its cheek: texture and observed texels with and without the robust fit."""
    params, texture, points = head
    spot = disk(points[[2, 31]].mean(0), 26)
    photo = observation(model, params, texture, lambda image: noisy(image) * (1 - spot) + 0.08 * spot)
    stages = {
        "texture": {"steps": 10, "sphere": True, "weights": {"pix": 10, "reg_z": 0.05}},
        "joint": {
            "steps": 10,
            "weights": {"pix": 4, "lm": 8e-3, "reg_id": 5e-4, "reg_exp": 2e-2},
            "rate_scale": {"latent": 1},
        },
    }
    fitter = Fitter(
        model, decoder, Renderer(224, antialias=True), _NoIdentity(), stages=stages, start=LandmarkStart(sigma_mesh=0),
        detail=DetailSettings(size=256), latent_prior="radius", landmark_weighting="facing",
    )  # fmt: skip
    result = fitter(photo)
    robust, visible = result.face, result.observed
    fitter.occlusion = OcclusionSettings(enabled=False)
    result = fitter(photo)
    plain = result.face
    assert torch.equal(result.observed.face_mask, photo.face_mask)

    covered, _ = bake(spot, model(params), model.topology, full_crop_camera(Camera.deep3d(), photo), 256)
    inside = (covered > 0.99) & (plain.visibility > 0.9)
    assert inside.sum() > 80
    true = F.interpolate(texture, (256, 256), mode="bilinear")
    error = []
    for face in (robust, plain):
        brighter = (face.decoded - texture).mean((2, 3), keepdim=True)  # light may have the rest
        error.append((face.texture - brighter - true).abs().mean(1, keepdim=True)[inside].mean())
    assert max(error) < 0.1  # what is painted over the disk in the plain one is taken for a shadow
    assert error[0] < 0.05
    assert robust.visibility[inside].max() < 0.05
    assert (robust.decoded - texture).abs().mean() < 1.05 * (plain.decoded - texture).abs().mean()
    assert (visible.full.face_mask * spot).sum() < 0.05 * (photo.full.face_mask * spot).sum()

    # a mask that the user drew is used as it is
    fitter.occlusion = OcclusionSettings()
    assert torch.equal(fitter(photo.replace(mask_given=(True,))).observed.face_mask, photo.face_mask)


def test_seen_is_what_the_photo_shows(model, head) -> None:
    """A head turned by 50 degrees: vertices that a ray from the camera reaches, and no others, are seen."""
    params, texture, *_ = head
    params = parameters(model, yaw=0.87)
    photo = observation(model, params, texture)
    vertices, topology, camera = model(params), model.topology, Camera.deep3d()
    settings = DetailSettings(size=512)
    arguments = (vertices, texture, params.light, camera, topology)
    seen = add_detail(photo, *arguments, settings)[1]
    mirrored = add_detail(photo, *arguments, dataclasses.replace(settings, mirror=0.0))[1]
    assert (seen - mirrored).abs().mean() < 1e-4  # what is copied from the other side is not seen

    # rays from the camera to vertices of the face's skin, against every triangle (Moeller and Trumbore)
    skin = topology.regions["face"] & ~topology.regions["eyes"]
    corner_ids, corner_uvs = topology.faces[skin], topology.uv_faces[skin]
    pick = torch.randperm(len(corner_ids), generator=torch.Generator().manual_seed(1))[:400]
    index, uv = corner_ids[pick, 0], topology.uvs[corner_uvs[pick, 0]]
    eye = -(camera.translation[0] @ camera.rotation[0])
    ray = vertices[0, index] - eye
    a, b, c = vertices[0, topology.faces].unbind(1)
    free = []
    for direction, own in zip(ray, index, strict=True):
        h = torch.linalg.cross(direction.expand_as(b), c - a)
        scale = ((b - a) * h).sum(1)
        q = torch.linalg.cross(eye - a, b - a)
        u, v = ((eye - a) * h).sum(1) / scale, (direction * q).sum(1) / scale
        t = ((c - a) * q).sum(1) / scale
        hit = (u > 0) & (v > 0) & (u + v < 1) & (t > 0) & (t < 1 - 0.004) & ~(topology.faces == own).any(1)
        free.append(not hit.any())
    free = torch.tensor(free)
    normal = vertex_normals(vertices, topology.faces)[0, index]
    cosine = -(F.normalize(normal, dim=-1) * F.normalize(ray, dim=-1)).sum(-1)
    column = (uv[:, 0] * 512).long().clamp(0, 511)
    row = ((1 - uv[:, 1]) * 512).long().clamp(0, 511)
    value = seen[0, 0, row, column]
    assert 50 < free.sum() < 350
    assert value[~free | (cosine < 0.05)].max() < 0.05
    # what faces the camera is observed, but for a soft border some texels wide
    assert (value[free & (cosine > 0.6)] > 0.9).float().mean() > 0.8
    assert value.min() >= 0
    assert value.max() <= 1 + 1e-5

    shown = mask_occluders(photo, torch.ones(1, 1, FULL, FULL))
    assert add_detail(shown, *arguments, settings)[1].max() == 0


@pytest.mark.parametrize(
    "key, value", [("size", 10), ("size", 100.0), ("threshold", 0), ("margin", -1), ("smallest", "a")]
)
def test_settings_out_of_range_name_the_key(key, value) -> None:
    with pytest.raises(ConfigError, match=f"occlusion.{key}"):
        OcclusionSettings(**{key: value})
