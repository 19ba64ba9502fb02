"""What an aligned face shows, measured: pose, expression, light, age, gender, identity (Sec. 3.1.1).

The released pipeline asks a closed service for these and DPR for the light. Here pose and light are read off the
fitted head: the rotation of a landmark fit, and spherical harmonics solved on its skin under a smooth albedo.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from facerecon import assets
from facerecon.editing.accessories import ACCESSORIES, load_accessories
from facerecon.errors import check_shape
from facerecon.fitting.initialize import LandmarkStart, fit_landmarks, fit_light
from facerecon.geometry.alignment import deep3d_crop_transform, invert_affine
from facerecon.geometry.camera import project
from facerecon.geometry.mesh import vertex_normals
from facerecon.imaging.warp import crop_affine
from facerecon.morphable import load_face_model
from facerecon.perception.attributes import EXPRESSIONS, load_age_gender, load_expression
from facerecon.perception.facemesh import aligned_look, fused_landmarks, load_facemesh
from facerecon.perception.identity import load_identity
from facerecon.perception.landmarks import load_landmarks68, map_points
from facerecon.perception.observe import MEAN_FIVE_POINTS
from facerecon.render.uv import sample_texture
from facerecon.storage import read_safetensors
from facerecon.types import Camera, FaceParams, TensorStruct, _struct

__all__ = ["Attributes", "AttributeMeter"]

ABOVE = (10, 67, 297, 109, 338, 54, 284)
"""Points of the face mesh along the hairline."""
FIT_SIZE = 224
"""px of the crop of the landmark fit."""

POSE_FIT = LandmarkStart(iterations=6, sigma=4.0, sigma_jaw=1e3, sigma_mesh=1.5)
"""The face mesh sets the pose. The jaw of the 68 points slides on the head and, trusted as a fit trusts it, takes a
third of the yaw: renders at 10/20/30/38 degrees then measure 7/14/19/23 instead of 10/21/29/37. The released left and
right views of subject 01223 measure 21.8 and -22.0; the release's own regressor predicts 22.2 and -23.0."""


@_struct
class Attributes(TensorStruct):
    """What B faces show.

    Args:
        yaw, pitch, roll: (B,) degrees; yaw positive when the face looks to the image's right (the
            release's "left" view, its +30 degrees), pitch when it looks up.
        expression: (B, 7) probabilities in the order of ``EXPRESSIONS``.
        opening: (B,) gap between the lips over the mouth's width.
        smile: (B,) rise of the mouth's corners over it.
        age: (B,) years.
        male: (B,) probability.
        light: (B, 9, 3) SH coefficients, ambient included.
        skin: (B, 3) median color of the skin over the mean albedo's.
        hair: (B, 3) color just above the face.
        evenness: (B,) energy of bands 1-8 over band 0, 0 is even.
        accessories: (B, 3) log odds of what ``ACCESSORIES`` names: glasses, fringe, headwear (or a hand).
        identity: (B, 128) embedding.
        landmarks68: (B, 68, 2), mesh468: (B, 468, 3), pixels of the image.
        score: (B,) of the face mesh, in [0, 1].
    """

    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    expression: Tensor
    opening: Tensor
    smile: Tensor
    age: Tensor
    male: Tensor
    light: Tensor
    skin: Tensor
    hair: Tensor
    accessories: Tensor
    evenness: Tensor
    identity: Tensor
    landmarks68: Tensor
    mesh468: Tensor
    score: Tensor

    @property
    def happy(self) -> Tensor:
        """(B,) probability of a smile."""
        return self.expression[:, EXPRESSIONS.index("happy")]

    @property
    def smiling(self) -> Tensor:
        """(B,) as ``happy``, but only where the corners of the mouth are raised, too.

        The expression network calls closed mouths of broad or bearded faces happy, with certainty at times; in faces
        that it calls neutral the corners rise by 0.02 +- 0.04 of the mouth's width, in smiles by 0.08.
        """
        return torch.minimum(self.happy, ((self.smile - 0.02) / 0.006).sigmoid())

    @property
    def neutral(self) -> Tensor:
        """(B,) probability of no expression."""
        return self.expression[:, EXPRESSIONS.index("neutral")]

    def probability(self, name: str) -> Tensor:
        """(B,) of one of ``ACCESSORIES``."""
        return self.accessories[:, ACCESSORIES.index(name)].sigmoid()


