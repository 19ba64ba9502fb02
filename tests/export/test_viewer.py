"""viewer.html: what is in the page, what its module computes (Node), and what a real browser makes of it (Chromium).

Browser and driver are Debian's, or those that FACERECON_CHROMIUM and FACERECON_CHROMEDRIVER name.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from scipy.ndimage import binary_erosion

from facerecon.errors import AssetError, InputError
from facerecon.export import bundle, viewer
from facerecon.export.mesh import METERS_PER_UNIT, save_glb
from facerecon.export.views import crop_camera, posed_vertices, turning_thumbnail
from facerecon.geometry.camera import clip_coordinates
from facerecon.geometry.lighting import shade
from facerecon.render import Renderer
from facerecon.types import Camera, Crop, FaceParams, Observation, ReconstructedFace, SHLight

CHROMIUM = os.environ.get("FACERECON_CHROMIUM", "/usr/bin/chromium")
DRIVER = os.environ.get("FACERECON_CHROMEDRIVER", "/usr/bin/chromedriver")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--force-prefers-reduced-motion", "--window-size=760,420",
)  # fmt: skip


def photo_of(face: ReconstructedFace, size: int = 224) -> Observation:
    """A photo of a fit in its own light and camera, whose full crop is the photo itself."""
    drawn = Renderer(size=size)(
        posed_vertices(face), face.texture_in_photo(), face.topology, face.camera, face.params.light
    )
    image, one = drawn.image.clamp(0, 1), torch.ones(1, 1, size, size)
    crop = Crop(image, torch.eye(2, 3)[None], one, one, one, one, one, one)
    empty = {"landmarks68": torch.zeros(1, 68, 2), "mesh468": torch.zeros(1, 468, 3), "box": torch.zeros(1, 4)}
    return Observation(crop, crop, **empty, score=torch.ones(1), identity=torch.zeros(1, 128),
                       eval_identity=torch.zeros(1, 1024), path=("a.jpg",), photo_size=((size, size),))  # fmt: skip


def lit(face: ReconstructedFace, space: str = "linear") -> ReconstructedFace:
    """A fit in uneven, colored light, turned, with shadows of its own and a camera whose pixels are turned, too."""
    generator = torch.Generator().manual_seed(5)
    coefficients = 0.12 * torch.randn(1, 9, 3, generator=generator)
    coefficients[:, 0] += 0.85
    rows, columns = torch.meshgrid(torch.linspace(0, 6, 64), torch.linspace(0, 5, 64), indexing="ij")
    residual = 1 + 0.25 * torch.stack([(rows + k).sin() * columns.cos() for k in range(3)])[None]
    camera = Camera.deep3d()
    warp = torch.tensor([[[0.98, -0.17, 21.0], [0.17, 0.98, -15.0]]])
    params = face.params.replace(
        light=SHLight(coefficients, space=space),
        rotation=torch.tensor([[0.12, -0.3, 0.05]]),
        translation=torch.tensor([[0.1, 0.05, -0.3]]),
    )
    return face.replace(
        params=params, residual_shading=residual, camera=camera.replace(warp=warp), photo_size=((224, 224),)
    )


def smooth(face: ReconstructedFace, size: int = 256) -> ReconstructedFace:
    """The fit with a texture as smooth as skin."""
    texture = torch.nn.functional.interpolate(face.texture[..., :24, :24], (size, size), mode="bicubic").clamp(0, 1)
    return face.replace(texture=0.3 + 0.5 * texture)


@pytest.fixture
def without_three(monkeypatch, tmp_path) -> None:
    """Pages with a stand-in for three.js, for tests that do not open them."""
    save_file({name: np.frombuffer(name.encode(), np.uint8) for name in ("script", "license")}, tmp_path / "b")
    monkeypatch.setattr(viewer.assets, "locate", lambda name: tmp_path / "b")


def element(page: str, start: str) -> str:
    """Text of the element that ``start`` opens."""
    return page.split(start, 1)[1].split("</", 1)[0]


def write(face: ReconstructedFace, folder: Path, **options) -> str:
    glb = save_glb(face, folder / "head.glb")
    path = viewer.write_viewer(folder / "viewer.html", glb, face, photo_of(face), **options)
    return path.read_text(encoding="utf-8")


def test_a_page_holds_all_and_allows_nothing_else(sphere_face, tmp_path, without_three):
    face = lit(sphere_face)
    page = write(face, tmp_path, name="a<b>.jpg", lead="one & only")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data: blob:" and rules["connect-src"] == "blob:"
    scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', page, re.DOTALL)
    assert [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts] == rules[
        "script-src"
    ].split(" ")
    assert "unsafe" not in policy and scripts[0] == "script"
    assert not re.search(r'(?:src|href|srcset)="(?!data:)', page) and not re.search(r"https?://|url\(|@import", page)
    assert not re.search(r'style="|\son\w+="', page)
    assert "a&lt;b&gt;.jpg" in page and "one &amp; only" in page and "<b>" not in page
    assert gzip.decompress(base64.b64decode(element(page, 'id="glb">'))) == (tmp_path / "head.glb").read_bytes()
    first = (tmp_path / "viewer.html").read_bytes()
    write(face, tmp_path, name="a<b>.jpg", lead="one & only")
    assert (tmp_path / "viewer.html").read_bytes() == first


def test_every_control_has_a_name(sphere_face, tmp_path, without_three):
    page = write(sphere_face, tmp_path)
    for tag in re.findall(r"<(?:input|button|a) [^>]*>(?=)", page):
        named = "aria-label=" in tag or re.search(re.escape(tag) + r"\s*(?:<span[^>]*>)?\w", page)
        inside = re.search(r"<label[^>]*>(?:(?!</label>).)*" + re.escape(tag), page, re.DOTALL)
        assert named or inside, tag


def test_the_photos_camera_is_ours(sphere_face, tmp_path, without_three):
    """View and projection of the page bring points of the head, in meters, where ours brings them posed."""
    face = lit(sphere_face)
    data = json.loads(element(write(face, tmp_path), 'id="data">'))
    view, projection = (np.reshape(data["photo"][name], (4, 4)).T for name in ("view", "projection"))
    points = np.pad(face.vertices[0].numpy() * METERS_PER_UNIT, ((0, 0), (0, 1)), constant_values=1)
    clip = points @ (projection @ view).T
    expected = clip_coordinates(crop_camera(face, photo_of(face)), posed_vertices(face))[0].numpy()
    np.testing.assert_allclose(clip[:, :2] / clip[:, 3:], expected[:, :2] / expected[:, 3:], atol=1e-5)
    depth = clip[:, 2] / clip[:, 3]
    assert (np.abs(depth) < 1).all() and np.corrcoef(depth, expected[:, 3])[0, 1] > 0.98
    np.testing.assert_allclose(view[:3, :3] @ view[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.det(view[:3, :3]) > 0
    np.testing.assert_allclose(
        np.reshape(data["axes"], (4, 4)).T[:3, :3] @ view[:3, :3], np.reshape(data["pose"], (4, 4)).T[:3, :3], atol=1e-6
    )


def test_residual_shading_comes_back(sphere_face):
    face = lit(sphere_face)
    uri, (offset, scale) = viewer._shade_map(face)
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        values = 2 ** (offset + scale * np.asarray(picture, dtype=np.float64) / 255)
    np.testing.assert_allclose(values, face.residual_shading[0].permute(1, 2, 0).numpy(), rtol=2e-3)
    assert viewer._shade_map(sphere_face)[1] == [0.0, 0.0]


def test_several_subjects_need_an_index(sphere_pair, tmp_path, without_three):
    with pytest.raises(InputError, match="a viewer shows one subject"):
        viewer.write_viewer(tmp_path / "v.html", b"glTF", sphere_pair)
    assert viewer.write_viewer(tmp_path / "v.html", b"glTF", sphere_pair, index=1).is_file()


def test_without_three_a_line_says_how_to_get_it(sphere_face, tmp_path, monkeypatch):
    monkeypatch.setenv("FACERECON_HOME", str(tmp_path))
    assert bundle.why_no_viewer().endswith("Run: python -m facerecon.assets fetch viewer")
    with pytest.raises(AssetError, match="fetch viewer"):
        viewer.write_viewer(tmp_path / "v.html", b"glTF", sphere_face)


def test_thumbnails_turn_to_both_sides_and_end_where_they_begin(sphere_face):
    frames = turning_thumbnail(sphere_face, 8, size=48, swing=30)
    arrays = [np.asarray(frame, dtype=int) for frame in frames]
    assert len(frames) == 8 and frames[0].size == (48, 48)
    assert (arrays[1] == arrays[3]).all() and (arrays[5] == arrays[7]).all() and (arrays[0] == arrays[4]).all()
    assert all(np.abs(arrays[0] - arrays[k]).max() > 30 for k in (1, 2, 6)) and (arrays[2] != arrays[6]).any()


def test_functions_of_the_page():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    generator = torch.Generator().manual_seed(1)
    known = []
    for space in ("linear", "encoded"):
        light = SHLight(torch.randn(1, 9, 3, generator=generator), space=space)
        normals = torch.nn.functional.normalize(torch.randn(1, 8, 3, generator=generator), dim=-1)
        as_read = {"coefficients": light.coefficients[0].tolist(), "space": space}
        for normal, value in zip(normals[0].tolist(), shade(normals, light)[0].tolist(), strict=True):
            known.append({"normal": normal, "light": as_read, "expected": value})
    done = subprocess.run(
        [node, "--test", str(Path(__file__).with_name("viewer.test.mjs"))], capture_output=True, text=True, timeout=300,
        env={**os.environ, "SHADES": json.dumps(known)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# -- in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    """Headless Chromium with a log of its console and of what it asks the network for."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra test_all)")
    from selenium.webdriver.chrome.service import Service

    for program in (CHROMIUM, DRIVER):
        if not Path(program).is_file():
            pytest.skip(f"{program} is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(300)
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


class Opened:
    """A page in the browser."""

    def __init__(self, driver, path: Path) -> None:
        self.driver = driver
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(path.as_uri())
        self.run("")

    def run(self, statements: str):
        """What statements return; ``page`` is what start() gave, ``at`` finds an element, ``pick`` clicks on one."""
        answer = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "const at = (s) => document.querySelector(s); const pick = (s) => at(s).click();"
            "const put = (s, v) => { at(s).value = v; at(s).dispatchEvent(new Event('input', { bubbles: true })); };"
            f"viewer.then((page) => {{ {statements} }})"
            ".then((v) => done({ v }), (e) => done({ error: String(e) }));"
        )
        assert "error" not in answer, answer
        return answer.get("v")

    def picture(self, side: int = 96) -> np.ndarray:
        """(side, side, 4) float, 0 to 255, of the canvas."""
        uri = self.run(f"return page.picture({side}, {side});")
        with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
            return np.asarray(image.convert("RGBA"), dtype=np.float64)

    def errors(self) -> list[str]:
        """Warnings and errors of the console since the page was opened."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> set[str]:
        """Schemes of all addresses that were asked for."""
        messages = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {address.split(":", 1)[0] for address in sent}


def opened(browser, asset, face: ReconstructedFace, folder: Path, with_photo: bool = True, **track) -> Opened:
    asset("viewer")
    glb = save_glb(face, folder / "head.glb", **track)
    photo = photo_of(face) if with_photo else None
    return Opened(browser, viewer.write_viewer(folder / "viewer.html", glb, face, photo))


def changed(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(before - after).max(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("space", ["linear", "encoded"])
def test_the_photos_light_is_our_renderers(browser, asset, person, tmp_path, space):
    """Over the photo the page draws what our renderer draws: at most 2 of 255 apart in the mean, 8 at the 99th
    percentile of the skin, with a fitted expression."""
    face = lit(smooth(person), space)
    weights = {"jawOpen": 0.3, "mouthSmileLeft": 0.7, "browInnerUp": 0.4, "eyeLookInLeft": 0.5}
    expression = torch.tensor([[weights.get(name, 0.0) for name in face.expression_names]])
    vertices = face.neutral_vertices + torch.einsum("be,evc->bvc", expression, face.expression_basis)
    face = face.replace(vertices=vertices, params=face.params.replace(expression=expression))
    page = opened(browser, asset, face, tmp_path)
    assert page.errors() == [] and page.requests() <= {"file", "blob", "data"}
    page.run("pick('#compare');")
    side = 384
    drawn = page.picture(side)
    ours = Renderer(size=side, texture_level="auto")(
        posed_vertices(face), face.texture_in_photo(), face.topology, crop_camera(face, photo_of(face)),
        face.params.light,
    )  # fmt: skip
    skin = torch.cat([face.topology.regions["face"], torch.tensor([False])])
    for region in ("eyes", "mouth", "teeth", "tongue", "sockets"):
        skin[:-1] &= ~face.topology.regions[region]
    on_skin = binary_erosion(skin[ours.fragments.face_index[0]].numpy(), iterations=3) & (drawn[..., 3] == 255)
    assert on_skin.sum() > 0.05 * side * side
    apart = np.abs(drawn[..., :3] - 255 * ours.image[0].clamp(0, 1).permute(1, 2, 0).numpy())[on_skin]
    assert apart.mean() <= 2 and np.percentile(apart, 99) <= 8, (apart.mean(), np.percentile(apart, 99))
    assert (drawn[..., 3] == 0).mean() > 0.2  # the photo shows beside the face


@pytest.mark.slow
def test_controls_change_the_picture(browser, asset, person, tmp_path):
    page = opened(browser, asset, lit(smooth(person)), tmp_path)
    first = page.picture()
    assert (first[..., 3] == 255).mean() > 0.15 and first[0, 0, 3] == 0
    assert changed(first, page.picture()) == 0
    page.run("put('[data-unit=jawOpen]', 1);")
    assert page.run("return at('[data-unit=jawOpen]').parentElement.textContent;") == "Open100"
    jaw = page.picture()
    assert changed(first, jaw) > 0.5
    page.run("put('#azimuth', 80);")  # the lamp goes on as it is moved
    right = page.picture()
    page.run("put('#azimuth', -80);")
    left = page.picture()
    assert changed(left, right) > 5
    middle = left.shape[1] // 2
    assert left[:, :middle, :3].sum() > right[:, :middle, :3].sum()
    page.run("put('#color', '#ff0000');")
    red = page.picture()
    assert red[..., 2].sum() < 0.95 * left[..., 2].sum() and changed(red, left) > 1
    page.run("pick('#relight'); [...at('#presets').children].find((b) => b.textContent === 'As fitted').click();")
    assert changed(first, page.picture()) < 0.01
    for surface in ("clay", "visibility", "wireframe"):
        page.run(f"pick('[value={surface}]');")
        assert changed(first, page.picture()) > 1, surface
    page.run("pick('[value=texture]'); pick('[value=studio]');")
    studio = page.picture()
    assert changed(first, studio) > 1
    page.run("put('#azimuth', 100);")
    assert changed(studio, page.picture()) > 1
    page.run("pick('[value=photo]'); page.turnTo(40, 0);")
    turned = page.picture()
    assert changed(first, turned) > 3
    page.run("pick('#attached');")
    assert changed(turned, page.picture()) > 0.3
    assert page.errors() == [] and page.requests() <= {"file", "blob", "data"}


@pytest.mark.slow
def test_keys_search_and_download(browser, asset, person, tmp_path):
    from selenium.webdriver.common.keys import Keys

    page = opened(browser, asset, lit(smooth(person)), tmp_path)
    first = page.picture()
    frame = page.driver.find_element("id", "frame")
    frame.send_keys(Keys.ARROW_RIGHT * 3)
    assert changed(first, page.picture()) > 1
    frame.send_keys(Keys.HOME)
    page.driver.find_element("id", "search").send_keys("smile")
    shown = page.run("return [...document.querySelectorAll('.unit')].filter((u) => !u.hidden).map((u) => u.title);")
    assert shown == ["mouthSmileLeft", "mouthSmileRight"]
    held = page.run(
        "return fetch(at('#download').href).then((r) => r.arrayBuffer())"
        ".then((b) => crypto.subtle.digest('SHA-256', b))"
        ".then((d) => [...new Uint8Array(d)].map((x) => x.toString(16).padStart(2, '0')).join(''));"
    )
    assert held == hashlib.sha256((tmp_path / "head.glb").read_bytes()).hexdigest()
    assert page.run("return at('#download').download;") == "head.glb"
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    wide = page.run("return [document.documentElement.scrollWidth, innerWidth];")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide[0] <= wide[1] == 390
    assert page.errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sphere_face", "hifi_face", "scanned"])
def test_other_heads(browser, asset, which, request, tmp_path):
    """Other topologies, with other units, without eyes, photo or expression."""
    face = request.getfixturevalue(which)
    page = opened(browser, asset, face, tmp_path)
    assert (page.picture()[..., 3] == 255).mean() > 0.08 and page.errors() == []
    assert page.run("return page.units;") == list(face.expression_names)
    none = face.replace(
        expression_basis=face.expression_basis[:0], expression_names=(),
        params=face.params.replace(expression=face.params.expression[:, :0]), vertices=face.neutral_vertices,
    )  # fmt: skip
    page = opened(browser, asset, none, tmp_path, with_photo=False)
    assert (page.picture()[..., 3] == 255).mean() > 0.08 and page.errors() == []
    hidden = page.run("return ['#expression', '#photo-choice', '#player'].map((s) => at(s).hidden);")
    assert hidden == [True, True, True]


@pytest.mark.slow
def test_a_video_plays(browser, asset, sphere_face, tmp_path):
    moves = FaceParams(
        identity=torch.zeros(3, 4), expression=torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]),
        albedo=torch.zeros(3, 0), rotation=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 0.0]]),
        translation=torch.zeros(3, 3), light=SHLight.ambient(3),
    )  # fmt: skip
    page = opened(browser, asset, sphere_face, tmp_path, track=moves, times=[0.0, 1.0, 2.0])
    first = page.picture()
    assert page.run("return at('#player').hidden;") is False
    page.run("put('#time', 1);")
    middle = page.picture()
    assert changed(first, middle) > 3
    assert page.run("return page.weights.map((w) => Math.round(10 * w) / 10);") == [1.0, 0.5, 0.0]
    page.run("put('#time', 0.2); pick('#play');")
    assert page.run("return at('#play').textContent;") == "Pause"
    page.run("return new Promise((go) => setTimeout(go, 1500));")
    page.run("pick('#play');")
    assert page.run("return Number(at('#time').value);") > 0.2
    page.run("pick('#compare');")  # over the photo the head is as fitted, at rest
    assert page.errors() == []
