"""Text: plurals, thousands separators, signs, percentages, durations and Markdown."""

import pytest
from markdown_it import MarkdownIt

from pipeline.core.text import counted, decimal, duration, markdown, percent, signed


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


def test_durations_are_rounded():
    seconds = (1, 41, 58, 61, 89 * 60, 90 * 60, 25 * 3600)
    rounded = ["5 s", "40 s", "60 s", "1 min", "89 min", "1.5 h", "25.0 h"]
    assert [duration(number) for number in seconds] == rounded


def test_decimals_can_be_chosen():
    assert (decimal(-0.125, 3), signed(0.5, 2)) == ("−0.125", "+0.50")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100.0 %"), (0.9996, "99.9 %"), (0.997, "99.7 %"), (0.0001, "0.1 %"), (0, "0.0 %")],
)
def test_only_1_is_100_percent_and_only_0_is_0_percent(share, text):
    assert percent(share) == text.replace(" ", "\N{NO-BREAK SPACE}")


def test_a_name_is_shown_unchanged_in_a_table_of_markdown():
    name = r"*a* _b_ `c` [d](e) <b> & &amp; ~f~ | \g # $h$"
    page = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(f"| name |\n| --- |\n| {markdown(name)} |\n")
    )
    shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>" in page
    assert markdown("two\nlines") == "two lines"
