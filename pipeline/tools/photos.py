"""Photos: look at a folder of photographs, and set params.yaml up for it.

    python -m pipeline photos ~/pictures          asks before it changes params.yaml
    python -m pipeline photos ~/pictures --yes    does not ask

The folder has one folder of images per class, optionally inside train, validation and test. Every
file is opened. The command prints what it found and the settings that it proposes, each with the
reason: for a small network that is trained from scratch, and a network with ImageNet weights of
which only a new head is trained. `make photos FOLDER=~/pictures` then runs the pipeline.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.params import PARAMS, load
from pipeline.config.schema import Params
from pipeline.config.yaml_reader import parse, reading
from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError, first_few, run
from pipeline.core.files import atomic_path
from pipeline.core.splitting import Grouping
from pipeline.core.text import counted
from pipeline.ingest.datasets import folder as folder_dataset
from pipeline.ingest.datasets.folder import Found
from pipeline.ingest.parquet import check_classes
from pipeline.tools.edit_params import dump, edited, lookup
from pipeline.tools.survey import Survey, survey

MODELS = ["small_photos", "efficientnet_lite"]  # names below `models:` in params.yaml
PICTURES = ["layers", "feature_maps", "grad_cam"]
SIDE = 224  # pixels; EfficientNet-Lite0's ImageNet weights were trained on 224×224
MIN_IMAGES = 5  # of a class: three to train on, one to validate, one to test
MAX_BAD = 0.1  # share of files that are not images; more are a mistake, not a few damaged files
ELONGATED = 2.0  # longer side / shorter side; the center square then holds less than half
# images of the largest class / of the smallest: printed from the first, weighted from the second
MENTIONED, IMBALANCED = 1.1, 5.0
MAX_CLASSES = 20  # classes listed one by one
NAMES = 3  # files listed of each finding


class Proposal(NamedTuple):
    setting: str
    """Such as `preprocess.resize`"""
    value: Any
    reason: str


def share_for(count: int, share: float) -> float:
    """Return the share that holds out at least one of `count` images, at least `share`."""
    return share if count * share >= 1 else math.ceil(100 / count) / 100


def check_class_sizes(top: Path, classes: list[str], counts: np.ndarray, kind: str) -> None:
    """Check that every class has enough images.

    Args:
        top: The folder.
        classes: k names.
        counts: Images of each class that are not in a validation or test folder, `(k,)`.
        kind: Of the images counted, for the error message.

    Raises:
        PipelineError: A class has too few.
    """
    if counts.min() < MIN_IMAGES:
        few = [f"{classes[label]} {counts[label]}" for label in np.flatnonzero(counts < MIN_IMAGES)]
        raise PipelineError(
            f"{top}: each class must have {MIN_IMAGES} or more {kind}, to train, validate and test "
            f"on. Got {first_few(few)}. Add some, or move the folder of the class away"
        )


def find(top: Path, params: Params) -> tuple[Found, float]:
    """Find the files of a folder, and return the share to hold out as test split.

    Raises:
        PipelineError: The folder has no images in two or more classes, or too few of a class.
    """
    grouping = Grouping(params.split.group, params.split.group_pattern)
    # a half: accepts small classes
    found = folder_dataset.find(str(top), 0.5, params.test_seed, grouping)
    labels = [label for split in train_splits(found) for _, label in found.files[split]]
    counts = np.bincount(labels, minlength=len(found.classes))
    check_class_sizes(top, found.classes, counts, "images")
    share = share_for(int(counts.min()), params.test_share) if found.held_out else params.test_share
    return folder_dataset.find(str(top), share, params.test_seed, grouping), share


def train_splits(found: Found) -> list[str]:
    """Return the splits that the training images and held-out images are in."""
    return ["train", "test"] if found.held_out else ["train"]


def check_bad_files(top: Path, found: Found, surveyed: Survey) -> None:
    """Check that most files are valid images, and enough of each class.

    Raises:
        PipelineError: Too many files are not.
    """
    bad, total = surveyed.bad, len(surveyed.files)
    if len(bad) > MAX_BAD * total:
        raise PipelineError(
            f"{top}: at most {100 * MAX_BAD:g} % of the files may be bad, to be left out. Got "
            f"{len(bad)} of {total}: {first_few(bad, '; ')}. Convert or remove them"
        )
    counts = np.sum([surveyed.counts(split) for split in train_splits(found)], axis=0)
    check_class_sizes(top, surveyed.classes, counts, "valid images")
    labels = {
        split: np.array([file.label for file in surveyed.good if file.split == split], int)
        for split in ("train", "test")
    }
    check_classes(str(top), surveyed.classes, labels)


def setting_for_folder(top: Path) -> tuple[str, str]:
    """Return the setting `folder` for an absolute path, and the reason."""
    repository = Path.cwd()
    if top.is_relative_to(repository):
        inside = [top, *top.parents]
        if any(path.with_name(f"{path.name}.dvc").is_file() for path in inside if path.name):
            return top.relative_to(repository).as_posix(), "DVC tracks it"
    return str(top), "absolute, so that no experiment commits images"


def propose(top: Path, surveyed: Survey, params: Params, test_share: float) -> list[Proposal]:
    """Return the settings for a folder, each with its reason, in the order of params.yaml.

    Args:
        top: The folder, an absolute path.
        surveyed: Its files.
        params: The current settings.
        test_share: Share to hold out as test split, if the folder has none.
    """
    folder, folder_reason = setting_for_folder(top)
    counts = surveyed.counts("train")
    resize, resize_reason = propose_resize(surveyed.aspect_ratios())
    validation, validation_reason = params.split.validation, ""
    if "validation" not in surveyed.splits:
        validation = share_for(int(counts.min()), validation)
        validation_reason = "so that every class has a validation image"
    proposals = [
        Proposal("compare", MODELS, "from scratch, against a new head on ImageNet weights"),
        Proposal("dataset", "folder", "your own images"),
        Proposal("folder", folder, folder_reason),
        Proposal("test_share", test_share, "so that every class has a test image"),
        Proposal("preprocess.normalize", "unit", f"{MODELS[1]} needs it"),
        Proposal("preprocess.image_size", [SIDE, SIDE], "the ImageNet weights were trained on it"),
        Proposal("preprocess.resize", resize, resize_reason),
        Proposal("preprocess.dtype", "uint8", "a quarter of the disk space, the same results"),
        Proposal("split.validation", validation, validation_reason),
        propose_class_weights(surveyed.classes, counts, params),
    ]
    if bad := surveyed.bad:
        reason = f"{counted(len(bad), 'bad file')} of {len(surveyed.files):,}, left out"
        proposals.append(Proposal("preprocess.on_bad_image", "skip", reason))
    if params.champion not in ("auto", *MODELS):
        proposals.append(Proposal("champion", "auto", "the best validation accuracy"))
    reason = "gradients and filters of frozen layers show ImageNet, and take longest"
    proposals.append(Proposal("analyze.pictures", PICTURES, reason))
    if not set(params.analyze.models or []) <= set(MODELS):
        proposals.append(Proposal("analyze.models", None, "the first and the last"))
    return proposals


def propose_resize(aspect_ratios: np.ndarray) -> tuple[str, str]:
    """Return how to resize, and the reason.

    Args:
        aspect_ratios: Longer side divided by the shorter of each image, `(n,)`.
    """
    median = float(np.median(aspect_ratios))
    elongated = float((aspect_ratios > ELONGATED).mean())
    if elongated > 0.1:
        reason = f"{100 * elongated:.0f} % are more than twice as long as wide; crop would cut half"
        return "pad", reason
    if median == 1:
        return "crop", "keeps the shape of objects; most images are square"
    lost = 100 * (1 - 1 / median)
    return "crop", f"keeps the shape of objects; cuts off {lost:.0f} % of the median image"


def propose_class_weights(classes: list[str], counts: np.ndarray, params: Params) -> Proposal:
    """Propose weights if classes differ much in size.

    Args:
        classes: k names.
        counts: Training images of each class, `(k,)`.
        params: The current settings.
    """
    ratio = counts.max() / counts.min()
    if ratio >= IMBALANCED:
        reason = f"{classes[counts.argmax()]} has {ratio:.0f} times the images of "
        return Proposal("train.class_weights", "balanced", reason + f"{classes[counts.argmin()]}")
    current = params.train.class_weights
    if isinstance(current, dict) and set(current) != set(classes):
        current = None
    return Proposal("train.class_weights", current, "the current weights name other classes")


def print_classes(surveyed: Survey) -> None:
    """Print the number of valid images of each class and split; of many classes the smallest."""
    splits = surveyed.splits
    by_split = {split: surveyed.counts(split) for split in splits}
    bad = np.bincount(
        np.array([file.label for file in surveyed.files if not file.header], int),
        minlength=len(surveyed.classes),
    )
    order = list(range(len(surveyed.classes)))
    title = ""
    if len(order) > MAX_CLASSES:
        title = f"The {MAX_CLASSES} smallest of {len(order)} classes"
        order = sorted(order, key=lambda label: by_split["train"][label])[:MAX_CLASSES]
    columns = [Column("class"), *(Column(split, numeric=True) for split in splits)]
    rows = [
        [surveyed.classes[label], *(f"{by_split[split][label]:,}" for split in splits)]
        for label in order
    ]
    total = ["all classes", *(f"{by_split[split].sum():,}" for split in splits)]
    if bad.any():
        columns.append(Column("bad files", numeric=True))
        for row, label in zip(rows, order, strict=True):
            row.append(f"{bad[label]:,}")
        total.append(f"{bad.sum():,}")
    print_table(columns, rows, title, total)


def findings(surveyed: Survey, top: Path) -> list[tuple[str, str]]:
    """Return what else is to know about the images: a name and a text each."""
    sizes = surveyed.sizes()
    texts = ["×".join(map(str, sizes[row])) for row in (0, len(sizes) // 2, -1)]
    rows = [
        ("folder", str(top)),
        ("height×width", "smallest {}, median {}, largest {}".format(*texts)),
        ("aspect ratio", _describe_ratios(surveyed.aspect_ratios())),
    ]
    counts, classes = surveyed.counts("train"), surveyed.classes
    largest, smallest = counts.argmax(), counts.argmin()
    if (ratio := counts[largest] / counts[smallest]) >= MENTIONED:
        ends = [f"{classes[label]} {counts[label]:,}" for label in (largest, smallest)]
        rows.append(("imbalance", f"{ratio:.1f} : 1 in train ({', '.join(ends)})"))
    duplicates = surveyed.duplicates()
    for name, noun, meaning, names in (
        ("bad files", "file", "", surveyed.bad),
        ("several frames", "file", "The first frame is used. ", surveyed.multi_frame()),
        ("in two classes", "image", "Contradictory labels: keep one. ", duplicates["classes"]),
        ("in two splits", "image", "Leaks: keep one. ", duplicates["splits"]),
        ("duplicates", "image", "The same file twice or more. ", duplicates["class"]),
    ):
        if names:
            shown = "; ".join(names[:NAMES]) + (" …" if len(names) > NAMES else "")
            rows.append((name, f"{counted(len(names), noun)}. {meaning}{shown}"))
    rows += [("bad files", "none")] * (not surveyed.bad)
    rows += [("duplicates", "none")] * (not any(duplicates.values()))
    return rows


def _describe_ratios(ratios: np.ndarray) -> str:
    return f"median {np.median(ratios):.2f}, 90 % up to {np.quantile(ratios, 0.9):.2f}"


def confirm(yes: bool) -> None:
    """Ask whether to change params.yaml.

    Raises:
        PipelineError: The answer is no.
    """
    if yes:
        return
    try:
        answer = input(
            f"Write these settings to {PARAMS} (`make photos` then runs the pipeline)? [y/N] "
        )
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise PipelineError(
            f"{PARAMS}: not changed. Run the command again and answer y to change it"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with one folder of images per class")
    parser.add_argument("--yes", action="store_true", help="change params.yaml without asking")
    args = parser.parse_args(argv)
    params = load()
    top = args.folder.expanduser().resolve()

    found, test_share = find(top, params)
    # before every file is opened
    if not args.yes and not sys.stdin.isatty():
        raise PipelineError(
            f"photos: no terminal to ask on before {PARAMS} is changed. Add --yes to change it, "
            "or YES=1 to make photos"
        )
    surveyed = survey(found, top, params.preprocess.max_megapixels)
    check_bad_files(top, found, surveyed)
    print_classes(surveyed)
    print_table([Column("images"), Column("found")], findings(surveyed, top))
    text = PARAMS.read_text("utf-8")
    current = parse(text)
    changes = [
        proposal
        for proposal in propose(top, surveyed, params, test_share)
        if lookup(current, proposal.setting) != proposal.value
    ]
    if not changes:
        print(f"photos: {PARAMS} has the proposed settings already")
        return
    columns = [Column(heading) for heading in ("setting", "now", "proposed", "because")]
    rows = [
        [setting, dump(lookup(current, setting)), dump(value), reason]
        for setting, value, reason in changes
    ]
    print_table(columns, rows, "Proposed settings")
    confirm(args.yes)
    with reading(PARAMS):
        text = edited(text, {proposal.setting: proposal.value for proposal in changes})
    with atomic_path(PARAMS) as temporary:
        temporary.write_text(text, "utf-8")
        load(temporary)
    print(f"photos: {counted(len(changes), 'setting')} changed -> {PARAMS}")


if __name__ == "__main__":
    run(main)
