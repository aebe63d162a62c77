"""Optim: every training setting creates the Keras object that it names."""

import colorsys
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.schema import Augment
from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor
from pipeline.training import optim
from pipeline.training.augmentation import mirror
from pipeline.training.extended_optimizer import orthogonalize
from tests.conftest import PLAIN, settings

CLASSES = ["dark", "bright"]


@pytest.mark.parametrize(("name", "kind"), [
    ("sgd", keras.optimizers.SGD), ("adam", keras.optimizers.Adam),
    ("adamw", keras.optimizers.AdamW), ("rmsprop", keras.optimizers.RMSprop),
])  # fmt: skip
def test_optimizer_has_the_class_and_the_learning_rate_of_the_settings(name, kind):
    optimizer = optim.optimizer(settings(optimizer=name, learning_rate=0.25), steps_per_epoch=1)
    assert type(optimizer) is kind
    assert float(optimizer.learning_rate) == 0.25


def weight_after(gradients: list[float], name: str = "kernel", **overrides: Any) -> list[float]:
    """Return the value of a weight, at first 1, after the step of each gradient."""
    optimizer = optim.optimizer(settings(optimizer="sgd", learning_rate=0.5, **overrides), 1)
    weight = keras.Variable(1.0, name=name)
    values = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        values.append(float(weight.value))
    return values


def test_momentum_accumulates_velocity():
    # velocity: -0.5, then 0.5 * -0.5 - 0.5 = -0.75
    assert weight_after([1.0, 1.0], momentum=0.5) == [0.5, -0.25]
    assert weight_after([1.0, 1.0]) == [0.5, 0.0]


def test_nesterov_looks_ahead_along_the_velocity():
    # velocity as above, then 0.5 * velocity - 0.5: -0.75, then -0.875
    assert weight_after([1.0, 1.0], momentum=0.5, nesterov=True) == [0.25, -0.625]


def test_weight_decay_is_decoupled_from_the_gradient():
    # 1 - 0.5 * 0.2 * 1 = 0.9, whatever the gradient
    assert weight_after([0.0], weight_decay=0.2) == pytest.approx([0.9])
    assert weight_after([0.0]) == [1.0]


@pytest.mark.parametrize("name", ["bias", "beta", "gamma"])
def test_weight_decay_excludes_biases_and_batch_normalization(name):
    assert weight_after([0.0], name, weight_decay=0.2) == [1.0]
    assert weight_after([0.0], f"{name}_kernel", weight_decay=0.2) == pytest.approx([0.9])


def test_weight_decay_excludes_only_the_weights_that_are_named():
    only_gamma = {"weight_decay": 0.2, "weight_decay_exclude": ["gamma"]}
    assert weight_after([0.0], "gamma", **only_gamma) == [1.0]
    assert weight_after([0.0], "beta", **only_gamma) == pytest.approx([0.9])
    assert weight_after([0.0], "bias", weight_decay=0.2, weight_decay_exclude=[]) == (
        pytest.approx([0.9])
    )


def test_the_shift_of_batch_normalization_can_have_a_learning_rate_of_its_own():
    # 1 - 0.5 * 4 * 0.25
    assert weight_after([0.25], "beta", batch_norm_beta_learning_rate=4.0) == [0.5]
    assert weight_after([0.25], "kernel", batch_norm_beta_learning_rate=4.0) == [0.875]
    assert weight_after([0.25], "beta") == [0.875]


def test_muon_makes_the_updates_of_convolutions_orthogonal():
    optimizer = optim.optimizer(
        settings(optimizer="sgd", learning_rate=2.0, momentum=0.5, muon_learning_rate=0.1), 1
    )
    rotated = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    kernel = keras.Variable(3 * np.eye(2, dtype=np.float32).reshape(1, 1, 2, 2))
    dense = keras.Variable(np.ones((2, 2), np.float32))
    # singular values 0.6 and 0.8 after division by the norm
    gradient = rotated @ np.diag(np.array([3, 4], np.float32))
    for _ in range(2):  # the velocity grows, but its direction does not change
        before = kernel.numpy()[0, 0]
        gradients = [gradient.reshape(1, 1, 2, 2), np.ones((2, 2), np.float32)]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], [kernel, dense])
    values = np.array([0.6, 0.8])
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert (np.abs(values - 1) < 0.35).all()
    # first scaled to the norm of the 2×2 identity
    scaled = before * np.sqrt(2) / np.linalg.norm(before)
    expected = scaled - 0.1 * rotated @ np.diag(values)
    assert kernel.numpy()[0, 0] == pytest.approx(expected, abs=1e-5)
    # sgd: 1 - 2, then - 2 * 1.5
    assert dense.numpy() == pytest.approx(-4.0)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_orthogonal_matrices_have_singular_values_of_about_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = np.linalg.svd(orthogonalize(matrix), compute_uv=False)
    assert values.shape == (7,)
    assert (np.abs(values - 1) < 0.35).all()


