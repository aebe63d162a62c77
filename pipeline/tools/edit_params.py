"""Change settings in params.yaml, and nothing else in it: no comment, no order, no other line."""

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from pipeline.config.yaml_reader import compose, parse
from pipeline.core.errors import PipelineError


def lookup(data: Mapping[str, Any], setting: str) -> Any:
    """Return the value of a setting, such as `preprocess.resize`."""
    value: Any = data
    for key in setting.split("."):
        value = value[key]
    return value


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """Return the text of a YAML file with other values.

    Args:
        text: The file.
        changes: New value of each setting, such as `preprocess.resize`. It must be in the file.

    Raises:
        PipelineError: A value cannot be replaced without changing something else.
    """
    expected = copy.deepcopy(parse(text))
    for setting, value in changes.items():
        section, _, key = setting.rpartition(".")
        parent = lookup(expected, section) if section else expected
        parent[key] = value
        text = _replaced(text, setting, value)
    with suppress(yaml.YAMLError):
        if parse(text) == expected:
            return text
    raise PipelineError(
        f"{', '.join(changes)}: cannot be changed by a program, because another setting shares a "
        "value with them (YAML's & and *). Change them by hand"
    )


def dump(value: Any) -> str:
    """Return a value as YAML on one line, which YAML 1.2 reads as the same value."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("...\n").strip()
    return text if parse(text) == value else json.dumps(value, ensure_ascii=False)


def _replaced(text: str, setting: str, value: Any) -> str:
    """Replace the value of one setting where it is written."""
    node = compose(text)
    for name in setting.split("."):
        key, node = next((k, v) for k, v in node.value if k.value == name)
    colon = text.index(":", key.end_mark.index) + 1
    # the comment of a block that starts on the next line stays
    before = text[colon : max(colon, node.start_mark.index)].rstrip()
    return f"{text[:colon]} {dump(value)}{before}{text[max(colon, _end(node)) :]}"


def _end(node: yaml.Node) -> int:
    """Return where a node ends; PyYAML ends a block where the next one starts."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index
