"""Yaml reader: a YAML file as a section of schema.py, and what is wrong with it in one line."""

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
    """YAML 1.2 as DVC reads it, where PyYAML reads 1.1; a key stands once.

    So `yes` and `1:30` are text, 0123 is 123, and 1e-3 is a number: what a stage trains with is
    what DVC records. Reference: https://yaml.org/spec/1.2.2/, chapter 10.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # not 1.1's

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise PipelineError(
                    f"line {key_node.start_mark.line + 1}: {key} stands twice. Rename or delete one"
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
    """Return what a YAML text holds, read as DVC reads it."""
    return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file first in what is wrong with it."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None


def read(path: Path, kind: type[S]) -> S:
    """Read a YAML file as a section, in a block of `reading(path)`."""
    text = ""
    try:
        text = path.read_text("utf-8")
        raw = parse(text)
    except FileNotFoundError:
        raise PipelineError(
            f"no such file in {Path.cwd()}. Run from the repository's top"
        ) from None
    except IsADirectoryError:
        raise PipelineError("must be a file. Got a folder") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise PipelineError(f"not valid YAML: {_located(error, text)}") from None
    except RecursionError:
        raise PipelineError("must be nested less deeply. Take brackets away") from None
    return validate(kind, raw, ())


def _located(error: Exception, text: str) -> str:
    """Say first where the problem is: PyYAML begins with where the parent started."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"line {text.count(chr(10), 0, error.position) + 1}: {error.reason}"
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem_mark:
        return str(error)
    said = f"line {error.problem_mark.line + 1}: {(error.problem or '').removeprefix('but ')}"
    if error.context and error.context_mark:
        said += f", {error.context} that begins in line {error.context_mark.line + 1}"
    return said


def validate(kind: type[S], raw: Any, at: tuple[str, ...]) -> S:
    try:
        return kind.model_validate(raw)
    except pydantic.ValidationError as error:
        raise explain(kind, error, at) from None


def explain(
    kind: type[BaseModel], error: pydantic.ValidationError, at: tuple[str, ...]
) -> PipelineError:
    """Turn all of pydantic's errors into one line in the words of params.yaml."""
    # an unknown key first: it often explains the missing one
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    return PipelineError("; ".join(_explain_one(kind, e, at) for e in errors))


def _explain_one(kind: type[BaseModel], error: Any, at: tuple[str, ...]) -> str:
    unknown = error["type"] == "extra_forbidden"
    # pydantic names the member of a union, as dict[str,…], beside the key; but a key that is not
    # known may look like that too
    names = [str(part) for part in error["loc"]]
    kept = [n for n in names if not re.fullmatch(r"(dict)?\[.*\]", n) or unknown and n == names[-1]]
    where = (*at, *kept)
    if unknown:
        known = _keys(kind, error["loc"][:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Keys: {', '.join(known) or 'none'}"
        return f"{'.'.join(where)} is no known key. {hint}"
    if error["type"] == "missing":
        return f"{'.'.join(where)} is missing. Add it"
    if error["type"] == "value_error":  # of a section as a whole
        return f"{'.'.join(where)} {error['ctx']['error']}"
    expected = re.sub(r"^\w+ should", "must", error["msg"])
    if error["type"] in ("model_type", "dict_type"):
        expected = "must be a mapping of keys to values"
    return str(unfit(where, expected, error["input"]))


# repr itself never ends where aliases of aliases stand for a billion values
_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxlong = _short.maxother = 60


def _keys(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    """List the keys that are allowed at a place in the tree of sections."""
    for part in loc:
        # of a mapping, any key leads to what it maps to
        kind = get_args(kind)[1] if get_origin(kind) is dict else kind.model_fields[part].annotation
    return list(kind.model_fields)


def unfit(where: tuple[str, ...], expected: str, received: Any) -> PipelineError:
    got = _short.repr(received)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return PipelineError(f"{'.'.join(where) or 'the file'} {expected}. Got {got}")
