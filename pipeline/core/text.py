"""Text: numbers as they are written in sentences and tables, and names in Markdown."""

import re

from pipeline.core.errors import one_line

# Characters that can start formatting in a line of Markdown, a cell of a table or a formula
MARKDOWN = re.compile(r"[\\`*_~\[\]<>&|$#]")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 1,800 images. The plural must end in s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Return a rounded duration: 40 s, 12 min, 2.5 h."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def decimal(number: float, decimals: int = 1) -> str:
    """Return a number with decimals and a true minus sign: 0.5, −0.5. Zero has no sign."""
    return f"{number:z.{decimals}f}".replace("-", "−")


def signed(number: float, decimals: int = 1) -> str:
    """Return a number with decimals and its sign: +0.5, −0.5, +0.0."""
    return f"{number:+z.{decimals}f}".replace("-", "−")


def percent(share: float, decimals: int = 1) -> str:
    """Format a share in [0, 1] as a percentage; only 1 itself gives 100, and only 0 gives 0."""
    value = round(100 * share, decimals)
    step = 10**-decimals
    value = min(value, 100 - step) if share < 1 else value
    value = max(value, step) if share > 0 else value
    return f"{value:.{decimals}f}\N{NO-BREAK SPACE}%"


def markdown(text: str) -> str:
    """Return Markdown that shows a text unchanged, in one line or in a cell of a table."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text))
