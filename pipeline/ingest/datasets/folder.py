"""Folder: your own images, a folder for each class, in splits or not.

The folders train and test, and validation, are splits; so they are by the names training, testing,
val and valid, in any case. With train alone, a validation split is the test split.
"""

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError, first_few
from pipeline.ingest.parquet import HELD_OUT, Dataset, Example, check_classes, hold_out_test

# The names of each split's folder.
SPLITS = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation"},
    "test": {"test", "testing"},
}
# A name that has one of these as a word, as seg_train, test1 and training_set have.
SPLIT_WORD = re.compile(
    r"(?:^|[^a-z])(?:(?P<train>train(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?)"
    r"|(?P<test>test(?:ing)?))(?:set|data)?(?:[^a-z]|$)"
)
# What file systems and tools leave among images, beside what is hidden: thumbnails (Synology,
# Windows), attributes (macOS in archives), what was deleted (Synology, QNAP, Windows, Linux).
LEFTOVERS = {
    "@eadir", "#recycle", "@recycle", "__macosx", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip


def load(name: str, folder: str, test_share: float, test_seed: int) -> Dataset:
    """Return every file of each class, in further folders too; preprocess says which are images.

    Hidden files and what file systems and tools leave are left out, and counted. Without a test
    or validation split, `test_share` of each class becomes the test split, by `test_seed`.

    Raises:
        PipelineError: A folder is missing, there is one class only or one without images in
            train or test, an image is in no class, or classes look like splits.
    """
    top = Path(folder)
    source = f"folder {folder}"
    parts, ignored = _splits(top)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        source += f" (no {top / 'test'}: {parts['test'].name} is the test split)"
    found = {split: _classes(part) for split, part in parts.items()}
    classes = list(found["train"])
    for own in found.values():
        if unknown := sorted(set(own) - set(classes)):
            raise PipelineError(
                f"{own[unknown[0]]}: no such class in {parts['train']}. "
                f"Classes: {first_few(classes)}"
            )
    files: dict[str, list[tuple[Path, int]]] = {}
    left_out = 0
    for split, own in found.items():
        files[split], count = _files(parts[split], own, classes)
        left_out += count
    _check_readable([path for f in files.values() for path, _ in f])
    labels = {split: np.array([label for _, label in f], int) for split, f in files.items()}
    check_classes(
        source, classes, {split: labels[split] for split in labels if split != "validation"}
    )
    if "test" not in files:
        train_rows, test_rows = hold_out_test(
            source, classes, labels["train"], test_share, test_seed
        )
        every = files["train"]
        files = {"train": [every[r] for r in train_rows], "test": [every[r] for r in test_rows]}
        source += HELD_OUT.format(top / "test", 100 * test_share, test_seed)
    if ignored:
        source += f" ({first_few([str(path) for path in ignored])} not read)"
    if left_out:
        source += f" ({left_out} hidden or system files left out)"
    return Dataset(
        classes=classes,
        source=source,
        sizes={split: len(listed) for split, listed in files.items()},
        splits={
            split: (
                Example(path.read_bytes(), label, path.relative_to(top).as_posix())
                for path, label in listed
            )
            for split, listed in files.items()
        },
    )


def _splits(top: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return the folder of each split (one, train, where there are none), and other folders."""
    folders = _folders(top)
    parts: dict[str, Path] = {}
    for path in folders:
        for split, names in SPLITS.items():
            if path.name.casefold() not in names:
                continue
            if split in parts:
                raise PipelineError(
                    f"{top}: {parts[split].name} and {path.name} are both the {split} split. "
                    "Put their images into one"
                )
            parts[split] = path
    if not parts.keys() & {"train", "test"}:
        _check_no_splits(top, folders)
        return {"train": top}, []
    others = [path for path in folders if path not in parts.values()]
    parts.setdefault("train", top / "train")  # which is then said to be missing
    return {split: parts[split] for split in SPLITS if split in parts}, others


def _check_no_splits(top: Path, folders: list[Path]) -> None:
    """Check that folders that are to be classes have not the names of splits, as seg_train has."""
    alike = {
        path: match.lastgroup
        for path in folders
        if (match := SPLIT_WORD.search(path.name.casefold()))
    }
    nested = [path for path in alike if _subfolders(path)]
    if nested or len(set(alike.values())) > 1:
        names = first_few([path.name for path in nested or alike])
        raise PipelineError(
            f"{top}: {names} must be classes, and look like splits. Rename the folders of splits "
            "to train, validation and test, or those of classes to something else"
        )


def _folders(part: Path) -> list[Path]:
    """List the folders in a folder, without what tools leave."""
    if not part.is_dir():
        raise PipelineError(
            f"{part}: no such folder. Put images in {part}/<class>/, or change `folder:`"
        )
    return sorted(p for p in part.iterdir() if p.is_dir() and not _is_leftover(p.name))


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LEFTOVERS


def _subfolders(folder: Path) -> set[str]:
    """Return the names of the folders in a folder that holds nothing else; in small letters."""
    entries = [p for p in folder.iterdir() if not _is_leftover(p.name)]
    return {p.name.casefold() for p in entries} if all(p.is_dir() for p in entries) else set()


def _classes(part: Path) -> dict[str, Path]:
    """Return the folder of each class, by a name that is spelled alike in every part."""
    folders = _folders(part)
    # a README may lie beside the classes
    known = Image.registered_extensions()
    loose = sorted(
        p
        for p in part.iterdir()
        if p not in folders and p.suffix.lower() in known and not _is_leftover(p.name)
    )
    if loose:
        raise PipelineError(f"{loose[0]}: is in no class. Move it into a folder of {part}")
    if not folders:
        raise PipelineError(f"{part}: must hold a folder of images for each class. Got none")
    _check_names(folders)
    _check_not_repeated(part, folders)
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


def _check_not_repeated(part: Path, folders: list[Path]) -> None:
    """Check that no two classes hold the same two or more folders, which then are the classes.

    One folder alone, as class/images, does not tell.
    """
    seen: dict[frozenset[str], Path] = {}
    for path in folders:
        inside = frozenset(_subfolders(path))
        if len(inside) < 2:
            continue
        if inside in seen:
            raise PipelineError(
                f"{part}: {seen[inside].name} and {path.name} must be classes, and hold the same "
                f"folders ({first_few(sorted(inside))}), as splits do. Rename splits to train, "
                "validation and test, or move the images of a class out of its folders"
            )
        seen[inside] = path


def _files(
    part: Path, folders: dict[str, Path], classes: list[str]
) -> tuple[list[tuple[Path, int]], int]:
    """List the files of each class, with the label; and count those that are left out."""
    files = []
    beside = [p for p in part.iterdir() if p.is_dir() and _is_leftover(p.name)]
    left_out = sum(len(_below(folder)) for folder in beside)
    for label, name in enumerate(classes):
        for path in _below(folders[name]) if name in folders else []:
            if any(map(_is_leftover, path.relative_to(folders[name]).parts)):
                left_out += 1
            else:
                files.append((path, label))
    return files, left_out


def _below(folder: Path) -> list[Path]:
    """List all files below a folder; a link to a folder too, which is not entered."""
    return [p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()]


def _check_readable(paths: list[Path]) -> None:
    _check_names(paths)
    # no file: a pipe, which would be waited for without end, or a link to nothing or to a folder
    closed = [str(path) for path in paths if not (path.is_file() and os.access(path, os.R_OK))]
    if closed:
        raise PipelineError(
            f"{len(closed)} files cannot be read: {first_few(closed)}. "
            "Fix their permissions or links, or remove them"
        )


def _check_names(paths: list[Path]) -> None:
    # what is no UTF-8 comes as surrogates
    if foreign := [os.fsencode(p) for p in paths if re.search("[\ud800-\udfff]", str(p))]:
        raise PipelineError(
            f"{len(foreign)} names must be UTF-8: {first_few([repr(n) for n in foreign])}. "
            "Rename them"
        )
