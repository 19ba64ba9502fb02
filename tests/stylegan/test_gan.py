"""StyleGAN2 against its definition, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import slow_stylegan as slow
import torch
from torch import Tensor

from facerecon.errors import AssetError, ConfigError, ShapeError
from facerecon.stylegan import layers
from facerecon.stylegan.discriminator import Discriminator, minibatch_deviation
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.stylegan.weights import read_generator, save_generator
from facerecon.training.texture_gan import discriminator_loss, generator_loss, path_length, r1_penalty

TINY = GeneratorConfig(size=32, z_dim=12, w_dim=16, mapping_layers=3, channel_base=160, channel_max=12)
"""Channels 12, 12, 10, 5: no two neighbors in the upper half alike, so that a wrong axis shows."""


def numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with every parameter away from its special start (biases and noise strengths of 0)."""
    module = module.double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                p += 0.3 * torch.randn_like(p)
    return module


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(1)
    return lively(Generator(TINY)).eval()


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(2)
    return lively(Discriminator(size=16, channel_base=96, channel_max=8, group=2)).eval()


def codes(batch: int = 2, rows: int = TINY.rows) -> Tensor:
    return torch.randn(batch, rows, TINY.w_dim, dtype=torch.float64)


# -- sizes -----------------------------------------------------------------------------------------------------


def test_config_f_has_the_papers_sizes():
    with torch.device("meta"):
        generator, discriminator = Generator(GeneratorConfig()), Discriminator()
    assert numbers(generator) == 30_370_060 and numbers(generator.mapping) == 2_101_248
    assert numbers(discriminator) == 29_012_513
    assert (generator.rows, generator.size) == (18, 1024)


def test_config_f_has_the_released_shapes(reference):
    """Every shape of the released generator is there, as often as there."""
    import json

    keys = json.loads((reference / "official_keys" / "texgan_ffhq_uv.json").read_text())
    released = sorted(tuple(s) for k, s in keys.items() if not k.endswith("resample_filter"))
    with torch.device("meta"):
        own = Generator(GeneratorConfig()).state_dict()
    assert sorted(tuple(v.shape) for v in own.values()) == released


# -- what is computed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 4, 8, 16])
@pytest.mark.parametrize("noise", ["const", "none"])
def test_synthesis_by_its_definition(generator, size, noise):
    """Modulated convolutions one sample at a time, zero insertion, blur, skip architecture; at every resolution."""
    ws = codes()
    with torch.no_grad():
        image = generator.synthesis(ws, noise=noise, size=size)
    expected = slow.synthesis(generator.state_dict(), ws, size, noise == "const")
    assert image.shape == expected.shape == (2, 3, size or 32, size or 32)
    assert torch.allclose(image, expected, rtol=1e-6, atol=1e-6)


def test_mapping_by_its_definition(generator):
    z = 3 * torch.randn(4, TINY.z_dim, dtype=torch.float64)
    expected = slow.mapping(generator.state_dict(), z)
    assert torch.allclose(generator.mapping(z), expected, rtol=1e-10)
    assert torch.allclose(generator.mapping(5 * z), expected, rtol=1e-6)  # the length of z says nothing


@pytest.mark.parametrize(("batch", "group"), [(4, 2), (2, 2), (3, 3), (4, 4)])
def test_discriminator_by_its_definition(discriminator, batch, group):
    images = torch.rand(batch, 3, 16, 16, dtype=torch.float64) * 2 - 1
    discriminator.group = group
    expected = slow.discriminator(discriminator.state_dict(), images, group)
    with torch.no_grad():
        assert torch.allclose(discriminator(images), expected, rtol=1e-8, atol=1e-10)


def test_demodulation_gives_unit_variance():
    """Sec. 2.2: for independent inputs of unit variance the output has unit variance, whatever the style."""
    torch.manual_seed(3)
    layer = layers.StyledConvolution(64, 32, 8, 24).double()
    with torch.no_grad():
        layer.style.weight.mul_(5)
        x = torch.randn(12, 64, 24, 24, dtype=torch.float64)
        y = layer(x, torch.randn(12, 8, dtype=torch.float64), None)[:, :, 1:-1, 1:-1]
    before = torch.where(y > 0, y, y / layers.SLOPE) / math.sqrt(2)
    assert torch.allclose(before.var((0, 2, 3)), before.new_ones(32), rtol=0.08)


