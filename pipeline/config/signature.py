"""Read an architecture's settings from its file without importing it."""

import ast
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
from pydantic import BaseModel

from pipeline.config.schema import LayerOverrides, Model
from pipeline.core.errors import PipelineError

ARCHITECTURES = Path(__file__).parents[1] / "architectures"


class BuildSettings(LayerOverrides):
    """Base of the schemas of `build:`, which have no docstrings that Pydantic would look for."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=False)  # slow: walks the stack


def build_settings(architecture: str, at: tuple[str, ...] = ()) -> type[BaseModel]:
    """Return the schema of `build:`: layer overrides and the arguments of the function `build`.

    Only the function's signature is evaluated. Importing the file would import Keras and
    TensorFlow in stages that need neither. `from_model` is set next to `build:`, not in it.
    """
    return _build_settings(architecture, _source(architecture, at))


@functools.cache
def _build_settings(architecture: str, source: str) -> type[BaseModel]:
    fields = {**_build_arguments(architecture, source)}
    fields.pop("from_model", None)
    return pydantic.create_model(architecture, __base__=BuildSettings, **fields)


def split_build(model: Model) -> tuple[dict[str, Any], LayerOverrides]:
    """Split the settings of a model into arguments of `build` and layer overrides."""
    arguments = build_arguments(model.architecture)
    values = {name: value for name, value in model.build.items() if name in arguments}
    overrides = {name: value for name, value in model.build.items() if name not in arguments}
    if model.from_model is not None:
        values["from_model"] = model.from_model
    return values, LayerOverrides(**overrides)


def may_freeze(model: Model) -> bool:
    """Return whether a model can have frozen layers: its architecture has a setting `freeze`."""
    setting = build_arguments(model.architecture).get("freeze")
    return setting is not None and model.build.get("freeze", setting[1]) != "none"


def required_normalization(architecture: str) -> str | None:
    """Return the normalization that an architecture requires (`NORMALIZE = "unit"`), if any."""
    return _constant(architecture, "NORMALIZE")


def weights_package(model: Model) -> str | None:
    """Return the package that a model takes its weights from (`PACKAGE = "name"`), if any."""
    if model.build.get("weights", "default") is None:  # random weights
        return None
    return _constant(model.architecture, "PACKAGE")


def build_arguments(architecture: str, at: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the type and default of each keyword-only argument of `build`; `...`: no default."""
    return _build_arguments(architecture, _source(architecture, at))


@functools.cache
def _build_arguments(architecture: str, source: str) -> dict[str, Any]:
    names = {**vars(annotated_types), "Annotated": Annotated, "Literal": Literal}
    arguments: dict[str, Any] = {}
    try:
        tree = ast.parse(source)
        build = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build")
        for arg, default in zip(build.args.kwonlyargs, build.args.kw_defaults, strict=True):
            annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
            type_ = eval(annotation, {**names, "Sequence": Sequence, "Any": Any})  # noqa: S307
            arguments[arg.arg] = (type_, ast.literal_eval(default) if default else ...)
    except (SyntaxError, StopIteration, NameError, ValueError) as error:
        raise PipelineError(
            f"{architecture}.py: must be Python with a function `build` whose settings have plain "
            "types (bool, int, float, str, Sequence, Literal, Annotated) and literal defaults. "
            f"Got {type(error).__name__}: {error}"
        ) from None
    return arguments


def _constant(architecture: str, name: str) -> str | None:
    """Return the value of a line `NAME = "value"` of an architecture's file, if it has one."""
    match = re.search(rf'^{name} = "([\w-]+)"', _source(architecture), re.MULTILINE)
    return match[1] if match else None


def _source(architecture: str, at: tuple[str, ...] = ()) -> str:
    path = ARCHITECTURES / f"{architecture}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ARCHITECTURES.glob("[!_]*.py")))
        raise PipelineError(
            f"{'.'.join(at)}: no file pipeline/architectures/{architecture}.py. "
            f"Architectures: {known}"
        )
    return path.read_text("utf-8")
