"""Drawing: matplotlib as it comes, whatever the machine's own settings are.

The only module that imports matplotlib: all others take what they need from here. A notebook sets
MPLBACKEND to a module that is not installed here, and matplotlib then fails while it is imported.
"""

import os
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"
os.environ["FREETYPE_PROPERTIES"] = ""  # how letters are drawn

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

matplotlib.rcdefaults()  # of a matplotlibrc nothing is left: a font size changes every picture
matplotlib.rcParams["text.parse_math"] = False  # a class name may hold a $


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, and free it; equal figures give equal bytes."""
    version = {"Software": None}  # of matplotlib: left out
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", dpi=dpi, bbox_inches="tight", metadata=version)
    plt.close(figure)
