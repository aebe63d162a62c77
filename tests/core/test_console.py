"""Console: tables on terminals of several widths and in pipes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.console import Column, break_lines, column_widths
from tests.conftest import REPOSITORY

pty = pytest.importorskip("pty", reason="no pseudo-terminals on Windows")

TABLE = """
from pipeline.core.console import Column, print_table
columns = [("model",), ("a size", True, 1), ("accuracy", True), ("p", True, 2)]
rows = [["base", "32,906", "0.9722", "0.25"], {last}]
print_table([Column(*column) for column in columns], rows, {title!r})
"""
SHORT = ["net", "7", "0.5000", ""]
LONG = ["abcdefghijklmnopqrst", "7", "0.5000", ""]


def on_terminal(code: str, width: int, folder: Path = REPOSITORY, **env: str) -> list[str]:
    """Run Python code on a terminal of a given width; return its output as lines."""
    main, other = pty.openpty()
    env = {**os.environ, "COLUMNS": str(width), "TERM": "xterm", "NO_COLOR": "1", **env}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=other, stderr=other,
        env={**env, "PYTHONPATH": str(REPOSITORY)},
    ) as process:  # fmt: skip
        os.close(other)
        output = b""
        while True:
            try:
                chunk = os.read(main, 65536)
            except OSError:  # raised by Linux when the other end is closed
                break
            if not chunk:
                break
            output += chunk
    os.close(main)
    assert process.returncode == 0, output.decode()
    return re.sub(r"\x1b\[[\d;]*m", "", output.decode()).splitlines()


def cells(lines: list[str]) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split(line[0])[1:-1]] for line in lines if line[:1] in "│┃"
    ]


def test_a_table_that_fits_is_shown_completely():
    lines = on_terminal(TABLE.format(last=SHORT, title=""), 80)
    assert cells(lines) == [
        ["model", "a size", "accuracy", "p"],
        ["base", "32,906", "0.9722", "0.25"],
        SHORT,
    ]
    assert not any("narrow" in line for line in lines)


@pytest.mark.parametrize(("width", "shown"), [
    # model 5, a size 6, accuracy 8, p 4: 23 characters, and 13 of lines and spaces
    (36, ["model", "a size", "accuracy", "p"]),
    (35, ["model", "accuracy", "p"]),  # 17 and 10
    (27, ["model", "accuracy", "p"]),
    (26, ["model", "accuracy"]),
])  # fmt: skip
def test_columns_are_left_out_in_order_and_listed(width, shown):
    lines = on_terminal(TABLE.format(last=SHORT, title=""), width)
    assert cells(lines)[0] == shown
    assert max(map(len, lines)) <= width
    below = " ".join(" ".join(line for line in lines if line[:1] not in "┏┃┡│└").split())
    missing = [name for name in ("a size", "p") if name not in shown]
    assert below == (f"too narrow for: {', '.join(missing)}" if missing else "")


def test_headings_are_folded_between_words_first():
    columns, rows = [Column("test accuracy", True), Column("x")], [["0.9722", "y"]]
    assert column_widths(columns, rows, 21) == [13, 1]  # 14 and 7 of lines and spaces
    assert column_widths(columns, rows, 20) == [8, 1]


def test_a_long_name_is_folded_but_numbers_are_not():
    lines = on_terminal(TABLE.format(last=LONG, title=""), 24)
    assert cells(lines)[2:] == [["abcdefghi", "0.5000"], ["jklmnopqr", ""], ["st", ""]]


@pytest.mark.parametrize(("text", "width", "lines"), [
    ("a short one", 20, ["a short one"]),
    ("compare=[a, bc], margin=1.5", 15, ["compare=[a,", "bc], margin=1.5"]),
    ("compare=[a, bc], margin=1.5", 16, ["compare=[a, bc],", "margin=1.5"]),
    ("train.learning_rate=0.003", 24, ["train.learning_rate=", "0.003"]),
    ("train.learning_rate=0.003", 19, ["train.", "learning_rate=0.003"]),
    ("scans/first/seven.png", 12, ["scans/first/", "seven.png"]),
    ("a,b,c", 3, ["a,", "b,c"]),
])  # fmt: skip
def test_text_is_broken_between_its_parts_first(text, width, lines):
    assert break_lines(text, width).split("\n") == lines


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1", "COLUMNS": "20", "TERM": "xterm"}])
def test_a_pipe_gets_plain_text_with_every_column_in_any_environment(env):
    name = "[red]a\x1b[31m" + "x" * 300
    code = TABLE.format(last=[name, "7", "0.5000", ""], title="[b]t")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, **env},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert cells(done.stdout.splitlines())[2] == [
        r"[red]a\x1b[31m" + "x" * 300, "7", "0.5000", ""
    ]  # fmt: skip
    assert "[b]t" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(("width", "validation"), [(100, ["98.96"]), (80, [])])
def test_a_comparison_shows_accuracy_difference_and_verdict(width, validation):
    row: dict[str, object] = {"model": "batchnorm", "parameters": 1_023_882, "trainings": 3}
    row |= {"val_accuracy": 0.9896, "accuracy": 0.9722, "accuracy_sd": 0.0042}
    row |= {"accuracy_low": 0.9496, "accuracy_high": 0.9848}
    against: dict[str, object] = {"difference": -0.0028}
    against |= {"difference_low": -0.0167, "difference_high": 0.0111}
    against |= {"p_holm": 0.00075, "verdict": "cannot tell"}
    rows = [{**row, "model": "baseline"}, row | against]
    code = f"from pipeline.stats import comparison_table as t; t.print_comparison({rows!r}, 0.95)"
    lines = on_terminal(code, width)
    assert max(map(len, lines)) <= width
    difference = ["−0.28", "[−1.67, +1.11]", "0.00075", "cannot tell"]
    assert cells(lines)[-1] == ["batchnorm", *validation, "97.22 ± 0.42", *difference]
