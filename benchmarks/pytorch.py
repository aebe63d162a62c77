"""PyTorch: two networks of `pipeline/architectures/`, a loop that trains them, and a data loader.

The loop is what PyTorch's performance tuning guide recommends: channels-last memory, autocast, the
fused optimizer, and torch.compile if that is faster here. Unlike in most programs, all images are
in memory, so that no DataLoader is needed, which would take longer.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipeline.core import cpu

TRIALS = 3  # of each mode, on an eighth of an epoch


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
    """A training with Adam at learning rate 0.001."""

    def __init__(
        self,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        validation: tuple[np.ndarray, np.ndarray],
        batch_size: int,
        precision: str,
    ):
        """Create the network and the optimizer.

        Args:
            name: A key of NETWORKS.
            train: Images `(n, 32, 32, 3)` float32 and labels `(n,)` int64, in [0, 10).
            validation: The same of the validation images.
            batch_size: Of training and validation.
            precision: float32, bfloat16 or float16, of autocast.
        """
        torch.set_num_threads(len(cpu.available_cores()))
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True  # select the fastest convolutions on a GPU
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = NETWORKS[name]().to(self.device, memory_format=torch.channels_last)
        for layer in self.network:
            if isinstance(layer, nn.Conv2d | nn.Linear):  # Keras's defaults
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        # like Keras, count moving averages but not PyTorch's scalar counters of batches
        weights = (value for value in self.network.state_dict().values() if value.ndim)
        self.parameters = sum(value.numel() for value in weights)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.001, fused=True)
        self.train, self.validation = (
            tuple(torch.from_numpy(array).to(self.device) for array in split)
            for split in (train, validation)
        )  # fmt: skip
        self.batch_size = batch_size
        self.dtype = getattr(torch, precision)
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.network

    def select_mode(self) -> dict[str, str]:
        """Use torch.compile if it is faster; return which is used, and the speed of both."""
        modes: dict[str, Callable] = {"eager": self.network}
        if shutil.which("g++") or shutil.which("clang++"):  # torch.compile needs one of them
            modes["compiled"] = torch.compile(self.network)
        rates = dict.fromkeys(modes, 0.0)
        steps = max(1, len(self.train[0]) // 8 // self.batch_size)
        rows = torch.arange(steps * self.batch_size, device=self.device)
        for trial in range(1 + TRIALS):
            for mode, self.forward in modes.items():
                start = time.perf_counter()
                self._train(rows)
                if trial:  # the first compiles
                    rate = len(rows) / (time.perf_counter() - start)
                    rates[mode] = max(rates[mode], rate)
        fastest = max(rates, key=lambda mode: rates[mode])
        self.forward = modes[fastest]
        return {"mode": fastest, **{mode: f"{rate:,.0f} images/s" for mode, rate in rates.items()}}

    def epoch(self) -> dict[str, float]:
        """Train one epoch and validate; return loss, val_loss and val_accuracy."""
        rows = torch.randperm(len(self.train[0]), device=self.device)
        return {"loss": self._train(rows), **self._validate()}

    def _train(self, rows: torch.Tensor) -> float:
        """Train on these images, and return the mean loss."""
        self.network.train()
        total = torch.zeros((), device=self.device)
        for logits, labels in self._predictions(self.train, rows):
            loss = nn.functional.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(labels)
        return float(total / len(rows))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.network.eval()
        total, correct = torch.zeros(2, device=self.device)
        rows = torch.arange(len(self.validation[0]), device=self.device)
        for logits, labels in self._predictions(self.validation, rows):
            total += nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        return {"val_loss": float(total / len(rows)), "val_accuracy": float(correct / len(rows))}

    def _predictions(
        self, split: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the logits `(b, 10)` float32 and labels `(b,)` of each batch."""
        images, labels = split
        for batch in rows.split(self.batch_size):
            inputs = images[batch].permute(0, 3, 1, 2)  # no copy: the result is channels-last
            with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
                logits = self.forward(inputs)
            yield logits.float(), labels[batch]


class Photographs(Dataset):
    """JPEG files in one folder for each class, read as torchvision's Resize and ToTensor do."""

    def __init__(self, folder: Path, side: int):
        self.paths, self.side = sorted(folder.glob("*/*.jpg")), side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return pixels `(3, side, side)` float32 in [0, 1], and the class."""
        path, size = self.paths[index], (self.side, self.side)
        image = Image.open(path).convert("RGB").resize(size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255), int(path.parent.name)


def loader(photographs: Photographs, batch_size: int, workers: int) -> DataLoader:
    """Return batches of photographs, read by processes that start as in a script on Linux."""
    return DataLoader(photographs, batch_size, num_workers=workers, multiprocessing_context="fork")
