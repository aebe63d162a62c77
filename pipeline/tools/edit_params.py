"""Change settings in params.yaml, and nothing else in it: no comment, no order, no other line."""

import json
from collections.abc import Iterator, Mapping
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

    If another setting takes its value from a changed one (YAML's `<<`), it is given its old value.

    Args:
        text: The file.
        changes: New value of each setting, such as `preprocess.resize`. A setting that is not in
            the file is added at the end of its section.

    Raises:
        PipelineError: A value cannot be replaced without changing something else.
    """
    expected = _copied(parse(text))
    for setting, value in changes.items():
        *sections, key = setting.split(".")
        parent = expected
        for section in sections:
            if parent.get(section) is None:
                parent[section] = {}
            parent = parent[section]
        parent[key] = value
        text = _replaced(text, tuple(setting.split(".")), value)
    settings = dict(_leaves(expected))
    with suppress(yaml.YAMLError):
        for _ in settings:
            current = dict(_leaves(parse(text)))
            others = [path for path in settings if current.get(path) != settings[path]]
            if not others:
                break
            text = _replaced(text, others[0], settings[others[0]])
        if parse(text) == expected:
            return text
    raise PipelineError(
        f"{', '.join(changes)}: cannot be changed by a program, because another setting shares a "
        "value with them (YAML's & and *). Change them by hand"
    )


def _copied(value: Any) -> Any:
    """Copy nested values; those that YAML's aliases share become separate ones."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _leaves(nested: dict[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Yield the path and the value of each setting, in the order of the file."""
    for key, value in nested.items():
        path = (*above, str(key))
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def dump(value: Any) -> str:
    """Return a value as YAML on one line, which YAML 1.2 reads as the same value."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("...\n").strip()
    return text if parse(text) == value else json.dumps(value, ensure_ascii=False)


def _replaced(text: str, path: tuple[str, ...], value: Any) -> str:
    """Replace the value of one setting where it is written, or add it to its section."""
    node = compose(text)
    for depth, name in enumerate(path):
        own = [pair for pair in node.value if pair[0].value == name]
        rest = path[depth + 1 :]
        if own and (not rest or isinstance(own[0][1], yaml.MappingNode) and own[0][1].value):
            key, node = own[0]
            continue
        for section in reversed(rest):
            value = {section: value}
        if not own:
            return _added(text, node, name, value)
        key, node = own[0]
        break
    colon = text.index(":", key.end_mark.index) + 1
    # the comment of a block that starts on the next line stays
    before = text[colon : max(colon, node.start_mark.index)].rstrip()
    return f"{text[:colon]} {dump(value)}{before}{text[max(colon, _end(node)) :]}"


def _added(text: str, section: yaml.MappingNode, name: str, value: Any) -> str:
    """Add a setting at the end of a section that has others."""
    entry = f"{name}: {dump(value)}"
    if section.flow_style:
        end = section.end_mark.index - 1
        return f"{text[:end]}, {entry}{text[end:]}"
    key, last = section.value[-1]
    end = text.find("\n", max(_end(last), key.end_mark.index))
    end = len(text) if end < 0 else end
    return f"{text[:end]}\n{' ' * section.value[0][0].start_mark.column}{entry}{text[end:]}"


def _end(node: yaml.Node) -> int:
    """Return where a node ends; PyYAML ends a block where the next one starts."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index
