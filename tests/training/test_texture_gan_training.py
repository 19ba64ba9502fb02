"""Training steps: they learn, count, average and go on as they say; two processes do what one does."""

import copy
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slow_training import SlowTraining
from torch import nn
from training_process import trained

from facerecon.errors import ConfigError, InputError
from facerecon.run import load_checkpoint, save_checkpoint
from facerecon.run.processes import Processes
from facerecon.stylegan.discriminator import Discriminator
from facerecon.stylegan.face_generator import MobileMapping
from facerecon.stylegan.generator import Generator, GeneratorConfig
from facerecon.training.ada import ADASettings, Augment
from facerecon.training.texture_gan import (
    AdversarialSettings,
    Latents,
    PairWeights,
    PretrainSettings,
    TextureTraining,
    average_weight,
    cosine_rampdown,
    invert_maps,
    pair_loss,
    update_average,
)
from facerecon.training.texture_networks import initialize_from, open_mapping, start_without_color

SCRIPT = Path(__file__).with_name("training_process.py")
ALONE = Processes(torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(size: int = 16, **changes) -> Generator:
    torch.manual_seed(0)
    config = {"z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 128, "channel_max": 8} | changes
    return Generator(GeneratorConfig(size=size, **config))


def pattern(size: int = 16) -> torch.Tensor:
    """A smooth map with an edge, (1, 3, S, S) in [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.stack([0.5 * x, 0.4 * x * y, torch.where(x + y > 0, 0.6, -0.3)])[None]


def test_supervised_steps_overfit_one_map() -> None:
    generator = tiny(channel_base=512, channel_max=32)
    start_without_color(generator)
    run = TextureTraining(generator, None, batch=1, pretrain=PretrainSettings(batch=2, coarse=0.2, rampup=0))
    run.enter("pretrain")
    target, code = pattern().expand(2, -1, -1, -1), torch.ones(2, 8)
    first, total = float(run.pretrain_step(code, target, 0.5)["l1"]), 100
    for step in range(total):
        figures = run.pretrain_step(code, target, step / total)
        run.finish_step(10)
    assert first > 0.1
    assert float(figures["l1"]) < 0.012  # of [0, 1]
    with torch.no_grad():
        shown = run.average.synthesis(run.average.rows_of(code))
    assert float((shown - target).abs().mean()) / 2 < 0.015


def test_the_pretraining_leaves_the_mapping_alone_and_counts() -> None:
    run = TextureTraining(tiny(), None, batch=1, pretrain=PretrainSettings(batch=4, coarse=0))
    before = copy.deepcopy(run.generator.mapping.state_dict())
    run.enter("pretrain")
    assert run.numbers() == [0, 1, 2, 3]
    run.pretrain_step(torch.randn(4, 8), pattern().expand(4, -1, -1, -1))
    run.finish_step(1000)
    assert all(torch.equal(before[k], v) for k, v in run.generator.mapping.state_dict().items())
    assert (run.steps, run.images, run.pretrain_images, run.numbers()) == (1, 4, 4, [4, 5, 6, 7])
    with pytest.raises(ConfigError, match="needs a discriminator"):
        run.enter("adversarial")


def test_what_the_discriminator_sees_is_of_the_weights_as_they_are() -> None:
    """Fused optimizers change weights unseen by autograd: nothing may be kept of them between steps."""
    run = TextureTraining(tiny(), None, batch=1, pretrain=PretrainSettings(batch=2, coarse=0, rampup=0))
    code, w = torch.ones(2, 8), torch.ones(1, run.generator.rows, 8)
    run.enter("pretrain")
    for _ in range(3):
        with torch.no_grad():
            seen = run.generator.synthesis(w)
        fresh = tiny()
        fresh.load_state_dict(run.generator.state_dict())
        torch.testing.assert_close(seen, fresh.synthesis(w).detach(), atol=1e-5, rtol=1e-5)
        run.pretrain_step(code, pattern().expand(2, -1, -1, -1), 0.5)
        run.finish_step(1)
        with torch.no_grad():
            seen = run.average.synthesis(w)
        fresh.load_state_dict(run.average.state_dict())
        torch.testing.assert_close(seen, fresh.synthesis(w).detach(), atol=1e-5, rtol=1e-5)


def test_adversarial_steps_approach_one_image() -> None:
    """A generator against a set of one map: what it makes comes nearer to that map."""
    torch.manual_seed(1)
    generator = tiny(8, channel_base=128, channel_max=16)
    settings = AdversarialSettings(path_weight=0, mixing=0, noise="none", r1_gamma=0.5, r1_every=4, lr=1e-2)
    run = TextureTraining(
        generator, Discriminator(8, 128, 16, group=2), batch=4, adversarial=settings, train_mapping=False
    )
    run.augment.settings = replace(run.augment.settings, limit=0.0)
    run.enter("adversarial")
    target = pattern(8)

    def distance() -> float:
        with torch.no_grad():
            image = run.average.synthesis(run.average.rows_of(run.average.mapping(torch.randn(8, 8))))
        return float((image - target).abs().mean())

    before = distance()
    for step in range(50):
        run.generator_step()
        run.discriminator_step(target.expand(4, -1, -1, -1))
        if step % 4 == 0:
            run.r1_step(target.expand(4, -1, -1, -1))
        run.finish_step(20, None)
    assert run.augment.p == 0
    assert distance() < 0.5 * before


# -- one whole step, by the papers' formulas ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "pairs"])
def test_steps_are_those_of_the_papers(kind, tmp_path) -> None:
    """Every weight after each of five steps, in float64, against formulas written out; after the third the run goes on
    from its checkpoint with another rate, gamma and rhythm, which its optimizers must take over."""
    torch.manual_seed(4)
    data = torch.Generator().manual_seed(5)
    maps, codes = torch.rand(5, 3, 8, 8, generator=data).double() * 2 - 1, torch.randn(5, 8, generator=data).double()
    latents = Latents(codes, lambda rows: maps[rows]) if kind == "pairs" else Latents()
    settings = AdversarialSettings(r1_every=2, path_every=3, mixing=0.5, path_decay=0.1, noise="none")
    if kind == "pairs":
        settings = replace(settings, noise="random", r1_gamma=0.7, pairs=0.5, pair_weight=0.3)

    def begin(settings: AdversarialSettings) -> TextureTraining:
        generator = tiny(8, channel_base=32, channel_max=6).double()
        for name, parameter in generator.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.data += 0.3 * torch.randn_like(parameter)
        augment = Augment(ADASettings(every=2, speed_kimg=0.05, target=-0.4), mirror=kind == "pairs")
        augment.p = 0.4
        run = TextureTraining(
            generator, Discriminator(8, 32, 6, group=2).double(), batch=4, seed=7, adversarial=settings,
            augment=augment, train_mapping=kind == "plain", precision=torch.float64,
            regularizer_precision=torch.float64, latents=latents,
        )  # fmt: skip
        run.enter("adversarial")
        return run

    run = begin(settings)
    slow = SlowTraining(run, latents.codes, maps)
    p = [run.augment.p]
    for step in range(5):
        if step == 3:
            settings = replace(settings, lr=3e-3, r1_every=4, path_every=1, r1_gamma=0.2)
            save_checkpoint(tmp_path / "c.safetensors", run.state())
            run = begin(settings)
            run.load_state(load_checkpoint(tmp_path / "c.safetensors"))
            slow.settings = settings
        real = maps[[step, 1, 4, 0]]
        run.generator_step()
        if step % settings.path_every == 0:
            run.path_step()
        run.discriminator_step(real)
        if step % settings.r1_every == 0:
            run.r1_step(real)
        run.finish_step(30, 0.3)
        slow.step(real, 30, 0.3)
        for found, expected in (
            (run.generator, slow.g),
            (run.average, slow.average),
            (run.discriminator, slow.d),
        ):
            for name, value in found.state_dict().items():
                torch.testing.assert_close(
                    value, expected.state_dict()[name], atol=1e-8, rtol=0, msg=f"step {step}, {name}"
                )
        assert math.isclose(run.path_mean.item(), slow.path_mean, rel_tol=1e-6)
        assert [float(sign) for sign in run.signs] == pytest.approx(slow.signs)
        assert run.augment.p == pytest.approx(slow.augment.p, abs=1e-9)
        p.append(run.augment.p)
    assert p[0] == p[1] < p[2] == p[3] > p[4]  # up, then down


def test_supervised_steps_are_adam_on_pairs_and_codes() -> None:
    """Two steps in float64: at half the size while the rate rises, at full size while it falls; a learned code moves
    at a rate of its own, and is drawn to 0."""
    pretrain = PretrainSettings(batch=2, lr=0.01, code_lr=0.003, code_prior=0.5, rampup=0.1, rampdown=0.4)
    table, maps = torch.randn(5, 8).double(), torch.rand(2, 3, 16, 16).double() * 2 - 1
    weights = PairWeights(l1=0.7, pyramid=0.4, gradient=0.2)
    run = TextureTraining(
        tiny().double(), None, batch=1, pretrain=pretrain, table=table, pair_weights=weights, precision=torch.float64
    )
    plain, codes = copy.deepcopy(run.generator), table.clone().requires_grad_()
    run.enter("pretrain")
    groups = [{"params": list(plain.synthesis.parameters())}, {"params": [codes]}]
    optimizer = torch.optim.Adam(groups, 1.0, (0.9, 0.99), eps=1e-8)
    for done, size, factor in ((0.05, 8, 0.5), (0.9, 16, 0.5 - 0.5 * math.cos(math.pi / 4))):
        rows, around = torch.tensor([3, 1]), 0.1 * torch.randn(2, 8).double()
        run.pretrain_step(run.table.detach()[rows] + around, maps, done, rows)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.01 * factor, 0.003 * factor
        optimizer.zero_grad()
        image = plain.synthesis(plain.rows_of(codes[rows] + around), noise="none", size=size)
        small = maps.view(2, 3, size, 16 // size, size, 16 // size).mean((3, 5))
        (pair_loss(image, small, weights).mean() + 0.5 * (codes[rows] ** 2).mean()).backward()
        optimizer.step()
        for found, expected in zip(run.generator.synthesis.parameters(), plain.synthesis.parameters(), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
        torch.testing.assert_close(run.table, codes, atol=1e-8, rtol=0)


def test_the_perceptual_loss_sees_a_square_of_the_map_and_counts_by_its_weight() -> None:
    seen = []

    def distance(image, target):
        seen.append((image.detach(), target))
        return (image - target).square().mean((1, 2, 3))

    target, code = pattern(128).expand(2, -1, -1, -1), torch.ones(2, 8)
    settings = PretrainSettings(batch=2, coarse=0, lpips=3.0, lpips_size=32, lpips_box=(0.25, 0.75, 0.0, 0.5))
    runs = [TextureTraining(tiny(128), None, batch=1, pretrain=settings, perceptual=net) for net in (distance, None)]
    for run in runs:
        run.enter("pretrain")
    with_it, without = (run.pretrain_step(code, target, 0.5) for run in runs)
    assert float(with_it["pair"]) == pytest.approx(float(without["pair"]) + 3 * float(with_it["lpips"]), rel=1e-5)
    assert "lpips" not in without
    places = [runs[0].pretrain.window(128, draw) for draw in ((0, 0), (0.999, 0.999), (0.5, 0.2))]
    assert [(r.start, c.start) for r, c in places] == [(32, 0), (64, 32), (48, 6)]
    assert all(r.start >= 32 and r.stop <= 96 and c.start >= 0 and c.stop <= 64 for r, c in places)
    image, part = seen[0]
    assert image.shape == part.shape == (2, 3, 32, 32) and part.min() >= 0 and part.max() <= 1
    whole = target[0] * 0.5 + 0.5
    found = whole.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4)  # every square that there is
    assert (found - part[0]).abs().amax((2, 3, 4)).min() < 1e-6
    with pytest.raises(ConfigError, match="lpips_box"):
        PretrainSettings(lpips_box=(0.5, 0.5, 0, 1))


def test_regularizers_compute_in_their_own_precision() -> None:
    """R1 and path length in float32 beside networks of bfloat16, which compute so again afterwards."""
    run = TextureTraining(
        tiny(8), Discriminator(8, 32, 4, group=2), batch=4, precision=torch.bfloat16, train_mapping=False
    )
    run.enter("adversarial")
    used = []
    for block in (run.generator.synthesis.blocks[1].conv, run.discriminator.blocks[0]):
        block.register_forward_pre_hook(lambda block, inputs: used.append(inputs[0].dtype))
    real = pattern(8).expand(4, -1, -1, -1)
    for turn in (run.path_step, lambda: run.r1_step(real), run.generator_step):
        turn()
    assert used == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


# -- closed forms ------------------------------------------------------------------------------------------


def test_average_weight_is_a_half_life() -> None:
    weight = average_weight(10, 1e9, 100)
    assert math.isclose(weight**10, 0.5)
    assert math.isclose(average_weight(10, 100, 1e9, 0.05), 0.5 ** (10 / 5))  # ramp-up: 5 % of 100 images
    assert average_weight(10, 100, 100, None) == 0.5**0.1


def test_average_of_constant_steps_has_a_closed_form() -> None:
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    start = copy.deepcopy(average)
    for _ in range(7):
        update_average(average, model, 0.8)
    expected = 0.8**7 * start.weight + (1 - 0.8**7) * model.weight
    assert torch.allclose(average.weight, expected, atol=1e-6)


def test_rampdown_ends_at_zero() -> None:
    assert cosine_rampdown(0.5, 0.1, 0.3) == 1.0
    assert math.isclose(cosine_rampdown(0.05, 0.1, 0.3), 0.5)
    assert math.isclose(cosine_rampdown(0.85, 0.1, 0.3), 0.5)
    assert cosine_rampdown(1.0, 0.1, 0.3) == 0.0
    assert cosine_rampdown(0.0, 0.0, 0.0) == 1.0


def test_pair_loss_of_known_differences() -> None:
    target = torch.zeros(2, 3, 16, 16)
    image = torch.stack([torch.full((3, 16, 16), 0.2), torch.arange(16.0).expand(3, 16, 16) * 0.1])
    only = {"l1": 0.0, "pyramid": 0.0, "gradient": 0.0}
    assert torch.allclose(pair_loss(image, target, PairWeights(**only | {"l1": 2.0})), torch.tensor([0.4, 1.5]))
    assert torch.allclose(pair_loss(image, target, PairWeights(**only | {"pyramid": 1.0})), torch.tensor([0.2, 0.75]))
    assert torch.allclose(pair_loss(image, target, PairWeights(**only | {"gradient": 1.0})), torch.tensor([0.0, 0.1]))
    checker = 2 * ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float() - 1
    checker = checker.expand(2, 3, 16, 16)
    assert float(pair_loss(checker, target, PairWeights(skip=1)).abs().max()) == 0  # only the finest level has it
    assert float(pair_loss(checker, target, PairWeights(**only | {"pyramid": 1.0})).abs().max()) == 0


def test_sizes_of_the_pretraining() -> None:
    pretrain = PretrainSettings(coarse=0.3)
    assert [pretrain.size(256, done) for done in (0.0, 0.29, 0.31, 0.59, 0.61, 0.99)] == [64, 64, 128, 128, 256, 256]
    assert PretrainSettings(coarse=0).size(256, 0.0) == 256
    assert pretrain.size(16, 0.0) == 8


def test_open_mapping_is_the_same_function() -> None:
    source = MobileMapping()
    torch.manual_seed(3)
    for layer in source.layers:
        nn.init.normal_(layer.weight, std=0.045)
        nn.init.normal_(layer.bias, std=0.1)
    generator = Generator(GeneratorConfig(size=8, channel_base=8, channel_max=4))
    open_mapping(generator.mapping, source)
    z = torch.randn(5, 512)
    assert torch.allclose(generator.mapping(z), source(z), atol=1e-4)
    with pytest.raises(ConfigError, match="8 layers"):
        open_mapping(tiny().mapping, source)


# -- starting from another one -----------------------------------------------------------------------------


def test_growing_keeps_the_image() -> None:
    small, large = tiny(16), tiny(32)
    with torch.no_grad():
        for block in large.synthesis.blocks:
            block.color.weight.normal_()
    text = initialize_from(large, small)
    assert "grown from 16 to 32 px: 1 new block" in text
    z = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.allclose(large(z, size=16), small(z), atol=1e-5)
        from facerecon.stylegan.layers import upsample_image

        assert torch.allclose(large(z), upsample_image(small(z)), atol=1e-5)
    again = tiny(16)
    assert "cut from 32 to 16" in initialize_from(again, large)
    with torch.no_grad():
        assert torch.allclose(again(z), small(z), atol=1e-5)


def test_a_start_with_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"16 px.*channel_base=256 channel_max=16|channel_base=256"):
        initialize_from(tiny(16), tiny(16, channel_base=256, channel_max=16))
    with pytest.raises(ConfigError, match="w_dim 6, this run 8"):
        initialize_from(tiny(16), tiny(16, w_dim=6))


def test_inversion_finds_an_image_of_the_generator() -> None:
    generator = tiny().eval().requires_grad_(False)
    with torch.no_grad():
        w = generator.mapping(torch.randn(2000, 8))
        generator.w_mean.copy_(w.mean(0))
        truth = generator.synthesis(generator.rows_of(w[:2]))
    mean = generator.synthesis(generator.rows_of(generator.w_mean[None]))
    _, image = invert_maps(generator, truth, 60)
    assert float((image - truth).abs().mean()) < 0.15 * float((mean - truth).abs().mean())


# -- going on, and several processes -----------------------------------------------------------------------


def test_going_on_equals_an_uninterrupted_run(tmp_path, same) -> None:
    through = trained(ALONE, steps=5)
    stopped = trained(ALONE, steps=2)
    save_checkpoint(tmp_path / "c.safetensors", stopped.state())
    resumed = trained(ALONE, steps=0)  # other weights, to be replaced
    resumed.load_state(load_checkpoint(tmp_path / "c.safetensors"))
    assert resumed.steps == 3
    data = torch.Generator().manual_seed(5)
    maps = torch.rand(8, 3, 16, 16, generator=data) * 2 - 1
    torch.randn(100)  # the global state must not matter
    for _ in range(3):
        real = maps[[n % 8 for n in resumed.numbers()]]
        resumed.generator_step()
        resumed.path_step()
        resumed.discriminator_step(real)
        resumed.r1_step(real)
        resumed.finish_step(1000)
    same(resumed.state(), through.state())


def test_a_checkpoint_of_another_resolution_is_refused() -> None:
    state = trained(ALONE, steps=0).state()
    other = TextureTraining(tiny(32), None, batch=1)
    with pytest.raises(InputError, match="run is of a 16 px network, this run's has 32 px"):
        other.load_state(state, "run")
    wide = TextureTraining(tiny(16, channel_max=4), None, batch=1)
    with pytest.raises(InputError, match="does not fit this run"):
        wide.load_state(state)


def test_two_processes_do_what_one_does(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "two.safetensors")]
    env = {**os.environ, **shared, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = load_checkpoint(tmp_path / "two.safetensors"), trained(ALONE).state()
    assert two["images"] == one["images"] == 12
    for part in ("generator", "average", "discriminator"):
        for name, value in one[part].items():
            assert float((two[part][name] - value).abs().max()) < 1e-4, (part, name)
    assert math.isclose(float(two["path_mean"]), float(one["path_mean"]), rel_tol=1e-4)
    assert math.isclose(float(two["signs"][0]), float(one["signs"][0]), abs_tol=1e-6)


def test_shares_of_a_batch() -> None:
    processes = Processes(torch.device("cpu"))
    processes.count, processes.rank = 2, 1
    assert processes.part(8, 4) == range(4, 8)
    with pytest.raises(ConfigError, match="12 cannot be shared by 2 processes in groups of 4; choose a multiple of 8"):
        processes.part(12, 4)
