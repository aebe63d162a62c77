"""Search space: the values that a search tries of each setting of a model."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pydantic
from pydantic import BaseModel

from pipeline.config.schema import Params, PartialTrain, Range
from pipeline.config.signature import build_settings
from pipeline.config.yaml_reader import explain, invalid, validate
from pipeline.core.errors import PipelineError


class Interval(NamedTuple):
    """A range of numbers; whole numbers if both ends are int."""

    low: float
    high: float
    log: bool


Values = list[Any] | Interval


def search_space(params: Params, model: str) -> dict[str, Values]:
    """Return the values that a search tries of each setting, such as `train.learning_rate`.

    Raises:
        PipelineError: The model does not have a setting, or a setting cannot have a value.
    """
    at = ("search", model)
    build = params.models[model].build
    sections: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
        "build": (build_settings(params.models[model].architecture, at), build),
        "train": (PartialTrain, {}),
    }
    space: dict[str, Values] = {}
    for section, (kind, others) in sections.items():
        where = (*at, section)
        for keys, tried in _leaves(getattr(params.search[model], section)):
            space[".".join((section, *keys))] = _checked(tried, keys, kind, others, where)
    if not space:
        raise PipelineError(
            f"search.{model} must have settings to search, as in "
            "{train: {learning_rate: {low: 0.001, high: 0.1, log: true}}}"
        )
    return space


def _leaves(nested: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Yield the path of each setting, and what a search tries of it."""
    for name, value in nested.items():
        path = (*above, str(name))
        if isinstance(value, dict) and not Range.model_fields.keys() & value.keys():
            yield from _leaves(value, path)
        else:
            yield path, value


def _checked(
    tried: Any,
    keys: tuple[str, ...],
    kind: type[BaseModel],
    others: dict[str, Any],
    at: tuple[str, ...],
) -> Values:
    """Return the values of a setting, each of which the setting can have.

    Args:
        tried: As in params.yaml.
        keys: Path of the setting in its section.
        kind: The section.
        others: Settings of the section that some settings need.
        at: Path of the section, for error messages.
    """
    values: Values
    if isinstance(tried, dict):
        bounds = validate(Range, tried, (*at, *keys))
        low, high = bounds.low, bounds.high
        if low.is_integer() and high.is_integer() and _problem(low + 0.5, keys, kind, others):
            low, high = int(low), int(high)
        tried, values = [low, high], Interval(low, high, bounds.log)
    elif isinstance(tried, list) and tried:
        values = tried
    else:
        raise invalid((*at, *keys), "must be a list of values, or {low: ..., high: ...}", tried)
    for value in tried:
        if error := _problem(value, keys, kind, others):
            raise explain(kind, error, at)
    return values


def _problem(
    value: Any, keys: tuple[str, ...], kind: type[BaseModel], others: dict[str, Any]
) -> pydantic.ValidationError | None:
    """Return why a setting cannot have a value; None if it can, perhaps only with some others."""
    for key in reversed(keys):
        value = {key: value}
    try:
        kind.model_validate({**others, **value})
    except pydantic.ValidationError as error:
        # without a location: about several settings together, which differ in each trial
        return error if any(problem["loc"] for problem in error.errors()) else None
    return None
