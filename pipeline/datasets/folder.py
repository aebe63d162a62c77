"""Folder: your own images, as train/<class>/* and test/<class>/*, or as <class>/*."""

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
    train = top if whole else top / "train"
    classes = _classes(train)
    files = {"train": _files(train, classes)}
    if (top / "test").is_dir():
        if unknown := sorted(set(_classes(top / "test")) - set(classes)):
            raise PipelineError(
                f"{top / 'test' / unknown[0]}: no such class in {train}. "
                f"Classes: {', '.join(classes)}"
            )
        files["test"] = _files(top / "test", classes)
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


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise PipelineError(
            f"{part}: no such folder. Put images in {part}/<class>/, or change `folder:`"
        )
    entries = sorted(p for p in part.iterdir() if not p.name.startswith("."))
    found = [p.name for p in entries if p.is_dir()]
    # a README may lie beside the classes
    known = Image.registered_extensions()
    if loose := [p for p in entries if p.name not in found and p.suffix.lower() in known]:
        raise PipelineError(f"{loose[0]}: is in no class. Move it into a folder of {part}")
    if not found:
        raise PipelineError(f"{part}: must hold a folder of images for each class. Got none")
    return found


def _files(part: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """List what is not hidden, with the label."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((part / name).rglob("*"))
        if not path.is_dir()
        and not any(step.startswith(".") for step in path.relative_to(part / name).parts)
    ]
