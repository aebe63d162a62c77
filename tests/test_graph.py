"""The graph: dvc.yaml says what the stages do, and DVC reruns what a change affects."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grimp
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.datasets import load_digits

from tests.conftest import REPOSITORY, png, write_params

IMPORTS = grimp.build_graph("pipeline")
DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
STUDIES = yaml.safe_load((REPOSITORY / "studies/dvc.yaml").read_text())
UNEXPANDED = DVC["stages"] | STUDIES["stages"]
# attributes of `params` and `common` that are no settings: of the module, or of pydantic
METHODS = {"load", "read", "reading", "check_model", "model_copy"}
# methods, and the settings that they read; a study's models are its own
STAND_FOR = {
    "all_models": {"models", "finetune"},
    "train_of": {"train"},
    "pictures_of": {"analyze", "models", "finetune", "reference"},
    "train.overridden_by": {"train", "backend"},
}


def body(stage: dict[str, Any]) -> dict[str, Any]:
    return stage.get("do", stage)


def script_of(stage: dict[str, Any]) -> str | None:
    """Return the module of pipeline/ that a stage runs, if it runs one."""
    found = re.search(r"-m pipeline\.(\w+)", str(body(stage).get("cmd")))
    return found[1] if found else None


def paths(entries: Iterable[Any]) -> list[str]:
    """Return the paths of deps, outs or metrics, which may be mappings of a path to options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def params_needed(stage: dict[str, Any], script: str, top: Path) -> set[str]:
    """Return the settings of params.yaml that a stage reads, as attributes in its script."""
    nodes = ast.walk(ast.parse((top / f"pipeline/{script}.py").read_text("utf-8")))
    chains = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    form = r"(?:params|common)\.(\w+(?:\.\w+)?)"
    read = {found[1] for chain in chains if (found := re.fullmatch(form, chain))} - METHODS
    # the longest form only: params.split.validation, not params.split too
    read = {name for name in read if not any(other.startswith(f"{name}.") for other in read)}
    read = {each for name in read for each in STAND_FOR.get(name, {name})}
    group = str(stage.get("foreach")).strip("${} ")
    if {group, "models", "finetune"} <= read:
        # of one model, by its name on the command line
        return read - {"models", "finetune"} | {group + ".${key}"}
    return read


def params_declared(stage: dict[str, Any]) -> set[str]:
    return {name for name in body(stage).get("params", []) if isinstance(name, str)}


STAGES = {name: body(stage) for name, stage in UNEXPANDED.items()}
# stages that run the script of another
SCRIPT = {name: name for name in STAGES} | {
    "finetune": "train",
    "evaluate_finetuned": "evaluate",
    "analyze_finetuned": "analyze",
}

