"""The files that the authors of FFHQ-UV release, which of them this library converts, and what replaces the others.

``python -m facerecon.assets convert ffhq_uv DIR`` takes the released ``checkpoints/`` and ``topo_assets/`` folders (or
a folder that holds them, or single files of them) as they are. Files are found by name, wherever they lie in DIR.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from facerecon.assets import registry, store
from facerecon.errors import AssetError, FaceReconError

__all__ = ["HUB", "PACK", "RELEASED", "PackReport", "ReleasedFile", "convert_pack", "fetch_pack", "require"]

PACK = "ffhq_uv"
HUB = "csbhr/FFHQ-UV"
"""The authors' data set on the Hugging Face hub."""

_RELEASE = "the release (https://github.com/csbhr/FFHQ-UV, README_ckp_topo.md)"
_MIT_FFHQ = "MIT (the repository's); trained on FFHQ images, whose terms exclude commercial use"


@dataclass(frozen=True)
class ReleasedFile:
    """One file, or a folder of pictures, of the release.

    Args:
        path: in the release; its last part is looked for.
        assets: of the registry that it becomes; none if it is not used.
        source: where it comes from.
        license: as stated there.
        instead: what does its work, where it is not converted.
    """

    path: str
    assets: tuple[str, ...]
    source: str
    license: str
    instead: str = ""

    @property
    def name(self) -> str:
        """File name."""
        return self.path.rsplit("/", 1)[1]


RELEASED: tuple[ReleasedFile, ...] = (
    ReleasedFile("topo_assets/hifi3dpp_model_info.mat", ("hifi3dpp",), _RELEASE, "of its authors, for research"),
    ReleasedFile("topo_assets/template_base_uv.png", ("ffhq_uv_topology",), _RELEASE, "MIT (the repository's)"),
    ReleasedFile("checkpoints/texgan_model/texgan_ffhq_uv.pth", ("ffhq_uv_decoder",), _RELEASE, _MIT_FFHQ),
    ReleasedFile(
        "checkpoints/texgan_model/texgan_cropface630resize1024_ffhq_uv_interpolate.pth",
        ("ffhq_uv_decoder_cropface",), _RELEASE, _MIT_FFHQ,
    ),
    ReleasedFile("checkpoints/deep3d_model/epoch_latest.pth", ("ffhq_uv_regressor",), _RELEASE, _MIT_FFHQ),
    ReleasedFile(
        "checkpoints/arcface_model/ms1mv3_arcface_r50_fp16_backbone.pth", ("arcface",),
        "github.com/deepinsight/insightface, recognition/arcface_torch", "weights for non-commercial research only",
    ),
    ReleasedFile(
        "checkpoints/parsing_model/79999_iter.pth", ("bisenet",), "github.com/zllrunning/face-parsing.PyTorch",
        "MIT (the repository's); trained on CelebAMask-HQ, for non-commercial research",
    ),
    ReleasedFile(
        "checkpoints/dpr_model/trained_model_03.t7", ("dpr",), "github.com/zhhoper/DPR", "none is stated there",
    ),
    ReleasedFile(
        "checkpoints/exprecog_model/FacialExpRecognition_model.t7", ("expression_vgg19",),
        "github.com/WuJie1010/Facial-Expression-Recognition.Pytorch", "MIT (the repository's)",
    ),
    ReleasedFile(
        "checkpoints/e4e_model/e4e_ffhq_encode.pt", ("e4e", "e4e_generator"), "github.com/omertov/encoder4editing",
        "MIT (the repository's); its generator is NVIDIA's, for non-commercial use",
    ),
    ReleasedFile(
        "checkpoints/stylegan_model/stylegan2-ffhq-config-f.pkl", ("stylegan2_ffhq",), "github.com/NVlabs/stylegan2",
        "NVIDIA Source Code License-NC, non-commercial",
    ),
    ReleasedFile(
        "checkpoints/styleflow_model/modellarge10k.pt", ("styleflow",), "github.com/RameenAbdal/StyleFlow",
        "CC BY-NC-SA 4.0, academic research",
    ),
    ReleasedFile(
        "checkpoints/styleflow_model/expression_direction.pt", ("expression_direction",), _RELEASE, _MIT_FFHQ,
    ),
    ReleasedFile(
        "checkpoints/vgg_model/vgg16.pt", ("vgg16",), "nvlabs-fi-cdn.nvidia.com (stylegan2-ada-pytorch, metrics)",
        "NVIDIA Source Code License-NC, non-commercial",
    ),
    ReleasedFile(
        "checkpoints/resnet_model/resnet18-5c106cde.pth", (), "download.pytorch.org", "BSD-3-Clause (torchvision's)",
        "not needed: what 79999_iter.pth was trained from",
    ),
    ReleasedFile(
        "checkpoints/dlib_model/shape_predictor_68_face_landmarks.dat", (), "dlib.net",
        "its training set iBUG 300-W excludes commercial use", "replaced by ours: landmarks68 and facemesh478",
    ),
    ReleasedFile(
        "checkpoints/lm_model/68lm_detector.pb", (), "github.com/sicxu/Deep3DFaceRecon_pytorch",
        "MIT (the repository's)", "a TensorFlow graph, replaced by ours: landmarks68 and facemesh478",
    ),
    ReleasedFile(
        "checkpoints/mtcnn_model/mtcnn_model.pb", (), "github.com/ipazc/mtcnn", "MIT (the repository's)",
        "a TensorFlow graph, replaced by ours: face_detector",
    ),
    ReleasedFile(
        "topo_assets/hifi3dpp_mean_face.obj", (), _RELEASE, "of its authors, for research",
        "not needed: the mean shape in hifi3dpp_model_info.mat",
    ),
    ReleasedFile(
        "topo_assets/similarity_Lm3D_all.mat", (), _RELEASE, "of its authors, for research",
        "replaced by ours: mean points of perception.observe",
    ),
    ReleasedFile(
        "topo_assets/unwrap_1024_info.mat", (), _RELEASE, "MIT (the repository's)",
        "not needed: the renderer draws UV maps itself",
    ),
)  # fmt: skip


