"""The pipeline's parts by name, and what each of the paper's does in the place of ours."""

from __future__ import annotations

import pytest
import torch

from facerecon import assets
from facerecon.dataset import CompleteSettings, ExtractSettings, PipelineSettings, extract, face_layout
from facerecon.dataset.extract import measure_views
from facerecon.dataset.layout import with_masks
from facerecon.dataset.load import check_inversion, describe_parts, load_head, needed_assets, part_template
from facerecon.errors import AssetError, ConfigError
from facerecon.fitting import fit_landmarks, params_to_coefficients
from facerecon.imaging.files import read_image
from facerecon.morphable import load_face_model
from facerecon.perception.bisenet import CLASSES
from facerecon.perception.parsing import FaceMasks
from facerecon.perception.regressor import RegressorConfig
from facerecon.storage import safetensors_bytes

PAPER = {"face_model": "hifi3dpp", "generator": "stylegan2_ffhq", "encoder": "e4e", "editor": "styleflow",
         "pose": "regressor", "template": "ffhq_uv"}  # fmt: skip
SIZE = 128


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator": "stylegan"}, "stylegan2_ffhq"),
        ({"encoder": "e4e"}, "Set generator=stylegan2_ffhq, or encoder=linear"),
        ({"editor": "styleflow"}, "Set generator=stylegan2_ffhq, or editor=directions"),
        ({"template": "ffhq_uv"}, "Set template=open"),
    ],
)
def test_parts_that_do_not_fit_are_named(settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        PipelineSettings(**settings)


def test_sockets_keep_the_templates_eyes() -> None:
    assert PipelineSettings(blending="naive").completing == CompleteSettings(blending="naive", eyes=True)
    assert not PipelineSettings(face_model="hifi3dpp").completing.eyes


def test_photos_need_an_encoder_of_the_generator() -> None:
    check_inversion(PipelineSettings())
    check_inversion(PipelineSettings(**PAPER))
    with pytest.raises(ConfigError, match="Set encoder=e4e"):
        check_inversion(PipelineSettings(generator="stylegan2_ffhq"))


def test_what_is_needed_of_the_release(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    assert needed_assets(PipelineSettings()) == {}
    needed = needed_assets(PipelineSettings(**PAPER))
    used = {"hifi3dpp", "stylegan2_ffhq", "e4e", "styleflow", "expression_direction", "dpr", "expression_vgg19",
            "ffhq_uv_regressor", "ffhq_uv_topology"}  # fmt: skip
    assert set(needed) == used
    assert "e4e" not in needed_assets(PipelineSettings(**PAPER), photos=False)
    for name, without in needed.items():  # the settings named do without it, and stand beside the rest
        values = PAPER | dict(part.split("=") for part in without.split())
        if values["generator"] == "mobile_stylegan":
            values |= {"encoder": "linear", "editor": "directions"}
        assert name not in needed_assets(PipelineSettings(**values)), name
    open_lines, paper_lines = (describe_parts(PipelineSettings(**parts)) for parts in ({}, PAPER))
    assert "not by StyleFlow and DPR" in open_lines[1] and "generator mobile_stylegan" in open_lines[0]
    assert "told DPR's light" in paper_lines[1] and "editor styleflow" in paper_lines[0]


# -- extraction --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(asset):
    for name in ("facemesh478", "landmarks68", "bisenet"):
        asset(name)
    asset("makehuman")
    return load_face_model("makehuman")


@pytest.fixture(scope="module")
def released(reference) -> torch.Tensor:
    folder = reference / "ffhq_uv"
    views = [read_image(folder / f"01223_{view}.jpg") for view in ("front", "left")]
    return torch.nn.functional.interpolate(torch.stack(views), (512, 512), mode="area")


def test_a_parser_makes_the_masks(model, released, monkeypatch) -> None:
    class Left:
        def __call__(self, image, mesh):
            face = image.new_zeros(1, 1, 512, 512)
            face[..., :256] = 1
            hair = CLASSES.index("hair") * (1 - face)
            return FaceMasks(face, face, face * 0.25, face * 0.5, face, hair.byte())

    whole = extract(released[:1], model, ExtractSettings(size=SIZE)).observed
    monkeypatch.setitem(extract.__wrapped__.__globals__, "load_parser", lambda precision: Left())
    views = measure_views(released[:1])
    assert views.face[..., :256].min() == 1 and views.face[..., 256:].max() == 0
    assert views.eye.max() == 0.25 and views.mouth.max() == 0.5
    assert views.covered[0, :2].max() == 0 and 0.4 < views.covered[0, 2] < 0.6  # half of the outline is under hair
    seen = extract(released[:1], model, ExtractSettings(size=SIZE)).observed
    left, right = (whole > 0.9).float().tensor_split(2, 3)
    assert (seen[..., : SIZE // 2] * left).sum() > 0.3 * left.sum() and (seen[..., SIZE // 2 :] * right).sum() < 100


def test_a_regressor_says_shape_and_pose(model, released) -> None:
    """One that says what the landmark fit finds gives that fit's map; each view is asked for itself."""
    settings = ExtractSettings(size=SIZE)
    views = measure_views(released)
    expected = extract(views, model, settings)
    sizes = RegressorConfig(identity=model.num_identity, expression=model.num_expression, texture=1)
    asked = []

    class Knowing:
        config = sizes

        def sized(self, crops):
            return crops

        def __call__(self, crops):
            asked.append(crops)
            return params_to_coefficients(expected.params, sizes)

    found = extract(views, model, settings, regressor=Knowing())
    assert asked[0].shape == (2, 3, 224, 224) and 0.2 < asked[0].mean() < 0.8
    torch.testing.assert_close(found.params.rotation, expected.params.rotation)
    torch.testing.assert_close(found.texture, expected.texture, atol=1e-3, rtol=0)
    # the crop is the one that the pose is of: landmarks of the fit lie where the head says
    from facerecon.perception import load_facemesh, load_landmarks68
    from facerecon.perception.facemesh import fused_landmarks

    box = torch.tensor([[20.0, 40.0, 204.0, 214.0]]).expand(2, -1)
    points = fused_landmarks(load_landmarks68()(asked[0], box), load_facemesh()(asked[0], box)[0])
    again = fit_landmarks(model, points)
    torch.testing.assert_close(again.rotation[:, 1], expected.params.rotation[:, 1], atol=0.12, rtol=0)


# -- template ----------------------------------------------------------------------------------------------


def test_hand_drawn_masks_take_the_place_of_derived_ones(model) -> None:
    layout = face_layout(model, SIZE)
    half = torch.zeros(1, 64, 64)
    half[:, :, :32] = 1
    drawn = with_masks(layout, half, half, 1 - half, torch.ones(1, 64, 64))
    middle = SIZE // 2
    assert drawn.face[..., middle + 1 :].max() == 0
    torch.testing.assert_close(drawn.face[..., : middle - 1], layout.face[..., : middle - 1], atol=1e-5, rtol=0)
    assert drawn.plain[..., middle + 1 :].max() == 0
    assert drawn.front[0, 0, 40, 20] == pytest.approx(1) and drawn.front[0, 0, 40, 110] == pytest.approx(0, abs=1e-6)
    assert drawn.nose_base[..., : middle - 1].max() == 0 and drawn.nose_base.max() == 1
    assert torch.equal(drawn.corrected, (layout.skin > 0.5).float())  # all nostril, within the skin
    flat = drawn.solver(torch.rand(1, 3, SIZE, SIZE), torch.full((1, 3, SIZE, SIZE), 0.3))
    assert torch.isfinite(flat).all()
    with pytest.raises(ConfigError, match="leave nothing of the face"):
        with_masks(layout, half, half * 0, half, half)


@pytest.fixture
def head(monkeypatch, reference, hifi3dpp_mat, asset):
    """The shared head in HiFi3D++'s layout, as a path."""
    asset("makehuman")
    return str(hifi3dpp_mat)


@pytest.mark.slow
def test_the_releases_template_and_masks_are_used(head, reference, tmp_path, monkeypatch) -> None:
    settings = PipelineSettings(face_model="hifi3dpp", face_model_path=head, template="ffhq_uv", size=SIZE)
    other, carried = load_head(settings)
    ours = part_template(PipelineSettings(face_model="hifi3dpp", face_model_path=head, size=SIZE), other, carried)
    assert 0.2 < float((ours.texture * ours.layout.plain).sum() / ours.layout.plain.sum() / 3) < 0.9
    released = (read_image(reference / "ffhq_uv" / "teaser1_texture.png") * 255).byte()
    pictures = {"template_base_uv": released, "minor_valid_whole_mask": torch.full((1, 64, 64), 255).byte()}
    pictures |= {n: pictures["minor_valid_whole_mask"] for n in ("major_valid_front_mask", "nosal_base_mask")}
    path = tmp_path / "topology.safetensors"
    path.write_bytes(safetensors_bytes(pictures))
    monkeypatch.setattr(assets, "locate", lambda name: path)
    with pytest.raises(AssetError, match="nostril_mask"):
        part_template(settings, other, carried)
    path.write_bytes(safetensors_bytes(pictures | {"nostril_mask": torch.zeros(1, 64, 64).byte()}))
    made = part_template(settings, other, carried)
    expected = torch.nn.functional.interpolate(released[None].float() / 255, (SIZE, SIZE), mode="area")
    torch.testing.assert_close(made.texture, expected)
    assert made.layout.front.min() > 0.99 and torch.equal(made.layout.face, ours.layout.face)
