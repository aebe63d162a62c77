"""Report: what the page says, and that it works in a real browser without a network."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from axe_core_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    ViewportSize,
)

from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor
from pipeline.reporting import chart_style, charts, parts
from tests.conftest import REPOSITORY, in_browser, png, write_arrays, write_params

pytestmark = pytest.mark.xdist_group("report")  # one page and one browser for all

SCRIPT = "<script>alert(1)</script>"
CLASSES = [SCRIPT, "NA", '7 "$x$" & co']
KEPT = Preprocessor(CLASSES, [4, 4, 1], "unit", [0.5], [0.5])
ACTUAL = [0, 0, 1, 1, 2, 2]
PREDICTED = {
    "baseline": ([0, 1, 1, 2, 2, 0], [0.9, 0.8, 0.7, 0.95, 0.6, 0.5]),
    "batchnorm": ([0, 0, 1, 1, 2, 0], [0.9, 0.8, 0.7, 0.95, 0.6, 0.75]),
    "plain": ([0, 0, 1, 1, 2, 2], [0.9, 0.8, 0.7, 0.95, 0.6, 0.5]),
}
PARAMETERS = {"baseline": 32_906, "batchnorm": 9_000, "plain": 100_000}
ARGUMENTS = (
    "--arrays arrays --versions versions --split split.json --comparison comparison.json "
    "--champion champion.json --test test --history history --predictions predictions "
    "--samples samples.png --analysis analysis --export export.json "
    "--report plots/report.html --libraries plots/vega.js"
).split()


def compared(name: str, accuracy: float, **against: Any) -> dict:
    return {
        "model": name, "parameters": PARAMETERS[name], "val_accuracy": accuracy,
        "accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1,
        "loss": 0.5, "f1": accuracy, "calibration_error": 0.1, **against,
    }  # fmt: skip


def against(verdict: str, difference: float) -> dict:
    return {
        "difference": difference, "difference_low": difference - 0.01,
        "difference_high": difference + 0.01, "mcnemar_p": 0.04, "verdict": verdict,
    }  # fmt: skip


ROWS = [
    compared("baseline", 0.5),
    compared("batchnorm", 0.83, **against("not distinguishable", 0.33)),
    compared("plain", 0.8, **against("better", 0.3)),
]


def write_inspected(folder: Path) -> None:
    """Write what analyze would: two pictures, the second named first, and two layers."""
    (folder / "filters").mkdir(parents=True)
    pictures = []
    for name, value in (("z", 0), ("a", 255)):
        (folder / f"filters/{name}.png").write_bytes(png(np.full((2, 3), value, np.uint8)))
        pictures.append(
            {"file": f"filters/{name}.png", "title": f"of {name}", "alt": f"alt {name}"}
        )
    (folder / "analysis.json").write_text(
        json.dumps({"pictures": pictures, "total": {"parameters": 14480}})
    )
    (folder / "layers.csv").write_text(
        "name,type,output_shape,parameters\nconv,Conv2D,8×8×16,14480\nNA,Dense,10,0\n", "utf-8"
    )


def predictions(name: str) -> pd.DataFrame:
    predicted, confidence = PREDICTED[name]
    columns = {"actual": ACTUAL, "predicted": predicted}
    table = pd.DataFrame({key: np.array(CLASSES)[value] for key, value in columns.items()})
    return table.assign(confidence=confidence)


def write_outputs(top: Path) -> None:
    """Write what the report reads, by hand."""
    write_params(top)
    images = np.arange(6 * 16, dtype=np.float32).reshape(6, 4, 4, 1) / 96
    write_arrays(top / "arrays/test", images, np.array(ACTUAL))
    write = {
        "arrays/info.json": vars(KEPT),
        "comparison.json": {"reference": "baseline", "level": 0.95, "models": ROWS},
        "champion.json": {"model": "batchnorm"},
        "export.json": {
            "images": 6,
            "onnx": {"largest_difference": 1.2e-06, "agreement": 1.0, "bytes": 4092119},
            "litert": {"not_written": ["no <words> for this"]},
        },
        "split.json": {
            "rows": {"train": 8, "validation": 3, "test": 6},
            "skipped": {"train": 1, "test": 0},
            "duplicates": {
                "within": {"train": 1, "validation": 0, "test": 0},
                "across": {"train_validation": 0, "train_test": 1, "validation_test": 0},
                "groups": [["train 1", "train 3"], ["train 2", "test 4"]],
                "conflicts": [["train 2 (a)", "test 4 (b)"]],
            },
            "classes": [{"class": c, "train": 3, "validation": 1, "test": 2} for c in CLASSES],
        },
        "versions/plot.json": {"matplotlib": "3.10", "numpy": "2.4"},
        "versions/report.json": {"numpy": "2.4"},
    }
    for name in PREDICTED:
        each = [{"class": c, "recall": 0.5, "images": 2} for c in CLASSES]
        (row,) = (row for row in ROWS if row["model"] == name)
        write[f"test/{name}.json"] = {**row, "classes": each}
        write_inspected(top / "analysis" / name)
        history = {"epoch": [1, 2], "accuracy": [0.5, 0.75], "loss": [1.0, 0.5]}
        history |= {"val_accuracy": [0.25, 0.5], "val_loss": [2.0, 1.0]}
        for kind, table in (("history", pd.DataFrame(history)), ("predictions", predictions(name))):
            (top / kind).mkdir(exist_ok=True)
            table.to_csv(top / kind / f"{name}.csv", index=False)
    for path, content in write.items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(json.dumps(content))
    (top / "samples.png").write_bytes(png(np.zeros((4, 4), np.uint8)))


def write_many(top: Path, models: int, classes: int, epochs: int = 3, images: int = 400) -> None:
    """Write what the report and the pictures are made of, of any size; the last name is long."""
    noise = np.random.default_rng(0)
    names = ["baseline", *(f"model{number}" for number in range(1, models - 1))]
    names = [*names, "a" * 70 + "-" + "b" * 29][:models]
    kept = Preprocessor(
        [f"class {n:04}" for n in range(classes)], [8, 8, 3], "unit", [0] * 3, [1] * 3
    )
    shutil.copy(REPOSITORY / "params.yaml", top)
    text = (top / "params.yaml").read_text()
    before, after = (
        text[: text.index("\nmodels:")],
        text[text.index("\n# More models to compare") :],
    )
    own = "".join(f"  {name}:\n    architecture: baseline\n" for name in names)
    (top / "params.yaml").write_text(f"{before}\nmodels:\n{own}{after}")
    labels = np.arange(images) % classes
    for part in ("train", "test"):
        pixels = noise.random((images, 8, 8, 3)).astype(np.float32)
        write_arrays(top / "arrays" / part, pixels, labels)
    rows = []
    write = {}
    for number, name in enumerate(names):
        right = noise.random(images) < 0.95 - 0.05 * number
        predicted = np.where(right, labels, noise.integers(classes, size=images))
        table = pd.DataFrame(
            {
                "actual": np.array(kept.classes)[labels],
                "predicted": np.array(kept.classes)[predicted],
                "confidence": (1 - noise.random(images) ** 2 * 0.6).round(6),
            }
        )
        accuracy = float((labels == predicted).mean())
        row = {
            "model": name, "parameters": 1000 + number, "val_accuracy": accuracy,
            "accuracy": accuracy, "accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01,
            "loss": 0.5, "f1": accuracy, "calibration_error": 0.1,
        }  # fmt: skip
        rows.append(row | (against("worse", -0.05 * number) if number else {}))
        recall = (table["actual"] == table["predicted"]).groupby(table["actual"]).mean()
        counts = table["actual"].value_counts()
        each = [
            {"class": c, "recall": float(recall.get(c, 0)), "images": int(counts.get(c, 0))}
            for c in kept.classes
        ]
        write[f"test/{name}.json"] = {**row, "classes": each}
        write_inspected(top / "analysis" / name)
        fall = 2 / np.arange(1, epochs + 1) + 0.02 * number
        history = {"epoch": np.arange(1, epochs + 1), "loss": fall, "accuracy": 1 - fall / 3}
        history |= {"val_loss": fall * 1.1, "val_accuracy": 1 - fall * 1.1 / 3}
        for kind, content in (("history", pd.DataFrame(history)), ("predictions", table)):
            (top / kind).mkdir(exist_ok=True)
            content.to_csv(top / kind / f"{name}.csv", index=False)
    none = dict.fromkeys(("train", "validation", "test"), 0)
    write |= {
        "arrays/info.json": vars(kept),
        "comparison.json": {"reference": "baseline", "level": 0.95, "models": rows},
        "champion.json": {"model": names[-1]},
        "split.json": {
            "rows": {"train": images, "validation": 80, "test": images},
            "skipped": {"train": 0, "test": 0},
            "duplicates": {"within": none, "across": none, "groups": [], "conflicts": []},
            "classes": [{"class": c, "train": 3, "validation": 1, "test": 2} for c in kept.classes],
        },
        "versions/report.json": {"numpy": "2.4"},
        "export.json": {
            "images": images,
            "onnx": {"not_written": ["."]},
            "litert": {"not_written": ["."]},
        },
    }
    for path, found in write.items():
        (top / path).parent.mkdir(exist_ok=True)
        (top / path).write_text(json.dumps(found))
    (top / "samples.png").write_bytes(png(np.zeros((4, 4), np.uint8)))


def build(top: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.report", *ARGUMENTS],
        cwd=top, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with outputs made up, and the report on them."""
    top = tmp_path_factory.mktemp("report")
    write_outputs(top)
    done = build(top)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"report: 3 models, \d\.\d MB -> plots/report.html\n", done.stdout)
    return top


