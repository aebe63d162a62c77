"""Training loop: fit a network with the settings of params.yaml."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from pipeline.config.schema import Augment, Train
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError, explain_memory_error
from pipeline.data.preprocessor import Preprocessor
from pipeline.runtime import acceleration, backend, distributed
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.training import augmentation, frozen, optim, whitening
from pipeline.training.callbacks import (
    EpochLogger,
    FirstNonFiniteStep,
    History,
    LearningRateLogger,
    ProgressBar,
    RestoreBestWeights,
    SwapAveragedWeights,
    TerminateOnNonFinite,
)
from pipeline.training.checkpoints import Checkpoints


def fit(
    model: keras.Model,
    train: Subset,
    validation: Subset,
    settings: Train,
    classes: list[str],
    seed: int,
    verbose: bool = True,
    watch: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Checkpoints | None = None,
    features: Any | None = None,
    preprocessor: Preprocessor | None = None,
    show: Callable[[list[dict[str, float]]], None] | None = None,
) -> History:
    """Train a model in place.

    Args:
        model: Uncompiled, from images to logits.
        train: Training images and labels, augmented according to `settings`.
        validation: Held-out images and labels, never augmented; may have no rows.
        settings: Optimizer, loss, augmentation, epochs and so on.
        classes: Names of the k classes.
        seed: Seed of the order of the images.
        verbose: Whether to show progress.
        watch: Additional callbacks, for example to measure time.
        checkpoints: Where to save the state after each epoch. If a state exists, training resumes
            from it, with the same result as if it had never been interrupted.
        features: `(n, …)` float32, the output of the model's frozen layers for each image, indexed
            by row numbers. If given, only the layers after them run (see `frozen.split`), until
            fine-tuning.
        preprocessor: Normalization of the images; None: their pixels are in [0, 1].
        show: Called with the rows of all finished epochs, at the start and after each epoch.

    Returns:
        The history: `rows`, one per epoch, with epoch (from 1), loss, accuracy, val_loss,
        val_accuracy (these two only with validation images) and learning_rate; `seconds`, the time
        of all epochs together. Both losses include label smoothing and regularization penalties.

    Raises:
        Diverged: The loss is not finite.
        PipelineError: The class weights do not match the classes, a batch does not fit in memory,
            or the first layer cannot be whitened.
    """
    arguments = (classes, seed, verbose, watch, preprocessor)
    unfrozen = []
    if fine_tune := settings.fine_tune:
        unfrozen = frozen.layers_to_unfreeze(model, fine_tune.freeze)
    history = _fit(model, train, validation, settings, *arguments, checkpoints, show, features)
    if fine_tune:
        for layer in unfrozen:
            layer.trainable = True
        backend.make_deterministic(seed)  # the same dropout masks if the first phase was resumed
        later = settings.of_second_phase(fine_tune)
        second = checkpoints and checkpoints.second_phase()
        phase = _fit(
            model, train, validation, later, *arguments, second,
            show and (lambda rows: show(history.followed_by(rows))),
        )  # fmt: skip
        history.append(phase)
    return history


def predict(
    model: keras.Model, subset: Subset, settings: Train, features: Any | None = None
) -> np.ndarray:
    """Return the logits of a trained model, `(m, k)` float32, in one process without the others.

    Args:
        model: From images to logits.
        subset: Its images.
        settings: Of its training.
        features: As in `fit`. They are not used after fine-tuning, which has changed the layers
            before them.
    """
    if features is not None and not settings.fine_tune and (parts := frozen.split(model)):
        model, subset = parts.head, subset._replace(images=features)
    with distributed.local_copy(model) as network:
        size = batch_size(subset.images.shape[1:])
        batches = Batches(subset, network.output_shape[-1], size)
        return network.predict(acceleration.as_dataset(batches), verbose=0)


def _fit(
    model: keras.Model,
    train: Subset,
    validation: Subset,
    settings: Train,
    classes: list[str],
    seed: int,
    verbose: bool,
    watch: Sequence[keras.callbacks.Callback],
    preprocessor: Preprocessor | None,
    checkpoints: Checkpoints | None,
    show: Callable[[list[dict[str, float]]], None] | None,
    features: Any | None = None,
) -> History:
    """Train a model in place in one phase; see `fit`."""
    weights = optim.class_weights(settings, train.labels[train.rows], classes)
    if settings.whiten:
        whitening.whiten(model, train)
    precision = acceleration.resolve_precision(settings.precision)
    accelerated = acceleration.accelerate(model, precision)
    network = accelerated
    if features is not None and (parts := frozen.split(accelerated)):
        network = parts.head
        train, validation = (part._replace(images=features) for part in (train, validation))
    images_per_batch = min(settings.batch_size, len(train.rows))
    acceleration.check_batch_memory(network, images_per_batch)
    lookup = validation.images is train.images and acceleration.fits_in_memory(train.images)
    recorder = FirstNonFiniteStep()
    training_model = _training_model(
        network, recorder, settings.augment, train.images if lookup else None, preprocessor
    )
    batch_settings: dict[str, Any] = {
        "num_classes": len(classes),
        "batch_size": settings.batch_size,
        "rows_only": lookup,
        "mirror": settings.augment.alternates,
    }
    batches = Batches(train, shuffle=seed, **batch_settings)
    validation_batches = Batches(validation, **batch_settings)
    verbose = verbose and distributed.is_main_process()
    bias = whitening.unfreeze_bias(network) if settings.whiten_bias_epochs else None
    optimizer = optim.optimizer(settings, len(batches), bias)
    if precision == "float16":  # small gradients would be 0 in float16
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # if all variables exist, TensorFlow traces the first step only once
    optimizer.build(training_model.trainable_variables)
    average = None if settings.ema_momentum is None else SwapAveragedWeights()
    best = (
        None
        if settings.early_stopping is None
        else RestoreBestWeights(network, settings.early_stopping)
    )
    history = History(
        _training_state(training_model) + optimizer.variables, checkpoints, average, best, show
    )
    # The first two must see the logs of an epoch before they are printed and recorded; `watch` must
    # see the weights that are saved.
    callbacks = [
        TerminateOnNonFinite(
            recorder, len(batches), optim.learning_rate_at(settings, len(batches))
        ),
        LearningRateLogger(),
    ]
    progress = ProgressBar()
    if verbose:
        callbacks += [progress, EpochLogger()]
    callbacks += [callback for callback in (best, average) if callback]
    callbacks += [*watch, history]
    training_model.compile(
        optimizer,
        optim.loss(settings),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        steps_per_execution=acceleration.STEPS_PER_EXECUTION,
    )
    rows_per_step = {"train_step": len(train.rows), "test_step": len(validation.rows)}
    distributed.drop_padding(training_model, rows_per_step, settings.batch_size)
    finished = len(history.rows)  # epochs, when training resumes
    if finished and verbose and checkpoints:
        message = f"resuming after epoch {finished} of {settings.epochs}"
        print(f"train: {checkpoints.name}: {message}", flush=True)
    for _ in range(finished):
        batches.on_epoch_end()  # shuffles the images as each finished epoch did
    try:
        training_model.fit(
            acceleration.as_dataset(batches),
            validation_data=(
                acceleration.as_dataset(validation_batches) if len(validation.rows) else None
            ),
            initial_epoch=finished,
            epochs=finished if history.stopped else settings.epochs,
            shuffle=False,  # Batches shuffles the images
            class_weight=weights,
            callbacks=callbacks,
            verbose=0,  # see ProgressBar
        )
    except Exception as error:
        if message := explain_memory_error(error, images_per_batch):
            raise PipelineError(message) from error
        raise
    finally:
        progress.close()
    model.set_weights(accelerated.get_weights())
    return history


def _training_state(training_model: keras.Model) -> list[keras.Variable]:
    """Return the variables that training changes: weights and random seeds, but not the images."""
    lookups = [layer for layer in training_model.layers if isinstance(layer, acceleration.Lookup)]
    image_ids = {id(weight) for layer in lookups for weight in layer.weights}
    return [variable for variable in training_model.variables if id(variable) not in image_ids]


def _training_model(
    network: keras.Model,
    last: keras.Layer,
    augment: Augment,
    images: Any | None,
    preprocessor: Preprocessor | None,
) -> keras.Model:
    """Return the model that is trained: augmentation, the network, then a last layer.

    The network itself stays uncompiled. Inputs are those that Batches yields: images, or row
    numbers if `images` is given.
    """
    shape = network.input_shape[1:]
    if images is None:
        inputs = x = keras.Input(shape)
    else:
        inputs = keras.Input((), dtype="int32")
        x = acceleration.Lookup(images)(inputs)
    if augment.alternates:
        mirrored = keras.Input((), dtype="bool")
        inputs, x = (inputs, mirrored), augmentation.mirror(x, mirrored)
    for layer in optim.augmentation_layers(augment, shape, preprocessor):
        x = layer(x)
    return keras.Model(inputs, last(network(x)), name=network.name)
