"""One step of everything, by two processes; rank 0 saves what came of it (test_training.py)."""

from __future__ import annotations

import os
import sys

import torch


def trained(processes, dtype=torch.float32, steps: int = 1):
    """A tiny run after one supervised and ``steps`` adversarial steps, with random noise, mixing, pairs and ADA."""
    from facerecon.stylegan.discriminator import Discriminator
    from facerecon.stylegan.generator import Generator, GeneratorConfig
    from facerecon.training.ada import Augment
    from facerecon.training.texture_gan import AdversarialSettings, Latents, PretrainSettings, TextureTraining

    torch.manual_seed(0 if processes.first else 1)  # rank 0's networks count
    sizes = {"size": 16, "channel_base": 128, "channel_max": 8}
    generator = Generator(GeneratorConfig(z_dim=8, w_dim=8, mapping_layers=2, **sizes))
    generator.synthesis.blocks[1].conv.noise_strength.data.fill_(0.3)
    data = torch.Generator().manual_seed(5)
    maps = torch.rand(8, 3, 16, 16, generator=data) * 2 - 1
    codes = torch.randn(8, 8, generator=data)
    augment = Augment(mirror=True)
    augment.p = 0.5
    run = TextureTraining(
        generator,
        Discriminator(**sizes, group=2),
        batch=8,
        seed=3,
        pretrain=PretrainSettings(batch=4, noise="random", coarse=0),
        adversarial=AdversarialSettings(pairs=0.4, pair_weight=1.0),
        augment=augment,
        processes=processes,
        latents=Latents(codes, lambda rows: maps[rows]),
    )
    run.enter("pretrain")
    chosen = [n % 8 for n in run.numbers()]
    run.pretrain_step(codes[chosen], maps[chosen])
    run.finish_step(1000)
    run.enter("adversarial")
    for _ in range(steps):
        real = maps[[n % 8 for n in run.numbers()]]
        run.generator_step()
        run.path_step()
        run.discriminator_step(real)
        run.r1_step(real)
        run.finish_step(1000)
    return run


def main(path: str) -> None:
    """As torchrun starts two; forked, so that everything is imported once."""
    import kornia.geometry.transform  # noqa: F401

    import facerecon.training.texture_gan  # noqa: F401
    from facerecon.run import save_checkpoint
    from facerecon.run.processes import Processes

    torch.set_num_threads(1)
    other = os.fork()
    os.environ["RANK"] = "0" if other else "1"
    with Processes(torch.device("cpu")) as processes:
        assert processes.any(processes.rank == 1) == (processes.count > 1)
        state = trained(processes).state()
        if processes.first:
            save_checkpoint(path, state)
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


if __name__ == "__main__":
    main(sys.argv[1])
