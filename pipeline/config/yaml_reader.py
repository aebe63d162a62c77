"""Read a YAML file into a class of schema.py, and report each of its errors in one line."""

import difflib
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

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
        raise PipelineError(*(f"{path}: {problem}" for problem in error.args)) from None


def read(path: Path, kind: type[S]) -> S:
    """Read a YAML file into a section; call it inside `reading(path)`."""
    return validate(kind, read_raw(path), ())


def read_raw(path: Path) -> Any:
    """Read a YAML file without validating it; call it inside `reading(path)`."""
    text = ""
    try:
        text = path.read_text("utf-8")
        return parse(text)
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
    """Return all errors of pydantic in the terms of params.yaml."""
    # Unknown keys come first, because a typo often explains a missing key.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    meant = {_meant(kind, e["loc"]) for e in errors if e["type"] == "extra_forbidden"}
    return PipelineError(
        *(
            _explain_one(kind, e, at)
            for e in errors
            if e["type"] != "missing" or e["loc"] not in meant
        )
    )


def _explain_one(kind: type[BaseModel], error: Any, at: tuple[str, ...]) -> str:
    loc, received = error["loc"], error["input"]
    if error["type"] == "extra_forbidden":
        meant = _meant(kind, loc)
        known = ", ".join(_known_keys(kind, loc[:-1])) or "none"
        hint = f"Did you mean {meant[-1]}?" if meant else f"Keys: {known}"
        return f"{'.'.join((*at, *_keys(loc[:-1]), str(loc[-1])))} is an unknown key. {hint}"
    where = (*at, *_keys(loc))
    if error["type"] == "missing":
        return f"{'.'.join(where)} is missing. Add it"
    if error["type"] == "value_error":  # about the section as a whole
        return f"{'.'.join(where)} {error['ctx']['error']}"
    if error["type"] == "invalid_key" or (error["type"], *loc[-1:]) == ("string_type", "[key]"):
        # such as {momentum: 0,9}, which is {momentum: 0, 9: null}
        hint = "Quote it, or write decimals with a point, as in 0.9"
        return f"{invalid(where[:-1], 'must have text as keys', received)}. {hint}"
    expected = re.sub(r"^\w+ should", "must", error["msg"])
    expected = re.sub(r" after validation, not \d+$", "", expected)
    hint = ""
    if error["type"] in ("model_type", "dict_type"):
        expected = "must be a mapping of keys to values"
    elif error["type"] in ("int_type", "float_type", "bool_type", "list_type", "is_instance_of"):
        types = {schema["type"]: schema for schema in _types(kind, loc) if "type" in schema}
        if types.keys() <= TYPES.keys() and types:
            expected = f"must be {' or '.join(map(_describe, types.values()))}"
            hint = _correct_notation(received, types)
    return f"{invalid(where, expected, received)}{hint and f'. Write {hint}'}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """Return a location of pydantic without members of unions, such as dict[str,…]."""
    return [str(part) for part in loc if not re.fullmatch(r"(dict)?\[.*\]", str(part))]


def _meant(kind: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the location of the known key most similar to an unknown one; empty if none is."""
    near = difflib.get_close_matches(str(loc[-1]), _known_keys(kind, loc[:-1]), n=1)
    return (*loc[:-1], *near) if near else ()


def _known_keys(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    return [key for schema in _types(kind, loc) for key in schema.get("properties", {})]


def _types(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[dict[str, Any]]:
    """Return the JSON Schema of each type that a value at a location can have."""
    document = kind.model_json_schema()

    def members(schema: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in schema:
            schema = document["$defs"][schema["$ref"].rpartition("/")[2]]
        union = schema.get("anyOf", schema.get("oneOf"))
        return [each for one in union for each in members(one)] if union else [schema]

    types = members(document)
    for key in _keys(loc):
        types = [each for schema in types for one in _below(schema, key) for each in members(one)]
    return types


def _below(schema: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return what the JSON Schema of a section, mapping or list says about one of its values."""
    if key in schema.get("properties", {}):
        return [schema["properties"][key]]
    others = [schema.get("items"), schema.get("additionalProperties")]
    others += schema.get("patternProperties", {}).values()
    return [other for other in others if isinstance(other, dict)]


TYPES = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "null": "null",
}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _describe(schema: dict[str, Any]) -> str:
    """Return the type and range of a JSON Schema, such as: a number > 0 and < 100."""
    bounds = [f"{sign} {schema[bound]}" for bound, sign in BOUNDS.items() if bound in schema]
    return f"{TYPES[schema['type']]} {' and '.join(bounds)}".rstrip()


def _correct_notation(received: Any, types: dict[str, dict[str, Any]]) -> str:
    """Return how to write a list of one value, or a number in quotes or with a decimal comma."""
    if "array" in types and type(received) in (str, int, float):
        return f"[{received}]" if types["array"].get("minItems", 0) <= 1 else ""
    number = isinstance(received, str) and re.fullmatch(r"-?\d+([.,]\d+)?", received)
    if number and (not number[1] or "number" in types):
        return number[0].replace(",", ".")
    return ""


# The builtin repr would never finish on nested aliases that expand to a billion values.
_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxlong = _short.maxother = 60


def invalid(where: tuple[str, ...], expected: str, received: Any) -> PipelineError:
    got = _short.repr(received)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return PipelineError(f"{'.'.join(where) or 'the file'} {expected}. Got {got}")
