"""Label issues: rank the images whose labels are probably wrong."""

import numpy as np

from pipeline import label_issues
from pipeline.core.files import read_json
from pipeline.data import predictions
from pipeline.data.predictions import Predictions
from pipeline.ingest import corrections
from tests.conftest import write_arrays

CLASSES = ["cat, big", "7"]


def predicted(splits: str, ids: list[str], labels: list[int], sure: list[float]) -> Predictions:
    """Return predictions with a probability of class 7 of each image."""
    probabilities = np.stack([1 - np.array(sure), sure], axis=1)
    return Predictions(
        CLASSES,
        np.array(splits.split()),
        np.array(ids, object),
        np.array(labels),
        np.log(probabilities).astype(np.float32),
    )


def test_trainings_are_averaged_over_the_images_that_they_held_out():
    first = predicted("test test", ["a", "b"], [0, 1], [0.1, 0.8])
    second = predicted("test test", ["c", "a"], [1, 0], [0.9, 0.6])
    held_out = label_issues.collect([first, second])
    assert held_out.ids == ["a", "b", "c"]
    assert held_out.labels.tolist() == [0, 1, 1]
    assert np.allclose(held_out.probabilities[:, 1], [0.35, 0.8, 0.9])
    assert held_out.votes.tolist() == [[1, 1], [0, 1], [0, 1]]


def test_the_stage_ranks_train_and_test_and_relabel_reads_its_table(project, edit, quick_stage):
    edit("seeds: [0]", "seeds: [0, 1]")
    write_arrays(project / "arrays/train", np.zeros((9, 1, 1, 1), np.float32), np.zeros(9, int))
    write_arrays(project / "arrays/test", np.zeros((6, 1, 1, 1), np.float32), np.zeros(6, int))
    test = [f"test/{row}.png" for row in range(6)]
    # Seed 0 holds out images 0 to 3, and seed 1 images 2 to 5. Image 2 is labelled with the first
    # class, but three of four trainings predict the second. Its mean probability is 0.725, and 0.7
    # for the images that are labelled with it.
    held_out = {0: ([0, 0, 0, 1], [0.1, 0.1, 0.9, 0.7]), 1: ([0, 1, 0, 1], [0.7, 0.7, 0.1, 0.7])}
    for model, change in (("baseline", 0.0), ("batchnorm", 0.3)):
        for seed, (labels, second_class) in held_out.items():
            train = [f"train/{row}.png" for row in range(2 * seed, 2 * seed + 4)]
            second_class[0] -= change * seed
            table = predicted(
                "validation " * 4 + "test " * 6, train + test, labels + [0, 0, 0, 1, 1, 1],
                second_class + [0.1, 0.1, 0.2, 0.9, 0.8, 0.9],
            )  # fmt: skip
            predictions.write(project / f"predictions/{model}/{seed}.parquet", table)
    done = quick_stage(
        "pipeline.label_issues",
        *"--predictions predictions --arrays arrays --issues issues --metrics m.json".split(),
    )
    assert done.stdout == (
        "label_issues: labels that are probably wrong: 1 of 6 held-out training images (9 in all), "
        "0 of 6 test images -> issues\n"
    ), done.stderr
    assert (project / "issues/train.csv").read_text() == (
        'id,label,given,score,agree,trainings\ntrain/2.png,7,"cat, big",0.45,3,4\n'
    )
    assert (project / "issues/test.csv").read_text() == "id,label,given,score,agree,trainings\n"
    assert read_json(project / "m.json") == {
        "train": {"images": 9, "held_out": 6, "issues": 1},
        "test": {"images": 6, "held_out": 6, "issues": 0},
    }
    ids = [f"train/{row}.png" for row in range(9)]
    relabeled = corrections.read(None, "issues/train.csv", ids, CLASSES)
    assert relabeled.labels == {"train/2.png": 1}