def test_verdict_is_on_the_champion_with_its_interval():
    said = parts.verdict(ROWS, "batchnorm", 0.95).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "batchnorm is not distinguishable from baseline: +33.0 points of test accuracy, "
        "95 % interval +32.0 to +34.0."
    )


def test_verdict_on_a_champion_that_is_the_reference_takes_the_best_other_by_validation():
    rows = [
        compared("baseline", 0.9),
        compared("plain", 0.5, **against("worse", -0.4)),
        compared("batchnorm", 0.6, **against("worse", -0.3)),
    ]
    said = parts.verdict(rows, "baseline", 0.95)
    assert said.startswith("batchnorm is worse than baseline: −30.0 points of test accuracy")


def test_verdict_on_a_single_model_is_its_accuracy():
    said = parts.verdict(ROWS[:1], "baseline", 0.95).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "baseline gets 50.0 % of the test images right (95 % interval 40.0 % to 60.0 %); "
        "there is no other model to compare it with."
    )


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_mistakes_come_surest_first_with_their_image():
    images = np.arange(6, dtype=np.float32)[:, None, None, None] * np.full((4, 4, 1), 0.2)
    found = parts.mistakes("baseline", predictions("baseline"), images, KEPT, 30)
    assert [(each["row"], each["confidence"]) for each in found] == [(3, 0.95), (1, 0.8), (5, 0.5)]
    assert (found[1]["actual"], found[1]["predicted"]) == (SCRIPT, "NA")
    assert np.unique(np.asarray(decoded(found[1]["picture"]))).tolist() == [51]  # 0.2 of 255
    assert len(parts.mistakes("baseline", predictions("baseline"), images, KEPT, 2)) == 2