class AttributeMeter:
    """Measures FFHQ-aligned images of the open generator, several at a time.

    Pose and normals are those of the makehuman head's first edition, by which the shipped directions were learned and
    the limits of searches chosen: the second edition's pitch is about 4 degrees greater. So is the albedo by which
    light is told: the mean of the first linear texture basis.
    """

    def __init__(self) -> None:
        self.model = load_face_model("makehuman_artist", num_identity=80)
        topology = self.model.topology
        plain = topology.regions["face"].clone()
        for region in ("lips", "brows", "lids", "eyes", "mouth"):
            plain &= ~topology.regions[region]
        corners = topology.faces[plain].unique()
        self.vertices = corners[::3]
        path = assets.shipped("meter_albedo.safetensors")
        self.albedo = read_safetensors(path, "the meter's albedo", "install facerecon again")[0]["albedo"]  # (P, 3)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Attributes:
        """Attributes of images (B, 3, S, S) RGB in [0, 1], aligned as FFHQ is."""
        check_shape("image", image, "B 3 H W")
        small, box = aligned_look(image)
        mesh, score = load_facemesh()(small, box)
        mesh = mesh[:, :468]
        landmarks = fused_landmarks(load_landmarks68()(small, box), mesh)
        to_image = deep3d_crop_transform(landmarks, MEAN_FIVE_POINTS, FIT_SIZE)
        from_image = invert_affine(to_image)
        points, dense = map_points(from_image, landmarks), map_points(from_image, mesh[..., :2])
        params = fit_landmarks(self.model, points, mesh_points=dense, settings=POSE_FIT)
        crop = crop_affine(small, to_image, FIT_SIZE)
        light, skin = self._light(crop, params)
        luma = light.mean(2)
        age, male = load_age_gender()(crop, points)
        width = (landmarks[:, 54] - landmarks[:, 48]).norm(dim=1).clamp(min=1e-3)
        lift = landmarks[:, [48, 54], 1].mean(1) - landmarks[:, [51, 57, 62, 66], 1].mean(1)
        angle = torch.rad2deg(params.rotation)
        up = image.shape[-1] / small.shape[-1]
        return Attributes(
            yaw=angle[:, 1],
            pitch=-angle[:, 0],
            roll=angle[:, 2],
            expression=load_expression()(crop, points),
            opening=(landmarks[:, 66] - landmarks[:, 62]).norm(dim=1) / width,
            smile=-lift / width,
            age=age,
            male=male,
            light=light,
            skin=skin,
            hair=_above_face(small, mesh),
            accessories=load_accessories()(small, mesh),
            evenness=luma[:, 1:].square().sum(1).sqrt() / luma[:, 0].clamp(min=1e-3),
            identity=load_identity()(crop, points),
            landmarks68=landmarks * up,
            mesh468=mesh * up,
            score=score,
        )

    def _light(self, crop: Tensor, params: FaceParams) -> tuple[Tensor, Tensor]:
        """Light (B, 9, 3) and skin (B, 3), at the skin's vertices that face the camera."""
        posed = self.model(params)
        normals = F.normalize(vertex_normals(posed, self.model.topology.faces), dim=-1)[:, self.vertices]
        points = posed[:, self.vertices]
        pixels = project(Camera.deep3d(FIT_SIZE, batch=len(crop)), points)[..., :2]
        smooth = F.avg_pool2d(crop, 5, 1, 2, count_include_pad=False)
        uv = torch.stack([pixels[..., 0] / FIT_SIZE, 1 - pixels[..., 1] / FIT_SIZE], -1)
        colors = sample_texture(smooth, uv)
        eye = points.new_tensor([0.0, 0.0, 10.0])
        facing = (normals * F.normalize(eye - points, dim=-1)).sum(-1) > 0.25
        inside = ((uv > 0) & (uv < 1)).all(-1) & facing
        lights, tones = [], []
        for color, normal, keep in zip(colors, normals, inside, strict=True):
            color, normal, albedo = color[keep], normal[keep], self.albedo[keep]
            tone = (color / albedo).median(0).values.clamp(min=0.02)
            # brightness is the skin's: relative to it, band 0 stays near the ambient light
            tones.append(tone)
            lights.append(fit_light(color / tone * 0.5, albedo * 0.5 / 0.709, normal, prior=0.002, color_prior=0.02))
        return torch.stack(lights), torch.stack(tones)


def _above_face(image: Tensor, mesh: Tensor) -> Tensor:
    """(B, 3) median color around points a quarter of the face above its hairline: hair, or scalp, or what is worn."""
    points, center = mesh[:, ABOVE, :2], mesh[..., :2].mean(1, keepdim=True)
    points = center + 1.2 * (points - center)
    smooth = F.avg_pool2d(F.interpolate(image, (64, 64), mode="area"), 3, 1, 1, count_include_pad=False)
    grid = points / image.shape[-1] * 2 - 1
    return F.grid_sample(smooth, grid[:, None], padding_mode="border", align_corners=False)[:, :, 0].median(2).values
