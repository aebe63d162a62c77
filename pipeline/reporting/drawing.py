"""Drawing: matplotlib as it comes, whatever the machine's own settings are.

The only module that imports matplotlib: all others take what they need from here. A notebook sets
MPLBACKEND to a module that is not installed here, and matplotlib then fails while it is imported.
"""

import os

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
]

matplotlib.rcdefaults()  # of a matplotlibrc nothing is left: a font size changes every picture
matplotlib.rcParams["text.parse_math"] = False  # a class name may hold a $
