"""Model card: read by Hugging Face's own package, without a network."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from pipeline import model_card
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.data.preprocessor import store
from tests.test_report import CLASSES, PREPROCESSOR, SCRIPT, write_outputs

ARGUMENTS = (
    "--model champion.keras --export export --train-sums arrays/train/SHA256SUMS "
    "--test-sums arrays/test/SHA256SUMS --split split.json --comparison comparison.json "
    "--champion champion.json --test test --exports export.json --label-counts label_counts.json "
    "--out card"
).split()
# of the training that champion.keras is
TRAINING = {
    "seed": 0, "accuracy": 0.833333333, "f1": 0.8, "loss": 0.45, "loss_uncalibrated": 0.6,
    "calibration_error": 0.1, "calibration_error_uncalibrated": 0.2, "temperature": 1.5,
}  # fmt: skip


@pytest.fixture
def inputs(project: Path) -> Path:
    """The outputs of a run with names that look like markup; batchnorm is the champion."""
    write_outputs(project)
    model = project / "champion.keras"
    zipfile.ZipFile(model, "w").close()
    store(model, PREPROCESSOR)
    (project / "export").mkdir()
    (project / "export/champion.onnx").write_bytes(b"onnx")
    path = project / "test/batchnorm.json"
    test = json.loads(path.read_text())
    test["seeds"][0] |= {**TRAINING, "sha256": sha256(model)}
    for row, recall in zip(test["classes"], (1.0, 0.25, 0.5), strict=True):
        row["recall"] = recall
    path.write_text(json.dumps(test))
    return project


def read(folder: Path) -> str:
    """Return the text of a card with simple spaces."""
    text = (folder / "card/README.md").read_text("utf-8")
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_hugging_face_reads_the_results_of_the_file_from_the_metadata(inputs):
    model_card.main(ARGUMENTS)
    card = ModelCard.load(inputs / "card/README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("keras", "image-classification")
    assert (data.model_name, data.tags) == ("batchnorm", ["onnx"])
    assert data.license is None  # the user's decision; a comment shows where
    assert read(inputs).startswith("---\n# license: ")
    results = {result.metric_type: result for result in data.eval_results}
    assert {kind: result.metric_value for kind, result in results.items()} == {
        "accuracy": 0.833333, "f1": 0.8, "loss": 0.45,
    }  # fmt: skip
    accuracy = results["accuracy"]
    assert (accuracy.dataset_type, accuracy.dataset_name) == ("digits", "digits")
    assert (accuracy.dataset_split, accuracy.metric_name) == ("test", "accuracy, seed 0")
    # written and read again, nothing is lost
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_a_folder_is_named_as_hugging_face_names_folders_of_images(inputs, edit):
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: data/pets")
    model_card.main(ARGUMENTS)
    (result, *_) = ModelCard.load(inputs / "card/README.md").data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("imagefolder", "the folder pets")


def test_the_text_has_data_results_calibration_and_limits(inputs):
    model_card.main(ARGUMENTS)
    text = read(inputs)
    sums = (inputs / "arrays/train/SHA256SUMS").read_text().split()
    assert "| train | 8 |\n| validation | 3 |\n| test | 6 |\n" in text
    assert f"`data/arrays/train/images.npy`, training and validation: `{sums[0]}`" in text
    assert "**Cannot tell whether batchnorm is better or worse than baseline: between " in text
    assert "| batchnorm | 9,000 | 3 | 83.0 % ± 1.2 | 73.0 % to 93.0 % | +33.0 " in text
    assert "the training with seed 0,\nwhich classifies 83.3 % correctly; all 3 trainings: " in text
    assert "the temperature 1.5, which" in text
    assert "divided by the temperature 1.5 before softmax.\n" in text
    assert "from 0.600 to\n0.450, and the calibration error (15 bins) from 20.0 % to 10.0 %" in text
    assert "- 1 test image has a duplicate in training or validation, exact or near.\n" in text
    assert "Without it, the accuracy is 40.0 % (baseline), 60.0 % (batchnorm)." in text
    assert "0 test images, and\n  1 of the 3,000 training images that a seed held out." in text
    assert "| champion.tflite | missing: no \\<words\\> for this |" in text
    assert (
        "The probabilities of champion.onnx differ from those of Keras by at most 1.2e-06" in text
    )
    # the lowest accuracy first
    assert text.index("| NA | 2 | 25.0 % |") < text.index("co | 2 | 50.0 % |")
    assert "learning_rate: 0.001" in text.partition("```yaml\n")[2].partition("```")[0]


def test_without_validation_images_there_is_no_temperature(inputs):
    path = inputs / "split.json"
    split = json.loads(path.read_text())
    split["rows"]["validation"] = 0
    path.write_text(json.dumps(split))
    model_card.main(ARGUMENTS)
    text = read(inputs)
    assert "| train | 8 |\n| test | 6 |\n\nThere are no validation images.\n" in text
    assert "without a temperature, since" in text
    assert text.endswith("It returns\nlogits.\n")
    assert "validation: `" not in text


def test_names_are_plain_text_in_the_page(inputs):
    model_card.main(ARGUMENTS)
    body = (inputs / "card/README.md").read_text("utf-8").partition("\n---\n")[2]
    page = MarkdownIt("commonmark").enable("table").render(body)
    assert SCRIPT not in page
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in page
    assert "<td>7 &quot;$x$&quot; &amp; co</td>" in page
    assert page.count("<table>") == 4


def test_the_folder_has_the_files_and_their_checksums(inputs):
    model_card.main(ARGUMENTS)
    folder = inputs / "card"
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "README.md", "SHA256SUMS", "champion.keras", "champion.onnx", "classes.txt"
    }  # fmt: skip
    assert (folder / "classes.txt").read_text("utf-8").splitlines() == CLASSES
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    # not of the card, to which a license is added
    summed = files - {"README.md", "SHA256SUMS"}
    assert {name: digest for digest, name in lines} == {n: sha256(folder / n) for n in summed}
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_a_model_that_was_not_evaluated_is_refused(inputs):
    with zipfile.ZipFile(inputs / "champion.keras", "a") as archive:
        archive.writestr("other", "")
    with pytest.raises(PipelineError, match=r"keras: not the file that was evaluated\. Run `dvc"):
        model_card.main(ARGUMENTS)
    assert not (inputs / "card").exists()


def test_it_leaves_no_trace_outside_and_repeats_to_the_byte(inputs, stage, hostile):
    contents: list[dict[str, bytes]] = []
    environments: list[dict[str, str]] = [{}, hostile]
    for env in environments:
        home = inputs / f"home{len(contents)}"
        home.mkdir()
        done = stage("pipeline.model_card", *ARGUMENTS, **{**env, "HOME": str(home)})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "model_card: batchnorm: 5 files -> card\n"
        assert list(home.iterdir()) == []  # no cache, no token
        contents.append({path.name: path.read_bytes() for path in (inputs / "card").iterdir()})
    assert contents[0] == contents[1]
