"""Chart style: colours, shapes, ticks and names."""

import json
from itertools import combinations

import pandas as pd
import pytest

from pipeline.reporting import chart_style
from tests.conftest import REPOSITORY


def luminance(colour: str) -> float:
    """Return the relative luminance in [0, 1] as WCAG defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("card", ["#ffffff", "#1a1d22"])
def test_colours_have_a_contrast_of_3_on_light_and_dark_cards(card):
    for colour in chart_style.COLOURS:
        dark, light = sorted((luminance(colour), luminance(card)))
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_styles_of_138_models_are_unique_and_the_reference_has_its_own_colour():
    styles = list(chart_style.styles([str(number) for number in range(138)]).values())
    assert len(set(styles)) == 138
    reference, *others = styles
    assert reference.colour not in {style.colour for style in others}
    assert all(one.colour != other.colour for one, other in combinations(styles[:24], 2))


def test_dvc_plots_use_the_same_colours():
    template = json.loads((REPOSITORY / ".dvc/plots/learning_curves.json").read_text("utf-8"))
    assert template["encoding"]["color"]["scale"]["range"] == list(chart_style.COLOURS)


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (20, [*range(2, 21, 2)]),
        (35, [*range(5, 36, 5)]),
        (99, [*range(10, 91, 10)]),
    ],
)
def test_epoch_ticks_are_whole_numbers(epochs, ticks):
    assert chart_style.epoch_ticks(epochs) == ticks


@pytest.mark.parametrize(
    ("losses", "ticks"),
    [
        ([0.03, 4], [0.05, 0.1, 0.2, 0.5, 1, 2]),
        ([0.7, 0.9], [0.7, 0.8, 0.9]),
        ([1.1, 1.32], [1.1, 1.2, 1.3]),
        ([0.001, 10], [0.001, 0.01, 0.1, 1, 10]),
        ([0.5, 0.5], [0.2, 1]),
        ([0, 1], None),
    ],
)
def test_loss_ticks_are_at_least_two_or_none_if_a_loss_is_0(losses, ticks):
    assert chart_style.loss_ticks(losses) == ticks


def test_long_names_are_shortened_in_the_middle():
    assert chart_style.shorten("a" * 32) == "a" * 32
    assert chart_style.shorten("a" * 30 + "bcd") == "a" * 21 + "…" + "a" * 7 + "bcd"


def test_class_accuracy_omits_classes_without_test_images():
    table = pd.DataFrame({"actual": ["a", "a", "b"], "predicted": ["a", "b", "b"]})
    shares = chart_style.class_accuracy({"one": table}, ["a", "b", "c"])
    assert shares["one"].to_dict() == {"a": 0.5, "b": 1.0}


def test_mean_curves_are_over_the_trainings_that_reached_an_epoch():
    table = pd.DataFrame({
        "model": "one", "seed": [0, 1, 1], "split": "train", "epoch": [1, 1, 2],
        "accuracy": [0.25, 0.75, 1.0], "loss": [3.0, 1.0, 0.5],
    })  # fmt: skip
    first, second = chart_style.mean_curves(table).to_dict("records")
    assert first == {
        "model": "one", "split": "train", "epoch": 1, "trainings": 2,
        "accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75,
        "loss": 2.0, "loss_low": 1.0, "loss_high": 3.0,
    }  # fmt: skip
    assert (second["epoch"], second["trainings"], second["loss"]) == (2, 1, 0.5)
