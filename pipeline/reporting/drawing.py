"""Drawing: matplotlib with its default settings, whatever the machine's own settings are.

This is the only module that imports matplotlib, and the others import its names from here. In a
process started from a notebook, MPLBACKEND names a module that may not be installed, and importing
matplotlib then fails.
"""

import os
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"
os.environ["FREETYPE_PROPERTIES"] = ""  # it changes how FreeType renders text

import matplotlib
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from pipeline.core.files import atomic_path

__all__ = [
    "Axes",
    "Figure",
    "FixedLocator",
    "Line2D",
    "MaxNLocator",
    "NullFormatter",
    "NullLocator",
    "PatchCollection",
    "PercentFormatter",
    "Rectangle",
    "colormaps",
    "plt",
    "save",
]

matplotlib.rcdefaults()  # discards a matplotlibrc: its font size would change every picture
matplotlib.rcParams["text.parse_math"] = False  # a class name may contain a $


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Save a figure as PNG and close it; equal figures give equal bytes."""
    metadata = {"Software": None}  # omit matplotlib's version
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