def test_thumbnails_are_small_and_keep_their_colours():
    red = np.zeros((200, 100, 3), np.uint8)
    red[..., 0] = 255
    small = decoded(parts.thumbnail(red))
    assert small.size == (48, 96)
    assert small.getpixel((20, 20)) == (255, 0, 0)


def test_bins_of_the_reliability_diagram_are_open_on_the_left():
    table = pd.DataFrame(
        # (5/15, 6/15] holds 0.4 and no more; (6/15, 7/15] what is just above
        {"actual": list("aaaa"), "predicted": list("abaa"), "confidence": [0.4, 0.39, 0.41, 1.0]}
    )
    rows = charts.reliability_rows({"one": table})
    assert [(row["over"] * 15, row["images"]) for row in rows] == [(5, 2), (6, 1), (14, 1)]
    assert rows[0]["accuracy"] == 0.5
    assert rows[0]["confidence"] == pytest.approx(0.395)


def test_confusion_counts_pairs_and_their_share_of_the_actual_class():
    rows = charts.confusion_rows({"baseline": predictions("baseline")})
    assert {(row["actual"], row["predicted"]): (row["images"], row["share"]) for row in rows} == {
        (CLASSES[actual], CLASSES[predicted]): (1, 0.5)
        for actual, predicted in zip(ACTUAL, PREDICTED["baseline"][0], strict=True)
    }


