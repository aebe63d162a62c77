"""Duplicates: the pictures of near-duplicates in the report."""

from pathlib import Path

from pipeline.core.errors import one_line
from pipeline.data import arrays, rows
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting.parts import thumbnail

MAX_GROUPS = 24  # to keep the page small
MAX_IMAGES = 6  # of each group


def cards(
    groups: list[list[str]], arrays_folder: Path, preprocessor: Preprocessor
) -> list[list[dict[str, str]]]:
    """Return the pictures of the first groups of near-duplicates.

    Args:
        groups: Split and id of each image, from metrics/split.json.
        arrays_folder: data/arrays.
        preprocessor: That normalized the images.

    Returns:
        Of each image its split, id and picture, a thumbnail as a data URI.
    """
    if not groups:
        return []
    # the arrays of train contain the validation images; preprocess wrote arrays and ids together
    images = {file: arrays.load(arrays_folder / file, check=False)[0] for file in ("train", "test")}
    row_of = {
        file: {id: row for row, id in enumerate(rows.ids(arrays_folder, file))} for file in images
    }
    group_cards: list[list[dict[str, str]]] = []
    for group in groups[:MAX_GROUPS]:
        group_cards.append([])
        for text in group[:MAX_IMAGES]:
            split, _, id = text.partition(" ")
            file = "test" if split == "test" else "train"
            pixels = preprocessor.pixels(images[file][row_of[file][id]])
            card = {"split": split, "id": one_line(id), "picture": thumbnail(pixels)}
            group_cards[-1].append(card)
    return group_cards
