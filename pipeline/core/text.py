"""Text: numbers as they are written in sentences and tables."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 1,800 images. The plural must end in s."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def decimal(number: float, decimals: int = 1) -> str:
    """Return a number with decimals and a true minus sign: 0.5, −0.5. Zero has no sign."""
    return f"{number:z.{decimals}f}".replace("-", "−")


def signed(number: float, decimals: int = 1) -> str:
    """Return a number with decimals and its sign: +0.5, −0.5, +0.0."""
    return f"{number:+z.{decimals}f}".replace("-", "−")
