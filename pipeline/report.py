"""Report: one page with all that a run has found, which needs no network.

Reads   metrics/{comparison,champion,export,split}.json, and of every model
        metrics/test/MODEL.json, plots/history/MODEL.csv, plots/predictions/MODEL.csv and
        plots/analysis/MODEL/…; plots/samples.png, data/arrays/test/…, data/arrays/info.json,
        data/versions/…, pipeline/reporting/report.html.jinja
Writes  plots/report.html    pictures, data and scripts inlined
        plots/vega.js        what `dvc plots show` draws with: Vega, Vega-Lite and vega-embed
Params  all but gate: they are shown
"""

import argparse
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
import yaml
from pydantic import BaseModel

from pipeline.config.params import load
from pipeline.config.schema import Params
from pipeline.core.errors import run
from pipeline.core.files import atomic_path, read_json
from pipeline.data import arrays, tables
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting import chart_style, charts, parts

TEMPLATE = Path(__file__).with_name("reporting") / "report.html.jinja"
INPUTS = (
    "arrays", "versions", "split", "comparison", "champion", "test", "history", "predictions",
    "samples", "analysis", "export",
)  # fmt: skip


def libraries() -> str:
    """Return Vega, Vega-Lite and vega-embed as a script that leaves vegaEmbed in the window."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{bundle}}})();\n"  # in a function, or all that it defines would be global


def plain(value: Any) -> Any:
    """Return settings as params.yaml has them, without what it leaves out."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return {key: plain(own) for key, own in value.items()} if isinstance(value, dict) else value


def render(page: dict[str, Any], script: str) -> str:
    """Fill the template; what is text stays text, whatever is in it."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": chart_style.percent,
        "points": parts.points,
        "shortened": chart_style.shortened,
    }
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    # the template marks it as safe: it is no text of ours, and must only not end its element
    return template.render(**page, libraries=script.replace("</script", r"<\/script"))


def drawn(champion: str, classes: list[str], histories: dict, predictions: dict) -> dict[str, Any]:
    """Return the specification of each chart, and the rows of all."""
    names = list(histories)
    shares = chart_style.class_accuracy(predictions, classes)
    rows = {
        "history": charts.history_rows(histories),
        "confusion": charts.confusion_rows(predictions),
        "reliability": charts.reliability_rows(predictions),
        "classes": charts.class_rows(shares),
    }
    made = {
        "accuracy": charts.learning_curve(rows["history"], names, "accuracy"),
        "loss": charts.learning_curve(rows["history"], names, "loss"),
        "confusion": charts.confusion(champion, classes),
        "reliability": charts.reliability(names),
        "classes": charts.class_accuracy(shares),
    }
    return {"rows": rows, "charts": made}


def shown(params: Params) -> str:
    """Return the settings that the stages read, as params.yaml has them."""
    settings = {
        "backend": params.backend,
        "seed": params.seed,
        "dataset": params.dataset,
        "folder": params.folder,
        "test_share": params.test_share,
        "test_seed": params.test_seed,
        "preprocess": params.preprocess,
        "split": params.split,
        "train": params.train,
        "evaluate": params.evaluate,
        "models": params.models,
        "finetune": params.finetune,
        "reference": params.reference,
        "champion": params.champion,
        "analyze": params.analyze,
    }
    return yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True)


def gather(args: argparse.Namespace) -> dict[str, Any]:
    """Read the outputs of the other stages, and return what the template shows of them."""
    comparison = read_json(args.comparison)
    champion = read_json(args.champion)["model"]
    rows = comparison["models"]
    names = [row["model"] for row in rows]
    kept = Preprocessor.of(read_json(args.arrays / "info.json"))
    histories = {name: tables.read(args.history / f"{name}.csv") for name in names}
    predictions = {name: tables.read(args.predictions / f"{name}.csv") for name in names}
    images, _ = arrays.load(args.arrays / "test")
    most = parts.most_mistakes(len(names))
    mistakes = [parts.mistakes(name, predictions[name], images, kept, most) for name in names]
    inspected = {name: parts.inspected(args.analysis / name) for name in names}
    return {
        "verdict": parts.verdict(rows, champion, comparison["level"]),
        "level": comparison["level"],
        "champion": champion,
        "models": rows,
        "styles": chart_style.styles(names),
        "few": charts.FEW,
        "most_mistakes": most,
        "class_title": chart_style.class_accuracy_title(kept.classes),
        "test": {name: read_json(args.test / f"{name}.json") for name in names},
        "drawn": drawn(champion, kept.classes, histories, predictions),
        "mistakes": [mistake for own in mistakes for mistake in own],
        "classes": kept.classes,
        "split": read_json(args.split),
        "samples": parts.picture(args.samples),
        "inspected": {name: own for name, own in inspected.items() if own["pictures"]},
        "exported": parts.exported(args.export),
        "versions": parts.versions(args.versions),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in (*INPUTS, "report", "libraries"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    page = gather(args)
    page |= {
        "source": parts.source(params.dataset, params.folder),
        "why_champion": parts.why_champion(params.champion, page["models"], page["champion"]),
        "params": shown(params),
    }
    script = libraries()
    with atomic_path(args.report) as path:
        path.write_text(render(page, script), "utf-8")
    with atomic_path(args.libraries) as path:
        path.write_text(script, "utf-8")
    size = args.report.stat().st_size / 1e6
    print(f"report: {len(page['models'])} models, {size:.1f} MB -> {args.report}")


if __name__ == "__main__":
    run(main)