HEAVY = {"keras", "tensorflow", "tensorflow_datasets", "jax", "torch"}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_runs_its_script(stage):
    assert script_of(UNEXPANDED[stage]) == SCRIPT[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_script_and_on_the_packages_that_it_imports(stage):
    modules = IMPORTS.find_upstream_modules(f"pipeline.{SCRIPT[stage]}")
    packages = {f"pipeline/{module.split('.')[1]}" for module in modules if "." in module}
    declared = {dep for dep in paths(STAGES[stage]["deps"]) if dep.startswith("pipeline/")}
    # one architecture is one file, which params.yaml names
    declared = {dep for dep in declared if not dep.startswith("pipeline/architectures/")}
    assert declared == packages | {f"pipeline/{SCRIPT[stage]}.py"}


@pytest.mark.parametrize("stage", ["train", "finetune", "analyze", "analyze_finetuned", "study"])
def test_what_builds_a_network_depends_on_its_architecture_alone(stage):
    deps = [dep for dep in paths(STAGES[stage]["deps"]) if "architectures" in dep]
    item = "${item}" if stage == "study" else "${item.architecture}"
    assert deps == [f"pipeline/architectures/{item}.py"]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_declares_exactly_the_params_it_reads(stage):
    needed = params_needed(UNEXPANDED[stage], SCRIPT[stage], REPOSITORY)
    assert params_declared(UNEXPANDED[stage]) == needed


def test_params_are_read_from_the_script_each_in_its_longest_form(tmp_path):
    (tmp_path / "pipeline").mkdir()
    script = tmp_path / "pipeline/train.py"
    script.write_text(
        "params = load()\nprint(params.seed, params.split.validation, params.all_models)\n"
    )
    read = params_needed({}, "train", tmp_path)
    assert read == {"seed", "split.validation", "models", "finetune"}
    of_one = params_needed({"foreach": "${finetune}"}, "train", tmp_path)
    assert of_one == {"seed", "split.validation", "finetune.${key}"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_on_the_command_line_is_declared(stage):
    definition = STAGES[stage]
    words = re.findall(r"--[\w-]+ (\S+)", definition["cmd"])
    declared = paths(
        [*definition["deps"], *definition.get("outs", []), *definition.get("metrics", [])]
    )
    for word in words:
        inside = [path for path in declared if path == word or path.startswith(f"{word}/")]
        assert inside, f"{word} of {stage} is neither dependency nor output"
    words += re.findall(r"pipeline\.study (\S+)", definition["cmd"])
    for out in paths([*definition.get("outs", []), *definition.get("metrics", [])]):
        assert any(out == word or out.startswith(f"{word}/") for word in words), out


@pytest.mark.parametrize("stage", ["train", "finetune", "study"])
def test_training_never_opens_test_data(stage):
    deps = STAGES[stage]["deps"]
    assert "data/arrays/train" in deps
    assert not [dep for dep in deps if dep in ("data/arrays", "data/arrays/test", "data/raw")]


def test_what_starts_from_a_file_depends_on_it_and_on_all_that_training_depends_on():
    train, finetune = STAGES["train"], STAGES["finetune"]
    assert finetune["deps"] == [*train["deps"], "${item.from_model}"]
    assert finetune["cmd"] == train["cmd"]
    assert STAGES["evaluate_finetuned"] == STAGES["evaluate"]


def test_nothing_depends_on_timing():
    for stage in STAGES.values():
        assert not [
            dep for dep in stage["deps"] if dep.startswith("metrics/run") or dep == "metrics"
        ]


# predict, demo and export: not before their arguments are known to be right
@pytest.mark.parametrize(
    "stage",
    [
        "preprocess",
        "split",
        "compare",
        "plot",
        "report",
        "tools.doctor",
        "tools.gate",
        "tools.predict",
        "tools.demo",
        "export",
    ],
)
def test_stage_without_need_of_keras_does_not_import_it(stage):
    code = f"import sys, pipeline.{stage}; print(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & set(loaded)


def test_plots_name_outputs_of_the_graph():
    outs = [path for stage in STAGES.values() for path in paths(stage.get("outs", []))]
    named = [
        path
        for plot in DVC["plots"]
        for name, definition in plot.items()
        for path in (definition["y"] if isinstance(definition["y"], dict) else [name])
    ]
    for path in named:
        pattern = [re.escape(out).replace(r"\$\{key\}", r"\w+") for out in outs]
        assert any(re.fullmatch(p, path) or re.match(path + "/", p) for p in pattern), path


BATCHNORM = "  batchnorm:\n    architecture: batchnorm\n    train: {batch_size: 32}\n"


class Clone:
    """A copy of the repository with Git and DVC of its own, and a shorter training.

    Args:
        folder: Where to; it exists.
        alone: Leave the model batchnorm out, where one is enough.
        epochs: Of every model.
    """

    def __init__(self, folder: Path, alone: bool = False, epochs: int = 20):
        self.folder = folder
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        ).stdout.split("\n")  # fmt: skip
        for name in filter(None, tracked):
            if (REPOSITORY / name).is_file() and not name.startswith(("metrics/", "tests/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, folder / name)
        (folder / "dvc.lock").unlink(missing_ok=True)
        write_params(folder)
        self.edit("params.yaml", "epochs: 20", f"epochs: {epochs}")
        if alone:
            self.edit("params.yaml", BATCHNORM, "")
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "config", "user.email", "test@example.org")
        self.run("git", "config", "user.name", "test")
        self.run(
            "git", "add", "data"
        )  # params.yaml's `folder` holds no file that Git does not track

    def run(self, *argv: str, folder: Path | None = None, own: dict[str, str] | None = None) -> str:
        bin = Path(sys.executable).parent
        path = f"{bin}{os.pathsep}{os.environ['PATH']}"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_"))}
        done = subprocess.run(
            argv, cwd=folder or self.folder, env={**env, "PATH": path, **(own or {})},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def repro(self, *argv: str, own: dict[str, str] | None = None) -> set[str]:
        """Run dvc repro and return the stages that ran, or came back from the run cache."""
        out = self.run("dvc", "repro", *argv, own=own)
        ran = re.findall(r"Running stage '([\w@-]+)'", out)
        return set(ran) | set(re.findall(r"Stage '([\w@-]+)' is cached", out))

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def read(self, *patterns: str) -> dict[str, bytes]:
        files = [f for pattern in patterns for f in self.folder.glob(pattern) if f.is_file()]
        return {str(f.relative_to(self.folder)): f.read_bytes() for f in files}


def of(model: str, training: str = "train") -> set[str]:
    """Return the stages of one model."""
    evaluate, analyze = ("evaluate", "analyze") if training == "train" else (
        "evaluate_finetuned", "analyze_finetuned"
    )  # fmt: skip
    return {f"{stage}@{model}" for stage in (training, evaluate, analyze)}


# always; and export, where the champion's file is another one
LAST = {"compare", "plot", "report"}
# real photographs, train/{cats,dogs} and test/{cats,dogs}
CATS_VS_DOGS = Path(os.environ.get("CATS_VS_DOGS_DIR", "none")).resolve()
PARAMETERS = {"logistic_bn": 301_070, "wide_bn": 35_114, "deep_bn": 10_034}


@pytest.mark.slow
def test_only_what_is_affected_reruns(tmp_path):
    clone = Clone(tmp_path, epochs=1)
    # small, since it is trained again and again
    clone.edit("params.yaml", BATCHNORM, "  small: {architecture: plain, build: {depth: 2}}\n")
    # by name: what follows the champion must not depend on luck
    clone.edit("params.yaml", "champion: auto", "champion: baseline")
    first = {"versions", "download", "preprocess", "split", "export"}
    everything = first | of("baseline") | of("small") | LAST
    assert clone.repro() == everything
    assert clone.repro() == set()

    lock = (tmp_path / "uv.lock").read_text()
    newer = re.sub(r'(name = "matplotlib"\nversion = )"[\d.]+"', r'\1"99.0"', lock)
    (tmp_path / "uv.lock").write_text(newer)
    drawn = {f"analyze@{model}" for model in ("baseline", "small")}
    assert clone.repro() == {"versions", "plot", "report"} | drawn

    clone.edit("params.yaml", "depth: 2", "depth: 3")
    # versions reads which models there are; what it writes stays, and so do their other stages
    assert clone.repro() == {"versions"} | of("small") | LAST

    clone.edit("params.yaml", "champion: baseline", "champion: small")
    assert clone.repro() == {"compare", "export", "report"}

    clone.edit("pipeline/plot.py", "GRID = 5", "GRID = 5  # a comment")
    assert clone.repro() == {"plot"}

    # from here on less than all, which takes less time
    def compared(*models: str) -> set[str]:
        return {f"{stage}@{m}" for stage in ("train", "evaluate") for m in models} | {"compare"}

    clone.edit("pipeline/architectures/plain.py", "Conv2D(filters, 3", "Conv2D(filters, 5")
    assert clone.repro("compare") == compared("small")

    clone.edit("params.yaml", "epochs: 1\n", "epochs: 2\n")
    assert clone.repro("compare") == compared("baseline", "small")

    clone.edit("params.yaml", "validation: 0.2", "validation: 0.3")
    assert clone.repro("compare") == {"split"} | compared("baseline", "small")

    clone.edit("params.yaml", "normalize: unit", "normalize: standardize")
    again = {"preprocess", "split"} | compared("baseline", "small")
    assert clone.repro("compare") == again
    # what was left out is known to be stale
    left = {"analyze@baseline", "analyze@small", "export", "plot", "report"}
    assert set(json.loads(clone.run("dvc", "status", "--json", "dvc.yaml"))) == left

    source = (tmp_path / "pipeline/architectures/baseline.py").read_text()
    (tmp_path / "pipeline/architectures/wider.py").write_text(source.replace("(16, 32", "(24, 32"))
    clone.edit("params.yaml", "models:\n", "models:\n  wider: {architecture: wider}\n")
    assert clone.repro("compare", "analyze@wider") == {"versions"} | of("wider") | {"compare"}
    # of three models the reference and the last have pictures: as before
    chosen = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("data/analysis/*")}
    assert [name for name, pictures in chosen.items() if not pictures] == ["wider"]

    clone.edit("params.yaml", "pictures: [layers, ", "pictures: [")
    assert clone.repro("analyze@wider") == {"versions"}
    assert clone.repro("analyze@small") == {"analyze@small"}


def write_digits(top: Path, digits: range, per_class: int) -> None:
    """Write a folder of real digits, so many of each for training, and half as many to test."""
    loaded = load_digits()
    for digit in digits:
        rows = np.flatnonzero(loaded.target == digit)[: per_class * 3 // 2]
        for number, row in enumerate(rows):
            part = "train" if number < per_class else "test"
            path = top / part / str(digit) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.rint(loaded.images[row] * (255 / 16)).astype(np.uint8)))


@pytest.mark.slow
def test_no_experiment_commits_images_to_git_and_the_documented_ways_work(tmp_path):
    (tmp_path / "clone").mkdir()
    clone = Clone(tmp_path / "clone")
    clone.commit("first")
    write_digits(tmp_path / "outside", range(2), 8)
    write_digits(tmp_path / "clone/photos", range(2), 8)

    def run(name: str, folder: object, *argv: str) -> str:
        settings = ["-S", "dataset=folder", "-S", f"folder={folder}"]
        return clone.run("dvc", "exp", "run", *argv, "-n", name, *settings, "download")

    def committed() -> str:
        return clone.run("git", "log", "--all", "--format=", "--name-only")

    with pytest.raises(AssertionError, match="`dvc exp run` would commit to Git"):
        run("untracked", "photos")
    with pytest.raises(AssertionError, match="error: params.yaml: folder must be an existing"):
        run("missing", "img")
    clone.run("git", "checkout", "-q", ".")
    assert run("outside", tmp_path / "outside")
    clone.run("git", "checkout", "-q", ".")
    # a commit needs none of it: staged is enough
    clone.run("dvc", "add", "photos")
    clone.run("git", "add", "photos.dvc", ".gitignore")
    run("outside_queued", tmp_path / "outside", "--queue")
    run("added_queued", "photos", "--queue")
    clone.run("dvc", "exp", "run", "--run-all")
    experiments = clone.run("git", "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps")
    assert {"outside", "outside_queued", "added_queued"} <= set(experiments.split())
    assert "0.png" not in committed()


@pytest.mark.slow
def test_a_model_of_some_digits_is_fine_tuned_on_others(tmp_path):
    clone = Clone(tmp_path, alone=True, epochs=10)
    with (tmp_path / ".gitignore").open("a") as file:
        file.write("/low/\n/high/\n")
    write_digits(tmp_path / "low", range(5), 100)
    write_digits(tmp_path / "high", range(5, 10), 20)
    clone.edit("params.yaml", "dataset: digits", "dataset: folder")
    clone.edit("params.yaml", "folder: data/folder", "folder: low")
    clone.repro("train@baseline")
    shutil.copy(tmp_path / "models/baseline.keras", tmp_path / "models/kept.keras")

    clone.edit("params.yaml", "folder: low", "folder: high")
    clone.edit(
        "params.yaml",
        "finetune: {}",
        "finetune:\n"
        "  mine: {architecture: transfer, from_model: models/kept.keras, "
        "train: {epochs: 40, learning_rate: 0.01}}\n"
        "  next: {architecture: transfer, from_model: models/baseline.keras, "
        "build: {drop_layers: 2, freeze: none}}",
    )
    mine, following = (of(name, "finetune") for name in ("mine", "next"))
    ran = clone.repro() - {"export"}
    first = {"versions", "download", "preprocess", "split"}
    assert ran == first | of("baseline") | mine | following | LAST
    metrics = json.loads((tmp_path / "metrics/test/mine.json").read_text())
    # five classes of which the kept layers have seen no image, 16 to learn from of each. Guesses
    # are right once in 5, and for 20 of these 50 once in a thousand; measured: 0.62
    assert metrics["accuracy"] >= 0.4
    trained = json.loads((tmp_path / "metrics/train/mine.json").read_text())
    assert trained["trainable_parameters"] == 128 * 5 + 5

    # another file: what starts from it, and nothing else
    shutil.copy(tmp_path / "models/baseline.keras", tmp_path / "models/kept.keras")
    tuned = {"finetune@mine", "evaluate_finetuned@mine", "compare"}
    assert clone.repro("compare") == tuned
    # a source of the graph itself: what changes it comes first
    clone.edit("params.yaml", "architecture: baseline\n    build:", "architecture: baseline\n"
               "    train: {batch_size: 16}\n    build:")  # fmt: skip
    following = {"versions", "finetune@next", "evaluate_finetuned@next", "compare"}
    assert clone.repro("compare") == {"train@baseline", "evaluate@baseline"} | following


@pytest.mark.slow
@pytest.mark.skipif(not CATS_VS_DOGS.is_dir(), reason="CATS_VS_DOGS_DIR names no folder")
def test_photographs_train_the_batch_normalized_classifiers(tmp_path):
    clone = Clone(tmp_path, epochs=2)
    for old, new in (
        ("dataset: digits", "dataset: folder"),
        ("folder: data/folder", f"folder: {CATS_VS_DOGS}"),
        ("image_size:", "image_size: [224, 224]"),
        ("batch_size: 32", "batch_size: 10"),
        ("reference: baseline", "reference: logistic_bn"),
        ("  models:\n  # Any", "  models: [wide_bn]\n  # Any"),
    ):
        clone.edit("params.yaml", old, new)
    text = (tmp_path / "params.yaml").read_text()
    rates = {"logistic_bn": 0.01, "wide_bn": 0.001, "deep_bn": 0.01}  # the reference's
    models = "".join(
        f"  {name}: {{architecture: {name}, train: {{learning_rate: {rate}}}}}\n"
        for name, rate in rates.items()
    )
    text = re.sub(r"(?s)\nmodels:\n.*?\n\n", f"\nmodels:\n{models}\n", text)
    (tmp_path / "params.yaml").write_text(text)
    clone.repro("compare", "plot", "analyze@wide_bn")
    rows = json.loads((tmp_path / "metrics/comparison.json").read_text())["models"]
    assert {row["model"]: row["parameters"] for row in rows} == PARAMETERS
    split = json.loads((tmp_path / "metrics/split.json").read_text())
    assert split["rows"] == {"train": 320, "validation": 80, "test": 160}
    for name in PARAMETERS:
        table = pd.read_csv(tmp_path / f"plots/predictions/{name}.csv")
        assert table["actual"].value_counts().to_dict() == {"cats": 80, "dogs": 80}
        right = (table["actual"] == table["predicted"]).mean()
        (row,) = (row for row in rows if row["model"] == name)
        assert row["accuracy"] == pytest.approx(right)
    # two epochs are not enough to compare them, but wide_bn learns from the first on
    history = pd.read_csv(tmp_path / "plots/history/wide_bn.csv")
    assert history["loss"].iloc[1] < history["loss"].iloc[0]
    assert len(list((tmp_path / "plots/examples").glob("*.png"))) == 3


def check_documented_comparison(clone: Clone) -> None:
    """Run the commands by which docs/comparing.md compares two models, whichever is champion."""
    page = (REPOSITORY / "docs/comparing.md").read_text("utf-8")
    commands = re.findall(r"^    (dvc (?:exp run -n|metrics diff) [^#\n]+)", page, re.M)
    said = [clone.run(*shlex.split(command)) for command in commands]
    assert len(said) == 3
    assert re.search(r"champion\.json\s+model\s+baseline\s+batchnorm", said[-1]), said[-1]


@pytest.mark.slow
def test_default_is_good_repeats_to_the_bit_and_compares(tmp_path, hostile):
    clone = Clone(tmp_path)
    clone.repro()
    clone.commit("run")
    shown = clone.run("dvc", "metrics", "show", "--md", "metrics/test")
    accuracy = {}
    for line in shown.splitlines():
        if found := re.match(r"\| metrics/test/(\w+)\.json\s*\| ([\d.]+)", line):
            accuracy[found[1]] = float(found[2])
    assert set(accuracy) == {"baseline", "batchnorm"}
    assert min(accuracy.values()) > 0.93

    # what Git holds is enough for the gate
    bare = tmp_path.with_name(f"{tmp_path.name}_bare")
    clone.run("git", "clone", "-q", str(tmp_path), str(bare))
    said = clone.run("python", "-m", "pipeline.tools.gate", "--against", "main", folder=bare)
    assert said.startswith("gate: dvc.lock: current\n")
    assert said.endswith("+0.0 points [-0.8, +0.8], p 1: not worse beyond noise\n")

    kept = (
        "models/*.*",
        "metrics/*.json",
        "metrics/t*/*.json",
        "plots/**/*.*",
        "data/**/*.npy",
    )
    before = clone.read(*kept)
    # what no other test repeats (see test_kill.py), each stage alone; among another user's settings
    of_one = (f"{stage}@batchnorm" for stage in ("train", "evaluate", "analyze"))
    clone.repro("-f", "-s", *of_one, own=hostile)
    clone.repro("-f", "-s", "compare", "export", "plot", "report", own=hostile)
    after = clone.read(*kept)
    assert len(before) > 20
    assert [name for name in before if before[name] != after.get(name)] == []

    clone.run("git", "checkout", "-q", ".")
    check_documented_comparison(clone)

    # the queue works in a folder of its own, from what Git and DVC's cache hold
    clone.run("git", "checkout", "-q", ".")
    queued = ["-n", "queued", "-S", "train.epochs=1", "evaluate@baseline"]
    clone.run("dvc", "exp", "run", "--queue", *queued)
    clone.run("dvc", "exp", "run", "--run-all")
    difference = clone.run("dvc", "metrics", "diff", "main", "queued")
    assert re.search(r"train/baseline\.json\s+epochs\s+20\s+1\b", difference), difference
