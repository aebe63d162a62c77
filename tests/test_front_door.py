"""Files at the front door: editors and CI."""

import json

import yaml

from tests.conftest import REPOSITORY


def test_the_editor_recommends_extensions_by_their_full_names():
    extensions = json.loads((REPOSITORY / ".vscode/extensions.json").read_text("utf-8"))
    assert {name.count(".") for name in extensions["recommendations"]} == {1}
    assert "iterative.dvc" in extensions["recommendations"]


def test_ci_runs_the_default_on_three_systems_with_the_uv_of_the_makefile():
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    systems = jobs["uv"]["strategy"]["matrix"]["os"]
    assert systems == ["ubuntu-latest", "macos-latest", "windows-latest"]
    commands = [step["run"] for step in jobs["uv"]["steps"] if "run" in step]
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    assert f"UV := {commands[0].partition('==')[2]}\n" in makefile
    assert commands[1:3] == ["uv sync --locked", "uv run dvc repro"]