def test_inspected_pictures_keep_the_order_of_their_list(tmp_path):
    write_inspected(tmp_path)
    own = parts.inspected(tmp_path)
    assert [each["title"] for each in own["pictures"]] == ["of z", "of a"]
    assert np.unique(np.asarray(decoded(own["pictures"][1]["picture"]))).tolist() == [255]
    assert own["columns"] == ["name", "type", "output shape", "parameters"]
    assert own["total"] == ["", "", "", "14,480"]
    assert own["rows"] == [["conv", "Conv2D", "8×8×16", "14,480"], ["NA", "Dense", "10", "0"]]
    (tmp_path / "filters/a.png").unlink()
    with pytest.raises(PipelineError, match=r"filters/a\.png: no such file\. Run `dvc repro`"):
        parts.inspected(tmp_path)


def test_versions_name_the_stages_that_they_decide(built):
    assert parts.versions(built / "versions") == [
        {"package": "matplotlib", "version": "3.10", "stages": "plot"},
        {"package": "numpy", "version": "2.4", "stages": "plot, report"},
    ]


def test_page_is_one_small_file_with_the_same_bytes_again(built):
    page = built / "plots/report.html"
    before = page.read_bytes()
    assert len(before) < 2e6
    assert build(built).returncode == 0
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("share", "said"),
    [(1, "100.0 %"), (0.9996, "99.9 %"), (0.997, "99.7 %"), (0.0001, "0.1 %"), (0, "0.0 %")],
)
def test_only_all_images_are_100_percent_and_only_none_0(share, said):
    assert chart_style.percent(share) == said.replace(" ", "\N{NO-BREAK SPACE}")


def test_champion_is_told_with_what_decided():
    rows = [{"model": "a", "val_accuracy": 0.5}, {"model": "b", "val_accuracy": 0.75}]

    def said(named: str, rows: list[dict], champion: str) -> str:
        text = parts.why_champion(named, rows, champion)
        return text.replace("\N{NO-BREAK SPACE}", " ")

    assert said("a", rows, "a") == "named in params.yaml"
    assert said("auto", rows, "b") == "best validation accuracy: 75.0 %"
    assert said("auto", rows[:1], "a") == "the only model"
    rows.append({"model": "c", "val_accuracy": 0.75})
    assert said("auto", rows, "b") == (
        "best validation accuracy: 75.0 %, as c; of equals, the first in the table is taken"
    )
    rows.append({"model": "d", "val_accuracy": 0.75})
    assert "75.0 %, as 2 others; of equals" in said("auto", rows, "b")


def test_images_of_a_folder_are_called_by_its_name():
    assert parts.source("folder", "data/photos") == "the folder photos"
    assert parts.source("cifar10", "data/folder") == "cifar10"


def test_version_in_use_is_one_of_several_that_are_locked():
    here = np.__version__
    assert parts.in_use("numpy", f"0.1, {here}") == here
    assert parts.in_use("numpy", "0.1, 0.2") == "0.1 or 0.2"
    assert parts.in_use("no-such-package", "0.1, 0.2") == "0.1 or 0.2"
    assert parts.in_use("numpy", "0.1") == "0.1"


def test_mistakes_of_many_models_stay_few():
    assert [parts.most_mistakes(models) for models in (1, 8, 12, 500)] == [30, 30, 20, 1]


def test_a_missing_input_is_one_line(tmp_path):
    write_outputs(tmp_path)
    (tmp_path / "history/plain.csv").unlink()
    done = build(tmp_path)
    assert done.stderr == "error: history/plain.csv: no such file. Run `dvc repro`\n"


def test_layers_of_each_model_end_with_their_total(built):
    text = (built / "plots/report.html").read_text("utf-8")
    ends = re.findall(r"<tfoot>(.*?)</tfoot>", text)
    assert [re.findall(r">([^<>]+)<", end) for end in ends] == [["total", "14,480"]] * 3


def test_pairs_of_each_model_are_listed_the_most_frequent_first(built):
    text = (built / "plots/report.html").read_text("utf-8")
    table = text[text.index("as a table: the 300") : text.index("Accuracy of each class, as a")]
    # of three wrong answers and of one; plain makes none
    assert re.findall(r"<tr><td title=\"(\w+)\">", table) == ["baseline"] * 3 + ["batchnorm"]


