"""Files at the front door: the version of the project, editors, and CI."""

import json
import tomllib

import yaml

from tests.conftest import REPOSITORY


def test_citation_changelog_and_lock_have_the_version_of_the_project():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    # the keys that version 1.2.0 of the format requires
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert (citation["license"], citation["abstract"]) == (
        project["license"], project["description"]
    )  # fmt: skip
    (author,) = citation["authors"]
    assert f"(c) 2026 {author['name']}" in (REPOSITORY / "LICENSE").read_text("utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## {citation['version']} - {citation['date-released']}\n" in changelog
    locked = tomllib.loads((REPOSITORY / "uv.lock").read_text("utf-8"))["package"]
    versions = [package["version"] for package in locked if package["name"] == project["name"]]
    assert versions == [project["version"]]


def test_the_editor_recommends_extensions_by_their_full_names():
    extensions = json.loads((REPOSITORY / ".vscode/extensions.json").read_text("utf-8"))
    assert {name.count(".") for name in extensions["recommendations"]} == {1}
    assert "lakefs.lakefs-dvc" in extensions["recommendations"]


def test_ci_runs_the_default_on_three_systems_with_the_uv_of_the_makefile():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    systems = jobs["uv"]["strategy"]["matrix"]["os"]
    assert systems == ["ubuntu-latest", "macos-latest", "windows-latest"]
    commands = [step["run"] for step in jobs["uv"]["steps"] if "run" in step]
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    assert f"UV := {commands[0].partition('==')[2]}\n" in makefile
    assert commands[1:3] == ["uv sync --locked", "uv run dvc repro"]
