"""Photos: what is in a folder of images, the settings that are proposed, and params.yaml."""

import builtins
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.config import params
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.ingest.datasets import folder as folder_dataset
from pipeline.tools import photos, survey
from tests.conftest import REPOSITORY


def save(path: Path, size: tuple[int, int], value: int, mode: str = "RGB", **options: Any) -> Path:
    """Write an image of one color and `size` = (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = value if mode == "L" else (value,) * len(mode)
    Image.new(mode, size, color).save(path, **options)
    return path


def fill(top: Path, **counts: int) -> Path:
    """Write small images, all different: as many per class as given."""
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            save(top / name / f"{number:03}.png", (40 + label, 40 + number), label)
    return top


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FLOWERS = ("aster", "daisy", "iris", "lily", "poppy", "rose", "tulip")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Seven classes with hard cases; 100 asters and 5 of each other flower are valid images.

    Every sixth aster is in portrait format; the daisies are grayscale; an iris is stored lying on
    its side; a lily is CMYK; a poppy is damaged; two roses are the same file; a tulip is also among
    the roses; another tulip is animated.
    """
    top = tmp_path / "flowers"
    for number in range(100):
        length = 40 + number % 20  # less than twice as long as wide
        size = (30, length) if number % 6 == 0 else (length, 30)
        save(top / f"aster/{number:03}.jpg", size, 2 * number)
    for number in range(5):
        save(top / f"daisy/{number}.png", (20 + number, 20), 90, "L")
        save(top / f"iris/{number}.jpg", (48, 36 + number), 60)
        save(top / f"lily/{number}.jpg", (32 + number, 24), 200)
        save(top / f"poppy/{number}.png", (24, 24 + number), 30)
    for number in range(4):
        save(top / f"rose/{number}.png", (16, 21 + number), 220)
        save(top / f"tulip/{number}.png", (15, 21 + number), 240)
    save(top / "iris/0.jpg", (48, 36), 60, exif=rotated(6))
    save(top / "lily/0.jpg", (32, 24), 40, "CMYK")
    (top / "poppy/damaged.png").write_bytes((top / "poppy/0.png").read_bytes()[:60])
    shutil.copy(top / "rose/0.png", top / "rose/copy.png")
    shutil.copy(top / "rose/1.png", top / "tulip/copy.png")
    frame = Image.new("L", (15, 30))
    frame.save(top / "tulip/3.gif", save_all=True, append_images=[Image.new("L", (15, 30), 255)])
    (top / "tulip/3.png").unlink()
    return top


def look(top: Path, test_share: float = 0.2) -> survey.Survey:
    return survey.survey(folder_dataset.find(str(top), test_share, 0), top, 250)


def test_the_survey_counts_images_of_each_class_and_split(flowers, estimates):
    surveyed = look(flowers)
    assert estimates == [("photos", 131, number) for number in range(131)]
    assert surveyed.classes == list(FLOWERS)
    assert surveyed.counts().tolist() == [100, 5, 5, 5, 5, 5, 5]
    # a fifth of 131 files is held out, rounded up: 27, one of each small class
    assert surveyed.counts("test").tolist()[:4] == [21, 1, 1, 1]
    assert surveyed.splits == ["train", "test"]


def test_the_survey_names_bad_animated_and_identical_files(flowers):
    surveyed = look(flowers)
    (bad,) = surveyed.bad
    assert bad.startswith("poppy/damaged.png is damaged (")
    assert surveyed.multi_frame() == ["tulip/3.gif"]
    duplicates = surveyed.duplicates()
    (conflict,) = duplicates["classes"]
    assert set(conflict.split(" = ")) == {"rose/1.png", "tulip/copy.png"}
    (same,) = duplicates["splits"] + duplicates["class"]
    assert set(same.split(" = ")) == {"rose/0.png", "rose/copy.png"}


