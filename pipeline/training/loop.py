"""Loop: a network trained as params.yaml says."""

from collections.abc import Sequence
from typing import Any

import keras

from pipeline.config.schema import Augment, Train
from pipeline.runtime import acceleration, distributed
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.training import augmentation, optim, whitening
from pipeline.training.callbacks import (
    FirstNotFinite,
    History,
    KeepAverage,
    KeepBest,
    LearningRate,
    LineAnEpoch,
    Progress,
    StopWhenNotFinite,
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
        settings: Of optimizer, loss, augmentation and length.
        classes: Names of the k classes.
        seed: Of the order of the images.
        verbose: Whether to show progress.
        watch: More callbacks, as one that measures.
        checkpoints: Where to keep the state after each epoch; if one is there, training goes on
            from it, and ends as if it had never been interrupted.

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
    first = FirstNotFinite()
    whole = _around(trained, first, settings.augment, train.images if lookup else None)
    size, mirror = (len(classes), settings.batch_size), settings.augment.alternates
    batches = Batches(train, *size, seed, lookup, mirror)
    verbose = verbose and distributed.is_main_process()
    optimizer = optim.optimizer(settings, len(batches))
    # with all variables there, TensorFlow traces the first step once and not twice
    optimizer.build(whole.trainable_variables)
    average = None if settings.ema_momentum is None else KeepAverage()
    best = None if settings.early_stopping is None else KeepBest(trained, settings.early_stopping)
    history = History(_state(whole) + optimizer.variables, checkpoints, average, best)
    # the first two see each epoch's numbers before they are printed and kept; those to watch see
    # the weights that are kept
    rate = optim.rate(settings, len(batches))
    callbacks = [StopWhenNotFinite(first, len(batches), rate), LearningRate()]
    progress = Progress()
    if verbose:
        callbacks += [progress, LineAnEpoch()]
    callbacks += [callback for callback in (best, average) if callback]
    callbacks += [*watch, history]
    whole.compile(
        optimizer,
        optim.loss(settings),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        steps_per_execution=acceleration.STEPS_PER_EXECUTION,
    )
    steps = {"train_step": len(train.rows), "test_step": len(validation.rows)}
    distributed.drop_padding(whole, steps, settings.batch_size)
    done = len(history.rows)
    if done and verbose and checkpoints:
        what = f"goes on after epoch {done} of {settings.epochs}"
        print(f"train: {checkpoints.model}: {what}", flush=True)
    for _ in range(done):
        batches.on_epoch_end()  # to the order of the images in the next one
    try:
        whole.fit(
            acceleration.as_dataset(batches),
            validation_data=acceleration.as_dataset(
                Batches(validation, *size, rows_only=lookup, mirror=mirror)
            ),
            initial_epoch=done,
            epochs=done if history.stopped else settings.epochs,
            shuffle=False,  # Batches does it, image by image
            class_weight=weights,
            callbacks=callbacks,
            verbose=0,  # see Progress
        )
    finally:
        progress.close()
    model.set_weights(trained.get_weights())
    return history


def _state(whole: keras.Model) -> list[keras.Variable]:
    """Return what training changes of a model: weights and random seeds, but not the images."""
    lookups = [layer for layer in whole.layers if isinstance(layer, acceleration.Lookup)]
    images = {id(weight) for layer in lookups for weight in layer.weights}
    return [variable for variable in whole.variables if id(variable) not in images]


def _around(
    trained: keras.Model, last: keras.Layer, augment: Augment, images: Any | None
) -> keras.Model:
    """Return augmentation, then the model, which so stays uncompiled, then a last layer.

    Nothing of training is saved with it. The input is as Batches yields it: row numbers of
    `images`, where these are given.
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
    for layer in optim.augmentation(augment, shape):
        x = layer(x)
    return keras.Model(inputs, last(trained(x)), name=trained.name)
