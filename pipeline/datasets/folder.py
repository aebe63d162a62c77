"""Folder: your own images, as train/<class>/* and test/<class>/*."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pipeline.errors import PipelineError
from pipeline.raw import Dataset, Example


def load(name: str, folder: str) -> Dataset:
    """Return the images below `folder`; hidden files are passed over, others must be images.

    Raises:
        PipelineError: A part or class folder is missing or empty, or a file is no image.
    """
    top = Path(folder)
    classes = _classes(top / "train")
    if unknown := sorted(set(_classes(top / "test")) - set(classes)):
        raise PipelineError(
            f"{top / 'test' / unknown[0]}: no such class in {top / 'train'}. "
            f"Classes: {', '.join(classes)}"
        )
    files = {split: list(_files(top / split, classes)) for split in ("train", "test")}
    return Dataset(
        classes=classes,
        source=f"folder {folder}",
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
    found = sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise PipelineError(f"{part}: must hold a folder of images for each class. Got none")
    return found


def _files(part: Path, classes: list[str]) -> Iterator[tuple[Path, int]]:
    known = Image.registered_extensions()
    for label, name in enumerate(classes):
        for path in sorted((part / name).rglob("*")):
            if path.is_dir() or path.name.startswith("."):
                continue
            if path.suffix.lower() not in known:
                raise PipelineError(
                    f"{path}: must be an image (.png, .jpg, …). Move it out of {part}"
                )
            yield path, label
