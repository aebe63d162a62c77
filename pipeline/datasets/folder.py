"""Folder: your own images, as train/<class>/* and test/<class>/*."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pipeline.errors import PipelineError
from pipeline.raw import Dataset, Example


def load(name: str, folder: str) -> Dataset:
    """Return the images below `folder`; what is hidden is passed over, the rest must be images.

    Raises:
        PipelineError: A part or a class of train is missing or empty, or a file is no image
            or in no class.
    """
    top = Path(folder)
    classes = _classes(top / "train")
    if unknown := sorted(set(_classes(top / "test")) - set(classes)):
        raise PipelineError(
            f"{top / 'test' / unknown[0]}: no such class in {top / 'train'}. "
            f"Classes: {', '.join(classes)}"
        )
    files = {split: list(_files(top / split, classes)) for split in ("train", "test")}
    if empty := set(range(len(classes))) - {label for _, label in files["train"]}:
        raise PipelineError(f"{top / 'train' / classes[min(empty)]}: must hold images. Got none")
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
    entries = sorted(p for p in part.iterdir() if not p.name.startswith("."))
    if loose := [p for p in entries if not p.is_dir()]:
        raise PipelineError(f"{loose[0]}: is in no class. Move it into a folder of {part}")
    found = [p.name for p in entries]
    if not found:
        raise PipelineError(f"{part}: must hold a folder of images for each class. Got none")
    return found


def _files(part: Path, classes: list[str]) -> Iterator[tuple[Path, int]]:
    known = Image.registered_extensions()
    for label, name in enumerate(classes):
        top = part / name
        for path in sorted(top.rglob("*")):
            hidden = any(step.startswith(".") for step in path.relative_to(top).parts)
            if hidden or path.is_dir():
                continue
            if path.suffix.lower() not in known:
                raise PipelineError(
                    f"{path}: must be an image (.png, .jpg, …). Move it out of {part}"
                )
            yield path, label