def test_params_of_the_run_are_shown_without_the_gate(built):
    text = (built / "plots/report.html").read_text("utf-8")
    params = text[text.index("<pre>") : text.index("</pre>")]
    assert "\n  epochs: 20\n" in params
    assert "\n  batchnorm:\n    architecture: batchnorm\n" in params
    assert "gate" not in params


def test_images_in_two_classes_are_told_with_their_classes(built):
    page = " ".join((built / "plots/report.html").read_text("utf-8").split())
    assert "1 images stand in two classes, as train 2 (a), test 4 (b): one label is wrong." in page


def test_a_format_that_could_not_be_written_stands_beside_the_other_with_its_reason(built):
    text = (built / "plots/report.html").read_text("utf-8")
    start = text.index("batchnorm for programs without Keras")
    rows = re.findall(r"<tr>(.*?)</tr>", text[start : text.index("Versions of", start)])
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows[1:]]
    assert cells == [
        ["onnx", "4,092,119", "1.2e-06", "100.0\N{NO-BREAK SPACE}%", ""],
        ["litert", "", "", "", "no &lt;words&gt; for this"],
    ]


# In the browser. ---------------------------------------------------------------------------------


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Open a file in a browser without a network, and fail on what it loads or complains of."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def note(error: object) -> None:
        faults.append(str(error))

    def refuse(dialog: Dialog) -> None:
        faults.append(dialog.message)
        dialog.dismiss()

    def note_error(said: ConsoleMessage) -> None:
        if said.type == "error":
            faults.append(said.text)

    def note_request(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            faults.append(request.url)

    def visit(path: Path, width: int = 1280, charts: int = 5, **options: Any) -> Page:
        viewport: ViewportSize = {"width": width, "height": 900}
        context = browser.new_context(offline=True, viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", note)
        page.on("dialog", refuse)
        page.on("console", note_error)
        page.on("request", note_request)
        page.goto(path.as_uri())
        if charts:
            page.wait_for_function(
                f"document.querySelectorAll('svg.marks, canvas.marks').length >= {charts}"
            )
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(built: Path, visit: Open) -> Page:
    return visit(built / "plots/report.html")


@in_browser
def test_page_draws_its_charts_without_a_network(page):
    assert "batchnorm is not distinguishable from baseline" in page.inner_text("h1")
    # 2 epochs of 3 models in 2 parts
    assert page.locator("[data-chart=accuracy] .mark-symbol path[aria-label]").count() == 12
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


@in_browser
def test_every_image_has_an_alternative_text(page):
    alts = page.eval_on_selector_all("img", "images => images.map((image) => image.alt)")
    # samples, 4 mistakes, 2 pictures of each of 3 models
    assert len(alts) == 11
    assert all(alts)
    assert f"Test image 1: true {SCRIPT}, predicted NA by baseline, 80.0\xa0%" in alts


@in_browser
def test_a_class_name_with_html_in_it_stays_text(page):
    assert SCRIPT in page.inner_text(".mistakes li:nth-child(2)")
    assert page.locator("[name=actual] option").all_inner_texts() == ["any", *CLASSES]
    labels = page.locator("[data-chart=confusion] .role-axis-label text").all_text_contents()
    begun = [label.removesuffix("…") for label in labels]  # long ones are cut
    assert all(any(name.startswith(label) for name in CLASSES) for label in begun)
    assert len(set(begun)) == len(CLASSES)
    page.locator("[data-chart=confusion] .layer_1_marks text").first.hover()  # its tooltip
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert page.locator("script").count() == 2


def column(page: Page, number: int) -> list[str]:
    return page.locator(f".sortable tbody tr > :nth-child({number})").all_inner_texts()


@in_browser
def test_table_is_sorted_by_number_with_mouse_or_keyboard(page):
    assert column(page, 10) == ["32,906", "9,000", "100,000"]
    page.get_by_role("button", name="parameters").click()
    assert column(page, 10) == ["9,000", "32,906", "100,000"]
    page.keyboard.press("Enter")  # on the button, which has the focus
    assert column(page, 10) == ["100,000", "32,906", "9,000"]
    heading = page.locator(".sortable th", has_text="parameters")
    assert heading.get_attribute("aria-sort") == "descending"

    difference = page.get_by_role("button", name="difference")
    difference.focus()
    page.keyboard.press("Space")
    # the reference has none, and comes last either way
    assert [text.split("\n")[0] for text in column(page, 3)] == ["+30.0", "+33.0", ""]
    page.keyboard.press("Space")
    assert [text.split("\n")[0] for text in column(page, 3)] == ["+33.0", "+30.0", ""]
    assert page.locator("[aria-sort]").count() == 1


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on 12 models and 100 classes, one with a name of 100 letters."""
    top = tmp_path_factory.mktemp("many")
    write_many(top, models=12, classes=100)
    done = build(top)
    assert (done.returncode, done.stderr) == (0, "")
    return top / "plots/report.html"


def marks_of(page: Page, chart: str) -> dict[str, tuple[str, str]]:
    """Return the colour and the outline of each model's marks in a chart, by its name."""
    found = page.eval_on_selector_all(
        f"[data-chart={chart}] .mark-symbol path[aria-label]",
        "all => all.map((each) => [each.getAttribute('aria-label'), "
        "each.getAttribute('stroke') ?? each.getAttribute('fill'), each.getAttribute('d')])",
    )
    named = [(re.search(r"model: ([^;]+)", label), colour, path) for label, colour, path in found]
    return {name[1]: (colour, re.sub(r"[-\d.]+", "", path)) for name, colour, path in named if name}


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_of_12_models_looks_like_itself_alone_in_every_chart(many, visit, scheme):
    page = visit(many, color_scheme=scheme)
    shown = page.eval_on_selector_all(
        "#training .legend button",
        "all => all.map((each) => [each.dataset.model, each.querySelector('path')"
        ".getAttribute('fill')])",
    )
    colours = dict(shown)
    assert len(set(colours.values())) == len(shown) == 12
    styles = chart_style.styles(list(colours))
    assert colours == {name: style.colour for name, style in styles.items()}
    for chart in ("accuracy", "loss", "classes", "reliability"):
        marks = marks_of(page, chart)
        assert {name: mark[0] for name, mark in marks.items()} == colours, chart
        assert len(set(marks.values())) == 12, chart  # and in black and white, by its shape


@in_browser
def test_a_name_in_the_legend_singles_its_model_out_by_keyboard(many, visit):
    page = visit(many)
    button = page.locator("#training .legend button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    faded = "[data-chart=reliability] .mark-symbol path[opacity='0.12']"
    page.wait_for_selector(faded, state="attached")
    assert (
        page.locator("[aria-pressed=true]").evaluate_all(
            "all => all.map((each) => each.dataset.model)"
        )
        == ["model1"] * 3
    )
    assert "model: model1;" not in "".join(
        page.locator(faded).evaluate_all("all => all.map((each) => each.ariaLabel)")
    )
    page.keyboard.press("Enter")
    page.wait_for_selector(faded, state="detached")


def test_diagrams_are_told_from_images_which_a_dark_page_must_not_invert(tmp_path):
    top = tmp_path / "analyze"
    write_inspected(top)
    found = json.loads((top / "analysis.json").read_text())
    (top / "layers.png").write_bytes((top / "filters/a.png").read_bytes())
    found["pictures"].append({"file": "layers.png", "title": "layers", "alt": "layers"})
    (top / "analysis.json").write_text(json.dumps(found))
    pictures = parts.inspected(top)["pictures"]
    assert [each["diagram"] for each in pictures] == [False, False, True]


@in_browser
def test_legends_cover_no_data(many, visit):
    page = visit(many)
    assert page.locator("[data-chart] .role-legend").count() == 1  # shares, below the matrix
    for legend in page.locator(".legend").all():
        inside = page.evaluate_handle("([x]) => x", [legend.element_handle()])
        assert inside.evaluate("(each) => !each.closest('.chart')")


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_of_12_models_and_a_long_name_scrolls_one_way_and_is_bounded(many, visit, width):
    page = visit(many, width)
    page.eval_on_selector_all("details", "all => all.forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    heights = page.eval_on_selector_all(
        "#mistakes, [data-chart]", "all => all.map((each) => each.offsetHeight)"
    )
    assert max(heights) < 3000
    # a long name leaves room for the numbers beside it
    first = page.locator(".sortable tbody tr:last-child > :first-child")
    assert "…" in first.inner_text()
    assert first.get_attribute("title") == "a" * 70 + "-" + "b" * 29
    assert first.evaluate("(each) => each.offsetWidth") < 330


@in_browser
def test_mistakes_are_shown_a_part_at_a_time_by_keyboard_too(many, visit):
    page = visit(many)
    cards = page.locator(".mistakes li:visible")
    count = int(page.locator("form output").inner_text().split(" of ")[1])
    assert cards.count() == 24 < count
    more = page.get_by_role("button", name="Show 24 more")
    more.focus()
    page.keyboard.press("Enter")
    assert cards.count() == 48
    # on to what is new
    assert page.evaluate("document.activeElement === document.querySelectorAll('.mistakes li')[24]")
    page.locator("form[data-for=mistakes] [name=model]").select_option(index=1)
    assert cards.count() <= 20
    assert not page.locator(".more").is_visible()


def labels_of(page: Page, chart: str, axis: int) -> list[str]:
    axes = page.locator(f"[data-chart={chart}] .role-axis:has(.role-axis-label)")
    return axes.nth(axis).locator(".role-axis-label text").all_text_contents()


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_axes_of_3_epochs_have_whole_numbers_once_and_say_that_losses_are_logarithmic(
    many, visit, width
):
    page = visit(many, width)
    for chart in ("accuracy", "loss"):
        assert labels_of(page, chart, 0) == ["1", "2", "3"]
    assert len(labels_of(page, "loss", 1)) >= 2
    titles = page.locator("[data-chart=loss] .role-axis-title").all_text_contents()
    assert "loss (nats), logarithmic" in titles


@in_browser
def test_shares_on_axes_are_written_as_in_the_text(page):
    assert labels_of(page, "reliability", 0)[-1] == "100\N{NO-BREAK SPACE}%"
    page.locator("[data-chart=reliability] .mark-symbol path[aria-label]").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert re.search(r"\d\.\d\N{NO-BREAK SPACE}%", page.inner_text("#vg-tooltip-element"))


@in_browser
def test_bins_of_few_images_are_hollow_and_no_line_passes_through(page):
    # of 6 images in all, every bin has few
    fills = page.eval_on_selector_all(
        "[data-chart=reliability] .mark-symbol path[aria-label]",
        "all => all.map((each) => each.getAttribute('fill-opacity'))",
    )
    assert set(fills) == {"0"}
    assert {colour for colour, _ in marks_of(page, "reliability").values()} == set(
        chart_style.COLOURS[:3]
    )
    assert page.locator("[data-chart=reliability] .mark-line path").count() == 1  # the diagonal
    assert "fewer than 10" in page.inner_text("#confidence")


@in_browser
def test_printed_page_cuts_no_table_and_is_light(many, visit):
    page = visit(many, 1000, color_scheme="dark")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})  # A4 within its margins
    for table in page.locator("table:visible").all():
        assert table.evaluate("(each) => each.getBoundingClientRect().right") <= 700
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 30, 35)"
    assert page.locator("nav:visible, form:visible").count() == 0


