"""The documentation: what it names exists, and the built site loads nothing from elsewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.cli import parse_args
from dvc.exceptions import InvalidArgumentError
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from pipeline.config.params import load
from pipeline.config.schema import Model
from pipeline.core.errors import PipelineError
from pipeline.training import building
from tests.conftest import REPOSITORY, in_browser
from tests.test_graph import Clone

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "studies/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)


def test_files_that_the_documentation_names_exist():
    named = set(re.findall(r"`((?:benchmarks|docs|pipeline|studies|tests)/[\w/.]*\w/?)`", TEXT))
    assert {name for name in named if not (REPOSITORY / name).exists()} <= {
        "pipeline/architectures/mine.py", "pipeline/ingest/datasets/mine.py", "studies/mine.yaml",
        "studies/STUDY.json",
    }  # fmt: skip


def test_commands_that_the_documentation_names_exist():
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
    assert set(re.findall(r"^ +make ([a-z-]+)|`make ([a-z-]+)", TEXT, re.M)) <= {
        pair for name in targets for pair in ((name, ""), ("", name))
    }
    for tool in set(re.findall(r"python -m pipeline (\w+)", TEXT)):
        assert (REPOSITORY / f"pipeline/tools/{tool}.py").is_file(), tool
    for stage in set(re.findall(r"python -m pipeline\.(\w+)", TEXT)):
        assert (REPOSITORY / f"pipeline/{stage}.py").is_file(), stage


def test_every_promise_names_tests_that_exist():
    table = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8").split("| promise | test |")[1]
    named = re.findall(r"`([\w/]+\.py)`(?:: `(\w+)`)?", table)
    assert len(named) > 20
    for file, test in named:
        text = (REPOSITORY / "tests" / file).read_text("utf-8")
        assert re.search(rf"^def test_\w*{test}", text, re.M), (file, test)


def test_dvc_accepts_every_documented_command():
    blocks = re.findall(r"^    ([^`\n]+)$", TEXT, re.M)
    lines = {line.partition("  #")[0].strip() for line in blocks}
    commands = [part for line in lines for part in re.findall(r"\bdvc ([a-z][^&]+)", line)]
    assert "exp branch sheen-auks rate-0.003" in commands
    for command in commands:
        parse_args(shlex.split(command))


EXPERIMENTS = re.findall(r"dvc exp run [^`#\n]*-S [^`#\n]*", TEXT)
SHAPES = {"digits": (8, 8, 1), "cifar10": (32, 32, 3)}


@cache  # most commands leave most models as they are
def build_network(model: str, shape: tuple[int, ...]) -> None:
    """Build the network of a model, given as JSON."""
    building.build(Model.model_validate_json(model), shape, 10, seed=0)


def resolve(command: str) -> None:
    """Apply the settings of `dvc exp run` to params.yaml as DVC does, validate it, and build."""
    args = parse_args(shlex.split(command)[1:])
    original = Path("params.yaml").read_text("utf-8")
    sweeps = get_hydra_sweeps(to_path_overrides(args.set_param))
    assert len(sweeps) == 1 or args.queue, "DVC refuses a sweep that is not queued"
    for sweep in sweeps:
        Path("params.yaml").write_text(original, "utf-8")
        for path, overrides in sweep.items():
            apply_overrides(path, overrides)
        params = load()
        size = params.preprocess.image_size
        shape = (*size, 3) if size else SHAPES[params.dataset]
        for name in params.compare:
            build_network(params.models[name].model_dump_json(exclude_unset=True), shape)


@pytest.mark.parametrize("command", sorted(set(EXPERIMENTS)))
@pytest.mark.slow
def test_the_settings_of_every_documented_experiment_are_valid(command, tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    resolve(command)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("train.epoch=40", InvalidArgumentError, "Invalid `--set-param` value"),
        ("+train.epoch=40", PipelineError, r"train\.epoch is an unknown key"),
        ("seeds=3", PipelineError, "seeds must be a list"),
        ("+models.baseline.build.batch_norm_momentum=0.5", PipelineError, "batch_norm_momentum"),
        ("train.epochs=20,40", AssertionError, "not queued"),
    ],
)
def test_invalid_settings_of_an_experiment_are_found(
    setting, error, message, tmp_path, monkeypatch
):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        resolve(f"dvc exp run -S {setting}")


def build(repository: Path, site: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", site],
        cwd=repository, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """Build the site, and return its folder and its address on this machine."""
    folder = tmp_path_factory.mktemp("site")
    done = build(REPOSITORY, folder)
    assert done.returncode == 0, done.stderr
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@in_browser
def test_every_page_loads_nothing_from_elsewhere_and_fits_on_a_phone(site, browser):
    tmp_path, address = site
    pages = [path for path in tmp_path.rglob("*.html") if path.name != "404.html"]
    # README and studies/README.md are outside docs/
    assert {"index.html", "data.html"} <= {path.name for path in pages}
    assert (tmp_path / "studies/index.html").is_file()
    assert list(tmp_path.rglob("*.py*")) == []
    for path in pages:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        loaded: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request, to=loaded: to.append(request.url))
        page.on("requestfailed", lambda request, to=failed: to.append(request.url))
        page.goto(address + path.relative_to(tmp_path).as_posix())
        page.wait_for_load_state("load")
        assert [url for url in loaded if not url.startswith((address, "data:", "blob:"))] == []
        assert failed == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        page.close()


@pytest.mark.slow
@in_browser
def test_search_finds_a_page(site, browser):
    _, address = site
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}index.html")
    page.click("[data-md-component=search-query]")
    page.keyboard.type("leaks")
    page.wait_for_selector(".md-search-result__item a[href*='data.html']")
    page.close()


@pytest.mark.slow
def test_broken_links_fail_the_build(tmp_path):
    for name in ("docs", "studies"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    readme = tmp_path / "README.md"
    text = readme.read_text("utf-8")
    readme.write_text(text + "\n[a](docs/none.md) [b](docs/data.md#none)\n", "utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "'none.md'" in done.stderr
    assert "'data.md#none'" in done.stderr


def cells(page: str) -> list[str]:
    """Return the code blocks of a page of docs/."""
    text = (REPOSITORY / "docs" / page).read_text("utf-8")
    return re.findall(r"(?:^    .*\n)+", text, re.M)


@pytest.mark.long
def test_the_cells_for_colab_run_on_the_cpu(tmp_path, monkeypatch):
    """As in a notebook, but with digits, one seed, and the packages that are installed here."""
    origin = tmp_path / "origin"
    origin.mkdir()
    clone = Clone(origin, epochs=1)
    clone.commit("all")
    scripts = {
        "nvidia-smi": "echo GPU 0: Tesla T4", "pip": "exit 0",
        "uv": f'echo "$@" >> {tmp_path}/called; [ $1 = sync ] && exit; shift; exec "$@"',
    }  # fmt: skip
    for name, text in scripts.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DVC_")},
        "PATH": os.pathsep.join(
            map(str, (tmp_path / "bin", Path(sys.executable).parent, os.environ["PATH"]))
        ),
        "CUDA_VISIBLE_DEVICES": "", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path),
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/OWNER/cnn-pipeline",
    }  # fmt: skip
    displayed = []
    display = SimpleNamespace(HTML=lambda filename: displayed.append(Path(filename).read_text()))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    digits = "-S 'preprocess.image_size=[9,9]'"  # digits of 8×8 are too small for airnet
    output = ""
    for line in textwrap.dedent("".join(cells("colab.md"))).splitlines():
        if line.startswith("!"):
            command = line[1:].replace("-S dataset=cifar10", digits)
            done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            output += done.stdout
        elif line.startswith("%cd "):
            monkeypatch.chdir(line.removeprefix("%cd "))
        else:
            exec(line, globals())
    assert (tmp_path / "called").read_text().startswith("sync -q --group cuda\n")
    assert "airnet_narrow" in output.rpartition("Accuracy in %")[2]
    assert len(displayed) == 1
    assert "airnet_narrow" in displayed[0]
