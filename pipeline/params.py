"""Params: the classes that params.yaml must fit, and the one way to read it.

python -m pipeline.params check     says what is wrong with params.yaml, if anything is
python -m pipeline.params schema    prints params.schema.json, which editors check it with
"""

import argparse
import ast
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import annotated_types
import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError, run

PARAMS = Path("params.yaml")
ARCHITECTURES = Path(__file__).parent / "architectures"
DATASETS = Path(__file__).parent / "datasets"

S = TypeVar("S", bound=BaseModel)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Pixels = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    # strict: `epochs: "20"` and `seed: true` are mistakes, not numbers
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Preprocess(Section):
    normalize: Literal["unit", "standardize"]
    """unit: pixels / 255; standardize: per channel, with the training images' statistics"""
    image_size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None
    """[height, width] in pixels, or null: as they are"""
    dtype: Literal["float32", "float16"]
    """How arrays are stored; stages read the same float32 from both"""
    on_bad_image: Literal["error", "skip"]
    """error: stop and list all of them; skip: leave them out and count them"""


class Split(Section):
    validation: Annotated[float, Field(gt=0, lt=1)]
    """Share of the training images held out for validation"""


class Train(Section):
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the training images"""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step"""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    early_stopping: Annotated[int, Field(ge=1)] | None
    """Epochs without a better validation accuracy before stopping; null: off"""


# the fields of Train, each of which may be left out
_OPTIONAL: dict[str, Any] = {
    name: (field.rebuild_annotation(), None) for name, field in Train.model_fields.items()
}
Overrides: Any = pydantic.create_model("Overrides", __base__=Section, **_OPTIONAL)


