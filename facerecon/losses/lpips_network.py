"""The networks of LPIPS (arXiv:1801.03924), version 0.1: convolutions of AlexNet or VGG-16, and five linear heads.

They compute what the ``lpips`` package computes of the same weights, which the tests hold them against; that package
would import torchvision and, with it, torch's compiler, which takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facerecon import assets
from facerecon.modes import in_own_modes, without_numbers
from facerecon.storage import read_safetensors

__all__ = ["BACKBONES", "VERSION", "LPIPSNetwork", "load_lpips"]

BACKBONES = {"alex": "lpips_alexnet", "vgg": "lpips_vgg16"}
"""{network: asset} with its convolutions and LPIPS' heads."""
VERSION = "0.1"
"""Version of the heads, as LPIPS' authors count them."""

_SCALING = {"shift": (-0.030, -0.088, -0.188), "scale": (0.458, 0.448, 0.450)}  # of RGB in [-1, 1]

# five blocks, at whose ends LPIPS reads; in each the convolutions, a ReLU after every one: channels in and out, kernel
# size, stride, padding; before them the kernel size of a pooling of stride 2, if there is one
_ALEXNET = (
    ((3, 64, 11, 4, 2),),
    (3, (64, 192, 5, 1, 2)),
    (3, (192, 384, 3, 1, 1)),
    ((384, 256, 3, 1, 1),),
    ((256, 256, 3, 1, 1),),
)
_VGG16 = (
    ((3, 64, 3, 1, 1), (64, 64, 3, 1, 1)),
    (2, (64, 128, 3, 1, 1), (128, 128, 3, 1, 1)),
    (2, (128, 256, 3, 1, 1), *[(256, 256, 3, 1, 1)] * 2),
    (2, (256, 512, 3, 1, 1), *[(512, 512, 3, 1, 1)] * 2),
    (2, *[(512, 512, 3, 1, 1)] * 3),
)
_BLOCKS = {"alex": _ALEXNET, "vgg": _VGG16}


class LPIPSNetwork(nn.Module):
    """Layers and heads, under the names of the asset: ``features.0.weight``, ..., ``heads.0.weight``, ...

    Args:
        net: ``"alex"`` or ``"vgg"``.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        for name in _SCALING:
            self.register_buffer(name, torch.empty(3, 1, 1))
        self.features, self.heads = nn.Sequential(), nn.ModuleList()
        self.ends: list[int] = []  # of the blocks, among the features
        for block in _BLOCKS[net]:
            for layer in block:
                if isinstance(layer, int):
                    self.features.append(nn.MaxPool2d(layer, 2))
                else:
                    self.features.append(nn.Conv2d(*layer)).append(nn.ReLU(inplace=True))
            self.ends.append(len(self.features))
            self.heads.append(nn.Conv2d(block[-1][1], 1, 1, bias=False))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of the five layers, 5 x (B, C, h, w), of (B, 3, H, W) in [0, 1]."""
        x = (2 * image - 1 - self.shift) / self.scale
        found = []
        for start, end in zip([0, *self.ends], self.ends):
            x = self.features[start:end](x)
            found.append(x)
        return found


@in_own_modes
def load_lpips(net: str) -> LPIPSNetwork:
    """A network with the weights of the cache, frozen; its convolutions are laid out channels last.

    Args:
        net: ``"alex"`` or ``"vgg"``.

    Raises:
        AssetError: the network (asset ``lpips_alexnet`` or ``lpips_vgg16``) is not in the cache.
    """
    path = assets.locate(BACKBONES[net])
    tensors, _ = read_safetensors(path, "a converted network of LPIPS", "fetch it again")
    for i in range(5):
        tensors[f"heads.{i}.weight"] = tensors.pop(f"lin{i}.model.1.weight")
    with without_numbers():
        model = LPIPSNetwork(net)
    tensors |= {name: torch.tensor(values)[:, None, None] for name, values in _SCALING.items()}
    model.load_state_dict(tensors, assign=True)
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
