"""Crossed: models with several trainings each, and what can be said about their difference."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from pipeline.stats.crossed import (
    Comparison,
    StandardError,
    compare_all,
    compare_models,
    compare_networks,
    holm,
    images_needed,
    mean_interval,
    sentence,
    trainings_needed,
    verdict,
)

Z = 1.959964  # 97.5 % quantile of the normal distribution
# Accuracies 1/2 and 1/4. Mean 3/8, means of the images 1, 1/2, 0, 0: so the residuals of the first
# row are -1/8, 3/8, -1/8, -1/8, those of the second the opposite, and their squares add up to 3/8.
HALF_AND_QUARTER = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
# Of 12 images: residual mean square 3 * 3/8 / (1 * 11) = 9/88
TWELVE_IMAGES = np.tile(HALF_AND_QUARTER, 3)


def example(standard_error=0.01, **changes) -> Comparison:
    """A comparison of 3 trainings each, 0 ± 1.96 points."""
    values = {
        "trainings": (3, 3),
        "images": 360,
        "difference": 0.0,
        "standard_errors": [StandardError(standard_error, math.inf)],
        "p": 1.0,
        "seed_variances": (0.0, 0.0),
        "image_variance": 0.0,
        "residual_variances": (0.0, 0.0),
    }
    return Comparison(**{**values, **changes})


def constant(*accuracies: float, images: int = 1_000_000) -> np.ndarray:
    """A training a score, the same on every image: images and residual add next to nothing."""
    return np.repeat(np.array(accuracies)[:, None], images, axis=1)


def test_variances_of_a_case_worked_out_by_hand():
    comparison = compare_models(TWELVE_IMAGES, np.ones((2, 12)))
    assert comparison.difference == pytest.approx(5 / 8)
    # accuracies 1/2 and 1/4: variance 1/32, of which 9/88 / 12 is that of 12 images
    assert comparison.seed_variances == pytest.approx((1 / 32 - 9 / 88 / 12, 0))
    assert comparison.residual_variances == pytest.approx((9 / 88, 0))
    # differences 0, 1/2, 1, 1 with mean 5/8: squares 25/64 + 1/64 + 9/64 + 9/64 = 11/16, three
    # times, by 11: 3/16. Divided by 12 and less 9/88 / (2 * 12): 1/64 - 3/704 = 1/88
    assert comparison.image_variance / 12 == pytest.approx(1 / 88)
    # seeds 1/32 / 2 = 1/64, images 1/88: 19/704; degrees of freedom (19/704 / (1/64))**2
    assert comparison.standard_errors[1] == pytest.approx((math.sqrt(19 / 704), (19 / 11) ** 2))
    # 5/8 is 3.80 standard errors; of 3 degrees of freedom 3.18 leaves 5 %, 4.54 leaves 2 %
    assert 0.02 < comparison.p < 0.05


def test_the_spread_adds_up_to_the_standard_error():
    comparison = compare_models(TWELVE_IMAGES, np.ones((2, 12)))
    by_source = {name: deviation**2 for name, deviation in comparison.spread().items()}
    expected = {"reference_seeds": 1 / 88, "seeds": 0, "images": 1 / 88, "residual": 3 / 704}
    assert by_source == pytest.approx(expected)
    assert sum(by_source.values()) == pytest.approx(comparison.standard_errors[1].value ** 2)


@pytest.mark.parametrize(("k", "images"), [(2, 3), (3, 20), (10, 7)])
def test_variances_are_those_of_two_way_analysis_of_variance(k, images):
    table = np.random.default_rng(0).random((k, images))
    comparison = compare_models(table, np.zeros((k, images)))
    mean = sum(table.flat) / (k * images)
    rows = [sum(table[s]) / images for s in range(k)]
    columns = [sum(table[:, i]) / k for i in range(images)]
    residual = between_seeds = between_images = 0.0
    for s, i in itertools.product(range(k), range(images)):
        residual += (table[s, i] - rows[s] - columns[i] + mean) ** 2 / ((k - 1) * (images - 1))
        between_seeds += (rows[s] - mean) ** 2 / (k - 1)
        between_images += (columns[i] - mean) ** 2 / (images - 1)
    # expected mean squares: residual + images * seeds, and residual + k * images
    seeds = max(0, (between_seeds - residual) / images)
    least = 2 / ((images + 1) * (images + 2)) * images
    assert comparison.residual_variances == pytest.approx((residual, 0))
    assert comparison.seed_variances == pytest.approx((seeds, 0))
    assert comparison.image_variance == pytest.approx(max((between_images - residual) / k, least))


def test_seeds_count_although_there_are_many_images():
    # variances 1 and 1 over 3 seeds: 2/3, with 4 degrees of freedom, of which t is 2.776
    comparison = compare_models(constant(-1, 0, 1), constant(0, 1, 2))
    assert comparison.interval() == pytest.approx((1 - 2.267, 1 + 2.267), abs=0.001)
    # 1 is 1.2247 standard errors; F(1.5; 1, 4)
    assert comparison.p == pytest.approx(0.288, abs=0.001)


def test_images_count_although_seeds_agree():
    # 10 gains and 2 losses of 100: variance (0.12 - 0.08**2) / 99
    other = np.tile([1] * 10 + [0] * 2 + [1] * 88, (3, 1))
    comparison = compare_models(np.tile([0] * 10 + [1] * 2 + [1] * 88, (3, 1)), other)
    half = Z * math.sqrt(0.1136 / 99)
    assert comparison.interval() == pytest.approx((0.08 - half, 0.08 + half))


def test_equal_accuracies_of_all_trainings_do_not_hide_the_images():
    # Each training is wrong on 25 images of its own: no variance over seeds, and all that there is
    # over images is residual. One training each would give 0 ± 1.96 * sqrt(50 / 99 / 100).
    wrong = np.ones((4, 100))
    for row in range(4):
        wrong[row, 25 * row : 25 * row + 25] = 0
    comparison = compare_models(wrong[:2], wrong[2:])
    assert comparison.difference == 0
    # differences of the means: 1/2 on 50 images, -1/2 on 50
    half = Z * math.sqrt(25 / 99 / 100)
    assert comparison.interval() == pytest.approx((-half, half))


@pytest.mark.parametrize(("images", "half"), [(4, 0.506), (360, 0.00767)])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_agreement_on_every_image_says_little_where_images_are_few(k, images, half):
    # two pseudo-images among n + 2: variance 2 / (n + 1) / (n + 2), Agresti & Min 2005
    comparison = compare_models(np.ones((k, images)), np.ones((k, images)))
    assert comparison.interval() == pytest.approx((-half, half), rel=0.001)
    assert comparison.p == 1


def test_four_images_never_show_that_models_are_equally_good():
    tables = np.array(list(itertools.product([0, 1], repeat=8))).reshape(-1, 2, 4)
    comparison = compare_models(tables[:, None], tables[None])
    assert comparison.difference.shape == (256, 256)
    low, high = comparison.interval(0.9)
    # 1.645 * sqrt(2 / 5 / 6): wider than ± 42 points
    assert ((high - low) / 2).min() > 0.42


def test_exchanging_the_models_changes_the_sign_alone():
    scores = np.random.default_rng(0).random((5, 40))
    there, back = compare_models(scores[:2], scores[2:]), compare_models(scores[2:], scores[:2])
    assert back.difference == pytest.approx(-there.difference)
    assert back.interval() == pytest.approx(tuple(-end for end in there.interval()[::-1]))
    assert (back.p, back.trainings) == (pytest.approx(there.p), (3, 2))


def test_two_trainings_that_agree_borrow_the_variance_of_four():
    # variances 0 and 4/3: pooled (3 * 4/3) / 4 = 1, so 1/2 + 1/4 with 4 degrees of freedom, and
    # 2.776 * 0.866 = 2.404 is more than 3.182 * sqrt(4/3 / 4)
    comparison = compare_models(constant(0, 0), constant(-1, -1, 1, 1))
    assert comparison.interval() == pytest.approx((-2.404, 2.404), abs=0.001)


def test_two_trainings_that_differ_keep_their_own_variance():
    # variances 2 and 0: 2/2 with 1 degree of freedom, not 1/2 * (1/2 + 1/4) with 4
    comparison = compare_models(constant(-1, 1), constant(0, 0, 0, 0))
    assert comparison.interval() == pytest.approx((-12.706, 12.706), rel=1e-3)


def test_a_single_training_has_the_variance_of_the_other_model():
    # 4/3 * (1 + 1/4), with 3 degrees of freedom: 3.182 * 1.291
    comparison = compare_models(constant(0), constant(-1, -1, 1, 1))
    assert comparison.interval() == pytest.approx((-4.108, 4.108), abs=0.001)
    assert comparison.seed_variances == pytest.approx((4 / 3, 4 / 3))


def test_one_training_each_is_tested_by_mcnemar():
    better = np.array([1] * 10 + [1] * 90)
    comparison = compare_models(np.array([[0] * 10 + [1] * 90]), better[None])
    assert comparison == compare_networks(np.array([0] * 10 + [1] * 90), better)
    assert comparison.p == pytest.approx(2 / 2**10)  # two sides of one in 2**10
    # with the pseudo-images 11 gains and 1 loss of 102
    half = Z * math.sqrt((12 - 10**2 / 102) / 101 / 102)
    assert half == pytest.approx(0.0641, abs=1e-4)
    assert comparison.interval() == pytest.approx((0.1 - 0.0641, 0.1 + 0.0641), abs=1e-4)


def test_at_each_level_the_widest_interval_counts():
    # 95 %: 1.96 * 0.05 = 0.098 and 12.706 * 0.01; 90 %: 1.645 * 0.05 and 6.314 * 0.01 = 0.063
    errors = [StandardError(0.05, math.inf), StandardError(0.01, 1)]
    comparison = example(standard_errors=errors)
    assert comparison.interval() == pytest.approx((-0.12706, 0.12706), rel=1e-3)
    assert comparison.interval(0.9) == pytest.approx((-0.08224, 0.08224), rel=1e-3)


def test_p_agrees_with_the_interval():
    scores = np.random.default_rng(0).random((500, 5, 30)) < np.linspace(0.5, 0.9, 5)[:, None]
    comparison = compare_models(scores[:, :2], scores[:, 2:])
    low, high = comparison.interval()
    excluded = (low > 0) | (high < 0)
    assert (excluded == (comparison.p < 0.05)).all()
    assert 0 < excluded.mean() < 1


def test_five_to_none_may_be_chance():
    assert compare_networks(np.zeros(5), np.ones(5)).p == pytest.approx(2 / 2**5)


def test_tables_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"Same images expected. Got \[3, 4\]"):
        compare_models(np.ones((2, 3)), np.ones((2, 4)))


def test_a_single_image_tells_nothing():
    comparison = compare_models(np.zeros((3, 1)), np.ones((3, 1)))
    low, high = comparison.interval()
    assert low < 0 < 1 < high


def test_holm_multiplies_by_the_number_of_hypotheses_left():
    # 3 * 0.01, 2 * 0.03, 1 * 0.04, which must not be less than the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([]).tolist() == []


@pytest.mark.parametrize(("difference", "p", "margin", "expected"), [
    (0.02, 0.05, 0.01, "better"),
    (-0.02, 0.05, 0.01, "worse"),
    (0.005, 0.05, 0.1, "better"),  # also where the difference does not matter
    (0.0, 0.051, 0.0165, "as good as"),  # 90 %: ± 1.645 points
    (0.0, 0.051, 0.0164, "cannot tell"),
    (0.01, 0.3, 0.0265, "as good as"),
    (-0.01, 0.3, 0.0264, "cannot tell"),
])  # fmt: skip
def test_p_decides_first_and_then_the_margin(difference, p, margin, expected):
    assert verdict(example(difference=difference), p, margin) == expected


@pytest.mark.parametrize(("changes", "p", "expected"), [
    (
        {"difference": 0.021, "standard_error": 0.0075},
        0.01,
        "better than baseline by 2.1 points [0.6, 3.6], 3 trainings each",
    ),
    (
        {"difference": -0.021, "standard_error": 0.0075, "trainings": (3, 5)},
        0.01,
        "worse than baseline by 2.1 points [0.6, 3.6], 5 trainings against 3",
    ),
    (
        {"difference": 0.021, "standard_error": 0.0075, "trainings": (1, 3)},
        0.01,
        "better than baseline by 2.1 points [0.6, 3.6], "
        "3 trainings against 1, assuming the same spread over seeds for both",
    ),
    (
        {"difference": 0.021, "standard_error": 0.0075, "trainings": (10, 2)},
        0.01,
        "better than baseline by 2.1 points [0.6, 3.6], "
        "2 trainings against 10, assuming the same spread over seeds for both",
    ),
    (
        {"difference": 0.021, "standard_error": 0.0075, "trainings": (2, 2)},
        0.01,
        "better than baseline by 2.1 points [0.6, 3.6], 2 trainings each",
    ),
    (
        {"standard_error": 0.005},
        1,
        "as good as baseline, within 1 point, 3 trainings each",
    ),
    (
        {"difference": 0.008, "standard_error": 0.0082, "trainings": (1, 1)},
        0.4,
        "cannot tell: between −0.8 and +2.4 points; "
        "one training each: about these two trained networks only",
    ),
    (
        {"standard_error": 0.02, "trainings": (2, 1), "image_variance": 0.09},
        1,
        "cannot tell: between −3.9 and +3.9 points, 1 training against 2, "
        "assuming the same spread over seeds for both; "
        "about 7,400 more test images would be enough to detect a difference of 1 point; "
        "no practical number of trainings would, because there are too few test images",
    ),
])  # fmt: skip
def test_verdicts_in_words(changes, p, expected):
    assert sentence(example(**changes), p, 0.01, "baseline") == expected


def test_if_the_interval_excludes_zero_the_sentence_says_why_that_is_not_enough():
    # 2 ± 1.96 * 0.75
    comparison = example(difference=0.02, standard_error=0.0075, p=0.0077, trainings=(1, 1))
    assert sentence(comparison, 0.0616, 0.01, "baseline").startswith(
        "cannot tell: between +0.5 and +3.5 points, but p is 0.062, adjusted for several "
        "comparisons; "
    )
    comparison = example(difference=-0.02, standard_error=0.0075, p=0.0616, trainings=(1, 1))
    assert sentence(comparison, 0.0616, 0.01, "baseline").startswith(
        "cannot tell: between −3.5 and −0.5 points, but p is 0.062; "
    )


def test_an_interval_of_accuracies_ends_at_100_points():
    # 4 gains of 4, and the pseudo-images: variance (6 - 4**2 / 6) / 5 / 6 = 1/9, 1.96 / 3 = 0.653.
    # McNemar's p is 2 / 2**4.
    tables = {"none": np.zeros((1, 4)), "all": np.ones((1, 4))}
    row = compare_all(tables, {"all": "none"}, 0.01)["all"]
    assert (row["difference_low"], row["difference_high"]) == (pytest.approx(0.347, abs=1e-3), 1)
    assert row["sentence"].startswith("cannot tell: between +34.7 and +100.0 points, but p is 0.12")
    row = compare_all(tables, {"none": "all"}, 0.01)["none"]
    assert (row["difference_low"], row["difference_high"]) == (-1, pytest.approx(-0.347, abs=1e-3))


def test_several_models_are_compared_with_their_references():
    # one training on eight images each. Seven to none: McNemar's p is 2 / 2**7 = 1/64
    tables = {
        "none": np.zeros((1, 8)),
        "seven": np.array([[1] * 7 + [0]]),
        "all": np.ones((1, 8)),
    }
    rows = compare_all(tables, {"seven": "none", "all": "seven"}, 0.01, "validation")
    assert list(rows) == ["seven", "all"]
    assert [row["p"] for row in rows.values()] == pytest.approx([1 / 64, 1])
    assert [row["p_holm"] for row in rows.values()] == pytest.approx([2 / 64, 1])
    assert [row["verdict"] for row in rows.values()] == ["better", "cannot tell"]
    assert rows["seven"]["difference"] == 7 / 8
    assert rows["seven"]["sentence"].startswith("better than none by 87.5 points [")


def test_the_sentence_names_the_split_of_the_images():
    comparison = example(image_variance=0.09)
    assert sentence(comparison, 1, 0.01, "baseline", "validation").endswith(
        "about 7,400 more validation images would be enough to detect a difference of 1 point; no "
        "practical number of trainings would, because there are too few validation images"
    )


def test_seeds_that_differ_by_a_point_need_eighteen_trainings():
    # variance 2 * 0.01**2 / k, with 2 k - 2 degrees of freedom. The 95 and 90 % quantiles of t
    # add up to 2.998 at 34: 2 * 2.998**2 = 17.97 <= 18; at 32 to 3.003, and 18.03 > 17
    comparison = example(seed_variances=(1e-4, 1e-4))
    assert trainings_needed(comparison, 0.01) == 15
    assert images_needed(comparison, 0.01) is None
    assert sentence(comparison, 1, 0.01, "baseline").endswith(
        "; about 15 more trainings each would be enough to detect a difference of 1 point"
    )


def test_images_that_dominate_are_what_is_missing():
    # (1.6449 + 1.2816)**2 * 0.09 / 0.01**2 = 7,708 images, 7,348 more: two digits, rounded up
    comparison = example(image_variance=0.09)
    assert images_needed(comparison, 0.01) == 7400
    assert trainings_needed(comparison, 0.01) is None
    assert sentence(comparison, 1, 0.01, "baseline").endswith(
        "; about 7,400 more test images would be enough to detect a difference of 1 point; no "
        "practical number of trainings would, because there are too few test images"
    )


def test_hundreds_of_trainings_are_no_advice():
    # The images alone have a variance of 0.0041 / 360 = 1.139e-5, and (0.01 / 2.926)**2 = 1.168e-5
    # is enough: 0.02 / 360 / 2.9e-7 = 190 trainings. With 3, and 10.4 degrees of freedom,
    # (1.805 + 1.368)**2 * (0.0041 + 0.02 / 3) / 0.01**2 = 1,084 images: 724 more.
    comparison = example(image_variance=0.0041, residual_variances=(0.01, 0.01))
    assert trainings_needed(comparison, 0.01) is None
    assert images_needed(comparison, 0.01) == 730
    assert sentence(comparison, 1, 0.01, "baseline").endswith(
        "; about 730 more test images would be enough to detect a difference of 1 point; no "
        "practical number of trainings would, because there are too few test images"
    )


def test_a_hundred_thousand_images_are_no_advice():
    # 2.926**2 * 0.4 / 0.005**2 = 137,000
    comparison = example(image_variance=0.4)
    assert images_needed(comparison, 0.005) is None
    assert images_needed(comparison, 0.006) == 95_000  # 95,154, less the 360 that there are
    assert sentence(comparison, 1, 0.005, "baseline").endswith(
        "; no practical number of trainings and test images would be enough to detect a difference "
        "of 0.5 points"
    )


def test_either_trainings_or_images_reduce_the_residual():
    comparison = example(residual_variances=(0.04, 0.04))
    # Variance 0.08 / (k n). 3 trainings of 2,230 images have 4 degrees of freedom: quantiles
    # 2.132 + 1.533, and 3.665**2 * 0.08 / 3 / 0.01**2 = 3,582 images, 3,222 more.
    assert images_needed(comparison, 0.01) == 3300
    # 2.944**2 * 0.08 / 360 / 0.01**2 = 19.3, but with 38 degrees of freedom 2.990: k = 20
    assert trainings_needed(comparison, 0.01) == 17
    assert sentence(comparison, 1, 0.01, "baseline").endswith(
        "; about 17 more trainings each (or 3,300 more test images) would be enough to detect a "
        "difference of 1 point"
    )


def test_seeds_and_images_may_both_be_too_few():
    comparison = example(seed_variances=(1e-4, 1e-4), image_variance=0.09)
    assert sentence(comparison, 1, 0.01, "baseline").endswith(
        "; only more trainings and more test images together would be enough to detect a "
        "difference of 1 point"
    )


def test_of_one_training_each_nothing_is_planned():
    comparison = compare_networks(np.zeros(4), np.ones(4))
    assert (trainings_needed(comparison, 0.01), images_needed(comparison, 0.01)) == (None, None)


def test_one_training_has_wilsons_interval():
    # Wilson 1927, n 4, p 0.75: centre (0.75 + z**2 / 8) / (1 + z**2 / 4)
    accuracy = mean_interval(np.array([[1, 1, 1, 0]]))
    assert accuracy.mean == 0.75
    assert (accuracy.low + accuracy.high) / 2 == pytest.approx((0.75 + Z**2 / 8) / (1 + Z**2 / 4))
    half = Z * math.sqrt(0.75 * 0.25 / 4 + Z**2 / 64) / (1 + Z**2 / 4)
    assert (accuracy.high - accuracy.low) / 2 == pytest.approx(half)
    assert accuracy.standard_deviation is None


def test_all_correct_is_not_certain():
    accuracy = mean_interval(np.ones((3, 360)))
    # Wilson: n / (n + z**2)
    assert accuracy == pytest.approx((1, 360 / (360 + Z**2), 1, 0))


def test_the_mean_counts_seeds_and_images():
    correct = np.zeros((5, 10_000))
    for row, right in enumerate((4800, 4900, 5000, 5100, 5200)):
        correct[row, :right] = 1
    accuracy = mean_interval(correct)
    assert accuracy.mean == 0.5
    # 1, 2 points above and below: squares 10, by 4
    assert accuracy.standard_deviation == pytest.approx(math.sqrt(2.5e-4))
    # Seeds 0.5e-4. Images: 0.25 / 10,000 at most, less what is cut off in the middle. The
    # variance is 0.74e-4, (0.74 / 0.5)**2 * 4 = 8.8 degrees of freedom, of which t is 2.27.
    assert (accuracy.high - accuracy.low) / 2 == pytest.approx(2.27 * math.sqrt(0.74e-4), rel=0.02)
    assert mean_interval(correct[2:3]).low == pytest.approx(0.5 - Z * 0.005, abs=1e-4)


def test_several_comparisons_at_once_are_those_one_by_one():
    scores = np.random.default_rng(0).random((7, 5, 30)) < 0.8
    together = compare_models(scores[:, :2], scores[:, 2:])
    means = mean_interval(scores)
    for place, table in enumerate(scores):
        alone = dataclasses.asdict(compare_models(table[:2], table[2:]))
        for name in ("difference", "p", "image_variance"):
            assert getattr(together, name)[place] == pytest.approx(alone[name])
        ends = [end[place] for end in together.interval()]
        assert ends == pytest.approx(compare_models(table[:2], table[2:]).interval())
        assert [value[place] for value in means] == pytest.approx(list(mean_interval(table)))