def test_it_says_so_if_no_file_is_bad_or_a_duplicate(tmp_path):
    fill(tmp_path, cat=5, dog=5)
    found = dict(photos.findings(look(tmp_path), tmp_path))
    assert (found["bad files"], found["duplicates"]) == ("none", "none")
    shutil.copy(tmp_path / "cat/000.png", tmp_path / "dog/copy.png")
    found = dict(photos.findings(look(tmp_path), tmp_path))
    assert found["in two classes"].startswith("1 image. ")
    assert "duplicates" not in found


def test_the_survey_measures_images_as_they_are_seen(tmp_path):
    # a picture of 8×24 pixels, stored lying on its side, and two others
    save(tmp_path / "a/1.jpg", (24, 8), 0, exif=rotated(6))
    save(tmp_path / "a/2.png", (10, 10), 0)
    save(tmp_path / "b/1.png", (30, 20), 0)
    save(tmp_path / "b/2.png", (7, 7), 0)
    surveyed = look(tmp_path, 0.5)
    assert surveyed.sizes().tolist() == [[7, 7], [10, 10], [24, 8], [20, 30]]
    assert surveyed.aspect_ratios().tolist() == [1, 1, 3, 1.5]


def test_identical_files_in_train_and_test_are_leaks(tmp_path):
    fill(tmp_path / "train", cat=5, dog=5)
    fill(tmp_path / "test", cat=2, dog=1)
    kinds = look(tmp_path).duplicates()
    assert kinds == {
        "classes": [], "class": [],
        "splits": ["train/cat/000.png = test/cat/000.png", "train/cat/001.png = test/cat/001.png",
                   "train/dog/000.png = test/dog/000.png"],
    }  # fmt: skip


def test_of_many_identical_files_three_are_named(tmp_path):
    fill(tmp_path, cat=5, dog=5)
    for number in range(4):
        shutil.copy(tmp_path / "cat/000.png", tmp_path / f"cat/copy_{number}.png")
    kinds = look(tmp_path).duplicates()
    (names,) = kinds["splits"] + kinds["class"]
    assert names.endswith(" = 2 more")
    assert names.count(" = ") == 3


def proposals(top: Path, **counts: int) -> dict[str, tuple[Any, str]]:
    fill(top, **counts)
    settings = params.load()
    found, share = photos.find(top, settings)
    surveyed = survey.survey(found, top, 250)
    return {
        setting: (value, reason)
        for setting, value, reason in photos.propose(top, surveyed, settings, share)
    }


def test_settings_for_photographs_are_proposed(project):
    proposed = proposals(project / "p", cat=10, dog=10)
    values = {setting: value for setting, (value, _) in proposed.items()}
    assert values == {
        "compare": ["small_photos", "efficientnet_lite"], "dataset": "folder",
        "folder": str(project / "p"), "test_share": 0.2, "preprocess.normalize": "unit",
        "preprocess.image_size": [224, 224], "preprocess.resize": "crop",
        "preprocess.dtype": "uint8", "split.validation": 0.2, "train.class_weights": None,
        "analyze.pictures": ["layers", "feature_maps", "grad_cam"],
    }  # fmt: skip


def test_more_is_held_out_of_small_classes(project):
    # a fifth of 5 images is 1 to test; a quarter of the other 4 is 1 to validate
    proposed = proposals(project / "p", cat=5, dog=5)
    assert (proposed["test_share"][0], proposed["split.validation"][0]) == (0.2, 0.25)
    assert photos.share_for(3, 0.2) == 0.34
    assert photos.share_for(10, 0.2) == 0.2


def test_class_weights_are_proposed_for_imbalanced_classes(project):
    # 20 % of 50 and of 10 are held out: 40 and 8 to train
    value, reason = proposals(project / "p", cat=50, dog=10)["train.class_weights"]
    assert (value, reason) == ("balanced", "cat has 5 times the images of dog")


def test_class_weights_of_other_classes_are_removed(project, edit):
    edit("class_weights:", "class_weights: {tree: 2.0, house: 1.0}")
    assert proposals(project / "p", cat=10, dog=10)["train.class_weights"][0] is None


