"""Metadata: metadata.csv beside the images of a folder."""

import re
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import preprocess
from pipeline.config.schema import Preprocess
from pipeline.core.errors import PipelineError
from pipeline.core.splitting import Grouping
from pipeline.data import rows
from pipeline.ingest import metadata, parquet
from pipeline.ingest.datasets import folder
from tests.conftest import grey


def images(top: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(grey(number).image)


def test_each_image_keeps_its_metadata_from_the_folder_to_its_row_of_the_arrays(tmp_path):
    top = tmp_path / "photos"
    images(top, "train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "train/dog/4.png",
           "test/cat/5.png", "test/dog/6.png")  # fmt: skip
    (top / "train/cat/1.png").write_bytes(b"damaged")
    # one file in the folder and one in a split, with other columns; the row of 3.png is missing
    (top / "metadata.csv").write_text(
        "\ufefffile_name,id,place\n./test/dog/6.png,x,garden\ntest/cat/5.png,y,NA\n", "utf-8"
    )
    (top / "train/metadata.csv").write_text(
        'age,file_name\n07,cat/2.png\n3,cat/1.png\n"4, or 5",dog/4.png\n'
    )
    data = folder.load("folder", str(top), 0.2, 0)
    assert data.source == f"folder {top} (1 image without a row in metadata.csv)"
    parquet.write(tmp_path / "raw", data)
    settings = Preprocess.model_validate({
        "normalize": "unit", "image_size": None, "resize": "stretch", "dtype": "uint8",
        "on_bad_image": "skip", "intensity_range": None, "max_megapixels": 250,
        "exclude": None, "relabel": None,
    })  # fmt: skip
    preprocess.preprocess(tmp_path / "raw", tmp_path / "arrays", settings)
    assert rows.ids(tmp_path / "arrays", "train") == [
        "train/cat/2.png", "train/dog/3.png", "train/dog/4.png"
    ]  # fmt: skip
    assert rows.metadata(tmp_path / "arrays", "train").to_dict("list") == {
        "id": ["", "", ""], "place": ["", "", ""], "age": ["07", "", "4, or 5"]
    }  # fmt: skip
    assert rows.metadata(tmp_path / "arrays", "test").to_dict("list") == {
        "id": ["y", "x"], "place": ["NA", "garden"], "age": ["", ""]
    }  # fmt: skip


def test_without_metadata_there_is_no_column_and_the_files_are_as_before(tmp_path):
    images(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png")
    parquet.write(tmp_path / "raw", folder.load("folder", str(tmp_path), 0.2, 0))
    assert pq.read_schema(tmp_path / "raw/train.parquet").names == ["image", "label", "id"]
    rows.write(tmp_path, "test", parquet.rows(tmp_path / "raw/test.parquet"))
    assert rows.metadata(tmp_path, "test").shape == (2, 0)
    assert rows.ids(tmp_path, "test") == ["test/cat/3.png", "test/dog/4.png"]


def test_names_match_in_both_unicode_forms_and_other_existing_files_are_ignored(tmp_path):
    name = unicodedata.normalize("NFD", "é.png")
    images(tmp_path, name, "unused.png")
    (tmp_path / "metadata.csv").write_text("file_name,a\né.png,1\nunused.png,2\n", "utf-8")
    assert metadata.read([tmp_path], [tmp_path / name]) == {tmp_path / name: {"a": "1"}}


@pytest.mark.parametrize(("content", "message"), [
    (b"name,a\n1.png,x\n", "the first line must name file_name and other columns, each once, "
     "separated by commas. Got name, a. Correct it"),
    (b"file_name;a\n", "Got file_name;a. Correct it"),
    (b"file_name,a,a\n", "Got file_name, a, a. Correct it"),
    (b"", "Got no line. Correct it"),
    (b"file_name,a\n1.png\n", "line 2: must have 2 values. Got 1. Correct it"),
    (b"file_name,a\n1.png,x\n./1.png,y\n", "must name each image once. Got "),
    (b"file_name,a\n2.png,x\n1.png,x\n3.png,\n", "relative to metadata.csv. Got 2 missing files: "),
    (b"file_name,a\n1.png,\xe9\n", "must be a CSV file in UTF-8. Got 'utf-8' codec"),
    (b'file_name,a\n1.png,"x\n', "must be a CSV file in UTF-8. Got unexpected end of data"),
])  # fmt: skip
def test_an_invalid_metadata_csv_is_an_error_in_one_line(tmp_path, content, message):
    images(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(PipelineError, match=re.escape(message)):
        metadata.read([tmp_path], [tmp_path / "1.png"])


def patients_of(loaded: parquet.Dataset, split: str) -> set[str]:
    return {example.id.split("/")[1].split("_")[0] for example in loaded.splits[split]}


@pytest.mark.parametrize("grouping", [
    Grouping("patient", None), Grouping(None, "/([^_]+)_"),
], ids=["column", "pattern"])  # fmt: skip
def test_a_held_out_test_split_does_not_divide_a_group(tmp_path, grouping):
    names = [f"{c}/p{patient}_{i}.png" for c in ("cat", "dog") for patient in range(10)
             for i in range(4)]  # fmt: skip
    images(tmp_path, *names)
    lines = [f"{name},{name.split('/')[1].split('_')[0]}" for name in names]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,patient", *lines]))
    loaded = folder.load("folder", str(tmp_path), 0.2, 0, grouping)
    assert loaded.sizes == {"train": 64, "test": 16}
    assert not patients_of(loaded, "train") & patients_of(loaded, "test")


def test_an_image_without_a_group_is_refused_where_a_test_split_is_held_out(tmp_path):
    images(tmp_path, *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)))
    (tmp_path / "metadata.csv").write_text("file_name,patient\ncat/0.png,7\ndog/0.png,8\n")
    with pytest.raises(
        PipelineError, match=r"must have a group\. Got 8 images without: cat/1\.png"
    ):
        folder.load("folder", str(tmp_path), 0.2, 0, Grouping("patient", None))
