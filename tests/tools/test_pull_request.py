"""Pull request: two revisions in a real Git repository, without a remote."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.reporting.chart_style import mean_curves
from pipeline.stats.correctness import pack
from pipeline.tools import pull_request
from tests.conftest import REPOSITORY, write_predictions
from tests.test_report import curves, difference_to_reference, model_row
from tests.tools.test_gate import commit, run

CLASSES = ["cat", "dog"]
LABELS = np.arange(30) % 2
# the numbers of the test images that each training misclassifies
WRONG_THERE = [[0, 1, 2], [1, 2], [1, 4]]
WRONG_HERE = [[0, 2, 3], [2, 3], [3, 5]]


def write_run(model: str, wrong: list[list[int]]) -> None:
    """Write the outputs of a run whose champion misclassifies these images."""
    correct = np.array([~np.isin(np.arange(30), images) for images in wrong])
    names = np.array(CLASSES)
    actual = names[LABELS]
    seeds = [{"seed": seed, "correct": pack(row, actual)} for seed, row in enumerate(correct)]
    difference = difference_to_reference("cannot tell", 0.01)
    rows = [model_row("baseline", 0.9), model_row("batchnorm", 0.91, **difference)]
    files = {
        "champion.json": {"model": model},
        "comparison.json": {"models": rows, "level": 0.95},
        f"test/{model}.json": {"accuracy": float(correct.mean()), "seeds": seeds},
    }
    for name, content in files.items():
        path = Path("metrics") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    table = pd.concat(
        pd.DataFrame({
            "seed": seed,
            "id": [f"test/a_{number}|.png" for number in range(30)],
            "actual": actual,
            "predicted": names[np.where(row, LABELS, 1 - LABELS)],
            "confidence": 0.9,
        })
        for seed, row in enumerate(correct)
    )  # fmt: skip
    write_predictions(Path("data/predictions") / model, table, CLASSES)
    Path("plots").mkdir(exist_ok=True)
    accuracies = [("baseline", np.array([1.47, 0.75])), ("batchnorm", np.array([1.2, 0.6, 0.3]))]
    histories = pd.concat(curves(name, seed, loss) for name, loss in accuracies for seed in (0, 1))
    histories.to_csv("plots/learning_curves.csv", index=False)


@pytest.fixture
def two_revisions(project: Path) -> Path:
    """A repository whose branch main has other results than its working tree."""
    (project / ".gitignore").write_text("data/\nplots/\n")
    run("git", "init", "-q", "-b", "main")
    write_run("baseline", WRONG_THERE)
    commit()
    write_run("batchnorm", WRONG_HERE)
    return project


def test_an_image_is_right_if_most_trainings_are():
    here = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0]], bool)
    there = np.array([[1, 1, 1, 0], [1, 0, 1, 0]], bool)
    wrong, right = pull_request.changed_images(here, there)
    # half of the trainings is not most of them
    assert (wrong.tolist(), right.tolist()) == ([0], [1])


def test_the_verdict_and_the_images_that_changed_are_listed(two_revisions, capsys):
    pull_request.main(["--against", "main"])
    page = capsys.readouterr().out
    assert page.startswith("## Results against main\n\n**Cannot tell whether batchnorm is better")
    # 6 and 7 of 90 predictions are wrong
    assert re.search(
        r"^Champion: batchnorm 92\.2 %, main's baseline 92\.2 %, p 1: cannot tell: between −.* and "
        r"\+.* points; .*\.$", page, re.M
    )  # fmt: skip
    assert page.partition("### Newly wrong")[2].partition("### Learning")[0] == (
        ": 1 test image of 30\n\n"
        "| image | class | predicted | correct here | correct there |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| test/a\\_3\\|.png | dog | cat | 0 of 3 | 3 of 3 |\n\n"
        "### Newly right: 1 test image of 30\n\n"
        "| image | class | predicted | correct here | correct there |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| test/a\\_1\\|.png | dog | dog | 3 of 3 | 0 of 3 |\n\n"
        "An image counts as right if more than half of the trainings are correct.\n\n"
    )


def test_learning_curves_are_a_chart_that_github_draws(two_revisions, capsys):
    pull_request.main(["--against", "main"])
    chart = capsys.readouterr().out.partition("### Learning curves\n\n")[2].splitlines()
    assert chart[0] == (
        "Accuracy in % (validation), mean over the trainings: 🟦 baseline, 🟧 batchnorm"
    )
    assert (chart[2], chart[-1]) == ("```mermaid", "```")
    settings = yaml.safe_load(chart[4])["config"]["themeVariables"]["xyChart"]
    assert settings == {"plotColorPalette": "#2f7ed8, #d97706"}
    # validation accuracies are 1 - 1.1 loss / 3
    assert chart[6:-1] == [
        "xychart-beta", "  x-axis epoch [1, 2, 3]", "  y-axis 46 --> 100",
        "  line [46.10, 72.50]", "  line [56.00, 78.00, 89.00]",
    ]  # fmt: skip


def test_a_long_training_is_thinned_to_epochs_up_to_the_last():
    table = mean_curves(curves("a", 0, np.linspace(1, 0, 50)))
    (axis,) = [line for line in pull_request.learning_curves(table) if "x-axis" in line]
    assert axis == f"  x-axis epoch [{', '.join(map(str, range(2, 51, 3)))}]"


def test_without_validation_images_the_chart_shows_training():
    table = mean_curves(curves("a", 0, np.array([1.5, 0.3])).query("split == 'train'"))
    lines = pull_request.learning_curves(table)
    assert lines[0].startswith("Accuracy in % (train), ")
    assert lines[-2] == "  line [50.00, 90.00]"


def test_without_results_there_or_with_other_images_it_says_so_and_compares_no_images(
    two_revisions, capsys
):
    run("git", "checkout", "-q", "--orphan", "empty")
    run("git", "rm", "-rqf", "--cached", ".")
    run("git", "commit", "-qm", "nothing", "--allow-empty")
    pull_request.main(["--against", "empty"])
    page = capsys.readouterr().out
    assert "Champion: not compared: empty has no test results of each training" in page
    assert "Newly" not in page
    assert "xychart" in page


def test_missing_predictions_are_named_with_the_remedy(two_revisions):
    Path("data/predictions/batchnorm/1.parquet").unlink()
    with pytest.raises(PipelineError, match=r"/1\.parquet: no such file\. Run `dvc repro`"):
        pull_request.main(["--against", "main"])


def test_the_files_it_reads_are_outputs_of_the_graph():
    text = (REPOSITORY / "dvc.yaml").read_text("utf-8")
    for path in (pull_request.COMPARISON, pull_request.PREDICTIONS, pull_request.CURVES):
        assert path.as_posix() in text


def test_ci_writes_it_to_the_summary_of_the_pull_request():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = [step.get("run", "") for step in workflow["jobs"]["pipeline"]["steps"]]
    (step,) = [step for step in steps if "pull_request" in step]
    assert "python -m pipeline pull_request --against origin/main" in step
    assert step.rstrip().endswith('>> "$GITHUB_STEP_SUMMARY"')
    # after the run, whose outputs it reads
    assert steps.index("make repro") < steps.index(step)