def test_lookahead_averages_the_weights_every_other_step_and_at_the_last_one():
    # steps of -0.5, and 4 steps in all. The slow weight is 1 at first, then
    # after step 2: 0.95^5 (2/4)^3 = 0.09672 of 1, and the rest of 0
    # after step 4: 0.95^5 of 0.09672, and the rest of 0.09672 - 1
    share = 0.95**5
    after_2 = share / 8
    after_4 = share * after_2 + (1 - share) * (after_2 - 1)
    values = weight_after([1.0] * 4, lookahead=2, epochs=4)
    assert values == pytest.approx([0.5, after_2, after_2 - 0.5, after_4], abs=1e-6)
    # counted back from the last step
    values = weight_after([1.0] * 3, lookahead=2, epochs=3)
    after_1 = share / 27 + (1 - share / 27) * 0.5
    after_3 = share * after_1 + (1 - share) * (after_1 - 1)
    assert values == pytest.approx([after_1, after_1 - 0.5, after_3], abs=1e-6)


@pytest.mark.parametrize(("kind", "steps"), [
    # the first weight's gradient (3, 4) has norm 5, the second's has 12, both together 13
    ("norm", [3 / 5, 4 / 5, 1]), ("global_norm", [3 / 13, 4 / 13, 12 / 13]),
    ("value", [1, 1, 1]), (None, [3, 4, 12]),
])  # fmt: skip
def test_gradient_clip_limits_norms_or_values_to_1(kind, steps):
    overridden = settings(
        optimizer="sgd", learning_rate=1.0, gradient_clip=kind, gradient_clip_at=1.0
    )
    optimizer = optim.optimizer(overridden, 1)
    weights = [keras.Variable(np.zeros(2, np.float32)), keras.Variable(np.zeros(1, np.float32))]
    gradients = [np.array([3.0, 4.0], np.float32), np.array([12.0], np.float32)]
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], weights)
    changes = -np.concatenate([weight.numpy() for weight in weights])
    assert changes == pytest.approx(steps)


def learning_rates(count: int, **overrides: Any) -> list[float]:
    """Return the learning rates of the first steps of a training of 4 epochs of 5 steps."""
    schedule = optim.learning_rate_schedule(
        settings(epochs=4, learning_rate=1.0, **overrides), steps_per_epoch=5
    )
    if isinstance(schedule, float):
        return [schedule] * count
    return [float(schedule(step)) for step in range(count)]


def test_constant_cosine_and_one_cycle_schedules_have_the_values_of_their_papers():
    assert learning_rates(21) == [1.0] * 21
    cosine = learning_rates(21, schedule="cosine")
    assert (cosine[0], cosine[10], cosine[20]) == pytest.approx((1.0, 0.5, 0.0), abs=1e-6)
    assert cosine[5] == pytest.approx((1 + np.cos(np.pi / 4)) / 2, rel=1e-5)
    # rises from 1 / 25 for 30 % of the 20 steps, then decays
    cycle = learning_rates(21, schedule="one_cycle")
    assert (cycle[0], cycle[6], cycle[20]) == pytest.approx((0.04, 1.0, 0.0), abs=1e-6)
    assert cycle[3] == pytest.approx((0.04 + 1) / 2)
    assert cycle[13] == pytest.approx(0.5, abs=1e-6)


def test_triangular_schedule_rises_and_decays_linearly():
    # rises from 0.2 for 23 % of the 20 steps, rounded to 5, then decays to 0.07 in 15 steps
    rates = learning_rates(21, schedule="triangular")
    assert (rates[0], rates[1], rates[5]) == pytest.approx((0.2, 0.36, 1.0))
    assert (rates[6], rates[20]) == pytest.approx((1 - 0.93 / 15, 0.07))
    assert np.argmax(rates) == 5


