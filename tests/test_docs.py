"""The documentation: what it names exists, and the built site loads nothing from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, in_browser

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
    # README, studies/README.md and the picture of the benchmarks are outside docs/
    assert {"index.html", "data.html"} <= {path.name for path in pages}
    assert (tmp_path / "studies/index.html").is_file()
    assert (tmp_path / "benchmarks/results/benchmarks.png").is_file()
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