@in_browser
def test_mistakes_are_filtered_by_pair_of_classes_and_by_model(page):
    form = page.locator("form[data-for=mistakes]")
    count = form.locator("output")
    assert count.inner_text() == "4 of 4"
    form.locator("[name=actual]").select_option(CLASSES[2])
    form.locator("[name=predicted]").select_option(SCRIPT)
    assert count.inner_text() == "2 of 4"
    form.locator("[name=model]").select_option("batchnorm")
    assert count.inner_text() == "1 of 4"
    (left,) = page.locator(".mistakes li:visible").all_inner_texts()
    assert left.split("\n") == [
        f"true {CLASSES[2]}", f"predicted {SCRIPT}", "75.0\xa0%, batchnorm",
    ]  # fmt: skip
    form.locator("[name=predicted]").select_option("NA")
    assert count.inner_text() == "0 of 4"


@in_browser
def test_confusion_matrix_is_of_the_model_that_is_chosen(page):
    cells = page.locator("[data-chart=confusion] .layer_1_marks text")
    # of the champion at first: one of six is wrong
    assert sorted(cells.all_text_contents()) == ["1", "1", "2", "2"]
    page.locator("form[data-for=confusion] select").select_option("plain")
    page.wait_for_function(
        "document.querySelectorAll('[data-chart=confusion] .layer_1_marks text').length === 3"
    )
    assert cells.all_text_contents() == ["2", "2", "2"]


