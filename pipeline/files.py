"""Files: JSON and outputs that are whole or not there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; rename it to `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as beside:
        beside.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
