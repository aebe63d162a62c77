"""No validation images: with `split.validation: 0` every stage runs, and nothing is made up."""

import json
import re

import pandas as pd
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.data import predictions
from pipeline.tools import predict
from tests.test_report import write_analysis

TRAIN = (
    "{0} 0 --arrays arrays --split split/0.npz --out models/{0}/0.keras "
    "--history history/{0}/0.csv --metrics train/{0}/0.json --run run/{0}/0.json"
)
EVALUATE = (
    "{0} --models models/{0} --arrays arrays --split split --metrics test/{0}.json "
    "--predictions predictions/{0} --confusion confusion/{0}.csv"
)
COMPARE = (
    "--test test --train train --models models --split split.json --comparison comparison.json "
    "--champion champion.json --champion-model models/champion.keras"
)
PLOT = (
    "--arrays arrays --history history --predictions predictions --test test "
    "--samples samples.png --curves curves.csv --learning-curves curves.png "
    "--test-accuracy accuracy.png --class-accuracy classes.png --confusion o/confusion "
    "--examples o/examples"
)
REPORT = (
    "--arrays arrays --versions versions --split split.json --comparison comparison.json "
    "--champion champion.json --test test --curves curves.csv --predictions predictions "
    "--samples samples.png --analysis analysis --export export.json --label-issues issues "
    "--label-counts issues.json --searches searches --vega vega.js --report report.html"
)


@pytest.mark.slow
def test_every_stage_runs_without_validation_images(project, edit, quick_stage):
    def run(name: str, arguments: str) -> str:
        done = quick_stage(f"pipeline.{name}", *arguments.split())
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    edit("validation: 0.2", "validation: 0")
    edit("champion: auto", "champion: baseline")
    edit("[baseline, batchnorm]", "[baseline, logistic_bn]")
    edit("epochs: 20", "epochs: 2")
    run("download", "--raw raw")
    run("preprocess", "--raw raw --arrays arrays")
    # of 1,797 digits, 360 are the test split
    out = run("split", "--arrays arrays --split split --metrics split.json")
    assert out.startswith("split: 1437 train, 0 validation rows (held out) -> split\n")
    assert "no validation images of" not in out

    for name in ("baseline", "logistic_bn"):
        assert "s, no validation images -> " in run("train", TRAIN.format(name))
        metrics = read_json(project / f"train/{name}/0.json")
        assert (metrics["best_epoch"], metrics["temperature"]) == (2, 1.0)
        assert list(metrics["final"]) == ["loss", "accuracy"]
        run("evaluate", EVALUATE.format(name))
        assert predictions.read(project / f"predictions/{name}/0.parquet").splits.tolist() == (
            ["test"] * 360
        )
        write_analysis(project / "analysis" / name)
    header, *rows = (project / "history/baseline/0.csv").read_text().splitlines()
    assert (header, len(rows)) == ("epoch,loss,accuracy,learning_rate", 2)
    (project / "image.png").touch()
    with pytest.raises(PipelineError, match=r"it was trained without validation images, or"):
        predict.main(["--model", "models/baseline/0.keras", "--accuracy", "0.9", "image.png"])

    issues = "--predictions predictions --arrays arrays --issues issues --metrics issues.json"
    assert " of 0 held-out training images (1,437 in all), " in run("label_issues", issues)
    out = run("compare", COMPARE)
    assert "compare: champion baseline (named in params.yaml)" in out
    assert "val_accuracy" not in read_json(project / "champion.json")
    run("plot", PLOT)
    curves = pd.read_csv(project / "curves.csv")
    assert curves["split"].tolist() == ["train"] * 4
    assert curves.notna().all(axis=None)

    (project / "export.json").write_text(json.dumps({"images": 360}))
    (project / "searches").mkdir()
    (project / "vega.js").touch()
    run("report", REPORT)
    page = (project / "report.html").read_text("utf-8")
    text = page.partition("<script>")[0]
    assert not re.search(r"\b(nan|NaN|None)\b", text)
    assert "There are no validation images" in text
    comparison = text.partition('<table class="sortable">')[2].partition("</table>")[0]
    assert ">validation</th>" not in comparison
    # the name of a model is a heading too
    assert (comparison.count('<th scope="col"'), comparison.count("<td")) == (8, 2 * 7)
