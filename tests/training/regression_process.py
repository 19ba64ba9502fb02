"""A few steps of the regressor's training, by as many processes as torchrun started; rank 0 saves what came of it
(test_regression.py)."""

import sys

import torch


def learn(training, *batch):
    """One step of :class:`RegressorTraining`, as train/regressor.py makes it; returns its metrics."""
    loss, metrics = training.loss(*batch)
    metrics |= training.descend(loss)
    training.finish_step(training.processes.count * sum(len(part) for part in (batch[0], *batch[4:])))
    return metrics


def trained(processes, steps: int = 2):
    """A tiny network on a fixed batch of rendered noise and photos, each rank on its part."""
    from facerecon.morphable import load_face_model
    from facerecon.perception.regressor import Coefficients, Regressor, RegressorConfig
    from facerecon.stylegan.load import load_decoder
    from facerecon.training.regressor import CoefficientLosses, PhotoBatch, RegressorTraining, WeakLosses

    model, decoder = load_face_model(num_identity=4), load_decoder("linear", components=3)
    config = RegressorConfig("resnet10", 4, 52, 3, width=0.125, size=32, expression_high=1.0)
    torch.manual_seed(0 if processes.first else 1)  # rank 0's network counts
    network = Regressor(config)
    draws = torch.Generator().manual_seed(7)

    def uniform(*shape):
        return torch.rand(shape, generator=draws)

    images, photo_images = uniform(8, 3, 32, 32), uniform(4, 3, 32, 32)
    sizes = {"identity": 4, "expression": 52, "texture": 3, "angles": 3, "light": 27, "translation": 3}
    truth = Coefficients(**{key: 0.3 * uniform(8, size) for key, size in sizes.items()})
    landmarks, points = 80 + 60 * uniform(8, 68, 2), 80 + 60 * uniform(4, 68, 2)
    photos = PhotoBatch(uniform(4, 3, 32, 32), torch.ones(4, 1, 32, 32), points, uniform(4, 8))
    training = RegressorTraining(
        network,
        CoefficientLosses(model, decoder, 3),
        weak=WeakLosses(model, decoder, 32, 3),
        processes=processes,
        images=1000,
    )
    mine, ours = list(processes.part(8)), list(processes.part(4))
    for _ in range(steps):
        learn(training, images[mine], truth[mine], landmarks[mine], photos[ours], photo_images[ours])
    return training


def main(path: str) -> None:
    from facerecon.run import save_checkpoint
    from facerecon.run.processes import Processes

    torch.set_num_threads(1)
    with Processes(torch.device("cpu")) as processes:
        state = trained(processes).state()
        if processes.first:
            save_checkpoint(path, state)


if __name__ == "__main__":
    main(sys.argv[1])
