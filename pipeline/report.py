"""Report: write the results of a run as one self-contained HTML page.

Reads   metrics/{comparison,champion,export,split}.json; for each model
        metrics/test/MODEL.json, data/predictions/MODEL/SEED.parquet and plots/analysis/MODEL/…;
        plots/learning_curves.csv, plots/samples.png, data/arrays/…,
        plots/vega.js, data/inputs/versions/…, search/MODEL.json, pipeline/reporting/*.jinja
Writes  plots/report.html    with pictures, data and scripts inlined
Params  all except gate and search; the report shows them
"""

import argparse
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup
from pydantic import BaseModel

from pipeline.config.params import load
from pipeline.config.schema import Params
from pipeline.core.errors import run
from pipeline.core.files import atomic_path, read_json, require_file
from pipeline.core.text import counted, percent, signed
from pipeline.data import arrays, tables
from pipeline.data.predictions import read_table
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting import chart_style, charts, duplicates, label_issues, parts, results

TEMPLATES = Path(__file__).with_name("reporting")
INPUTS = (
    "arrays", "versions", "split", "comparison", "champion", "test", "curves", "predictions",
    "samples", "analysis", "export", "label-issues", "label-counts", "searches",
    "vega",
)  # fmt: skip


def to_yaml_value(value: Any) -> Any:
    """Convert settings to plain values, without those that params.yaml does not set."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, dict):
        return {key: to_yaml_value(item) for key, item in value.items()}
    return value


def breakable_id(id: str) -> Markup:
    """Return a short form of an image's id that may be wrapped after each slash, as HTML."""
    return Markup("/<wbr>").join(chart_style.shorten_id(id).split("/"))


def render(page: dict[str, Any], script: str) -> str:
    """Render the template with all values escaped.

    Args:
        page: The variables of the template.
        script: Vega, inserted without escaping.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "shorten": chart_style.shorten,
        "breakable_id": breakable_id,
    }
    template = environment.get_template("report.html.jinja")
    # the template does not escape the script, so it must not end its own element
    return template.render(**page, vega_script=script.replace("</script", r"<\/script"))


def chart_data(
    champion: str,
    classes: list[str],
    test: dict[str, dict[str, Any]],
    histories: pd.DataFrame,
    predictions: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    """Return the Vega-Lite specifications of the charts, and the rows of data they draw.

    Args:
        champion: The model whose confusion matrix is shown first.
        classes: k names.
        test: Of each model, metrics/test/MODEL.json.
        histories: model, seed, split, epoch, accuracy and loss.
        predictions: Of each model, the table of `predictions.read_table`.
    """
    names = list(predictions)
    shares = chart_style.class_accuracy(predictions, classes)
    rows: dict[str, Any] = {
        "accuracies": charts.accuracy_rows(test),
        "history": chart_style.mean_curves(histories).to_dict("records"),
        "confusion": charts.confusion_rows(predictions),
        "reliability": charts.reliability_rows(predictions),
        "coverage": charts.coverage_rows(predictions),
        "classes": charts.class_rows(shares),
    }
    specifications = {
        "accuracies": charts.accuracies(rows["accuracies"]),
        "accuracy": charts.learning_curve(rows["history"], names, "accuracy"),
        "loss": charts.learning_curve(rows["history"], names, "loss"),
        "confusion": charts.confusion(champion, classes),
        "reliability": charts.reliability(names),
        "coverage": charts.coverage(names),
        "classes": charts.class_accuracy(shares),
    }
    return {"rows": rows, "charts": specifications}


def format_settings(params: Params) -> str:
    """Return the settings that stages read, as YAML; of the models, those that are compared."""
    settings = {
        "compare": params.compare,
        "seeds": params.seeds,
        "margin": params.margin,
        "threads": params.threads,
        "backend": params.backend,
        "dataset": params.dataset,
        "folder": params.folder,
        "test_share": params.test_share,
        "test_seed": params.test_seed,
        "preprocess": params.preprocess,
        "split": params.split,
        "train": params.train,
        "evaluate": params.evaluate,
        "models": {name: params.models[name] for name in params.compare},
        "champion": params.champion,
        "analyze": params.analyze,
    }
    return yaml.safe_dump(to_yaml_value(settings), sort_keys=False, allow_unicode=True)


def read_page(args: argparse.Namespace) -> dict[str, Any]:
    """Read the outputs of other stages and return the template's variables."""
    comparison = read_json(args.comparison)
    champion = read_json(args.champion)["model"]
    split = read_json(args.split)
    rows = comparison["models"]
    names = [row["model"] for row in rows]
    preprocessor = Preprocessor.of(read_json(args.arrays / "info.json"))
    histories = tables.read(args.curves)
    test = {name: read_json(args.test / f"{name}.json") for name in names}
    predictions = {
        name: read_table(args.predictions / name, [row["seed"] for row in metrics["seeds"]])
        for name, metrics in test.items()
    }
    images, _ = arrays.load(args.arrays / "test")
    max_mistakes = parts.mistakes_per_model(len(names))
    mistakes = [
        mistake
        for name in names
        for mistake in parts.mistakes(name, predictions[name], images, preprocessor, max_mistakes)
    ]
    analyses = {name: parts.analysis(args.analysis / name) for name in names}
    return {
        "verdict": results.verdict(rows, champion, comparison["level"]),
        "level": comparison["level"],
        "margin": comparison["margin"],
        "trainings": rows[0]["trainings"],
        "champion": champion,
        "models": rows,
        "styles": chart_style.styles(names),
        "min_images": charts.MIN_IMAGES,
        "max_mistakes": max_mistakes,
        "class_title": chart_style.class_accuracy_title(preprocessor.classes),
        "test": test,
        "chart_data": chart_data(champion, preprocessor.classes, test, histories, predictions),
        "mistakes": mistakes,
        "classes": preprocessor.classes,
        "split": split,
        "without_leaks": comparison["without_leaks"],
        "near_duplicates": duplicates.cards(
            split["near_duplicates"]["groups"], args.arrays, preprocessor
        ),
        "samples": parts.picture(args.samples),
        "analyses": {name: analysis for name, analysis in analyses.items() if analysis["pictures"]},
        "exports": results.exports(args.export),
        "versions": parts.versions(args.versions),
        "label_issues": {
            "counts": read_json(args.label_counts),
            "corrections": read_json(args.arrays / "corrections.json"),
            **{
                split: label_issues.cards(args.label_issues, args.arrays, preprocessor, split)
                for split in ("train", "test")
            },
        },
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in (*INPUTS, "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    page = read_page(args)
    data = results.source(params.dataset, params.folder)
    page |= {
        "seeds": params.seeds,
        "source": data,
        "searches": results.searches(args.searches, params.compare, data),
        "champion_reason": results.champion_reason(
            params.champion, page["models"], page["champion"]
        ),
        "settings": format_settings(params),
    }
    script = require_file(args.vega).read_text("utf-8")
    with atomic_path(args.report) as path:
        path.write_text(render(page, script), "utf-8")
    size = args.report.stat().st_size / 1e6
    print(f"report: {counted(len(page['models']), 'model')}, {size:.1f} MB -> {args.report}")


if __name__ == "__main__":
    run(main)
