"""PyTorch: two networks of `pipeline/architectures/` and a loop that trains them."""

import numpy as np
import torch
from torch import nn

from pipeline.core import cpu


def baseline() -> nn.Module:
    """Return the network of `architectures/baseline.py`."""
    layers: list[nn.Module] = []
    channels = 3
    for filters in (16, 32, 64):
        convolution = nn.Conv2d(channels, filters, 3, padding="same")
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def batchnorm() -> nn.Module:
    """Return the network of `architectures/batchnorm.py`."""
    layers: list[nn.Module] = []
    channels = 3
    keras_defaults = {"eps": 1e-3, "momentum": 0.01}  # PyTorch's is 1 minus Keras's
    for filters, rate in ((64, 0.2), (128, 0.25), (128, 0.35)):
        for _ in range(2):
            convolution = nn.Conv2d(channels, filters, 4, padding="same")
            layers += [convolution, nn.ReLU(), nn.BatchNorm2d(filters, **keras_defaults)]
            channels = filters
        layers += [nn.MaxPool2d(2), nn.Dropout(rate)]
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 256),
        nn.ReLU(),
        nn.BatchNorm1d(256, **keras_defaults),
        nn.Dropout(0.5),
        nn.Linear(256, 10),
    )


NETWORKS = {"baseline": baseline, "batchnorm": batchnorm}


class Training:
    """A training with Adam at learning rate 0.001, channels-last, with all images in memory."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, batch_size: int):
        """Create the network and the optimizer.

        Args:
            name: A key of NETWORKS.
            images: `(n, 32, 32, 3)` float32.
            labels: `(n,)` int64, in [0, 10).
            batch_size: Of the training.
        """
        torch.set_num_threads(len(cpu.available_cores()))
        torch.manual_seed(0)
        self.network = NETWORKS[name]().to(memory_format=torch.channels_last).train()
        for layer in self.network:
            if isinstance(layer, nn.Conv2d | nn.Linear):  # Keras's defaults
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        # like Keras, count moving averages but not PyTorch's scalar counters of batches
        weights = (value for value in self.network.state_dict().values() if value.ndim)
        self.parameters = sum(value.numel() for value in weights)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.001, fused=True)
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.batch_size = batch_size

    def epoch(self, precision: str, count: int) -> float:
        """Train on the first `count` images, shuffled; return the mean loss."""
        total = torch.zeros(())
        for rows in torch.randperm(count).split(self.batch_size):
            images = self.images[rows].permute(0, 3, 1, 2)  # no copy: the result is channels-last
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = nn.functional.cross_entropy(self.network(images), self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(rows)
        return float(total / count)
