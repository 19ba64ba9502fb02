"""How fast is the texture decoder, in training and in fitting, and how far is it from what the machine could do?

    python -m benchmarks.decoder [--size 256] [--channel-base 8192] [--batch 4] [--threads 1] [--device cuda]

One run, one process, the same weights in all rows:

* the product's networks in the precision that it trains and fits in, and in float32, against a plain float32 twin: the
  textbook's formulation (per-sample weights in a grouped convolution, channels first);
* training: a step of the discriminator, one of the generator, and R1 and path length shared over the steps between two
  of them (16 and 4); images a second;
* fitting: synthesis and gradient of one W+ code with frozen weights, at every size at which it can stop;
* the floor: products counted in what the product's networks run, over the rate of a large matrix product in the same
  precision on the same machine, measured in the same run.

Prints a table and writes JSON. Ways take turns, and the least of the rounds counts: what else runs on the machine can
only add to it. With one thread on a CPU seconds are the process's own. On CUDA also peak memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from facerecon.run import choose_device, set_threads
from facerecon.run.signals import exit_status
from facerecon.storage import write_whole
from facerecon.stylegan.discriminator import Discriminator, minibatch_deviation
from facerecon.stylegan.frozen_synthesis import FrozenSynthesis
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.texture_decoder import synthesis_precision
from facerecon.training.texture_gan import discriminator_loss, generator_loss, path_length, r1_penalty

R1_EVERY, PATH_EVERY, PATH_SHARE = 16, 4, 0.5
MATRIX = 2048

# -- the plain twin --------------------------------------------------------------------------------------------


def plain_blur(x: Tensor, before: int, after: int, gain: float = 1.0) -> Tensor:
    """[1, 3, 3, 1] along both axes, a depthwise convolution."""
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    channels = x.shape[1]
    kernel = (gain * torch.outer(taps, taps)).expand(channels, 1, 4, 4)
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, groups=channels)


def plain_styled(layer: Any, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """Eqs. 1 to 3 as printed: a kernel for each sample."""
    batch, channels, height, width = x.shape
    style = layer.style(w)
    weight = layer.weight[None] * style[:, None, :, None, None]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, batch * channels, height, width)
    if layer.up:
        weight = weight.transpose(1, 2).reshape(batch * channels, -1, 3, 3)
        y = F.conv_transpose2d(x, weight, stride=2, groups=batch)
        y = plain_blur(y.view(batch, -1, *y.shape[2:]), 1, 1, 4.0)
    else:
        y = F.conv2d(x, weight.reshape(-1, channels, 3, 3), padding=1, groups=batch).view(batch, -1, height, width)
    y = y + layer.noise_strength * noise
    return F.leaky_relu(y + layer.bias[None, :, None, None], 0.2) * math.sqrt(2)


def plain_synthesis(generator: Generator, ws: Tensor, noise: str = "const", size: int | None = None) -> Tensor:
    """The same images as ``generator.synthesis``."""
    network = generator.synthesis
    x, image, row = network.constant.expand(len(ws), -1, -1, -1), None, 0
    for block in network.blocks:
        for layer in (block.up, block.conv):
            if layer is None:
                continue
            shape = (len(ws), 1, layer.size, layer.size)
            grain = torch.randn(shape, device=ws.device) if noise == "random" else layer.noise[None, None]
            x = plain_styled(layer, x, ws[:, row], grain)
            row += 1
        style = block.color.style(ws[:, row]) / math.sqrt(x.shape[1])
        weight = (block.color.weight[None] * style[:, None, :, None, None]).reshape(-1, x.shape[1], 1, 1)
        color = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, groups=len(ws)).view(len(ws), 3, *x.shape[2:])
        color = color + block.color.bias[None, :, None, None]
        if image is not None:
            batch, _, height, width = image.shape
            spread = image.new_zeros(batch, 3, 2 * height, 2 * width)
            spread[:, :, ::2, ::2] = image
            color = color + plain_blur(spread, 2, 1, 4.0)
        image = color
        if x.shape[-1] == size:
            break
    return image


def plain_discriminator(network: Discriminator, images: Tensor) -> Tensor:
    """The same logits as ``network``."""

    def convolved(layer: Any, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = layer.weight / math.sqrt(layer.weight[0].numel())
        edge = weight.shape[-1] // 2
        if layer.down:
            y = F.conv2d(plain_blur(x, 1 + edge, 1 + edge), weight, stride=2)
        else:
            y = F.conv2d(x, weight, padding=edge)
        if layer.bias is not None:
            y = y + layer.bias[None, :, None, None]
        return (F.leaky_relu(y, 0.2) * math.sqrt(2) if layer.activate else y) * gain

    x = convolved(network.color, images)
    for block in network.blocks:
        deep = convolved(block.down, convolved(block.conv, x), math.sqrt(0.5))
        x = deep + convolved(block.skip, x, math.sqrt(0.5))
    x = convolved(network.conv, minibatch_deviation(x, network.group))
    return network.logit(network.linear(x.flatten(1)))


# -- what is timed ---------------------------------------------------------------------------------------------


class Way:
    """One way of computing the same networks, in a precision; None is the plain twin in float32."""

    def __init__(self, name: str, generator: Generator, discriminator: Discriminator, precision: Any) -> None:
        self.name, self.generator, self.critic = name, generator, discriminator
        self.precision, self.plain = precision or torch.float32, precision is None
        self.frozen = FrozenSynthesis(generator.synthesis, self.precision)  # what a fit runs

    def synthesis(self, ws: Tensor, noise: str = "const", size: int | None = None) -> Tensor:
        if self.plain:
            return plain_synthesis(self.generator, ws, noise, size)
        self.generator.precision = self.precision
        return self.generator.synthesis(ws, noise, size)

    def logits(self, images: Tensor) -> Tensor:
        if self.plain:
            return plain_discriminator(self.critic, images)
        self.critic.precision = self.precision
        return self.critic(images)

    def codes(self, batch: int, device: torch.device) -> Tensor:
        z = torch.randn(batch, self.generator.config.z_dim, device=device)
        return self.generator.rows_of(self.generator.mapping(z))

    # each of the four leaves gradients in the parameters; the optimizer's step is the same for all ways

    def discriminator_step(self, real: Tensor) -> None:
        self.learn(self.critic)
        with torch.no_grad():
            fake = self.synthesis(self.codes(len(real), real.device), "random")
        discriminator_loss(self.logits(real), self.logits(fake)).mean().backward()

    def generator_step(self, real: Tensor) -> None:
        self.learn(self.generator)
        fake = self.synthesis(self.codes(len(real), real.device), "random")
        generator_loss(self.logits(fake)).mean().backward()

    def r1_step(self, real: Tensor) -> None:
        self.learn(self.critic)
        images = real.clone().requires_grad_()
        r1_penalty(self.logits(images), images).mean().backward()

    def path_step(self, real: Tensor) -> None:
        self.learn(self.generator)
        ws = self.codes(max(1, round(PATH_SHARE * len(real))), real.device)
        images = self.synthesis(ws, "random")
        path_length(images, ws, torch.randn_like(images)).square().mean().backward()

    def fit_step(self, ws: Tensor, size: int) -> None:
        self.learn(None)
        leaf = ws.clone().requires_grad_()
        image = self.synthesis(leaf, "const", size) if self.plain else self.frozen(leaf, size)
        image.square().mean().backward()

    def learn(self, network: torch.nn.Module | None) -> None:
        for other in (self.generator, self.critic):
            other.requires_grad_(other is network)
            other.zero_grad(set_to_none=True)


STEPS = {"discriminator": 1.0, "generator": 1.0, "R1": 1 / R1_EVERY, "path length": 1 / PATH_EVERY}
"""Parts of a turn of training, and how often they come."""


class _Counter(TorchDispatchMode):
    """Counts without looking at modules, so that it stands gradients of gradients."""

    total = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result


def operations(work: Callable[[], None]) -> float:
    """Products and sums (2 a multiply-add) of convolutions and matrix products in one call."""
    with _Counter() as counter:
        work()
    return counter.total


def timed(works: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Least seconds of each; they take turns."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    now = time.process_time if alone else time.perf_counter
    best = dict.fromkeys(works, math.inf)
    for work in works.values():
        work()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(rounds):
        for name, work in works.items():
            wait()
            clock = now()
            work()
            wait()
            best[name] = min(best[name], now() - clock)
    return best


def matrix_rate(precision: torch.dtype, device: torch.device) -> float:
    """Operations a second of a square matrix product."""
    a = torch.randn(MATRIX, MATRIX, device=device).to(precision)
    seconds = timed({"mm": lambda: torch.mm(a, a)}, 5, device)["mm"]
    return 2 * MATRIX**3 / seconds


def memory_of(work: Callable[[], None], device: torch.device) -> float | None:
    """Peak gigabytes on CUDA; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def run(options: argparse.Namespace) -> dict[str, Any]:
    set_threads(options.threads)
    device = choose_device(options.device)
    torch.manual_seed(0)
    channels = {"channel_base": options.channel_base, "channel_max": options.channel_max}
    generator = Generator(GeneratorConfig(options.size, w_dim=options.w_dim, **channels)).to(device)
    critic = Discriminator(options.size, **channels).to(device)
    fast = synthesis_precision("auto", device)
    if device.type == "cuda" and options.precision == "auto":
        fast = torch.bfloat16  # training's; a fit takes float16
    elif options.precision != "auto":
        fast = synthesis_precision(options.precision, device)
    short = str(fast).removeprefix("torch.")
    ways = [Way(f"facerecon, {short}", generator, critic, fast)]
    if fast != torch.float32:
        ways.append(Way("facerecon, float32", generator, critic, torch.float32))
    ways.append(Way("plain twin, float32", generator, critic, None))

    real = torch.rand(options.batch, 3, options.size, options.size, device=device) * 2 - 1
    with torch.no_grad():  # the same networks
        ws = ways[0].codes(1, device)
        ours, twin = ways[-2], ways[-1]
        pairs = [(made(ws), twin.synthesis(ws)) for made in (ours.synthesis, ours.frozen)]
        pairs.append((ours.logits(real), twin.logits(real)))
        apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if apart > 1e-3:
        raise SystemExit(f"error: the twin differs from the networks by {apart:.1e} of their range")

    rates = {way.precision: matrix_rate(way.precision, device) for way in ways}
    result: dict[str, Any] = {
        "size": options.size, **channels, "batch": options.batch, "threads": torch.get_num_threads(),
        "device": describe(device), "apart": apart, "training": {}, "fitting": {},
        "matrix_rate": {str(k).removeprefix("torch."): v for k, v in rates.items()},
    }  # fmt: skip

    def parts(way: Way) -> dict[str, Callable[[], None]]:
        return {
            "discriminator": lambda: way.discriminator_step(real), "generator": lambda: way.generator_step(real),
            "R1": lambda: way.r1_step(real), "path length": lambda: way.path_step(real),
        }  # fmt: skip

    seconds = timed({f"{w.name}|{k}": f for w in ways for k, f in parts(w).items()}, options.rounds, device)
    count = {part: operations(work) for part, work in parts(ways[0]).items()}
    for way in ways:
        own = {part: seconds[f"{way.name}|{part}"] for part in STEPS}
        turn = sum(share * own[part] for part, share in STEPS.items())
        floor = sum(share * count[part] for part, share in STEPS.items()) / rates[way.precision]
        peak = max((memory_of(work, device) or 0 for work in parts(way).values()), default=0)
        result["training"][way.name] = {
            "seconds": own, "operations": count, "turn": turn, "images_per_second": options.batch / turn,
            "floor": floor, "of_floor": turn / floor, "peak_gb": peak or None,
        }  # fmt: skip

    sizes = [4 * 2**i for i in range(1, 9) if 4 * 2**i <= options.size]
    code = ws.detach()
    works = {f"{w.name}|{s}": (lambda w=w, s=s: w.fit_step(code, s)) for w in ways for s in sizes}
    seconds = timed(works, 2 * options.rounds, device)
    for way in ways:
        rows = {}
        for s in sizes:
            spent = seconds[f"{way.name}|{s}"]
            floor = operations(works[f"{ways[0].name}|{s}"]) / rates[way.precision]
            peak = memory_of(works[f"{way.name}|{s}"], device)
            rows[s] = {"seconds": spent, "floor": floor, "of_floor": spent / floor, "peak_gb": peak}
        result["fitting"][way.name] = rows
    return result


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "cpu"


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    names = list(result["training"])
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in result["matrix_rate"].items())
    lines = [
        f"{result['size']} px, channels {result['channel_base']} / {result['channel_max']}, batch {result['batch']}, "
        f"{result['threads']} thread(s), {result['device']}; matrix products: {rates}.", "",
        "| training | D s | G s | R1 s | path s | images/s | of the plain twin | time / floor |"
        + (" peak GB |" if result["training"][names[0]]["peak_gb"] else ""),
    ]  # fmt: skip
    lines.append("|---" * (lines[-1].count("|") - 1) + "|")
    base = result["training"][names[-1]]["images_per_second"]
    for name, row in result["training"].items():
        spent = " | ".join(f"{row['seconds'][part]:.3f}" for part in STEPS)
        line = f"| {name} | {spent} | {row['images_per_second']:.2f} | {row['images_per_second'] / base:.2f}x "
        line += f"| {row['of_floor']:.1f} |"
        lines.append(line + (f" {row['peak_gb']:.2f} |" if row["peak_gb"] else ""))
    sizes = list(result["fitting"][names[0]])
    lines += ["", "| fitting, ms | " + " | ".join(f"{s} px" for s in sizes) + " | of the plain twin | time / floor |"]
    lines.append("|---" * (lines[-1].count("|") - 1) + "|")
    last = sizes[-1]
    base = result["fitting"][names[-1]][last]["seconds"]
    for name, row in result["fitting"].items():
        spent = " | ".join(f"{1000 * row[s]['seconds']:.1f}" for s in sizes)
        lines.append(f"| {name} | {spent} | {base / row[last]['seconds']:.2f}x | {row[last]['of_floor']:.1f} |")
    if result["fitting"][names[0]][last]["peak_gb"]:
        peaks = ", ".join(f"{name} {row[last]['peak_gb']:.2f} GB" for name, row in result["fitting"].items())
        lines += ["", f"Peak memory of fitting at {last} px: {peaks}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channel-base", type=int, default=8192)
    parser.add_argument("--channel-max", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--w-dim", type=int, default=512)
    parser.add_argument("--precision", default="auto", help="of the product's networks: auto, bfloat16, float16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/decoder.json"))
    options = parser.parse_args()
    result = run(options)
    print(table(result))
    write_whole(options.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(exit_status(main))
