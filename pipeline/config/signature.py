"""Signature: the settings that an architecture takes, read from its file without running it."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
from pydantic import BaseModel

from pipeline.config.schema import Finetuned, LayerOverrides, Model
from pipeline.core.errors import PipelineError

ARCHITECTURES = Path(__file__).parents[1] / "architectures"


def settings(architecture: str, at: tuple[str, ...] = ()) -> type[BaseModel]:
    """Return what may stand under `build:` as a class: the knobs, and build's own arguments.

    Only the signature is evaluated, never the file: importing it would import Keras, and
    with it TensorFlow, in stages that need neither. `from_model` stands beside `build:`.
    """
    own = arguments(architecture, at)
    own.pop("from_model", None)
    return pydantic.create_model(architecture, __base__=LayerOverrides, **own)


def split_build(model: Model) -> tuple[dict[str, Any], LayerOverrides]:
    """Return what of a model's settings its architecture takes itself, and the knobs."""
    own = arguments(model.architecture)
    build = {name: value for name, value in model.build.items() if name in own}
    knobs = {name: value for name, value in model.build.items() if name not in own}
    if isinstance(model, Finetuned):
        build["from_model"] = model.from_model
    return build, LayerOverrides(**knobs)


def wanted_normalization(architecture: str) -> str | None:
    """Return what an architecture says of its input, as `NORMALIZE = "unit"`, if anything."""
    found = re.search(r'^NORMALIZE = "(\w+)"', _source(architecture), re.MULTILINE)
    return found[1] if found else None


def arguments(architecture: str, at: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the keyword-only arguments of `build`: name to type and default, `...` for none."""
    source = _source(architecture, at)
    names = {**vars(annotated_types), "Annotated": Annotated, "Literal": Literal}
    found: dict[str, Any] = {}
    try:
        tree = ast.parse(source)
        build = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build")
        for arg, default in zip(build.args.kwonlyargs, build.args.kw_defaults, strict=True):
            annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
            kind = eval(annotation, {**names, "Sequence": Sequence, "Any": Any})  # noqa: S307
            found[arg.arg] = (kind, ast.literal_eval(default) if default else ...)
    except (SyntaxError, StopIteration, NameError, ValueError) as error:
        raise PipelineError(
            f"{architecture}.py: must be Python with a function `build` whose settings have plain "
            "types (bool, int, float, str, Sequence, Literal, Annotated) and literal defaults. "
            f"Got {type(error).__name__}: {error}"
        ) from None
    return found


def _source(architecture: str, at: tuple[str, ...] = ()) -> str:
    path = ARCHITECTURES / f"{architecture}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ARCHITECTURES.glob("[!_]*.py")))
        raise PipelineError(
            f"{'.'.join(at)}: no file pipeline/architectures/{architecture}.py. "
            f"Architectures: {known}"
        )
    return path.read_text("utf-8")
