"""Params: the one way to read params.yaml, checked as a whole against pipeline/schema.py.

python -m pipeline.params check     says what is wrong with params.yaml, if anything is
python -m pipeline.params schema    prints params.schema.json, which editors check it with
"""

import argparse
import ast
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import annotated_types
import pydantic
import yaml
from pydantic import BaseModel

from pipeline.errors import PipelineError, run
from pipeline.schema import Finetuned, Knobs, Model, Params, Train

PARAMS = Path("params.yaml")
ARCHITECTURES = Path(__file__).parent / "architectures"
DATASETS = Path(__file__).parent / "datasets"

S = TypeVar("S", bound=BaseModel)


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
                    f"line {key_node.start_mark.line + 1}: {key} stands twice. Rename or delete one"
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
    with reading(PARAMS):
        return _load()


def _load() -> Params:
    params = read(PARAMS, Params)
    _check_dataset(params.dataset)
    names = list(params.all_models)
    if params.champion not in ("auto", *names):
        raise _error(("champion",), f"must be auto or one of {', '.join(names)}", params.champion)
    if params.reference not in names:
        raise _error(("reference",), f"must be one of {', '.join(names)}", params.reference)
    for taken in {"auto", "champion"} & set(names):
        raise PipelineError(
            f"models.{taken}: the name is taken by `champion: auto` and "
            "models/champion.keras. Choose another"
        )
    if twice := set(params.models) & set(params.finetune):
        raise PipelineError(f"{min(twice)} stands under models and under finetune. Rename one")
    for name in params.models:
        check_model(params, ("models", name))
    for name in params.finetune:
        check_model(params, ("finetune", name))
    return params


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file first in what is wrong with it."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(f"{path}: {error}") from None


def read(path: Path, kind: type[S]) -> S:
    """Read a YAML file as a section, in a block of `reading(path)`."""
    try:
        raw = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise PipelineError(
            f"no such file in {Path.cwd()}. Run from the repository's top"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise PipelineError(f"not valid YAML: {error}") from None
    return _validate(kind, raw, ())


def check_model(params: Params, at: tuple[str, str]) -> None:
    """Check what needs more than the model's own section: its architecture, the common train."""
    group, name = at
    model = params.all_models[name]
    _validate(settings(model.architecture, at), model.build, (*at, "build"))
    try:
        params.train_of(name)
    except pydantic.ValidationError as error:
        raise _explain(Train, error.errors()[0], (*at, "train"), 0) from None
    file = _arguments(model.architecture, at).get("from_model")
    if group == "finetune" and not file:
        raise PipelineError(
            f"{'.'.join(at)}: {model.architecture} starts from no file. "
            "Move it under `models:`, without from_model"
        )
    if group == "models" and file and file[1] is ...:
        raise PipelineError(
            f"{'.'.join(at)}: {model.architecture} starts from a file. "
            "Move it under `finetune:` and name the file as from_model"
        )
    wanted = re.search(r'^NORMALIZE = "(\w+)"', _source(model.architecture), re.MULTILINE)
    if wanted and wanted[1] != params.preprocess.normalize:
        raise _error(
            ("preprocess", "normalize"),
            f"must be {wanted[1]} for {model.architecture} ({'.'.join(at)})",
            params.preprocess.normalize,
        )


def settings(architecture: str, at: tuple[str, ...] = ()) -> type[BaseModel]:
    """Return what may stand under `build:` as a class: the knobs, and build's own arguments.

    Only the signature is evaluated, never the file: importing it would import Keras, and
    with it TensorFlow, in stages that need neither. `from_model` stands beside `build:`.
    """
    own = _arguments(architecture, at)
    own.pop("from_model", None)
    return pydantic.create_model(architecture, __base__=Knobs, **own)


def split_build(model: Model) -> tuple[dict[str, Any], Knobs]:
    """Return what of a model's settings its architecture takes itself, and the knobs."""
    own = _arguments(model.architecture)
    build = {name: value for name, value in model.build.items() if name in own}
    knobs = {name: value for name, value in model.build.items() if name not in own}
    if isinstance(model, Finetuned):
        build["from_model"] = model.from_model
    return build, Knobs(**knobs)


def _source(architecture: str, at: tuple[str, ...] = ()) -> str:
    path = ARCHITECTURES / f"{architecture}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ARCHITECTURES.glob("*.py")))
        raise PipelineError(
            f"{'.'.join(at)}: no file pipeline/architectures/{architecture}.py. "
            f"Architectures: {known}"
        )
    return path.read_text("utf-8")


def _arguments(architecture: str, at: tuple[str, ...] = ()) -> dict[str, Any]:
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
    # pydantic names the member of a union, as dict[str,…], beside the key
    where = (*at, *(str(part) for part in error["loc"] if "[" not in str(part)))
    tail = f" (and {more} more)" if more else ""
    if error["type"] == "extra_forbidden":
        known = _keys(kind, error["loc"][:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Keys: {', '.join(known) or 'none'}"
        return PipelineError(f"{'.'.join(where)} is no known key. {hint}{tail}")
    if error["type"] == "missing":
        return PipelineError(f"{'.'.join(where)} is missing. Add it{tail}")
    if error["type"] == "value_error":  # of a section as a whole
        return PipelineError(f"{'.'.join(where)} {error['ctx']['error']}{tail}")
    expected = re.sub(r"^\w+ should", "must", error["msg"])
    if error["type"] in ("model_type", "dict_type"):
        expected = "must be a mapping of keys to values"
    return _error(where, expected, error["input"], tail)


def _keys(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    """List the keys that are allowed at a place in the tree of sections."""
    if loc[:1] in (("models",), ("finetune",)):
        kind, loc = (Model if loc[0] == "models" else Finetuned), loc[2:]
    for part in loc:
        kind = kind.model_fields[str(part)].annotation
    return list(kind.model_fields)


def _error(where: tuple[str, ...], expected: str, received: Any, tail: str = "") -> PipelineError:
    got = repr(received)
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return PipelineError(f"{'.'.join(where) or 'the file'} {expected}. Got {got}{tail}")


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
