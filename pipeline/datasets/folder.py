"""Folder: your own images, as train/<class>/* and test/<class>/*, or as <class>/*."""

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.raw import SET_APART, Dataset, Example, check_classes, set_apart


def load(name: str, folder: str, test_share: float, test_seed: int) -> Dataset:
    """Return every file in a class's folder that is not hidden; preprocess says which are images.

    Layouts: train/<class>/* and test/<class>/*; train/<class>/* alone; <class>/*. Without
    test/, `test_share` of each class becomes the test part, drawn by `test_seed`.

    Raises:
        PipelineError: A folder is missing, there is one class only or one without images in
            train or test, or an image is in no class.
    """
    top = Path(folder)
    source = f"folder {folder}"
    whole = not (top / "train").is_dir() and not (top / "test").is_dir()
    parts = {"train": _classes(top if whole else top / "train")}
    classes = list(parts["train"])
    if (top / "test").is_dir():
        parts["test"] = _classes(top / "test")
        if unknown := sorted(set(parts["test"]) - set(classes)):
            raise PipelineError(
                f"{parts['test'][unknown[0]]}: no such class in {top / 'train'}. "
                f"Classes: {', '.join(classes)}"
            )
    files = {split: _files(found, classes) for split, found in parts.items()}
    _check_readable([path for found in files.values() for path, _ in found])
    labels = {split: np.array([label for _, label in found], int) for split, found in files.items()}
    check_classes(source, classes, labels)
    if "test" not in files:
        train_rows, test_rows = set_apart(source, classes, labels["train"], test_share, test_seed)
        found = files["train"]
        files = {"train": [found[r] for r in train_rows], "test": [found[r] for r in test_rows]}
        source += SET_APART.format(top / "test", 100 * test_share, test_seed)
    return Dataset(
        classes=classes,
        source=source,
        sizes={split: len(found) for split, found in files.items()},
        splits={
            split: (
                Example(path.read_bytes(), label, path.relative_to(top).as_posix())
                for path, label in found
            )
            for split, found in files.items()
        },
    )


def _classes(part: Path) -> dict[str, Path]:
    """Return the folder of each class, by a name that is spelled alike in every part."""
    if not part.is_dir():
        raise PipelineError(
            f"{part}: no such folder. Put images in {part}/<class>/, or change `folder:`"
        )
    entries = sorted(p for p in part.iterdir() if not p.name.startswith("."))
    folders = [p for p in entries if p.is_dir()]
    # a README may lie beside the classes
    known = Image.registered_extensions()
    if loose := [p for p in entries if p not in folders and p.suffix.lower() in known]:
        raise PipelineError(f"{loose[0]}: is in no class. Move it into a folder of {part}")
    if not folders:
        raise PipelineError(f"{part}: must hold a folder of images for each class. Got none")
    _check_names(folders)
    classes: dict[str, Path] = {}
    for own in folders:
        # macOS writes é as e and an accent, others as one letter
        name = unicodedata.normalize("NFC", own.name)
        if name in classes:
            raise PipelineError(
                f"{part}: two folders are called {name}, in different letters of Unicode. "
                "Put their images into one"
            )
        classes[name] = own
    return classes


def _files(folders: dict[str, Path], classes: list[str]) -> list[tuple[Path, int]]:
    """List what is not hidden, with the label; a link to a folder too, which is not entered."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        if name in folders
        for path in sorted(folders[name].rglob("*"))
        if (path.is_symlink() or not path.is_dir())
        and not any(step.startswith(".") for step in path.relative_to(folders[name]).parts)
    ]


def _check_readable(paths: list[Path]) -> None:
    _check_names(paths)
    # no file: a pipe, which would be waited for without end, or a link to nothing or to a folder
    closed = [str(path) for path in paths if not (path.is_file() and os.access(path, os.R_OK))]
    if closed:
        raise PipelineError(
            f"{len(closed)} files cannot be read: {', '.join(closed)}. "
            "Mend their permissions or links, or remove them"
        )


def _check_names(paths: list[Path]) -> None:
    # what is no UTF-8 comes as surrogates
    if foreign := [os.fsencode(p) for p in paths if re.search("[\ud800-\udfff]", str(p))]:
        raise PipelineError(
            f"{len(foreign)} names must be UTF-8: {', '.join(map(repr, foreign))}. Rename them"
        )