def test_names_of_other_models_are_removed(project, edit):
    edit("champion: auto", "champion: baseline")
    edit("  models:\n  # Any", "  models: [batchnorm]\n  # Any")
    proposed = proposals(project / "p", cat=10, dog=10)
    assert (proposed["champion"][0], proposed["analyze.models"][0]) == ("auto", None)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0, 1.0, 1.5], ("crop", "keeps the shape of objects; most images are square")),
        ([1.25] * 3, ("crop", "keeps the shape of objects; cuts off 20 % of the median image")),
        # one of ten is not more than a tenth
        ([1.5] * 9 + [3.0],
         ("crop", "keeps the shape of objects; cuts off 33 % of the median image")),
        ([1.5] * 3 + [3.0],
         ("pad", "25 % are more than twice as long as wide; crop would cut half")),
    ],
)  # fmt: skip
def test_elongated_images_are_padded_and_others_are_cropped(ratios, expected):
    assert photos.propose_resize(np.array(ratios)) == expected


def test_a_folder_that_dvc_tracks_keeps_its_relative_path(project):
    (project / "mine/cats").mkdir(parents=True)
    assert photos.setting_for_folder(project / "mine/cats")[0] == str(project / "mine/cats")
    (project / "mine.dvc").touch()
    assert photos.setting_for_folder(project / "mine/cats") == ("mine/cats", "DVC tracks it")
    assert photos.setting_for_folder(Path("/data/mine"))[0] == "/data/mine"


def damage(top: Path, *names: str) -> None:
    for name in names:
        (top / name).write_text("not an image")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda top: None, r"p: no such folder\. Put images in .*/<class>/"),
        (lambda top: fill(top, cat=9), r"must have 2 or more classes\. Got only cat\. Add another"),
        (lambda top: fill(top, cat=9, dog=9) and (top / "empty").mkdir(),
         r"images of every class\. Got none of empty\. Add some, or remove the class"),
        (lambda top: fill(top, cat=9, dog=9, owl=3),
         r"p: each class must have 5 or more images, .*\. Got owl 3\. Add some, or move"),
        (lambda top: save(fill(top, cat=9, dog=9) / "x.jpg", (4, 4), 0),
         r"x\.jpg: must be in the folder of a class\. Move it into a folder"),
        (lambda top: damage(fill(top, cat=9, dog=9), *[f"cat/00{n}.png" for n in range(8)]),
         r"p: at most 10 % of the files may be bad.*Got 8 of 18: cat/00\d\.png is not an image"),
        (lambda top: damage(fill(top, cat=50, dog=5), "dog/001.png"),
         r"p: each class must have 5 or more valid images, .* Got dog 4\."),
    ],
    ids=["no folder", "one class", "empty class", "three images", "at the top", "bad", "bad class"],
)  # fmt: skip
def test_an_unsuitable_folder_is_refused_with_the_remedy(project, prepare, message):
    prepare(project / "p")
    before = (project / "params.yaml").read_text()
    with pytest.raises(PipelineError, match=message) as error:
        photos.main([str(project / "p"), "--yes"])
    assert "\n" not in str(error.value)
    assert (project / "params.yaml").read_text() == before


def test_a_few_bad_files_are_listed_and_left_out(project, capsys):
    damage(fill(project / "p", cat=50, dog=50), "cat/007.png")
    photos.main([str(project / "p"), "--yes"])
    assert (
        "1 file. cat/007.png is not an image, or has an unknown format" in capsys.readouterr().out
    )
    assert params.load().preprocess.on_bad_image == "skip"


def test_only_the_changed_lines_of_params_yaml_change(project, capsys):
    before = (project / "params.yaml").read_text().splitlines()
    fill(project / "p", cat=10, dog=10)
    photos.main([str(project / "p"), "--yes"])
    after = (project / "params.yaml").read_text().splitlines()
    assert [line for line in after if line not in before] == [
        "compare: [small_photos, efficientnet_lite]", "dataset: folder", f"folder: {project / 'p'}",
        "  image_size: [224, 224]", "  resize: crop", "  dtype: uint8",
        "  pictures: [layers, feature_maps, grad_cam]",
    ]  # fmt: skip
    assert len(after) == len(before)
    assert "photos: 7 settings changed -> params.yaml" in capsys.readouterr().out
    photos.main([str(project / "p"), "--yes"])
    assert "params.yaml has the proposed settings already" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["", "n", "no"])
