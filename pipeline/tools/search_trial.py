"""Search trial: train a model of a search once, unless the search ends the training early."""

from collections.abc import Callable
from pathlib import Path

import keras

from pipeline.config.schema import Params
from pipeline.core.files import read_json
from pipeline.core.splitting import stratified_sample
from pipeline.data import arrays, features
from pipeline.data.preprocessor import Preprocessor
from pipeline.inputs import feature_settings
from pipeline.runtime.input_pipeline import Subset
from pipeline.train import summarize
from pipeline.training import building, frozen, loop


class Pruned(Exception):
    """The search ended a training that was not promising."""


class EpochReporter(keras.callbacks.Callback):
    """Report the validation accuracy of each epoch, and end a training that is not promising."""

    def __init__(self, is_promising: Callable[[int, float], bool]):
        super().__init__()
        self.is_promising = is_promising
        self.epochs = 0  # of both phases, if there is fine-tuning

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.epochs += 1
        if not self.is_promising(self.epochs, logs["val_accuracy"]):
            raise Pruned


class Trainer:
    """Trains a model with other settings in each trial, on the same images."""

    def __init__(self, model: str, arrays_folder: Path, split: Path, features_folder: Path | None):
        """Args:
        model: A name below `models:` in params.yaml.
        arrays_folder: data/arrays. Only the training images are read.
        split: data/split/SEED.npz, of the first seed.
        features_folder: data/features/MODEL; None: all layers run in every epoch.
        """
        self.model = model
        self.info = read_json(arrays_folder / "info.json")
        self.images, self.labels = arrays.load(arrays_folder / "train", check=False)
        self.train_rows, self.validation_rows = arrays.read_split(split, len(self.labels))
        self.features = features.load(features_folder, check=False) if features_folder else None

    def train(self, params: Params, is_promising: Callable[[int, float], bool]) -> float:
        """Train the model with the first seed, as the stage `train` does.

        Args:
            params: With the settings of the trial.
            is_promising: Called after each epoch with its number, from 1, and its validation
                accuracy. If it returns False, the training ends.

        Returns:
            The validation accuracy of the epoch whose weights training keeps.

        Raises:
            Pruned: The training was not promising.
            PipelineError: The settings do not fit the images, or the loss is not finite.
        """
        keras.utils.clear_session()
        config, settings = params.models[self.model], params.train_of(self.model)
        seed, classes = params.seeds[0], self.info["classes"]
        network = building.build(config, self.info["image_shape"], len(classes), seed)
        stored = None
        if self.features and feature_settings(config, settings) is not None:
            same = frozen.has_body(network, self.features.weights)
            stored = self.features.values if same else None
        rows = stratified_sample(self.train_rows, self.labels, settings.train_size, seed)
        history = loop.fit(
            network, Subset(self.images, self.labels, rows),
            Subset(self.images, self.labels, self.validation_rows), settings, classes, seed,
            verbose=False, watch=[EpochReporter(is_promising)], features=stored,
            preprocessor=Preprocessor.of(self.info),
        )  # fmt: skip
        summary = summarize(history.rows, settings.early_stopping is not None, history.first_phase)
        return summary[summary["kept"]]["val_accuracy"]
