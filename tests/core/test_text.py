"""Text: plurals, thousands separators and signs."""

import pytest

from pipeline.core.text import counted, decimal, signed


def test_a_noun_is_in_the_plural_unless_there_is_one():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert counted(12_345, "more test image") == "12,345 more test images"


@pytest.mark.parametrize(("number", "plain", "with_sign"), [
    (1.25, "1.2", "+1.2"),
    (-1.26, "−1.3", "−1.3"),
    (-0.04, "0.0", "+0.0"),
])  # fmt: skip
def test_numbers_have_a_true_minus_sign_and_zero_has_none(number, plain, with_sign):
    assert (decimal(number), signed(number)) == (plain, with_sign)


def test_decimals_can_be_chosen():
    assert (decimal(-0.125, 3), signed(0.5, 2)) == ("−0.125", "+0.50")