def test_upsampling_of_constants_and_ramps():
    """Literals of [1, 3, 3, 1]: a constant stays one, a ramp goes on at half the slope, an impulse is 1 3 3 1 / 4."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    inside = layers.upsample_image(ramp)[0, 0, 5, 2:-2]
    assert torch.allclose(inside, torch.arange(12) / 2 + 0.75)
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[..., 2, 2] = 1
    assert torch.allclose(layers.upsample_image(impulse)[0, 0, 4, 3:7], 0.75 * torch.tensor([0.25, 0.75, 0.75, 0.25]))
    assert layers.upsample_image(impulse).sum() == pytest.approx(4)


def test_networks_commute_with_mirrors(discriminator):
    """D of mirrored images under mirrored kernels is D: no half-pixel shift anywhere."""
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    turned = Discriminator(size=16, channel_base=96, channel_max=8, group=2).double()
    state = {k: v.flip(-1) if v.dim() == 4 else v for k, v in discriminator.state_dict().items()}
    last = state["linear.weight"].view(-1, 8, 4, 4).flip(-1).flatten(1)
    turned.load_state_dict(state | {"linear.weight": last})
    discriminator.group = 2
    assert torch.allclose(turned(images.flip(-1)), discriminator(images), rtol=1e-9)


def test_minibatch_deviation_literal():
    """Two groups: values 1 and 3 deviate by 1, twins by nothing."""
    x = torch.tensor([1.0, 3.0, 5.0, 5.0]).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    plane = minibatch_deviation(x, 2)[:, 2]
    assert plane.shape == (4, 3, 3)
    assert torch.allclose(plane[:, 0, 0], torch.tensor([1.0, 1.0, 1e-4, 1e-4]), atol=1e-6)
    assert torch.equal(minibatch_deviation(x, 2)[:, :2], x)
    five = minibatch_deviation(torch.randn(5, 2, 3, 3), 4)  # no group of 4 divides 5
    assert torch.allclose(five[:, 2], torch.tensor(1e-4))


def test_a_batch_is_its_samples(generator):
    ws = codes(3)
    with torch.no_grad():
        together = generator.synthesis(ws)
        alone = torch.cat([generator.synthesis(w[None]) for w in ws])
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-10)


def test_coarse_synthesis_is_the_smaller_network(generator):
    """``size=16``: the image of a 16 px generator of the same weights; its rows suffice."""
    small = Generator(GeneratorConfig(16, 12, 16, 3, 160, 12)).double()
    small.load_state_dict({k: v for k, v in generator.state_dict().items() if k in small.state_dict()})
    ws = codes()
    expected = small.synthesis(ws[:, : small.rows])
    torch.testing.assert_close(generator.synthesis(ws, size=16), expected)
    torch.testing.assert_close(generator.synthesis(ws[:, : small.rows], size=16), expected)


def test_kept_kernels_follow_the_weights():
    """Kernels are kept while nothing learns; a changed, loaded, converted or replaced weight is seen."""
    generator = Generator(TINY).requires_grad_(False)
    ws = torch.randn(1, TINY.rows, TINY.w_dim)

    def fresh() -> Tensor:
        return slow.synthesis(generator.state_dict(), ws)

    assert torch.allclose(generator.synthesis(ws), fresh(), atol=1e-4)
    with torch.no_grad():
        generator.synthesis.blocks[1].up.weight.mul_(-1)
    assert torch.allclose(generator.synthesis(ws), fresh(), atol=1e-4)
    generator.load_state_dict(Generator(TINY).state_dict())
    assert torch.allclose(generator.synthesis(ws), fresh(), atol=1e-4)
    generator.load_state_dict(Generator(TINY).state_dict(), assign=True)
    assert torch.allclose(generator.synthesis(ws), fresh(), atol=1e-4)
    ws = ws.double()
    assert torch.allclose(generator.double().synthesis(ws), fresh(), atol=1e-6)
    state = {name: 2 * p for name, p in generator.synthesis.named_parameters()}
    swapped = torch.func.functional_call(generator.synthesis, state, (ws,))
    expected = slow.synthesis(generator.state_dict() | {f"synthesis.{k}": v for k, v in state.items()}, ws)
    assert torch.allclose(swapped, expected, atol=1e-6)


def test_base_and_projection(generator):
    """The base lies under every image, averaged to its size; a projection is what its numbers say."""
    ws, base = codes(), torch.randn(3, 32, 32, dtype=torch.float64)
    plain = {size: generator.synthesis(ws, size=size) for size in (8, 32)}
    generator.synthesis.base = base
    try:
        for size, image in plain.items():
            blocks = base.view(3, size, 32 // size, size, 32 // size).mean((2, 4))
            assert torch.allclose(generator.synthesis(ws, size=size), image + blocks)
    finally:
        generator.synthesis.base = None
    projected = Generator(GeneratorConfig(8, 6, 4, 2, 16, 4, mapped_dim=7))
    projected.projection.center.normal_()
    projected.projection.directions.normal_()
    z = torch.randn(3, 6)
    mapped = projected.mapping(z)
    assert mapped.shape == (3, 7)
    expected = torch.stack([projected.projection.directions @ (m - projected.projection.center) for m in mapped])
    assert torch.allclose(projected.map(z), expected, atol=1e-5)


# -- latents and noise -----------------------------------------------------------------------------------------


def test_truncation(generator):
    z = torch.randn(2, TINY.z_dim, dtype=torch.float64)
    w, mean = generator.mapping(z), torch.randn(TINY.w_dim, dtype=torch.float64)
    generator.w_mean.copy_(mean)
    expected = generator.synthesis((mean + 0.4 * (w - mean))[:, None].expand(-1, TINY.rows, -1))
    assert torch.allclose(generator(z, truncation=0.4), expected, rtol=1e-9, atol=1e-9)
    flat = generator(z, truncation=0.0)
    assert torch.allclose(flat[0], flat[1])
    assert torch.allclose(generator(z), generator.synthesis(w[:, None].expand(-1, TINY.rows, -1)))


def test_mixing_takes_the_coarse_rows_of_the_first(generator):
    z, other = torch.randn(2, 3, TINY.z_dim, dtype=torch.float64)
    w, v = generator.mapping(z), generator.mapping(other)
    crossover = torch.tensor([0, 3, TINY.rows])
    rows = torch.stack(
        [torch.stack([(w if k < c else v)[i] for k in range(TINY.rows)]) for i, c in enumerate(crossover)]
    )
    assert torch.allclose(generator.mix(w, v, crossover), rows)
    assert torch.allclose(generator(z, mixing=(other, crossover)), generator.synthesis(rows))


def test_the_mean_of_w_is_followed():
    """Closed form of an exponential mean of a constant: (1 - m^n) c."""
    generator = Generator(TINY)
    w = torch.full((4, TINY.w_dim), 2.0)
    for _ in range(5):
        generator.track(w, momentum=0.9)
    assert torch.allclose(generator.w_mean, torch.full((TINY.w_dim,), 2 * (1 - 0.9**5)))


def test_noise(generator):
    ws = codes(1).expand(2, -1, -1)
    with torch.no_grad():
        one, two = generator.synthesis(ws, noise="random")
        assert not torch.allclose(one, two)
        assert torch.allclose(*generator.synthesis(ws, noise="const"))
        torch.manual_seed(5)
        first = generator.synthesis(ws, noise="random")
        torch.manual_seed(5)
        assert torch.equal(first, generator.synthesis(ws, noise="random"))


def test_a_new_generator_does_not_listen_to_noise():
    generator = Generator(TINY)
    ws = torch.randn(1, TINY.rows, TINY.w_dim)
    assert torch.allclose(generator.synthesis(ws, noise="none"), generator.synthesis(ws, noise="random"), atol=1e-5)


# -- gradients -------------------------------------------------------------------------------------------------


def central(function, at: Tensor, direction: Tensor, step: float) -> Tensor:
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def test_gradients_of_synthesis_by_finite_differences(generator):
    """Of w and of every parameter, along a random direction."""
    ws = codes(1)
    look = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    direction = torch.randn_like(ws)

    def value(w: Tensor) -> Tensor:
        return (generator.synthesis(w) * look).sum()

    leaf = ws.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    assert torch.allclose((slope * direction).sum(), central(value, ws, direction, 1e-7), rtol=1e-5)
    parameters = dict(generator.synthesis.named_parameters())
    slopes = torch.autograd.grad(value(ws), list(parameters.values()))
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def moved(t: Tensor) -> Tensor:
        state = {name: p.detach() + t * directions[name] for name, p in parameters.items()}
        return (torch.func.functional_call(generator.synthesis, state, (ws,)) * look).sum()

    total = sum((s * directions[name]).sum() for name, s in zip(parameters, slopes))
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.allclose(total, central(moved, zero, zero + 1, 1e-6), rtol=1e-5)


def test_gradients_of_the_discriminator_by_finite_differences(discriminator):
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    direction = torch.randn_like(images)

    def value(x: Tensor) -> Tensor:
        return discriminator(x).square().sum()

    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    assert torch.allclose((slope * direction).sum(), central(value, images, direction, 1e-7), rtol=1e-5)


def test_second_derivatives_of_r1_by_finite_differences(discriminator):
    """R1's gradient in the weights goes through the gradient in the images."""
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    parameters = dict(discriminator.named_parameters())
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def penalty(state: dict[str, Tensor]) -> Tensor:
        x = images.clone().requires_grad_()
        return r1_penalty(torch.func.functional_call(discriminator, state, (x,)), x).sum()

    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    slopes = torch.autograd.grad(penalty(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    total = sum((s * directions[name]).sum() for name, s in zip(leaves, slopes))

    def moved(t: Tensor) -> Tensor:
        return penalty({name: p.detach() + t * directions[name] for name, p in parameters.items()}).detach()

    zero = torch.zeros((), dtype=torch.float64)
    assert torch.allclose(total, central(moved, zero, zero + 1, 1e-6), rtol=1e-4)


def test_second_derivatives_of_path_length_by_finite_differences(generator):
    ws, look = codes(2), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    parameters = dict(generator.synthesis.named_parameters())
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def length(state: dict[str, Tensor]) -> Tensor:
        w = ws.clone().requires_grad_()
        return path_length(torch.func.functional_call(generator.synthesis, state, (w,)), w, look).sum()

    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    slopes = torch.autograd.grad(length(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    total = sum((s * directions[name]).sum() for name, s in zip(leaves, slopes))

    def moved(t: Tensor) -> Tensor:
        return length({name: p.detach() + t * directions[name] for name, p in parameters.items()}).detach()

    zero = torch.zeros((), dtype=torch.float64)
    assert torch.allclose(total, central(moved, zero, zero + 1, 1e-6), rtol=1e-4)


# -- losses ----------------------------------------------------------------------------------------------------


def test_recomputed_blocks_have_the_same_gradients(generator, discriminator):
    """Gradient checkpointing: first derivatives, and the second ones of R1 and path length, with random noise."""

    def gradients() -> list[Tensor]:
        torch.manual_seed(3)
        ws = codes(2).requires_grad_(True)
        images = generator.synthesis(ws, noise="random")
        lengths = path_length(images, ws, torch.randn_like(images))
        real = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
        r1 = r1_penalty(discriminator(real), real)
        loss = generator_loss(discriminator(images[..., ::2, ::2])).mean() + lengths.square().mean() + r1.mean()
        parameters = [*generator.synthesis.parameters(), *discriminator.parameters()]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    kept = gradients()
    calls = []
    handle = generator.synthesis.blocks[-1].conv.register_forward_hook(lambda *_: calls.append(1))
    try:
        generator.synthesis.recompute_from = discriminator.recompute_from = 8
        again = gradients()
    finally:
        generator.synthesis.recompute_from = discriminator.recompute_from = None
        handle.remove()
    assert len(calls) > 1  # it was computed again
    for first, second in zip(kept, again, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(second, first)


def test_logistic_losses_literals():
    """At logits of 0 a side costs log 2; f(-2) = log(1 + e^2)."""
    zero, two = torch.zeros(2, 1), torch.full((2, 1), 2.0)
    assert torch.allclose(discriminator_loss(zero, zero), torch.full((2,), 2 * math.log(2)))
    assert torch.allclose(discriminator_loss(two, -two), torch.full((2,), 2 * math.log1p(math.exp(-2))))
    assert torch.allclose(generator_loss(-two), torch.full((2,), math.log1p(math.exp(2))))


def test_r1_of_linear_and_quadratic_discriminators():
    """D = <a, x>: |a|^2 at every image; D = c |x|^2 / 2: c^2 |x|^2, whose slope in c is 2 c |x|^2."""
    a = torch.randn(3, 4, 4)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    assert torch.allclose(r1_penalty((x * a).flatten(1).sum(1, keepdim=True), x), a.square().sum().expand(5))
    c = torch.tensor(0.7, requires_grad=True)
    penalty = r1_penalty((c * x.square() / 2).flatten(1).sum(1, keepdim=True), x)
    norms = x.detach().square().flatten(1).sum(1)
    assert torch.allclose(penalty, 0.49 * norms)
    (slope,) = torch.autograd.grad(penalty.sum(), c)
    assert torch.allclose(slope, 1.4 * norms.sum())


def test_path_length_of_a_linear_generator():
    """G(w) = A w of the rows' mean: J^T y is A^T y / rows in each row, so the length is |A^T y| / rows / sqrt(H W)."""
    matrix = torch.randn(3 * 4 * 4, 6, requires_grad=True)
    ws = torch.randn(2, 5, 6, requires_grad=True)
    look = torch.randn(2, 3, 4, 4)
    images = (ws.mean(1) @ matrix.T).view(2, 3, 4, 4)
    lengths = path_length(images, ws, look)
    expected = (look.flatten(1) @ matrix).norm(dim=1) / 5 / 4
    assert torch.allclose(lengths, expected, rtol=1e-5)
    (slope,) = torch.autograd.grad(lengths.sum(), matrix)
    assert torch.allclose(slope, torch.autograd.grad(expected.sum(), matrix)[0], rtol=1e-4, atol=1e-6)


# -- precision and files ---------------------------------------------------------------------------------------


def test_bfloat16_is_near_float32():
    """Synthesis within about 1 % of the picture's contrast, logits within a few percent of their spread."""
    generator = Generator(GeneratorConfig(32, 64, 64, 4, 1024, 64))
    discriminator = Discriminator(32, channel_base=1024, channel_max=64)
    with torch.no_grad():
        ws = generator.rows_of(generator.mapping(torch.randn(8, 64)))
        images = generator.synthesis(ws)
        logits = discriminator(images / images.std())
        generator.precision = discriminator.precision = torch.bfloat16
        rough = generator.synthesis(ws)
        assert rough.dtype == torch.float32
        assert (rough - images).square().mean().sqrt() < 0.015 * images.std()
        rough_logits = discriminator(images / images.std())
        assert rough_logits.dtype == torch.float32
        assert (rough_logits - logits).abs().max() < 0.05 * logits.abs().max()


def test_half_precision_survives_large_styles():
    """Styles of 1e5 overflow float16 unless they are normalized before the product; demodulation takes them out."""
    layer = layers.StyledConvolution(32, 16, 8, 16)
    with torch.no_grad():
        layer.style.weight.mul_(1e5)
        x, w = torch.randn(2, 32, 16, 16), torch.randn(2, 8)
        exact, rough = layer(x, w, None), layer(x.half(), w, None).float()
    assert (rough - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_file_gives_the_generator_back(tmp_path):
    generator = Generator(TINY)
    generator.track(torch.randn(8, TINY.w_dim))
    path = tmp_path / "decoder.safetensors"
    save_generator(path, generator, {"maps": "360"})
    read, about = read_generator(path)
    assert read.config == TINY and about["about"] == {"maps": "360"}
    assert not any(p.requires_grad for p in read.parameters())
    for name, value in generator.state_dict().items():
        expected = value if name == "w_mean" else value.half().float()
        assert torch.equal(read.state_dict()[name], expected), name
    z = torch.randn(2, TINY.z_dim)
    generator.load_state_dict({k: v.half() for k, v in generator.state_dict().items()} | {"w_mean": generator.w_mean})
    assert torch.allclose(generator(z, truncation=0.7), read(z, truncation=0.7), atol=1e-4)
    exact = save_generator(tmp_path / "exact.safetensors", generator, dtype=torch.float32)
    assert torch.allclose(read_generator(exact)[0](z), generator(z), atol=1e-4)
    first = path.read_bytes()
    save_generator(path, Generator(TINY), {"maps": "360"}, mapping=False)
    assert len(path.read_bytes()) < len(first)
    without, about = read_generator(path)
    assert without.mapping is None and not about["mapping"]
    with torch.no_grad():
        assert without.synthesis(torch.randn(1, TINY.rows, TINY.w_dim)).shape == (1, 3, 32, 32)


def test_wrong_input_says_so(tmp_path, generator, discriminator):
    with pytest.raises(ConfigError, match="power of two"):
        GeneratorConfig(size=48)
    with pytest.raises(ConfigError, match="channel_base"):
        GeneratorConfig.from_mapping({"channelbase": 3})
    with pytest.raises(ShapeError, match=r"\(B, 12\)"):
        generator(torch.randn(2, 13))
    with pytest.raises(ShapeError, match="ws must be"):
        generator.synthesis(torch.randn(2, 3, 16))
    with pytest.raises(ConfigError, match="power of two"):
        generator.synthesis(codes(), size=64)
    with pytest.raises(ConfigError, match="const"):
        generator.synthesis(codes(), noise="cons")
    with pytest.raises(ShapeError, match="16, 16"):
        discriminator(torch.rand(1, 3, 32, 32))
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(AssetError, match="generator"):
        read_generator(path)
    torch.save({}, tmp_path / "x.pth")
    with pytest.raises(AssetError):
        read_generator(tmp_path / "x.pth")
