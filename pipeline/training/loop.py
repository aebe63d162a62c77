"""Training loop: fit a network with the settings of params.yaml."""

from collections.abc import Sequence
from typing import Any

import keras

from pipeline.config.schema import Augment, Train
from pipeline.runtime import acceleration, distributed
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.training import augmentation, optim, whitening
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
) -> History:
    """Train a model in place.

    Args:
        model: Uncompiled, from images to logits.
        train: Images and labels to learn from, augmented as the settings say.
        validation: Held out rows of the same images, never augmented.
        settings: Optimizer, loss, augmentation, epochs and so on.
        classes: Names of the k classes.
        seed: Seed of the order of the images.
        verbose: Whether to show progress.
        watch: Additional callbacks, for example to measure time.
        checkpoints: Where to save the state after each epoch. If a state exists, training resumes
            from it, with the same result as if it had never been interrupted.

    Returns:
        `rows`, one an epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy,
        learning_rate; the losses hold what the settings add to cross-entropy. `seconds` of all
        epochs.

    Raises:
        Diverged: The loss is not finite.
        PipelineError: Class weights name other classes; the first layer cannot be whitened.
    """
    weights = optim.class_weights(settings, train.labels[train.rows], classes)
    if settings.whiten:
        whitening.whiten(model, train)
    acceleration.check_batch_memory(model, min(settings.batch_size, len(train.rows)))
    trained = acceleration.accelerate(model, acceleration.resolve_precision(settings.precision))
    lookup = validation.images is train.images and acceleration.fits_in_memory(train.images)
    first = FirstNonFiniteStep()
    training_model = _training_model(
        trained, first, settings.augment, train.images if lookup else None
    )
    size, mirror = (len(classes), settings.batch_size), settings.augment.alternates
    batches = Batches(train, *size, seed, lookup, mirror)
    verbose = verbose and distributed.is_main_process()
    optimizer = optim.optimizer(settings, len(batches))
    # if all variables exist, TensorFlow traces the first step only once
    optimizer.build(training_model.trainable_variables)
    average = None if settings.ema_momentum is None else SwapAveragedWeights()
    best = (
        None
        if settings.early_stopping is None
        else RestoreBestWeights(trained, settings.early_stopping)
    )
    history = History(
        _training_state(training_model) + optimizer.variables, checkpoints, average, best
    )
    # The first two must see the logs of an epoch before they are printed and recorded; `watch` must
    # see the weights that are saved.
    rate = optim.learning_rate_at(settings, len(batches))
    callbacks = [TerminateOnNonFinite(first, len(batches), rate), LearningRateLogger()]
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
    steps = {"train_step": len(train.rows), "test_step": len(validation.rows)}
    distributed.drop_padding(training_model, steps, settings.batch_size)
    done = len(history.rows)
    if done and verbose and checkpoints:
        message = f"resuming after epoch {done} of {settings.epochs}"
        print(f"train: {checkpoints.model}: {message}", flush=True)
    for _ in range(done):
        batches.on_epoch_end()  # advances the order of the images to the next epoch
    try:
        training_model.fit(
            acceleration.as_dataset(batches),
            validation_data=acceleration.as_dataset(
                Batches(validation, *size, rows_only=lookup, mirror=mirror)
            ),
            initial_epoch=done,
            epochs=done if history.stopped else settings.epochs,
            shuffle=False,  # Batches shuffles single images
            class_weight=weights,
            callbacks=callbacks,
            verbose=0,  # see ProgressBar
        )
    finally:
        progress.close()
    model.set_weights(trained.get_weights())
    return history


def _training_state(training_model: keras.Model) -> list[keras.Variable]:
    """Return the variables that training changes: weights and random seeds, but not the images."""
    lookups = [layer for layer in training_model.layers if isinstance(layer, acceleration.Lookup)]
    images = {id(weight) for layer in lookups for weight in layer.weights}
    return [variable for variable in training_model.variables if id(variable) not in images]


def _training_model(
    trained: keras.Model, last: keras.Layer, augment: Augment, images: Any | None
) -> keras.Model:
    """Wrap a network into the model that trains: augmentation, the network, then a last layer.

    The network itself stays uncompiled, so nothing of training is saved with it. Inputs are those
    of Batches: images, or row numbers if `images` is given.
    """
    shape = trained.input_shape[1:]
    if images is None:
        inputs = x = keras.Input(shape)
    else:
        inputs = keras.Input((), dtype="int32")
        x = acceleration.Lookup(images)(inputs)
    if augment.alternates:
        mirrored = keras.Input((), dtype="bool")
        inputs, x = (inputs, mirrored), augmentation.mirror(x, mirrored)
    for layer in optim.augmentation_layers(augment, shape):
        x = layer(x)
    return keras.Model(inputs, last(trained(x)), name=trained.name)