class Model(Section):
    architecture: Name
    """A file of pipeline/architectures/, without .py"""
    build: dict[str, Any] = {}
    """The architecture's own settings"""
    train: Overrides = Overrides()
    """Training settings that differ from the common ones"""


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Every random choice follows from it"""
    dataset: Name
    """digits, folder, or the name of an image-classification data set of TFDS"""
    folder: Annotated[str, Field(min_length=1)]
    """For dataset: folder, where train/<class>/* and test/<class>/* lie, or <class>/*"""
    test_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images set apart as test part where the data set brings none"""
    test_seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Which images these are"""
    preprocess: Preprocess
    split: Split
    train: Train
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """The models to compare"""
    reference: str
    """The name of the model that the others are compared with"""
    champion: str
    """auto (best validation accuracy), or the name of a model"""

    def train_of(self, model: str) -> Train:
        """The training settings of one model: the common ones with its own on top."""
        own = self.models[model].train.model_dump(exclude_unset=True)
        return self.train.model_copy(update=own)


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-3 is a number, and a key stands once."""

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise PipelineError(
                    f"{PARAMS}: line {key_node.start_mark.line + 1}: {key} stands twice. "
                    "Rename or delete one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load() -> Params:
    """Read params.yaml from the working directory and validate all of it.

    Raises:
        PipelineError: Names the key, what was expected and what was received.
    """
    try:
        raw = yaml.load(PARAMS.read_text("utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise PipelineError(
            f"{PARAMS}: no such file in {Path.cwd()}. Run from the repository's top"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise PipelineError(f"{PARAMS}: not valid YAML: {error}") from None
    params = _validate(Params, raw, ())
    _check_dataset(params.dataset)
    if params.champion not in ("auto", *params.models):
        raise _error(
            ("champion",), f"must be auto or one of {', '.join(params.models)}", params.champion
        )
    if params.reference not in params.models:
        raise _error(("reference",), f"must be one of {', '.join(params.models)}", params.reference)
    for taken in {"auto", "champion"} & set(params.models):
        raise PipelineError(
            f"{PARAMS}: models.{taken}: the name is taken by `champion: auto` and "
            "models/champion.keras. Choose another"
        )
    for name, model in params.models.items():
        at = ("models", name)
        _validate(settings(model.architecture, at), model.build, (*at, "build"))
    return params


def settings(architecture: str, at: tuple[str, ...] = ()) -> type[BaseModel]:
    """Return the settings of an architecture as a class: the keyword-only arguments of build.

    Only the signature is evaluated, never the file: importing it would import Keras, and
    with it TensorFlow, in stages that need neither.
    """
    path = ARCHITECTURES / f"{architecture}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ARCHITECTURES.glob("*.py")))
        raise PipelineError(
            f"{PARAMS}: {'.'.join(at)}: no file pipeline/architectures/{architecture}.py. "
            f"Architectures: {known}"
        )
    names = {**vars(annotated_types), "Annotated": Annotated, "Literal": Literal}
    fields: dict[str, Any] = {}
    try:
        tree = ast.parse(path.read_text("utf-8"))
        build = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "build")
        for arg, default in zip(build.args.kwonlyargs, build.args.kw_defaults, strict=True):
            annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
            kind = eval(annotation, {**names, "Sequence": Sequence, "Any": Any})  # noqa: S307
            fields[arg.arg] = (kind, ast.literal_eval(default) if default else ...)
    except (SyntaxError, StopIteration, NameError, ValueError) as error:
        raise PipelineError(
            f"{path.name}: must be Python with a function `build` whose settings have plain types "
            "(bool, int, float, str, Sequence, Literal, Annotated) and literal defaults. "
            f"Got {type(error).__name__}: {error}"
        ) from None
    return pydantic.create_model(architecture, __base__=Section, **fields)


def _check_dataset(name: str) -> None:
    if (DATASETS / f"{name}.py").is_file() and name != "tfds":
        return
    import tensorflow_datasets as tfds  # 0.4 s, without TensorFlow; only where it is needed

    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        near = difflib.get_close_matches(name, ["digits", "folder", *known], n=3)
        raise _error(
            ("dataset",),
            "must be digits, folder or a data set of TensorFlow Datasets"
            + (f" (nearest: {', '.join(near)})" if near else ""),
            name,
        )


def _validate(kind: type[S], raw: Any, at: tuple[str, ...]) -> S:
    try:
        return kind.model_validate(raw)
    except pydantic.ValidationError as error:
        # an unknown key first: it often explains the missing one
        first, *more = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise _explain(kind, first, at, len(more)) from None


def _explain(kind: type[BaseModel], error: Any, at: tuple[str, ...], more: int) -> PipelineError:
    """Turn the first of pydantic's errors into one line in the words of params.yaml."""
    where = (*at, *(str(part) for part in error["loc"] if part != "[key]"))
    tail = f" (and {more} more)" if more else ""
    if error["type"] == "extra_forbidden":
        known = _keys(kind, error["loc"][:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Keys: {', '.join(known) or 'none'}"
        return PipelineError(f"{PARAMS}: {'.'.join(where)} is no known key. {hint}{tail}")
    if error["type"] == "missing":
        return PipelineError(f"{PARAMS}: {'.'.join(where)} is missing. Add it{tail}")
    expected = re.sub(r"^\w+ should", "must", error["msg"])
    if error["type"] in ("model_type", "dict_type"):
        expected = "must be a mapping of keys to values"
    return _error(where, expected, error["input"], tail)


def _keys(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    """List the keys that are allowed at a place in the tree of sections."""
    if loc[:1] == ("models",):
        kind = Train if loc[-1] == "train" else Model
    elif loc:
        kind = kind.model_fields[str(loc[0])].annotation
    return list(kind.model_fields)


def _error(where: tuple[str, ...], expected: str, received: Any, tail: str = "") -> PipelineError:
    got = repr(received)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return PipelineError(f"{PARAMS}: {'.'.join(where) or 'the file'} {expected}. Got {got}{tail}")


def schema() -> str:
    """Return the JSON Schema of params.yaml."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["check", "schema"])
    if parser.parse_args(argv).what == "check":
        load()
    else:
        print(schema(), end="")


if __name__ == "__main__":
    run(main)
