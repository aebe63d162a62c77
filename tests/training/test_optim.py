"""Recipe: every training setting makes the Keras object that it says."""

from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.schema import Augment
from pipeline.core.errors import PipelineError
from pipeline.training import optim
from pipeline.training.augmentation import mirror
from tests.conftest import PLAIN, settings

CLASSES = ["dark", "bright"]


# settings of the optimizer


@pytest.mark.parametrize(("name", "kind"), [
    ("sgd", keras.optimizers.SGD), ("adam", keras.optimizers.Adam),
    ("adamw", keras.optimizers.AdamW), ("rmsprop", keras.optimizers.RMSprop),
])  # fmt: skip
def test_optimizer_and_learning_rate(name, kind):
    made = optim.optimizer(settings(optimizer=name, learning_rate=0.25), steps_per_epoch=1)
    assert type(made) is kind
    assert float(made.learning_rate) == 0.25


def steps(gradients: list[float], name: str = "kernel", **own: Any) -> list[float]:
    """Where a weight of 1 is after each of some gradients."""
    made = optim.optimizer(settings(optimizer="sgd", learning_rate=0.5, **own), 1)
    weight = keras.Variable(1.0, name=name)
    found = []
    for gradient in gradients:
        made.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        found.append(float(weight.value))
    return found


def test_momentum():
    # velocity: -0.5, then 0.5 * -0.5 - 0.5 = -0.75
    assert steps([1.0, 1.0], momentum=0.5) == [0.5, -0.25]
    assert steps([1.0, 1.0]) == [0.5, 0.0]


def test_nesterov():
    # velocity as before, then 0.5 * velocity - 0.5: -0.75, then -0.875
    assert steps([1.0, 1.0], momentum=0.5, nesterov=True) == [0.25, -0.625]


def test_weight_decay():
    # decoupled: 1 - 0.5 * 0.2 * 1 = 0.9, whatever the gradient
    assert steps([0.0], weight_decay=0.2) == pytest.approx([0.9])
    assert steps([0.0]) == [1.0]


@pytest.mark.parametrize("name", ["bias", "beta", "gamma"])
def test_weight_decay_leaves_biases_and_batch_normalization_alone(name):
    assert steps([0.0], name, weight_decay=0.2) == [1.0]
    assert steps([0.0], f"{name}_kernel", weight_decay=0.2) == pytest.approx([0.9])


@pytest.mark.parametrize(("kind", "moves"), [
    # (3, 4) has norm 5, the third has 12, all together 13
    ("norm", [3 / 5, 4 / 5, 1]), ("global_norm", [3 / 13, 4 / 13, 12 / 13]),
    ("value", [1, 1, 1]), (None, [3, 4, 12]),
])  # fmt: skip
def test_gradient_clip(kind, moves):
    own = settings(optimizer="sgd", learning_rate=1.0, gradient_clip=kind, gradient_clip_at=1.0)
    made = optim.optimizer(own, 1)
    weights = [keras.Variable(np.zeros(2, np.float32)), keras.Variable(np.zeros(1, np.float32))]
    gradients = [np.array([3.0, 4.0], np.float32), np.array([12.0], np.float32)]
    made.apply([keras.ops.convert_to_tensor(g) for g in gradients], weights)
    moved = -np.concatenate([weight.numpy() for weight in weights])
    assert moved == pytest.approx(moves)


def rates(count: int, **own: Any) -> list[float]:
    """The learning rate before each step of 4 epochs of 5 steps, and after the last."""
    made = optim.learning_rate_schedule(
        settings(epochs=4, learning_rate=1.0, **own), steps_per_epoch=5
    )
    if isinstance(made, float):
        return [made] * count
    return [float(made(step)) for step in range(count)]


def test_schedules():
    assert rates(21) == [1.0] * 21
    cosine = rates(21, schedule="cosine")
    assert (cosine[0], cosine[10], cosine[20]) == pytest.approx((1.0, 0.5, 0.0), abs=1e-6)
    assert cosine[5] == pytest.approx((1 + np.cos(np.pi / 4)) / 2, rel=1e-5)
    # up for 30 % of 20 steps from a 25th, then down
    cycle = rates(21, schedule="one_cycle")
    assert (cycle[0], cycle[6], cycle[20]) == pytest.approx((0.04, 1.0, 0.0), abs=1e-6)
    assert cycle[3] == pytest.approx((0.04 + 1) / 2)
    assert cycle[13] == pytest.approx(0.5, abs=1e-6)


def test_triangular_schedule():
    # up for 23 % of 20 steps, rounded to 5, from 0.2; then down in 15 steps to 0.07
    found = rates(21, schedule="triangular")
    assert (found[0], found[1], found[5]) == pytest.approx((0.2, 0.36, 1.0))
    assert (found[6], found[20]) == pytest.approx((1 - 0.93 / 15, 0.07))
    assert np.argmax(found) == 5


def test_a_schedule_survives_saving():
    made = optim.optimizer(settings(learning_rate=1.0, schedule="triangular"), 5)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert float(again._learning_rate(2)) == float(made._learning_rate(2)) > 0.2


