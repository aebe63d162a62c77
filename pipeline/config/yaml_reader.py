"""Read a YAML file into a class of schema.py, and report its errors in one line."""

import difflib
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel

from pipeline.core.errors import PipelineError

S = TypeVar("S", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Load YAML 1.2, as DVC does, where PyYAML loads YAML 1.1; refuse duplicate keys.

    In YAML 1.2 `yes` and `1:30` are text, 0123 is 123, and 1e-3 is a number. A stage therefore uses
    the values that DVC records.

    Reference: https://yaml.org/spec/1.2.2/, chapter 10.
    """

    # empty: without PyYAML's resolvers of YAML 1.1
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise PipelineError(
                    f"line {key_node.start_mark.line + 1}: duplicate key {key}. Remove one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "").lstrip("+-")
        bases = {"0b": 2, "0o": 8, "0x": 16}
        value = int(digits[2:], bases[digits[:2]]) if digits[:2] in bases else int(digits)
        return -value if node.value.startswith("-") else value


NUMBER = "-+.0123456789"
for tag, pattern, first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9_]+)", NUMBER),
    ("float", r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+][0-9]+)?"
     r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)", NUMBER),
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("timestamp", r"\d{4}-\d\d-\d\d|\d{4}-\d\d?-\d\d?([Tt]|[ \t]+)\d\d?:\d\d:\d\d(\.\d*)?"
     r"([ \t]*(Z|[-+]\d\d?(:\d\d)?))?", NUMBER),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(f"^({pattern})$"), list(first)
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(text: str) -> Any:
    """Parse YAML text as DVC does."""
    return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


def compose(text: str) -> Any:
    """Parse YAML text into nodes, which know where in the text they are."""
    return yaml.compose(text, _Loader)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Prefix errors raised in the block with the name of the file."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None


def read(path: Path, kind: type[S]) -> S:
    """Read a YAML file into a section; call it inside `reading(path)`."""
    text = ""
    try:
        text = path.read_text("utf-8")
        raw = parse(text)
    except FileNotFoundError:
        raise PipelineError(
            f"no such file in {Path.cwd()}. Run from the root of the repository"
        ) from None
    except IsADirectoryError:
        raise PipelineError("must be a file. Got a folder") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise PipelineError(f"not valid YAML: {_with_line(error, text)}") from None
    except RecursionError:
        raise PipelineError("is nested too deeply. Remove brackets") from None
    return validate(kind, raw, ())


def _with_line(error: Exception, text: str) -> str:
    """Return the message of an error, starting with the line of the problem.

    PyYAML's own message starts with the line of the enclosing block.
    """
    if isinstance(error, yaml.reader.ReaderError):
        return f"line {text.count(chr(10), 0, error.position) + 1}: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem_mark:
        return str(error)
    message = f"line {error.problem_mark.line + 1}: {(error.problem or '').removeprefix('but ')}"
    if error.context and error.context_mark:
        message += f", {error.context} that starts at line {error.context_mark.line + 1}"
    return message


def validate(kind: type[S], raw: Any, at: tuple[str, ...]) -> S:
    try:
        return kind.model_validate(raw)
    except pydantic.ValidationError as error:
        raise explain(kind, error, at) from None


def explain(
    kind: type[BaseModel], error: pydantic.ValidationError, at: tuple[str, ...]
) -> PipelineError:
    """Return all errors of pydantic as one line in the terms of params.yaml."""
    # Unknown keys come first, because a typo often explains a missing key.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    return PipelineError("; ".join(_explain_one(kind, e, at) for e in errors))


def _explain_one(kind: type[BaseModel], error: Any, at: tuple[str, ...]) -> str:
    unknown = error["type"] == "extra_forbidden"
    # The location also contains members of unions, such as dict[str,…], which are not keys. An
    # unknown key may look like one, too.
    names = [str(part) for part in error["loc"]]
    keys = [n for n in names if not re.fullmatch(r"(dict)?\[.*\]", n) or unknown and n == names[-1]]
    where = (*at, *keys)
    if unknown:
        known = _keys(kind, error["loc"][:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Keys: {', '.join(known) or 'none'}"
        return f"{'.'.join(where)} is an unknown key. {hint}"
    if error["type"] == "missing":
        return f"{'.'.join(where)} is missing. Add it"
    if error["type"] == "value_error":  # about the section as a whole
        return f"{'.'.join(where)} {error['ctx']['error']}"
    expected = re.sub(r"^\w+ should", "must", error["msg"])
    expected = re.sub(r" after validation, not \d+$", "", expected)
    if error["type"] in ("model_type", "dict_type"):
        expected = "must be a mapping of keys to values"
    return str(invalid(where, expected, error["input"]))


# The builtin repr would never finish on nested aliases that expand to a billion values.
_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxlong = _short.maxother = 60


def _keys(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed at a location in the tree of sections."""
    for part in loc:
        # every key of a mapping has the type of its values
        kind = get_args(kind)[1] if get_origin(kind) is dict else kind.model_fields[part].annotation
    return list(kind.model_fields)


def invalid(where: tuple[str, ...], expected: str, received: Any) -> PipelineError:
    got = _short.repr(received)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return PipelineError(f"{'.'.join(where) or 'the file'} {expected}. Got {got}")
