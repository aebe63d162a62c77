"""Folder: your own images, with one folder per class, optionally inside split folders.

Folders named train, validation and test are splits; training, val, valid and testing are accepted
too, in upper or lower case. Without a test folder, the validation split becomes the test split.
A metadata.csv in the folder or in a split folder describes the images (see `metadata`).
"""

import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.core.errors import PipelineError, first_few
from pipeline.core.splitting import Grouping
from pipeline.core.text import counted
from pipeline.ingest import metadata
from pipeline.ingest.parquet import HELD_OUT, Dataset, Example, check_classes, hold_out_test

# Accepted folder names of each split.
SPLITS = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation"},
    "test": {"test", "testing"},
}
# Matches names that contain a split as a word: seg_train, test1, training_set.
SPLIT_WORD = re.compile(
    r"(?:^|[^a-z])(?:(?P<train>train(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?)"
    r"|(?P<test>test(?:ing)?))(?:set|data)?(?:[^a-z]|$)"
)
# Files and folders that operating systems and tools create, besides hidden ones: thumbnails
# (Synology, Windows), attributes (macOS archives), deleted files (Synology, QNAP, Windows, Linux).
SYSTEM_FILES = {
    "@eadir", "#recycle", "@recycle", "__macosx", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip


class Found(NamedTuple):
    """The files of a folder; none is opened yet."""

    classes: list[str]
    source: str
    """Description of the folder, for messages and the report"""
    files: dict[str, list[tuple[Path, int]]]
    """Files of each split, each with the index of its class"""
    held_out: bool
    """Whether the test split was held out, because the folder has none"""
    metadata: dict[Path, dict[str, str]]
    """Value of each column of metadata.csv, of the files that it names"""


def load(
    name: str, folder: str, test_share: float, test_seed: int, grouping: Grouping | None = None
) -> Dataset:
    """Return every file of each class, including those in subfolders.

    Files that are not images are reported by preprocess. Hidden files and system files are left out
    and counted. Without a test or validation split, a test split is held out.

    Args:
        name: Not used; a parameter of every data set.
        folder: Folder with the images.
        test_share: Share of each class to hold out, in (0, 1).
        test_seed: Seed that selects the images to hold out, in [0, 2**32).
        grouping: Which images are held out together, or none of them.

    Raises:
        PipelineError: A folder is missing, there is only one class, a class has no images in train
            or test, an image is outside the class folders, class folders look like splits, a
            metadata.csv is invalid, or images have no group.
    """
    contents = find(folder, test_share, test_seed, grouping)
    return Dataset(
        classes=contents.classes,
        source=contents.source,
        sizes={split: len(pairs) for split, pairs in contents.files.items()},
        splits={
            split: (
                Example(
                    path.read_bytes(),
                    label,
                    path.relative_to(folder).as_posix(),
                    contents.metadata.get(path, {}),
                )
                for path, label in pairs
            )
            for split, pairs in contents.files.items()
        },
        metadata_columns=list(next(iter(contents.metadata.values()), {})),
    )


def find(folder: str, test_share: float, test_seed: int, grouping: Grouping | None = None) -> Found:
    """Find the splits, classes and files of a folder.

    Args:
        folder: As in `load`.
        test_share: As in `load`.
        test_seed: As in `load`.
        grouping: As in `load`.

    Raises:
        PipelineError: As in `load`.
    """
    top = Path(folder)
    source = f"folder {folder}"
    split_folders, ignored = _split_folders(top)
    if "test" not in split_folders and "validation" in split_folders:
        split_folders["test"] = split_folders.pop("validation")
        source += f" (no {top / 'test'}: {split_folders['test'].name} is the test split)"
    class_folders = {split: _class_folders(path) for split, path in split_folders.items()}
    classes = list(class_folders["train"])
    for folders in class_folders.values():
        if unknown := sorted(set(folders) - set(classes)):
            raise PipelineError(
                f"{folders[unknown[0]]}: no such class in {split_folders['train']}. "
                f"Classes: {first_few(classes)}"
            )
    files: dict[str, list[tuple[Path, int]]] = {}
    left_out = 0
    for split, folders in class_folders.items():
        files[split], count = _labelled_files(split_folders[split], folders, classes)
        left_out += count
    paths = [path for pairs in files.values() for path, _ in pairs]
    _check_readable(paths)
    described = metadata.read([top, *split_folders.values()], paths)
    if described and (count := len(paths) - len(described)):
        source += f" ({counted(count, 'image')} without a row in {metadata.FILE})"
    columns = list(next(iter(described.values()), {}))
    labels = {split: np.array([label for _, label in pairs], int) for split, pairs in files.items()}
    check_classes(
        source, classes, {split: labels[split] for split in labels if split != "validation"}
    )
    held_out = "test" not in files
    if held_out:
        pairs = files["train"]
        ids = [path.relative_to(top).as_posix() for path, _ in pairs]
        values = [described.get(path, dict.fromkeys(columns, "")) for path, _ in pairs]
        groups = grouping.groups(source, ids, values) if grouping else None
        train_rows, test_rows = hold_out_test(
            source, classes, labels["train"], test_share, test_seed, groups
        )
        files = {"train": [pairs[r] for r in train_rows], "test": [pairs[r] for r in test_rows]}
        source += HELD_OUT.format(top / "test", 100 * test_share, test_seed)
    if ignored:
        source += f" ({first_few([str(path) for path in ignored])} not read)"
    if left_out:
        source += f" ({left_out} hidden or system files left out)"
    return Found(classes, source, files, held_out, described)


def _split_folders(top: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return the folder of each split, and the folders that are no split.

    Without train and test folders, the whole folder is the training split.
    """
    folders = _subfolders(top)
    splits: dict[str, Path] = {}
    for path in folders:
        for split, names in SPLITS.items():
            if path.name.casefold() not in names:
                continue
            if split in splits:
                raise PipelineError(
                    f"{top}: {splits[split].name} and {path.name} are both the {split} split. "
                    "Put their images into one folder"
                )
            splits[split] = path
    if not splits.keys() & {"train", "test"}:
        _check_no_splits(top, folders)
        return {"train": top}, []
    others = [path for path in folders if path not in splits.values()]
    splits.setdefault("train", top / "train")  # a missing folder is reported later, by its name
    return {split: splits[split] for split in SPLITS if split in splits}, others


def _check_no_splits(top: Path, folders: list[Path]) -> None:
    """Check that no class folder is named like a split (seg_train, test1)."""
    suspects = {
        path: match.lastgroup
        for path in folders
        if (match := SPLIT_WORD.search(path.name.casefold()))
    }
    nested = [path for path in suspects if _only_subfolders(path)]
    if nested or len(set(suspects.values())) > 1:
        names = first_few([path.name for path in nested or suspects])
        raise PipelineError(
            f"{top}: class folders must not look like splits. Got {names}. Rename split folders to "
            "train, validation and test, or give the classes other names"
        )


def _subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, without hidden and system folders."""
    if not folder.is_dir():
        raise PipelineError(
            f"{folder}: no such folder. Put images in {folder}/<class>/, or name another folder"
        )
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_system_file(p.name))


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.casefold() in SYSTEM_FILES


def _only_subfolders(folder: Path) -> set[str]:
    """Return the subfolder names in lower case; none if the folder also contains files."""
    entries = [p for p in folder.iterdir() if not _is_system_file(p.name)]
    return {p.name.casefold() for p in entries} if all(p.is_dir() for p in entries) else set()


def _class_folders(split: Path) -> dict[str, Path]:
    """Return the folder of each class; names are normalized, so that all splits agree."""
    folders = _subfolders(split)
    # images beside the class folders are an error; other files, such as a README, are not
    extensions = Image.registered_extensions()
    loose = sorted(
        p
        for p in split.iterdir()
        if p not in folders and p.suffix.lower() in extensions and not _is_system_file(p.name)
    )
    if loose:
        raise PipelineError(
            f"{loose[0]}: must be in the folder of a class. Move it into a folder of {split}"
        )
    if not folders:
        raise PipelineError(f"{split}: must contain a folder of images for each class. Got none")
    _check_names(folders)
    _check_not_repeated(split, folders)
    classes: dict[str, Path] = {}
    for folder in folders:
        # macOS stores é as e and an accent, other systems as one character
        name = unicodedata.normalize("NFC", folder.name)
        if name in classes:
            raise PipelineError(
                f"{split}: two folders are named {name}, with different Unicode characters. "
                "Put their images into one folder"
            )
        classes[name] = folder
    return classes


def _check_not_repeated(split: Path, folders: list[Path]) -> None:
    """Check that no two class folders contain the same two or more subfolders.

    Such folders are splits, and their subfolders are the classes. A single common subfolder, such
    as class/images, is accepted.
    """
    seen: dict[frozenset[str], Path] = {}
    for path in folders:
        subfolders = frozenset(_only_subfolders(path))
        if len(subfolders) < 2:
            continue
        if subfolders in seen:
            raise PipelineError(
                f"{split}: class folders must not contain the same folders, as splits do. Got "
                f"{seen[subfolders].name} and {path.name} with {first_few(sorted(subfolders))}. "
                "Rename split folders to train, validation and test, or move the images of each "
                "class out of its subfolders"
            )
        seen[subfolders] = path


def _labelled_files(
    split: Path, folders: dict[str, Path], classes: list[str]
) -> tuple[list[tuple[Path, int]], int]:
    """Return the files of each class with their labels, and how many files are left out."""
    files = []
    system_folders = [p for p in split.iterdir() if p.is_dir() and _is_system_file(p.name)]
    left_out = sum(len(_files_below(folder)) for folder in system_folders)
    for label, name in enumerate(classes):
        for path in _files_below(folders[name]) if name in folders else []:
            if any(map(_is_system_file, path.relative_to(folders[name]).parts)):
                left_out += 1
            else:
                files.append((path, label))
    return files, left_out


def _files_below(folder: Path) -> list[Path]:
    """List all files below a folder, and links to folders, which are not followed."""
    return [p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()]


def _check_readable(paths: list[Path]) -> None:
    _check_names(paths)
    # reading a pipe would block forever; links may be broken or lead to a folder
    unreadable = [str(path) for path in paths if not (path.is_file() and os.access(path, os.R_OK))]
    if unreadable:
        raise PipelineError(
            f"cannot read {counted(len(unreadable), 'file')}: {first_few(unreadable)}. "
            "Fix their permissions or links, or remove them"
        )


def _check_names(paths: list[Path]) -> None:
    # Python represents bytes that are not UTF-8 as surrogates
    if invalid := [os.fsencode(p) for p in paths if re.search("[\ud800-\udfff]", str(p))]:
        raise PipelineError(
            f"{counted(len(invalid), 'name')} must be UTF-8: "
            f"{first_few([repr(n) for n in invalid])}. Rename them"
        )