def test_warmup():
    # 1 epoch of 5 steps: a fifth more at each
    assert rates(8, warmup_epochs=1)[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert rates(21, warmup_epochs=1)[5:] == pytest.approx([1.0] * 16)
    cosine = rates(21, warmup_epochs=1, schedule="cosine")
    assert (cosine[1], cosine[5], cosine[20]) == pytest.approx((0.2, 1.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("own", [
    {"epochs": 1, "schedule": "one_cycle"}, {"epochs": 1, "warmup_epochs": 0.9},
    {"epochs": 1, "schedule": "cosine"}, {"epochs": 1, "schedule": "triangular"},
])  # fmt: skip
def test_a_schedule_of_one_step_is_one(own):
    made = optim.learning_rate_schedule(settings(learning_rate=1.0, **own), steps_per_epoch=1)
    assert (made if isinstance(made, float) else float(made(0))) == 1.0


# settings of the loss


def test_cross_entropy_and_label_smoothing():
    target, logits = np.array([[1.0, 0.0]]), np.log([[0.8, 0.2]])
    assert float(optim.loss(settings())(target, logits)) == pytest.approx(-np.log(0.8))
    # targets 0.9 and 0.1
    smooth = optim.loss(settings(label_smoothing=0.2))(target, logits)
    assert float(smooth) == pytest.approx(-0.9 * np.log(0.8) - 0.1 * np.log(0.2))


def test_focal_loss():
    target, logits = np.array([[1.0, 0.0]]), np.log([[0.8, 0.2]])
    # alpha 0.25, gamma 2
    focal = optim.loss(settings(loss="focal"))(target, logits)
    assert float(focal) == pytest.approx(-0.25 * 0.2**2 * np.log(0.8), rel=1e-5)


def test_class_weights():
    labels = np.array([0, 0, 0, 1])
    assert optim.class_weights(settings(), labels, CLASSES) is None
    # 4 / (2 * 3) and 4 / (2 * 1)
    balanced = optim.class_weights(settings(class_weights="balanced"), labels, CLASSES)
    assert balanced == pytest.approx({0: 2 / 3, 1: 2.0})
    given = settings(class_weights={"bright": 3.0, "dark": 1.0})
    assert optim.class_weights(given, labels, CLASSES) == {0: 1.0, 1: 3.0}
    message = r"must name every class, and no other\. Missing: bright\. Unknown: brigth"
    with pytest.raises(PipelineError, match=message):
        optim.class_weights(settings(class_weights={"dark": 1.0, "brigth": 1.0}), labels, CLASSES)


# augmentation


def augmented(images: np.ndarray, training: bool = True, **own: Any) -> np.ndarray:
    keras.utils.set_random_seed(0)
    layers = optim.augmentation_layers(Augment(**{**PLAIN, **own}), images.shape[1:])
    for layer in layers:
        images = layer(images, training=training)
    return np.asarray(images)


def ramps(count: int = 64) -> np.ndarray:
    """Images that grow to the right and, a tenth as fast, downwards, from 1."""
    return np.tile(
        1 + np.arange(8.0)[None, None, :, None] + np.arange(8.0)[None, :, None, None] / 10,
        (count, 1, 1, 1),
    ).astype(np.float32)


@pytest.mark.parametrize("own", [
    {"flip": "both"}, {"shift": 0.25}, {"crop": 2}, {"crop": 2, "crop_fill": "reflect"},
    {"rotation": 30.0}, {"cutout": 0.25},
])  # fmt: skip
def test_augmentation_changes_each_training_image_its_own_way_and_no_other(own):
    images = ramps()
    assert len({image.tobytes() for image in augmented(images, **own)}) > 3
    assert np.array_equal(augmented(images, training=False, **own), images)


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", {2}), ("vertical", {1})])
def test_flip_mirrors_about_half_of_the_images(flip, axes):
    images = ramps()
    found = augmented(images, flip=flip)
    mirrored = np.flip(images, axis=tuple(axes))
    same = (found == images).all(axis=(1, 2, 3))
    assert (same | (found == mirrored).all(axis=(1, 2, 3))).all()
    assert 16 < same.sum() < 48


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_crop_cuts_every_window_of_the_padded_image_and_no_other(fill, mode):
    # colours and sides that differ: axes cannot be mixed up
    image = np.random.default_rng(0).random((6, 8, 3), np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode)
    windows = {padded[y : y + 6, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    found = augmented(np.stack([image] * 300), crop=2, crop_fill=fill)
    # that one of 25 is missed by 300 draws: 25 * 0.96**300 = 0.0001
    assert {image.tobytes() for image in found} == windows


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(PipelineError, match=r"crop must be less than the images' 8 × 8 pix.*Got 8"):
        augmented(ramps(), crop=8)


def test_chosen_images_are_mirrored_left_to_right():
    images = np.arange(12.0, dtype=np.float32).reshape(2, 2, 3, 1)
    found = np.asarray(mirror(images, np.array([False, True])))
    assert found[..., 0].tolist() == [[[0, 1, 2], [3, 4, 5]], [[8, 7, 6], [11, 10, 9]]]


def test_shift_moves_and_repeats_the_edge():
    found = augmented(ramps(), shift=0.25)
    assert (found.min(), found.max()) == pytest.approx((1.0, 8.7))  # no zeros come in
    # by up to 2 of 8 pixels
    assert 1.5 < np.abs(found[:, 4, 4, 0] - ramps()[:, 4, 4, 0]).max() <= 2.2


def test_rotation_turns_by_up_to_its_angle():
    found = augmented(ramps(), rotation=30.0)[:, 3:5, 3:5, 0]
    down = (found[:, 1] - found[:, 0]).mean(axis=1)
    right = (found[:, :, 1] - found[:, :, 0]).mean(axis=1)
    # the ramp's own direction is atan(0.1) = 5.7 degrees
    angles = np.degrees(np.arctan2(down, right)) - np.degrees(np.arctan(0.1))
    assert 20 < np.abs(angles).max() <= 30.5


def test_cutout_erases_its_share_of_every_image():
    erased = (augmented(ramps(), cutout=0.25) == 0).mean(axis=(1, 2, 3))
    # a rectangle of whole pixels in 8×8
    assert erased.min() > 0.1
    assert 0.2 < erased.mean() < 0.3
