"""Foreign files to our own: each function reads an unpacked package and writes one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from facerecon.errors import AssetError, InputError
from facerecon.imaging.files import read_image
from facerecon.storage import safetensors_bytes, write_whole
from facerecon.stylegan.face_generator import NUM_STYLES, STYLE_DIM, MobileGenerator
from facerecon.stylegan.ffhq_generator import read_e4e_generator, read_ffhq_pickle
from facerecon.stylegan.released_checkpoints import TOPOLOGY_PICTURES, read_official
from facerecon.stylegan.weights import save_generator

__all__ = [
    "e4e_generator",
    "ffhq_uv_decoder",
    "ffhq_uv_decoder_cropface",
    "ffhq_uv_topology",
    "mobile_stylegan",
    "stylegan2_ffhq",
]

_MEAN_SAMPLES = 10_000
_MEAN_SEED = 0


class _Graph:
    """Just enough of an OpenVINO IR (version 10) to find constants; known by its sha256, so safe to parse as XML."""

    def __init__(self, xml: Path) -> None:
        self.xml = xml
        self.kind: dict[int, str] = {}
        self.by_name: dict[str, int] = {}
        self.constant: dict[int, Tensor] = {}
        self.inputs: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        try:
            root = ElementTree.parse(xml).getroot()
            weights = np.fromfile(xml.with_suffix(".bin"), np.uint8)
            layers, edges = root.find("layers"), root.find("edges")
            assert layers is not None and edges is not None
            for layer in layers:
                node, kind, data = int(layer.attrib["id"]), layer.attrib["type"], layer.find("data")
                self.kind[node] = kind
                self.by_name[layer.attrib["name"]] = node
                if kind == "Const" and data is not None and data.attrib["element_type"] == "f32":
                    start, size = int(data.attrib["offset"]), int(data.attrib["size"])
                    shape = [int(n) for n in data.attrib["shape"].replace(" ", "").split(",") if n]
                    values = np.frombuffer(weights[start : start + size].tobytes(), "<f4").reshape(shape)
                    self.constant[node] = torch.from_numpy(values.copy())
            for edge in sorted(edges, key=lambda e: (int(e.attrib["to-layer"]), int(e.attrib["to-port"]))):
                source, target = int(edge.attrib["from-layer"]), int(edge.attrib["to-layer"])
                self.inputs.setdefault(target, []).append(source)
                self.outputs.setdefault(source, []).append(target)
        except (OSError, ElementTree.ParseError, AssertionError, ValueError, LookupError, TypeError) as error:
            raise AssetError(f"{xml} is not a readable OpenVINO IR ({error}); fetch the package again.") from None

    def named(self, name: str) -> int:
        if name not in self.by_name:
            raise AssetError(f"{self.xml.name} has no layer '{name}'; expected random-face 2021.7.21.1.")
        return self.by_name[name]

    def value(self, name: str) -> Tensor:
        return self.constant[self.named(name)]

    def after(self, node: int, *kinds: str) -> int:
        """Walk from a node to its consumer of each kind in turn."""
        for kind in kinds:
            found = [n for n in self.outputs.get(node, []) if self.kind[n] == kind]
            if len(found) != 1:
                raise AssetError(f"{self.xml.name}: layer {node} has {len(found)} consumers '{kind}'; expected one.")
            node = found[0]
        return node

    def other(self, node: int) -> Tensor:
        """The constant input of a node."""
        found = [self.constant[n] for n in self.inputs[node] if n in self.constant]
        if len(found) != 1:
            raise AssetError(f"{self.xml.name}: layer {node} has {len(found)} constant inputs; expected one.")
        return found[0]


def mobile_stylegan(source: Path, target: Path) -> None:
    """PyPI package ``random-face`` -> one safetensors file for :class:`MobileGenerator`.

    Args:
        source: root folder of the unpacked wheel.
        target: file to write.

    Raises:
        AssetError: the folder does not hold the networks, or they have another structure.
    """
    folder = Path(source) / "random_face" / "data"
    model = MobileGenerator()
    state = _mapping(_Graph(folder / "MappingNetwork.xml")) | _synthesis(_Graph(folder / "SynthesisNetwork.xml"))
    state |= {"mean_w": model.mean_w, "std_w": model.std_w}
    wrong = [k for k, v in model.state_dict().items() if k not in state or state[k].shape != v.shape]
    if wrong or len(state) != len(model.state_dict()):
        raise AssetError(f"{folder} holds another generator (first difference: {wrong[:1]}); fetch it again.")
    model.load_state_dict(state)
    z = torch.randn(_MEAN_SAMPLES, STYLE_DIM, generator=torch.Generator().manual_seed(_MEAN_SEED))
    with torch.no_grad():
        w = torch.cat([model.mapping(part) for part in z.split(1000)]).double()
    state["mean_w"], state["std_w"] = w.mean(0).float(), w.std(0).float()
    note = {
        "model": "MobileStyleGAN, distilled from StyleGAN2-FFHQ, 1024 px",
        "source": "PyPI random-face 2021.7.21.1",
        "w_plus": [NUM_STYLES, STYLE_DIM],
        "mean_w": {"samples": _MEAN_SAMPLES, "seed": _MEAN_SEED},
    }
    tensors = {key: value.float() for key, value in state.items()}
    write_whole(target, safetensors_bytes(tensors, {"facerecon": json.dumps(note, sort_keys=True)}))


def _mapping(graph: _Graph) -> dict[str, Tensor]:
    """Eight weights (out, in) and biases, in the order of the network."""
    state: dict[str, Tensor] = {}
    products = [node for node, kind in sorted(graph.kind.items()) if kind == "MatMul"]
    for index, product in enumerate(products):
        state[f"mapping.layers.{index}.weight"] = graph.other(product)
        bias = graph.after(product, "Add")
        reshaped = next(n for n in graph.inputs[bias] if graph.kind[n] == "Reshape")
        state[f"mapping.layers.{index}.bias"] = graph.other(reshaped)
    return state


def _synthesis(graph: _Graph) -> dict[str, Tensor]:
    state = _modulation(graph, "m.conv1.conv.modulation", "synthesis.start.modulation", scaled=True)
    state["synthesis.start.constant"] = graph.value("m.input.input")
    tiled = graph.after(graph.named("m.input.input"), "Broadcast", "Tile", "Multiply")
    state |= _tail(graph, graph.after(tiled, "Convolution"), "synthesis.start", "weight")
    into_wavelets = "synthesis.start.weight", "synthesis.start.bias"
    for k in range(7):
        old, new = f"m.layers.{k}", f"synthesis.layers.{k}"
        state |= _modulation(graph, f"{old}.up.modulation", f"{new}.up", scaled=False)
        for key in (*into_wavelets, f"{new}.up.weight", f"{new}.up.bias"):
            state[key] = _by_band(state[key])
        for conv in ("conv1", "conv2"):
            name = f"{new}.{conv}"
            state |= _modulation(graph, f"{old}.{conv}.conv.modulation", f"{name}.modulation", scaled=True)
            depthwise = graph.named(f"{old}.{conv}.conv.weight_dw")
            state[f"{name}.depthwise"] = graph.constant[depthwise].squeeze(1)
            pointwise = graph.after(depthwise, "GroupConvolution", "Convolution")
            state |= _tail(graph, pointwise, name, "pointwise")
            state[f"{name}.pointwise"] = state[f"{name}.pointwise"][:, :, 0, 0]
        into_wavelets = f"{new}.conv2.pointwise", f"{new}.conv2.bias"
    name = "m.layers.6.to_img"
    state |= _modulation(graph, f"{name}.conv.modulation", "synthesis.output.modulation", scaled=True)
    state["synthesis.output.weight"] = _by_band(graph.value(f"{name}.conv.weight")[:, :, 0, 0])
    state["synthesis.output.bias"] = _by_band(graph.value(f"{name}.bias").flatten())
    return state


def _by_band(rows: Tensor) -> Tensor:
    """Output channels ordered (C averages, then 3 details of each channel) -> the 4 bands in turn."""
    channels = len(rows) // 4
    details = rows[channels:].unflatten(0, (channels, 3)).transpose(0, 1).flatten(0, 1)
    return torch.cat([rows[:channels], details])


def _modulation(graph: _Graph, old: str, new: str, scaled: bool) -> dict[str, Tensor]:
    """Linear layer of a style; the constant that multiplies it in the graph is folded in."""
    weight, bias = graph.value(f"{old}.weight"), graph.value(f"{old}.bias").flatten()
    if scaled:
        add = graph.after(graph.named(f"{old}.bias"), "Add")
        reshaped = graph.after(add, "Reshape")
        scale = graph.other(graph.after(reshaped, "Multiply")).item()
        weight, bias = weight * scale, bias * scale
    return {f"{new}.weight": weight, f"{new}.bias": bias}


def _tail(graph: _Graph, convolution: int, name: str, weight: str) -> dict[str, Tensor]:
    """Weights (demodulation folded in by the exporter), constant noise and bias of one convolution."""
    noise = graph.after(convolution, "Add")
    bias = graph.after(noise, "Add")
    return {
        f"{name}.{weight}": graph.other(convolution),
        f"{name}.noise": graph.other(noise)[0, 0, :, :, None],
        f"{name}.bias": graph.other(bias).flatten(),
    }


# -- the FFHQ-UV release ---------------------------------------------------------------------------------


def ffhq_uv_decoder(source: Path, target: Path) -> None:
    """The released texture decoder (``texgan_ffhq_uv.pth``), in full precision; its W is measured on first use."""
    about = {"atlas": "hifi3dpp", "source": f"FFHQ-UV release, {Path(source).name}"}
    save_generator(target, read_official(source), about, dtype=torch.float32)


def ffhq_uv_decoder_cropface(source: Path, target: Path) -> None:
    """Its variant that makes the face alone; the pictures it is joined with are the asset ffhq_uv_topology."""
    about = {"atlas": "hifi3dpp", "crop": "face", "source": f"FFHQ-UV release, {Path(source).name}"}
    save_generator(target, read_official(source), about, dtype=torch.float32)


def ffhq_uv_topology(source: Path, target: Path) -> None:
    """The pictures of ``topo_assets``, 8 bits a channel, under their names without ending; masks have one channel.

    Args:
        source: the folder, or a file in it.

    Raises:
        AssetError: one that fits need is missing, or one cannot be read.
    """
    folder = Path(source)
    folder = folder.parent if folder.is_file() else folder
    paths = {path.stem: path for path in sorted(folder.glob("*.png"))}
    missing = [name for name in TOPOLOGY_PICTURES if Path(name).stem not in paths]
    if missing:
        raise AssetError(f"{folder} lacks {', '.join(missing)} of the released topo_assets/; get them again.")
    pictures = {}
    for name, path in paths.items():
        try:
            picture = (read_image(path) * 255).round().to(torch.uint8)
        except InputError as error:
            raise AssetError(str(error)) from None
        pictures[name] = picture[:1] if name.endswith("_mask") else picture
    write_whole(target, safetensors_bytes(pictures, {"source": "FFHQ-UV release, topo_assets"}))


def stylegan2_ffhq(source: Path, target: Path) -> None:
    """StyleGAN2-FFHQ (``stylegan2-ffhq-config-f.pkl``), in full precision."""
    save_generator(target, read_ffhq_pickle(source), {"source": "NVIDIA, StyleGAN2-FFHQ"}, dtype=torch.float32)


def e4e_generator(source: Path, target: Path) -> None:
    """The same generator, as it stands beside e4e's encoder (``e4e_ffhq_encode.pt``)."""
    about = {"source": "StyleGAN2-FFHQ, of e4e_ffhq_encode.pt"}
    save_generator(target, read_e4e_generator(source), about, dtype=torch.float32)