def test_nothing_changes_without_a_yes(project, monkeypatch, answer):
    before = (project / "params.yaml").read_text()
    fill(project / "p", cat=10, dog=10)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda prompt: answer)
    with pytest.raises(PipelineError, match=r"params\.yaml: not changed\. Run the command again"):
        photos.main([str(project / "p")])
    assert (project / "params.yaml").read_text() == before


def test_the_end_of_input_is_no_answer(monkeypatch):
    def end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(builtins, "input", end)
    with pytest.raises(PipelineError, match=r"params\.yaml: not changed"):
        photos.confirm(yes=False)


def test_without_a_terminal_it_refuses_before_it_opens_files_but_not_before_the_folder(
    project, stage
):
    done = stage("pipeline", "photos", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: \S+/nowhere: no such folder\. .*name another folder\n", done.stderr
    )
    fill(project / "p", cat=10, dog=10)
    for image in (project / "p/dog").iterdir():
        image.write_bytes(b"")  # bad files would be the error if they were opened
    done = stage("pipeline", "photos", "p")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: photos: no terminal to ask on before params.yaml is changed. "
        "Add --yes to change it, or YES=1 to make photos\n"
    )


def test_invalid_settings_are_reported_and_params_yaml_stays(project, edit):
    fill(project / "p", cat=10, dog=10)
    edit("  small_photos:\n", "  renamed:\n")
    before = (project / "params.yaml").read_text()
    with pytest.raises(PipelineError, match=r"compare must contain names from `models:`.*small_ph"):
        photos.main([str(project / "p"), "--yes"])
    assert (project / "params.yaml").read_text() == before


def test_a_table_of_many_classes_has_the_smallest(project, capsys):
    counts = {f"c{number:02}": 5 + number for number in range(25)}
    fill(project / "p", **counts)
    photos.main([str(project / "p"), "--yes"])
    printed = capsys.readouterr().out
    assert "The 20 smallest of 25 classes" in printed
    assert "c19 " in printed
    assert "c20 " not in printed


@pytest.mark.slow
def test_hard_cases_pass_the_first_stages_with_the_right_counts(
    flowers, project, stage: Callable[..., subprocess.CompletedProcess[str]]
):
    done = stage("pipeline", "photos", str(flowers), "--yes")
    assert done.returncode == 0, done.stderr
    for row in ("│ aster       │    79 │   21 │         0 │", "imbalance", "poppy/damaged.png"):
        assert row in done.stdout
    shutil.copytree(REPOSITORY / "pretrained", project / "pretrained")
    for command in (
        ["download", "--raw", "raw"],
        ["preprocess", "--raw", "raw", "--arrays", "arrays"],
        ["split", "--arrays", "arrays", "--split", "split", "--metrics", "split.json"],
    ):
        done = stage(f"pipeline.{command[0]}", *command[1:])
        assert done.returncode == 0, done.stderr
    metrics = read_json(project / "split.json")
    table = pd.DataFrame(metrics["classes"]).set_index("class")
    assert table.sum(axis=1).to_dict() == dict.fromkeys(FLOWERS, 5) | {"aster": 100}
    assert (table > 0).all(axis=None)
    assert sum(metrics["skipped"].values()) == 1
    assert sum(metrics["multi_frame"].values()) == 1
    info = read_json(project / "arrays/info.json")
    assert info["image_shape"] == [224, 224, 3]
    images = np.load(project / "arrays/train/images.npy")
    labels = np.load(project / "arrays/train/labels.npy")
    assert images.dtype == np.uint8
    # gray images among color
    assert (images[labels == FLOWERS.index("daisy")] == 90).all()