@in_browser
def test_tabs_are_operated_with_arrow_keys(page):
    tabs = page.get_by_role("tab")
    assert tabs.all_inner_texts() == ["baseline", "batchnorm", "plain"]
    tabs.first.focus()
    for key, name in (
        ("ArrowRight", "batchnorm"), ("End", "plain"), ("ArrowRight", "baseline"),
        ("ArrowLeft", "plain"), ("Home", "baseline"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.textContent") == name
        assert page.locator("[aria-selected=true]").all_inner_texts() == [name]
        assert page.get_by_role("tabpanel").count() == 1
        assert page.get_by_role("tabpanel", name=name).is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tabpanel"


@in_browser
def test_charts_follow_the_colour_scheme(page):
    label = "getComputedStyle(document.querySelector('.role-axis-label text')).fill"
    assert page.evaluate(label) == "rgb(90, 97, 107)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{label} === 'rgb(163, 171, 182)'")


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_checker_finds_no_serious_fault(built, visit, scheme, width):
    page = visit(built / "plots/report.html", width, color_scheme=scheme)
    page.eval_on_selector_all("details", "all => all.forEach((each) => each.open = true)")
    found = Axe().run(page)["violations"]
    assert [
        (fault["id"], node["html"])
        for fault in found
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
    ] == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # scrolls one way only


@in_browser
def test_page_can_be_read_without_scripts(built, visit):
    page = visit(built / "plots/report.html", charts=0, java_script_enabled=False)
    assert page.locator(".mistakes li:visible").count() == 4
    assert page.locator(".panel:visible").count() == 3
    assert page.locator("form:visible").count() == 0


@pytest.fixture
def dvc_plots(project: Path, built: Path) -> Callable[[], Path]:
    """Run `dvc plots show` with the repository's configuration, and return its page."""
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], check=True)
    for name in ("config", "plots.html"):
        shutil.copy(REPOSITORY / ".dvc" / name, project / ".dvc")
    shutil.copytree(REPOSITORY / ".dvc/plots", project / ".dvc/plots")
    (project / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    (project / "plots").mkdir()
    shutil.copy(built / "plots/vega.js", project / "plots")

    def show() -> Path:
        subprocess.run([*dvc, "plots", "show"], check=True, capture_output=True)
        return project / "dvc_plots/index.html"

    return show


@pytest.fixture
def shown(project: Path, built: Path, dvc_plots: Callable[[], Path]) -> Path:
    """The page that `dvc plots show` writes of two small files."""
    shutil.copy(built / "history/baseline.csv", project / "plots/history.csv")
    (project / "plots/predictions.csv").write_text("actual,predicted\ncat,dog\ndog,dog\n")
    (project / "dvc.yaml").write_text(
        "plots:\n"
        "  - plots/history.csv: {template: linear, x: epoch, y: accuracy}\n"
        "  - plots/predictions.csv: {template: confusion, x: predicted, y: actual}\n"
    )
    return dvc_plots()


@in_browser
def test_dvc_plots_draw_models_in_colours_and_parts_in_dashes(project, built, visit, dvc_plots):
    history = project / "plots/history"
    shutil.copytree(built / "history", history)
    own = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text("utf-8"))["plots"][:2]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"plots": own}))
    page = visit(dvc_plots(), charts=2)
    lines = page.eval_on_selector_all(
        ".mark-line path[aria-label]",
        "all => all.map((each) => [each.getAttribute('stroke'), "
        "each.getAttribute('stroke-dasharray')])",
    )
    one = [(colour, dash) for colour in chart_style.COLOURS[:2] for dash in ("1,0", "4,4")]
    assert sorted(map(tuple, lines)) == sorted(one * 2)


@in_browser
def test_dvc_plots_draw_without_a_network(shown, visit):
    page = visit(shown, charts=2)
    assert not page.locator("#missing").is_visible()


def test_dvc_plots_name_no_other_host(shown):
    assert not re.findall(r'src="https?:', shown.read_text("utf-8"))


@in_browser
def test_dvc_plots_say_which_file_they_miss(shown, browser):
    (shown.parents[1] / "plots/vega.js").unlink()
    page = browser.new_page()
    page.goto(shown.as_uri())
    page.wait_for_selector("#missing:visible")
    assert "dvc repro report writes it" in page.inner_text("#missing").replace("\n", " ")
    page.close()