@dataclass
class PackReport:
    """What became of a folder.

    Args:
        converted: {asset: file in the cache}.
        failed: {file: why, one line}.
        missing: files that were not there.
        unused: files that were there and are not converted.
    """

    converted: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[ReleasedFile] = field(default_factory=list)
    unused: list[ReleasedFile] = field(default_factory=list)

    def lines(self) -> list[str]:
        """As text: what was converted, what failed, what is missing and where it comes from, what is ours."""
        text = [f"{name}: {path}" for name, path in self.converted.items()]
        text += [f"not converted: {file}: {why}" for file, why in self.failed.items()]
        text += [f"missing: {one.path}; from {one.source}; license: {one.license}" for one in self.missing]
        unused = {one.name for one in self.unused}
        for one in RELEASED:
            if one.instead:
                text.append(f"{'not used' if one.name in unused else 'not asked for'}: {one.path}: {one.instead}")
        return text


def _found(source: Path) -> dict[str, Path]:
    """{name: path} of the released files in a folder, or the one file given; of two with a name the first by path."""
    names = {one.name for one in RELEASED}
    paths = [source] if source.is_file() else sorted(source.rglob("*"))
    found: dict[str, Path] = {}
    for path in paths:
        if path.name in names and path.is_file():
            found.setdefault(path.name, path)
    return found


