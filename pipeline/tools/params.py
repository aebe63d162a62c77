"""Params: check params.yaml, or print its JSON schema.

python -m pipeline params check     says what is wrong with params.yaml, if anything is
python -m pipeline params schema    prints params.schema.json, which editors check it with
"""

import argparse

from pipeline.config.params import check_folder, load, schema
from pipeline.core.errors import run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["check", "schema"])
    if parser.parse_args(argv).what == "check":
        check_folder(load().folder)
    else:
        print(schema(), end="")


if __name__ == "__main__":
    run(main)
