"""Schema section: what the parts of params.yaml are made of."""

import inspect
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    # strict: `epochs: "20"` and `seed: true` are mistakes, not numbers
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def partial(section: type[Section]) -> type[Section]:
    """Return a section of the same keys, each of which may be left out, at every depth."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        nested = inspect.isclass(kind) and issubclass(kind, Section)
        kind = partial(kind) if nested else field.rebuild_annotation()
        fields[name] = (kind, Field(None, description=field.description))
    return pydantic.create_model(f"Partial{section.__name__}", __base__=Section, **fields)