def convert_pack(source: str | Path, progress: store.Progress | None = None) -> PackReport:
    """Convert what is there of the release; a file that cannot be read does not hold up the others.

    Args:
        source: folder that holds ``checkpoints/`` and ``topo_assets/``, one of them, or one file.
        progress: told what is being done.

    Raises:
        AssetError: no such folder, or nothing of the release in it.
    """
    source = Path(source).expanduser()
    progress = progress or store.Progress()
    if not source.exists():
        raise AssetError(f"{source} does not exist; give the folder with the released checkpoints/ and topo_assets/.")
    found = _found(source)
    if not found:
        raise AssetError(
            f"{source} holds no file of the release (such as texgan_ffhq_uv.pth); give the folder with checkpoints/ "
            f"and topo_assets/ of {_RELEASE}."
        )
    report = PackReport()
    for one in RELEASED:
        path = found.get(one.name)
        if path is None:
            report.missing += [one] if one.assets else []
        elif not one.assets:
            report.unused.append(one)
        elif problem := _damage(path):
            report.failed[str(path)] = problem
        else:
            for name in one.assets:
                try:
                    report.converted[name] = store.convert(name, path, progress)
                except FaceReconError as error:
                    report.failed[str(path)] = str(error)
    return report


def _damage(path: Path) -> str:
    """Why an archive is not whole, by its checksums; "" where it is, or where it is no archive."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return ""
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{path} is damaged or cut off ({reason}); get the released file again."
    reason = f"{path} was altered: a checksum in it does not fit ({broken}); get the released file again."
    return reason if broken else ""


def not_converted(names: Iterable[str]) -> dict[str, str]:
    """Of assets of the pack, those that are not in the cache: {name: where to get it}."""
    sources = {name: one for one in RELEASED for name in one.assets}
    found = {}
    for name in names:
        status = store.status(name)
        if status.state != "ready":
            one = sources.get(name)
            found[name] = f"{one.path} from {one.source}" if one else registry.entry(name).purpose
    return found


def require(needed: Mapping[str, str]) -> None:
    """Say at once all that is missing of the release.

    Args:
        needed: {asset: the setting that does without it}.

    Raises:
        AssetError: in one line, what is not in the cache, where it comes from, and how to do without.
    """
    missing = not_converted(needed)
    if missing:
        packaged = all(name in registry.ASSETS for name in missing)
        command = (
            f"fetch {' '.join(missing)}" if packaged else f"convert {PACK} DIR, with the folder of the released files."
        )
        raise AssetError(
            "not converted yet: "
            + "; ".join(f"{name} ({where}; without it: {needed[name]})" for name, where in missing.items())
            + f". Run: python -m facerecon.assets {command}"
        )


def fetch_pack(progress: store.Progress | None = None) -> PackReport:
    """Download the released files from the authors' data set on the Hugging Face hub, and convert them.

    Raises:
        AssetError: huggingface_hub is not installed, the hub cannot be reached, or the data set holds none of them.
    """
    progress = progress or store.Progress()
    by_hand = (
        "nothing was fetched; download checkpoints/ and topo_assets/ as https://github.com/csbhr/FFHQ-UV says, then "
        f"run python -m facerecon.assets convert {PACK} DIR"
    )
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise AssetError(
            f"fetching {PACK} needs huggingface_hub, which is not installed "
            f"(pip install huggingface_hub, or facerecon[hub]); {by_hand}"
        ) from None
    names = {one.name for one in RELEASED if one.assets}

    def wanted(path: str) -> bool:
        return Path(path).name in names or path.endswith("_mask.png")

    try:
        progress.say(f"asking the Hugging Face hub for the data set {HUB}")
        listed = [path for path in HfApi().list_repo_files(HUB, repo_type="dataset") if wanted(path)]
    except Exception as error:  # of its many kinds of network errors
        raise AssetError(
            f"the data set {HUB} could not be reached from here, so fetching from it was not tried "
            f"({_reason(error)}); {by_hand}"
        ) from None
    if not listed:
        raise AssetError(f"the data set {HUB} holds none of the released model files; {by_hand}")
    folder = store.home() / "archives" / PACK
    for path in listed:
        progress.say(f"downloading {path}")
        try:
            hf_hub_download(HUB, path, repo_type="dataset", local_dir=str(folder))
        except Exception as error:
            raise AssetError(
                f"{path} of {HUB} could not be downloaded ({_reason(error)}); what came is in {folder}, the same "
                "command goes on."
            ) from None
    return convert_pack(folder, progress)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: " + (" ".join(str(error).split()) or "no reason given")[:120]
