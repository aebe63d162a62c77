"""Edit params: a program changes single settings, and everything else in the file stays."""

import pytest

from pipeline.config.yaml_reader import parse
from pipeline.core.errors import PipelineError
from pipeline.tools.edit_params import dump, edited
from tests.conftest import REPOSITORY

TEXT = """\
# the data
data: digits  # default
size:   # none yet
nested:
  # an empty list
  names: [a, b]   # flow
  block:  # a list
    - a
    - b

  last: {x: 1, y: {z: 2}}
"""


def test_only_the_values_change():
    changes = {
        "data": "folder", "size": [224, 224], "nested.names": [], "nested.block": None,
        "nested.last.y.z": 3.5,
    }  # fmt: skip
    expected = TEXT.replace("data: digits", "data: folder").replace("size:", "size: [224, 224]")
    expected = expected.replace("names: [a, b]", "names: []").replace("z: 2", "z: 3.5")
    expected = expected.replace("block:  # a list\n    - a\n    - b\n", "block: null  # a list\n")
    assert edited(TEXT, changes) == expected


def test_the_projects_settings_change_on_their_lines_only():
    text = (REPOSITORY / "params.yaml").read_text("utf-8")
    new = edited(text, {"preprocess.image_size": [224, 224], "split.validation": 0.25})
    old_lines, new_lines = text.splitlines(), new.splitlines()
    assert len(old_lines) == len(new_lines)
    changed = [line for old, line in zip(old_lines, new_lines, strict=True) if old != line]
    assert changed == ["  image_size: [224, 224]", "  validation: 0.25"]


@pytest.mark.parametrize(
    "value",
    ["yes", "no", "0123", "1e3", "null", "1:30", "a: b", "a #b", "it's", 'a "b"', "", "é", "~/x",
     "/data/my photos", "[a]", "{a}", None, True, 7, 0.2, [1, 2], ["a", "b"], {"a": 1.5}],
)  # fmt: skip
def test_values_are_read_back_as_they_were(value):
    text = edited("a: 1\nb:\nc: 2\n", {"b": value})
    assert parse(text) == {"a": 1, "b": value, "c": 2}
    assert text.count("\n") == 3


def test_long_values_stay_on_one_line():
    path = "/" + "photographs of my holidays/" * 20
    assert "\n" not in dump(path)


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x\n", "a: &x {c: 1}\nb: *x\n"])
def test_shared_values_are_refused(text):
    setting = "a" if "[1]" in text else "a.c"
    with pytest.raises(PipelineError, match=f"^{setting}: cannot be changed by a program, because"):
        edited(text, {setting: 2})


def test_a_section_that_takes_a_changed_value_is_given_its_old_one():
    text = "a: &x {c: 1}\nb: &y\n  <<: *x\n  d: 2\nz:\n  <<: *y\n"
    assert edited(text, {"a.c": 3}) == text.replace("c: 1", "c: 3").replace("d: 2", "d: 2\n  c: 1")


def test_settings_that_are_not_in_the_file_are_added_to_their_section():
    text = (
        "m:\n  one:\n    build: {x: 1}   # flow\n    none:\n  # of two\n  two: {build: {}}\nlast: 1"
    )
    changes = {
        "m.one.build.y": 0.5,
        "m.one.train.a.b": 2,
        "m.two.train.c": None,
        "m.two.build.d": 1,
    }
    assert edited(text, changes) == (
        "m:\n  one:\n    build: {x: 1, y: 0.5}   # flow\n    none:\n    train: {a: {b: 2}}\n"
        "  # of two\n  two: {build: {d: 1}, train: {c: null}}\nlast: 1"
    )
    assert edited(text, {"m.one.none.e": 1}) == text.replace("none:", "none: {e: 1}")
    assert edited(text, {"new": "x"}) == f"{text}\nnew: x"