def test_linear_schedule_decays_to_zero_after_its_warmup():
    assert learning_rates(21, schedule="linear")[::5] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    # 1 of 4 epochs of 5 steps
    rates = learning_rates(21, schedule="linear", warmup_epochs=1)
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert rates[5::5] == pytest.approx([1, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize("schedule", ["linear", "triangular"])
def test_a_linear_schedule_can_be_serialized(schedule):
    optimizer = optim.optimizer(settings(learning_rate=1.0, schedule=schedule), 5)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert float(restored._learning_rate(2)) == float(optimizer._learning_rate(2)) > 0.2


def test_warmup_rises_linearly_and_is_followed_by_the_schedule():
    # 1 epoch of 5 steps, each of which adds a fifth
    assert learning_rates(8, warmup_epochs=1)[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert learning_rates(21, warmup_epochs=1)[5:] == pytest.approx([1.0] * 16)
    cosine = learning_rates(21, warmup_epochs=1, schedule="cosine")
    assert (cosine[1], cosine[5], cosine[20]) == pytest.approx((0.2, 1.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("overrides", [
    {"epochs": 1, "schedule": "one_cycle"}, {"epochs": 1, "warmup_epochs": 0.9},
    {"epochs": 1, "schedule": "cosine"}, {"epochs": 1, "schedule": "triangular"},
    {"epochs": 1, "schedule": "linear"}, {"epochs": 1, "schedule": "linear", "warmup_epochs": 0.9},
])  # fmt: skip
def test_a_training_of_one_step_has_the_peak_learning_rate(overrides):
    rate_at = optim.learning_rate_at(settings(learning_rate=1.0, **overrides), steps_per_epoch=1)
    assert rate_at(0) == 1.0


def test_cross_entropy_with_and_without_label_smoothing_matches_its_definition():
    target, logits = np.array([[1.0, 0.0]]), np.log([[0.8, 0.2]])
    assert float(optim.loss(settings())(target, logits)) == pytest.approx(-np.log(0.8))
    # smoothed targets: 0.9 and 0.1
    smoothed = optim.loss(settings(label_smoothing=0.2))(target, logits)
    assert float(smoothed) == pytest.approx(-0.9 * np.log(0.8) - 0.1 * np.log(0.2))


def test_focal_loss_matches_its_definition():
    target, logits = np.array([[1.0, 0.0]]), np.log([[0.8, 0.2]])
    # alpha 0.25, gamma 2
    focal = optim.loss(settings(loss="focal"))(target, logits)
    assert float(focal) == pytest.approx(-0.25 * 0.2**2 * np.log(0.8), rel=1e-5)


def test_class_weights_are_none_or_balanced_or_those_of_the_settings():
    labels = np.array([0, 0, 0, 1])
    assert optim.class_weights(settings(), labels, CLASSES) is None
    # 4 / (2 * 3) and 4 / (2 * 1)
    balanced = optim.class_weights(settings(class_weights="balanced"), labels, CLASSES)
    assert balanced == pytest.approx({0: 2 / 3, 1: 2.0})
    by_name = settings(class_weights={"bright": 3.0, "dark": 1.0})
    assert optim.class_weights(by_name, labels, CLASSES) == {0: 1.0, 1: 3.0}
    message = r"must name every class, and no other\. Missing: bright\. Unknown: brigth"
    with pytest.raises(PipelineError, match=message):
        optim.class_weights(settings(class_weights={"dark": 1.0, "brigth": 1.0}), labels, CLASSES)


def augment(
    images: np.ndarray,
    training: bool = True,
    preprocessor: Preprocessor | None = None,
    **overrides: Any,
) -> np.ndarray:
    keras.utils.set_random_seed(0)
    augmentation = Augment(**{**PLAIN, **overrides})
    for layer in optim.augmentation_layers(augmentation, images.shape[1:], preprocessor):
        images = layer(images, training=training)
    return np.asarray(images)


def ramps(count: int = 64) -> np.ndarray:
    """Return images that increase from 1 by 1 per column and by 0.1 per row."""
    return np.tile(
        1 + np.arange(8.0)[None, None, :, None] + np.arange(8.0)[None, :, None, None] / 10,
        (count, 1, 1, 1),
    ).astype(np.float32)


@pytest.mark.parametrize("overrides", [
    {"flip": "both"}, {"shift": 0.25}, {"crop": 2}, {"crop": 2, "crop_fill": "reflect"},
    {"rotation": 30.0}, {"cutout": 0.25},
])  # fmt: skip
def test_augmentation_changes_training_images_differently_and_others_not_at_all(overrides):
    images = ramps()
    assert len({image.tobytes() for image in augment(images, **overrides)}) > 3
    assert np.array_equal(augment(images, training=False, **overrides), images)


def noise(count: int = 64, channels: int = 3) -> np.ndarray:
    """Return equal images of random pixels in [0.3, 0.7)."""
    image = 0.3 + 0.4 * np.random.default_rng(0).random((8, 8, channels), np.float32)
    return np.stack([image] * count)


ON_PIXELS = [{"brightness": 0.2}, {"contrast": 0.2}, {"saturation": 0.5}, {"hue": 0.1},
             {"rand_augment": 0.3}]  # fmt: skip


@pytest.mark.parametrize("overrides", [*ON_PIXELS, {"resized_crop": 0.3}])
def test_photographs_are_changed_differently_within_a_batch_and_only_in_training(overrides):
    images = noise()
    augmented = augment(images, **overrides)
    assert augmented.shape == images.shape
    assert len({image.tobytes() for image in augmented}) > 50
    assert 0 <= augmented.min() < augmented.max() <= 1
    assert np.array_equal(augment(images, **overrides), augmented)  # same seed
    assert np.array_equal(augment(images, training=False, **overrides), images)


@pytest.mark.parametrize("overrides", ON_PIXELS)
def test_standardized_images_are_changed_as_their_pixels_would_be(overrides):
    standardized = Preprocessor(["a"], [8, 8, 3], "standardize", [0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    images = standardized.standardize(noise())
    augmented = augment(images, preprocessor=standardized, **overrides)
    expected = augment(noise(), **overrides)
    assert standardized.visible(augmented) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", {2}), ("vertical", {1})])
def test_flip_mirrors_about_half_of_the_images(flip, axes):
    images = ramps()
    augmented = augment(images, flip=flip)
    mirrored = np.flip(images, axis=tuple(axes))
    unchanged = (augmented == images).all(axis=(1, 2, 3))
    assert (unchanged | (augmented == mirrored).all(axis=(1, 2, 3))).all()
    assert 16 < unchanged.sum() < 48


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_crop_returns_every_window_of_the_padded_image_and_nothing_else(fill, mode):
    # random pixels and unequal sides, so that no two windows and no two axes are alike
    image = np.random.default_rng(0).random((6, 8, 3), np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode)
    windows = {padded[y : y + 6, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    augmented = augment(np.stack([image] * 300), crop=2, crop_fill=fill)
    # the probability that 300 crops miss one of the 25 windows is below 25 * 0.96**300 = 0.0001
    assert {image.tobytes() for image in augmented} == windows


def test_a_crop_padding_as_large_as_the_image_is_refused():
    with pytest.raises(PipelineError, match=r"crop must be less than the images' 8 × 8 pix.*Got 8"):
        augment(ramps(), crop=8)


def test_mirror_flips_the_marked_images_horizontally():
    images = np.arange(12.0, dtype=np.float32).reshape(2, 2, 3, 1)
    mirrored = np.asarray(mirror(images, np.array([False, True])))
    assert mirrored[..., 0].tolist() == [[[0, 1, 2], [3, 4, 5]], [[8, 7, 6], [11, 10, 9]]]


def test_shift_moves_by_up_to_its_share_and_repeats_the_edge():
    shifted = augment(ramps(), shift=0.25)
    assert (shifted.min(), shifted.max()) == pytest.approx((1.0, 8.7))  # no zeros are added
    # by up to 2 of 8 pixels
    assert 1.5 < np.abs(shifted[:, 4, 4, 0] - ramps()[:, 4, 4, 0]).max() <= 2.2


def test_rotation_turns_by_up_to_its_angle():
    center = augment(ramps(), rotation=30.0)[:, 3:5, 3:5, 0]
    down = (center[:, 1] - center[:, 0]).mean(axis=1)
    right = (center[:, :, 1] - center[:, :, 0]).mean(axis=1)
    # before the rotation the gradient points atan(0.1) = 5.7 degrees downwards
    angles = np.degrees(np.arctan2(down, right)) - np.degrees(np.arctan(0.1))
    assert 20 < np.abs(angles).max() <= 30.5


def test_resized_crop_shows_at_least_its_share_stretched_by_up_to_a_third():
    cropped = augment(ramps(300), resized_crop=0.3)[..., 0]
    # per pixel, not at the edges, which are repeated
    width = (cropped[:, 4, 5] - cropped[:, 4, 2]) / 3
    height = (cropped[:, 5, 4] - cropped[:, 2, 4]) / 3 / 0.1
    area, aspect_ratio = width * height, width / height
    assert 0.3 - 1e-3 <= area.min() < 0.35
    assert 0.9 < area.max() <= 1 + 1e-3
    assert (aspect_ratio.min(), aspect_ratio.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.02)
    # crops at the left end show column 1, and at the right end column 8
    assert (cropped.min(), cropped.max()) == pytest.approx((1.0, 8.7), abs=0.1)


def test_brightness_adds_up_to_its_share_to_all_pixels():
    added = augment(noise(), brightness=0.2) - noise()
    assert np.ptp(added, axis=(1, 2, 3)).max() < 1e-6
    assert -0.2 <= added.min() < -0.15
    assert 0.15 < added.max() <= 0.2


def test_contrast_multiplies_the_differences_from_the_mean():
    images, augmented = noise(), augment(noise(), contrast=0.2)
    mean = images.mean(axis=(1, 2), keepdims=True)
    factors = ((augmented - mean) * (images - mean)).sum(axis=(1, 2, 3)) / (
        (images - mean) ** 2
    ).sum(axis=(1, 2, 3))
    assert augmented == pytest.approx(mean + factors[:, None, None, None] * (images - mean))
    assert 0.8 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2


def hue_saturation_value(images: np.ndarray) -> np.ndarray:
    """Return hue, saturation and value of the first pixel of each image, `(n, 3)`."""
    return np.array([colorsys.rgb_to_hsv(*image[0, 0].tolist()) for image in images])


def test_saturation_is_multiplied():
    before, after = (hue_saturation_value(i) for i in (noise(), augment(noise(), saturation=0.5)))
    factors = after[:, 1] / before[:, 1]
    assert 0.5 - 1e-4 <= factors.min() < 0.6
    assert 1.35 < factors.max() <= 1.5 + 1e-4
    assert after[:, [0, 2]] == pytest.approx(before[:, [0, 2]], abs=1e-4)


def test_hue_is_shifted_in_either_direction():
    before, after = (hue_saturation_value(i) for i in (noise(), augment(noise(), hue=0.1)))
    shifts = (after[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
    assert -0.1 - 1e-4 <= shifts.min() < -0.08
    assert 0.08 < shifts.max() <= 0.1 + 1e-4
    assert after[:, 1:] == pytest.approx(before[:, 1:], abs=1e-4)


def test_rand_augment_samples_the_operations_for_each_image_and_grows_with_its_strength():
    images = noise(300)
    changes = [
        np.abs(augment(images, rand_augment=strength) - images).mean(axis=(1, 2, 3))
        for strength in (0.001, 0.3, 1.0)
    ]
    # Of 12 operations and identity, only automatic contrast and equalization change images at the
    # lowest strength. Both operations of an image are among the 11 others with probability 0.716.
    assert 0.6 < (changes[0] < 0.01).mean() < 0.8
    assert changes[0].mean() < changes[1].mean() < changes[2].mean()


@pytest.mark.parametrize("overrides", [{"brightness": 0.2, "contrast": 0.2}, {"rand_augment": 0.3}])
def test_grayscale_images_can_be_changed_except_in_color(overrides):
    images = noise(channels=1)
    assert len({image.tobytes() for image in augment(images, **overrides)}) > 50
    message = r"augment\.saturation and hue need color images"
    with pytest.raises(PipelineError, match=message):
        augment(images, saturation=0.1)
    with pytest.raises(PipelineError, match=message):
        augment(images, hue=0.1)


def test_cutout_erases_its_share_of_every_image():
    erased = (augment(ramps(), cutout=0.25) == 0).mean(axis=(1, 2, 3))
    # a rectangle of whole pixels in 8×8, so its share is not exact
    assert erased.min() > 0.1
    assert 0.2 < erased.mean() < 0.3
