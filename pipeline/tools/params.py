"""Params: check params.yaml, or print its JSON schema.

python -m pipeline params check     reports what is wrong with params.yaml, if anything
python -m pipeline params schema    prints params.schema.json, with which editors check it
"""

import argparse

from pipeline.config.params import check_folder, load, schema
from pipeline.core.errors import run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["check", "schema"])
    if parser.parse_args(argv).action == "check":
        check_folder(load().folder)
    else:
        print(schema(), end="")


if __name__ == "__main__":
    run(main)
