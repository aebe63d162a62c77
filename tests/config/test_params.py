"""Params: what params.yaml may contain, and the messages about what it may not."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

from pipeline.config import params, signature, yaml_reader
from pipeline.config.schema import Augment
from pipeline.core.errors import PipelineError
from tests.conftest import PLAIN, REPOSITORY


def test_the_default_params_are_valid(project):
    loaded = params.load()
    assert loaded.compare == ["baseline", "batchnorm"]
    assert loaded.split.validation == 0.2


INVALID = [
    ("validation: 0.2", "validation: 1.5", r"split\.validation must be less than 1\. Got 1\.5"),
    ("validation: 0.2", "validation: -0.1", r"validation must be greater than or equal to 0\. Got"),
    ("validation: 0.2", "validation: 0",
     r"champion must be one of baseline, batchnorm, because split\.validation is 0\. Got 'auto'"),
    ("validation: 0.2", "validation: .nan", r"split\.validation must be a finite number\. Got nan"),
    ("method: holdout", "method: folds", r"split\.method must be holdout with one seed, or seeds"),
    ("method: holdout", "method: cv", r"split\.method must be 'holdout' or 'folds'\. Got 'cv'"),
    ("group_pattern:", "group_pattern: '('", r"split\.group_pattern must be a regular exp"),
    ("group_pattern:", "group_pattern: x", r"group_pattern must have one group in parentheses, "),
    ("  group:\n", "  group: ''\n", r"split\.group must have at least 1 character"),
    ("validation: 0.2", "validaton: 0.2", r"validaton is an unknown key\. Did you mean valid"),
    ("seeds: [0]", "seeds: 3", r"seeds must be a list\. Got 3\. Write \[3\]$"),
    ("seeds: [0]", "seeds: [true]",
     r"seeds\.0 must be an integer >= 0 and < 4294967296\. Got True$"),
    ("seeds: [0]", "seeds: [0, -1]", r"seeds\.1 must be greater than or equal to 0\. Got -1"),
    ("seeds: [0]", "seeds: []", r"seeds must have at least 1 item\. Got \[\]"),
    ("seeds: [0]", "seeds: [4, 0, 4]", r"seeds must not repeat a value\. Got 4 twice"),
    ("seeds: [0]", "colour: red", r"colour is an unknown key\. Keys: seeds, .*seeds is missing"),
    ("seeds: [0]", "# none", r"seeds is missing"),
    ("seeds: [0]", "seed: 0", r"seed is an unknown key\. Did you mean seeds\?$"),
    ("seeds: [0]", "seeds: [", r"not valid YAML"),
    ("[baseline, batchnorm]", "[]", r"compare must have at least 1 item\. Got \[\]"),
    ("[baseline, batchnorm]", "baseline",
     r"compare must be a list\. Got 'baseline'\. Write \[baseline\]$"),
    ("[baseline, batchnorm]", "[baseline, baseline]",
     r"compare must not repeat a value\. Got baseline twice"),
    ("[baseline, batchnorm]", "[baseline, batchnrom]",
     r"compare must contain names from `models:` \(nearest: batchnorm, .*\)\. Got 'batchnrom'"),
    ("[baseline, batchnorm]", "[baseline, ../x]", r"compare\.1 must match"),
    ("margin: 1.0", "margin: 0", r"margin must be greater than 0\. Got 0"),
    ("margin: 1.0", "margin: one", r"margin must be a number > 0 and < 100\. Got 'one'$"),
    ("margin: 1.0", "margin: 1,5",
     r"margin must be a number > 0 and < 100\. Got '1,5'\. Write 1\.5$"),
    ("margin: 1.0", "margin: 100", r"margin must be less than 100\. Got 100"),
    ("threads: 1", "threads: 0", r"threads must be greater than or equal to 1\. Got 0"),
    ("threads: 1", "threads: auto", r"threads must be an integer >= 1\. Got 'auto'$"),
    ("epochs: 20", 'epochs: "20"', r"train\.epochs must be an integer >= 1\. Got '20'\. Write 20$"),
    ("epochs: 20", "epochs: 2.5", r"train\.epochs must be an integer >= 1\. Got 2\.5$"),
    ("epochs: 20", "epochs: 0", r"train\.epochs must be greater than or equal to 1\. Got 0"),
    ("early_stopping:", "early_stopping: 0", r"early_stopping must be greater than or equal"),
    ("fine_tune:", "fine_tune: {freeze: none, epochs: 1}", r"fine_tune\.learning_rate is missing"),
    ("fine_tune:", "fine_tune: {freez: none, epochs: 1, learning_rate: 0.1}",
     r"train\.fine_tune\.freez is an unknown key\. Did you mean freeze\?$"),
    ("fine_tune:", "fine_tune: {freeze: none, epochs: 1, learning_rate: 0.1}",
     r"models\.baseline\.train\.fine_tune must be null for a model without frozen layers"),
    ("optimizer: adam", "optimizer: adm", r"optimizer must be 'adam', .* or 'sgd'\. Got 'adm'"),
    ("learning_rate: 0.001", "learning_rate: fast", r"learning_rate must be a number > 0\. Got 'f"),
    ("learning_rate: 0.001", "learning_rate: .inf", r"learning_rate must be a finite number"),
    ("normalize: unit", "normalize: none", r"normalize must be 'unit' or 'standardize'"),
    ("image_size:", "image_size: 32", r"must be \[height, width\]\. Got 32\. Write \[32, 32\]"),
    ("image_size:", "image_size: [32]", r"image_size .* at least 2 items"),
    ("image_size:", "image_size: [32, 0]", r"image_size\.1 must be greater than or equal"),
    ("range:", "range: 4095", r"intensity_range must be a list or null\. Got 4095$"),
    ("range:", "range: [0]", r"intensity_range .* at least 2 items"),
    ("range:", "range: [9, 9]", r"range must be \[low, high\] with low < high\. Got \[9\.0"),
    ("megapixels: 250", "megapixels: 0", r"max_megapixels must be greater than 0\. Got 0"),
    ("dtype: float32", "dtype: float16", r"dtype must be 'float32' or 'uint8'\. Got 'float16'"),
    ("bad_image: error", "bad_image: warn", r"on_bad_image must be 'error' or 'skip'\. Got 'warn'"),
    ("test_share: 0.2", "test_share: 1", r"test_share must be less than 1\. Got 1"),
    ("test_share: 0.2", "test_share: 0", r"test_share must be greater than 0\. Got 0"),
    ("test_seed: 0", "test_seed: -1", r"test_seed must be greater than or equal to 0\. Got -1"),
    ("test_seed: 0", "test_seed: 0.5",
     r"test_seed must be an integer >= 0 and < 4294967296\. Got 0\.5$"),
    ("dataset: digits", "dataset: cifar11", r"dataset must be digits.*cifar10.*'cifar11'"),
    ("dataset: digits", "dataset: ../x", r"dataset must match"),
    ("dataset: digits", "dataset: emnist/..", r"dataset must match"),
    ("dataset: digits", "dataset: emnist/leters",
     r"dataset must name a configuration of emnist \(nearest: letters, .*'emnist/leters'"),
    ("dataset: digits", "dataset: mnist/letters", r"dataset must be mnist, which has no config"),
    ("dataset: digits", "dataset: folder/x", r"dataset must be digits, folder or a data set"),
    ("momentum: 0.0", "momentum: 0.9", r"train has a momentum, which adam does not support: "),
    ("momentum: 0.0", "momentum: 1.0", r"momentum must be less than 1"),
    ("warmup_epochs: 0", "warmup_epochs: 20", r"train must have fewer warmup_epochs than epochs"),
    ("schedule: constant", "schedule: step", r"schedule must be 'constant', 'cosine', 'lin"),
    ("nesterov: false", "nesterov: true", r"train has nesterov, which needs sgd with a momentum:"),
    ("ema_momentum:", "ema_momentum: 1.0", r"ema_momentum must be less than 1\. Got 1\.0"),
    ("ema_momentum:", "ema_momentum: 0", r"ema_momentum must be greater than 0\. Got 0"),
    ("whiten_bias_epochs: 0", "whiten_bias_epochs: 3",
     r"train has whiten_bias_epochs, which needs whiten: set it to 0"),
    ("lookahead:", "lookahead: 0", r"lookahead must be greater than or equal to 1\. Got 0"),
    ("muon_learning_rate:", "muon_learning_rate: 0.2",
     "has muon_learning_rate, which needs sgd with a momentum: set it to null"),
    ("shift: 0\n", "shift: -1\n", r"evaluate\.shift must be greater than or equal to 0\. Got -1"),
    ("whiten: false", "whiten: 3", r"train\.whiten must be true or false\. Got 3$"),
    ("crop_fill: zeros", "crop_fill: edge", r"crop_fill must be 'zeros' or 'reflect'\. Got 'edge'"),
    # a model of the catalogue that is not compared
    ("  models:\n  # Any", "  models: [tutorial]\n  # Any",
     r"analyze\.models must be one of baseline, batchnorm\. Got 'tutorial'"),
    ("[layers, feature_maps", "[layer, feature_maps",
     r"analyze\.pictures\.0 must be 'layers', 'feature_maps', .*Got 'layer'"),
    ("floor: 0.95", "floor: 95", r"gate\.floor must be less than or equal to 1\. Got 95"),
    ("floor: 0.95", "floor: high",
     r"gate\.floor must be a number >= 0 and <= 1 or null\. Got 'high'$"),
    ("mirror: false", "mirror: both", r"evaluate\.mirror must be true or false\. Got 'both'$"),
    ("gradient_clip:", "gradient_clip: all", r"gradient_clip must be 'norm', 'global_norm'"),
    ("gradient_clip_at: 1.0", "gradient_clip_at: 0", r"gradient_clip_at must be greater than 0"),
    ("loss: cross_entropy", "loss: hinge", r"train\.loss must be 'cross_entropy' or 'focal'"),
    ("label_smoothing: 0.0", "label_smoothing: 1", r"label_smoothing must be less than 1"),
    ("weight_decay:", "weight_decay: -1", r"weight_decay must be greater than or equal to 0"),
    ("class_weights:", "class_weights: even", r"class_weights must be 'balanced'"),
    ("class_weights:", "class_weights: {cat: -1}", r"weights\.cat must be greater than 0\."),
    ("exclude:", "exclude: ids.txt", r"exclude must be a file in corrections/\. Got 'ids\.txt'"),
    ("relabel:", "relabel: ../corrections/x.csv", r"relabel must be inside the repository or an"),
    ("train_size:", "train_size: 1.5", r"train\.train_size must be less than or equal to 1"),
    ("train_size:", "train_size: 0", r"train\.train_size must be greater than or equal to 1"),
    ("train_size:", "train_size: half",
     r"train_size must be an integer >= 1 or a number > 0 and <= 1 or null\. Got 'half'$"),
    ("flip:", "flip: left", r"train\.augment\.flip must be 'horizontal', 'vertical', 'both'"),
    ("shift: 0.0", "shift: 1.0", r"train\.augment\.shift must be less than 1"),
    ("rotation: 0.0", "rotation: 270", r"train\.augment\.rotation must be less than or equal to"),
    ("resized_crop:", "resized_crop: 1", r"augment\.resized_crop must be less than 1\. Got 1"),
    ("brightness: 0.0", "brightness: -0.1", r"brightness must be greater than or equal to 0"),
    ("hue: 0.0", "hue: 0.6", r"train\.augment\.hue must be less than or equal to 0\.5\. Got 0\.6"),
    ("rand_augment: 0.0", "rand_augment: 2", r"rand_augment must be less than or equal to 1"),
    ("crop: 0", "crop: 0.5", r"train\.augment\.crop must be an integer >= 0\. Got 0\.5$"),
    ("cutout: 0.0", "cutoff: 0.0", r"augment\.cutoff is an unknown key\. Did you mean cutout\?"),
    ("padding:", "padding: full", r"baseline\.build\.padding must be 'valid' or 'same'"),
    ("pooling:", "pooling: min", r"baseline\.build\.pooling must be 'max' or 'average'"),
    ("activation:", "activation: step", r"baseline\.build\.activation must be 'relu'"),
    ("kernel_initializer:", "kernel_initializer: he", r"kernel_initializer must be 'glorot_u"),
    ("kernel_stddev:", "kernel_stddev: 1.0", r"build has kernel_stddev, which needs kernel_"),
    ("regularizer_factor:", "regularizer_factor: 1.0", r"which needs kernel_regularizer"),
    ("max_norm:", "max_norm: 0", r"baseline\.build\.max_norm must be greater than 0"),
    ("norm_position:", "norm_position: after", r"batch_norm_position, which needs batch_norm"),
    ("batch_norm:", "batch_norm: yes please", r"batch_norm must be true or false or null\. Got"),
    ("norm_momentum:", "norm_momentum: 1.0", r"batch_norm_momentum must be less than 1"),
    ("architecture: baseline", "architecture: transfer",
     r"models\.baseline: transfer starts from a file\. Name it, as in from_model: pretrained/FILE"),
    ("models:\n", "models:\n  x: {architecture: plain, from_model: pretrained/x.keras}\n",
     r"models\.x: plain does not start from a file\. Remove from_model"),
    ("models:\n", "models:\n  x: {architecture: transfer, from_model: models/x.keras}\n",
     r"models\.x\.from_model must be a file in pretrained/\. Got 'models/x\.keras'"),
    ("models:\n", "models:\n  x: {architecture: transfer, from_model: /pretrained/x.keras}\n",
     r"models\.x\.from_model must be a file in pretrained/"),
    ("models:\n", "models:\n  x: {architecture: transfer, from_model: ''}\n",
     r"models\.x\.from_model must have at least 1 character"),
    ("models:\n", "models:\n  x: {architecture: transfer, from_model: pretrained/x, freeze: all}\n",
     r"models\.x\.freeze is an unknown key\. Keys: architecture, build, train, from_model"),
    ("architecture: baseline", "architecture: vgg", r"models\.baseline: no file .*vgg\.py\. Arch"),
    ("architecture: tutorial", "architecture: tutor",  # is not compared, but checked
     r"models\.tutorial: no file pipeline/architectures/tutor\.py"),
    ("architecture: baseline", "architecture: ../params", r"baseline\.architecture must match"),
    ("architecture: baseline", "arch: baseline", r"baseline\.arch is an unknown key\. Keys: archi"),
    ("  baseline:", "  base line:", r"models\.base line must match"),
    ("  batchnorm:", "  baseline:", r"line \d+: duplicate key baseline"),
    # also where no model of that name is compared
    ("  tutorial:", "  auto:", r"models\.auto: the name is reserved"),
    ("  tutorial:", "  champion:", r"models\.champion: the name is reserved"),
    ("  tutorial:", "  export:", r"models\.export: the name is reserved"),
    ("seeds: [0]", "seeds: 2024-13-45", r"not valid YAML"),
    ("seeds: [0]", "? [a]\n: 3", r"not valid YAML"),
    ("champion: auto", "champion: tutorial",
     r"champion must be auto or one of baseline, batchnorm\. Got 'tutorial'"),
    ("split:\n", "split: 3\nother:\n", r"other is an unknown key"),
    ("preprocess:\n", "preprocess: 3\npre:\n", r"pre is an unknown key"),
    ("folder: data/folder", "folder: ../photos",
     r"folder must be inside the repository or an absolute path.*Got '\.\./photos'"),
    ("folder: data/folder", "folder: data/../../photos", r"folder must be inside the repository"),
    ("folder: data/folder", "folder: ..", r"folder must be inside the repository"),
    ("folder: data/folder", "folder: ~/imgs", r"folder must be an absolute path.* Got '~/imgs'"),
    ("folder: data/folder", r'folder: "photos\e[2J"', r"folder must not contain control char"),
    ("folder: data/folder", r'folder: "photos\0"', r"folder must not contain c.*photos\\x00"),
    ("folder: data/folder", "folder: ''", r"folder must have at least 1 character"),
    ("folder: data/folder", "folder: [photos]", r"folder must be a valid string"),
    ("models:\n", "models:\n  x: {architecture: transfer, from_model: ../pretrained/x.keras}\n",
     r"models\.x\.from_model must be inside the repository.*Got '\.\./pretrained/x\.keras'"),
    ("  tutorial:", "  Baseline:",
     r"models baseline and Baseline: would share their files where file names "),
    ("  baseline:", r'  "../x":', r"models\.\.\./x must match"),
    ("  baseline:", r'  "x\n":', r"models\.x\n must match"),
    ("  baseline:", r'  ".x":', r"models\.\.x must match"),
    ("  baseline:", "  7:", r"models must have text as keys\. Got 7\. Quote it, or"),
    ("seeds: [0]", "seeds: [0]\n7: x", r"the file must have text as keys\. Got 7\. Quote it"),
    ("seeds: [0]", 'seeds: [0]\n"[x]": 1', r"\[x\] is an unknown key\. Keys: seeds"),
    ("seeds: [0]", 'seeds: [0]\n"a[b": 1', r"a\[b is an unknown key\. Keys: seeds"),
    ("  baseline:", '  "a[b]":', r"models\.a\[b\] must match"),
    ("seeds: [0]", "seeds: [4294967296]", r"seeds\.0 must be less than 4294967296"),
    ("seeds: [0]", "seeds: !!python/object/apply:os.getcwd []", r"YAML: line 14: could not"),
    ("seeds: [0]", "seeds: [0]\n---\nseeds: [1]", r"not valid YAML: line 15: found another"),
    ("seeds: [0]", "seeds: *none", r"not valid YAML: line 14: found undefined alias"),
    ("seeds: [0]", "seeds: [0]\n\tx: 1", r"not valid YAML"),
    ("seeds: [0]", "seeds: " + "9" * 5000, r"not valid YAML: Exceeds the limit"),
    ("epochs: 20", "epochs: 2026-11-25", r"epochs must be an integer >= 1\. Got datetime\.date"),
    ("epochs: 20", "epochs: null", r"epochs must be an integer >= 1\. Got None$"),
    ("models:\n", "models: {}\nnone:\n", r"none is an unknown key"),
    ("seeds: [0]", "seeds: [\n  a: b", r"YAML: line \d+: expected .* that starts at line 14$"),
    ("seeds: [0]", "seeds: \a", r"not valid YAML: line 14: special characters are not allowed$"),
]  # fmt: skip
INVALID_MODEL_SETTINGS = [
    ("build: {dropout: [0.1, 0.2]}", r"batchnorm\.build\.dropout .*at least 3 items"),
    ("build: {dense_dropout: 1.0}", r"build\.dense_dropout must be less than 1\. Got 1\.0"),
    (
        "build: {dense_droput: 0.1}",
        r"build\.dense_droput is an unknown key\. Did you mean dense_drop",
    ),
    ("build: {paddin: same}", r"build\.paddin is an unknown key\. Did you mean padding"),
    (
        "build: {batch_norm_momentum: 0,9}",
        r"batchnorm\.build must have text as keys\. Got 9\. Quote it, or write decimals with a "
        r"point, as in 0\.9$",
    ),
    ("build: 3", r"models\.batchnorm\.build must be a mapping"),
    ("train: {epochs: 0}", r"models\.batchnorm\.train\.epochs must be greater than or equal to 1"),
    (
        "train: {epoch: 3}",
        r"models\.batchnorm\.train\.epoch is an unknown key\. Did you mean epochs",
    ),
    ("train: {momentum: 0.9}", r"models\.batchnorm\.train has a momentum, which adam does not"),
    (
        "train: {augment: {shft: 0.1}}",
        r"batchnorm\.train\.augment\.shft is an unknown key\. Did you",
    ),
    ("train: {augment: {shift: 2.0}}", r"batchnorm\.train\.augment\.shift must be less than 1"),
    (
        "train: {warmup_epochs: 1, schedule: triangular}",
        r"batchnorm\.train has warmup_epochs, but triangular has its own warm-up: set it to 0",
    ),
    ("train: {warmup_epochs: 20}", r"batchnorm\.train must have fewer warmup_epochs than epochs"),
]


def test_without_validation_images_early_stopping_is_refused_and_a_single_model_is_champion(edit):
    edit("validation: 0.2", "validation: 0")
    edit("compare: [baseline, batchnorm]", "compare: [batchnorm]")
    edit("  early_stopping:", "  early_stopping: 3")
    with pytest.raises(
        PipelineError,
        match=r"models\.batchnorm\.train\.early_stopping must be null, because split\.validation "
        r"is 0\. Got 3",
    ):
        params.load()
    # folds hold out images whatever the share is
    edit("method: holdout", "method: folds")
    edit("seeds: [0]", "seeds: [0, 1]")
    assert params.load().train.early_stopping == 3
    edit("method: folds", "method: holdout")
    edit("early_stopping: 3", "early_stopping:")
    assert params.load().champion == "auto"


def test_two_settings_of_groups_are_refused(edit):
    edit("  group:", "  group: patient")
    edit("  group_pattern:", "  group_pattern: (x)")
    with pytest.raises(PipelineError, match=r"split has group and group_pattern: set one of them"):
        params.load()


@pytest.mark.parametrize(("old", "new", "message"), INVALID)
def test_invalid_params_are_refused(edit, old, new, message):
    edit(old, new)
    with pytest.raises(PipelineError, match=rf"params\.yaml: .*{message}"):
        params.load()


@pytest.mark.parametrize(("line", "message"), INVALID_MODEL_SETTINGS)
def test_invalid_settings_of_a_model_are_refused(edit, line, message):
    edit("build: {batch_norm_momentum: 0.9}", line)
    with pytest.raises(PipelineError, match=message):
        params.load()


@pytest.mark.parametrize(("content", "message"), [
    (b"\x93NUMPY\x01\x00", "not valid YAML"),
    ("seed: é".encode("latin-1"), "not valid YAML"),
    (b"- seed: 0", r"the file must be a mapping of keys to values\. Got \[\{'seed': 0\}\]"),
    (b"seed", r"the file must be a mapping of keys to values\. Got 'seed'"),
    (b"[" * 5000, "is nested too deeply"),
])  # fmt: skip
def test_files_without_a_mapping_are_refused(project, content, message):
    (project / "params.yaml").write_bytes(content)
    with pytest.raises(PipelineError, match=message):
        params.load()


def test_aliases_that_expand_to_a_billion_values_are_refused_without_delay(edit):
    lists = ["&a0 [x, x, x]"] + [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    edit("seeds: [0]", f"seeds: [{', '.join(lists)}]")
    with pytest.raises(PipelineError, match=r"seeds\.0 must be an integer .*Got \['x', 'x'"):
        params.load()


def test_a_folder_named_params_yaml_is_refused(project):
    (project / "params.yaml").unlink()
    (project / "params.yaml").mkdir()
    with pytest.raises(PipelineError, match=r"params\.yaml: must be a file\. Got a folder"):
        params.load()


def test_the_folder_of_images_may_be_an_absolute_path_or_inside_the_repository(edit):
    edit("folder: data/folder", "folder: /photos/../others")
    assert params.load().folder == "/photos/../others"
    edit("folder: /photos/../others", "folder: data/../photos")
    assert params.load().folder == "data/../photos"


def test_pretrained_networks_refuse_standardized_pixels(edit):
    edit("architecture: tutorial", "architecture: pretrained")
    edit("normalize: unit", "normalize: standardize")
    params.load()  # a model that is not compared does not matter
    edit("compare: [baseline, batchnorm]", "compare: [baseline, tutorial]")
    with pytest.raises(
        PipelineError,
        match=r"preprocess\.normalize must be unit for pretrained \(models\.tutorial\)\. Got 'sta",
    ):
        params.load()


def test_build_settings_are_split_into_arguments_of_the_architecture_and_overrides(edit):
    edit("dropout: 0.0", "dropout: 0.25")
    edit("padding:", "padding: valid")
    arguments, overrides = signature.split_build(params.load().models["baseline"])
    assert arguments == {"dropout": 0.25}
    assert overrides.model_dump(exclude_none=True) == {"padding": "valid"}


def test_from_model_is_passed_to_the_architecture(edit):
    edit("models:\n", "models:\n  x: {architecture: transfer, from_model: pretrained/x.keras}\n")
    arguments, _ = signature.split_build(params.load().models["x"])
    assert arguments == {"from_model": "pretrained/x.keras"}


def test_empty_and_missing_files_are_refused(project):
    (project / "params.yaml").write_text("")
    with pytest.raises(PipelineError, match=r"the file must be a mapping of keys.*Got None"):
        params.load()
    (project / "params.yaml").unlink()
    with pytest.raises(
        PipelineError, match=r"no such file in .*Run from the root of the repository"
    ):
        params.load()


SPELLINGS = """
    0123 08 09.5 0o17 +0o17 0x1F -0x1F 0X1F 0x 0b101 0b2 1_000 1__0 _1 0_1 +1 -0 1:30 190:20:30
    12:30:45 yes no on off y NO true TRUE truE ~ null nUll 1e-3 1E5 1.e3 .5 -.5 .5e3 .5e+3 5. 12e
    1.5.2
    .inf -.INF +.inf .nan +.nan 2026-11-25 2020-1-2 - '01' "yes" [] {yes: 2.0, no: 1.0} {01: 1.0}
    !!str 012 !!float 3
"""


def parse_with_dvc(text: str) -> Any:
    try:
        return parse_yaml(text, "params.yaml")
    except YAMLFileCorruptedError:
        return "refused"


def parse_with_pipeline(text: str) -> Any:
    try:
        return yaml_reader.parse(text)
    except (PipelineError, yaml.YAMLError):
        return "refused"


@pytest.mark.parametrize("text", [
    *(f"a: {value}\n" for value in re.findall(r"!!\w+ \S+|\{.*?\}|\S+", SPELLINGS)),
    "a:\n",
    "a: 2020-1-2 3:04:05\n",
    "a: 1\na: 2\n",
    "a: {01: x, 1: y}\n",
    "1.0: a\nyes: b\n~: c\n",
    "a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n",
    "a: &x {b: 1}\nc: {<<: *x, b: 3}\n",
    "<<: [{a: 1}, {a: 2}]\n",
])  # fmt: skip
def test_yaml_is_read_as_dvc_reads_it(text):
    assert repr(parse_with_pipeline(text)) == repr(parse_with_dvc(text))


def test_a_seed_with_a_leading_zero_is_decimal_and_yes_is_a_string(edit):
    edit("seeds: [0]", "seeds: [0123]")
    assert params.load().seeds == [123]
    edit("mirror: false", "mirror: yes")
    with pytest.raises(PipelineError, match=r"mirror must be true or false\. Got 'yes'"):
        params.load()


def test_class_weights_that_dvc_writes_keep_the_names_of_the_classes(project):
    apply_overrides("params.yaml", ["train.class_weights={yes: 2.0, no: 1.0, 01: 3.0}"])
    assert params.load().train.class_weights == {"yes": 2.0, "no": 1.0, "01": 3.0}


def test_pictures_are_drawn_of_the_first_and_the_last_model(edit):
    pictures = ["layers", "feature_maps", "grad_cam", "flow", "kernels", "filters"]
    for names, drawn in (
        (["baseline"], [pictures]),
        (["baseline", "batchnorm"], [pictures, pictures]),
        (["baseline", "batchnorm", "tutorial"], [pictures, [], pictures]),
    ):
        loaded = params.load().model_copy(update={"compare": names})
        assert [loaded.pictures_of(name) for name in names] == drawn


def test_analyze_selects_the_models_and_the_pictures(edit):
    edit("  models:\n  # Any", "  models: [batchnorm]\n  # Any")
    edit("pictures: [layers, feature_maps, grad_cam, flow, kernels, filters]", "pictures: [flow]")
    loaded = params.load()
    assert (loaded.pictures_of("baseline"), loaded.pictures_of("batchnorm")) == ([], ["flow"])


def test_a_model_overrides_common_training_settings(edit):
    edit("build: {batch_norm_momentum: 0.9}", "train: {batch_size: 128}")
    loaded = params.load()
    assert loaded.train_of("batchnorm").batch_size == 128
    assert loaded.train_of("batchnorm").epochs == 20
    assert loaded.train_of("baseline").batch_size == 32


def test_a_model_overrides_one_augmentation_and_keeps_the_others(edit):
    edit("crop: 0", "crop: 4")
    edit("build: {batch_norm_momentum: 0.9}", "train: {augment: {flip: horizontal}}")
    augment = params.load().train_of("batchnorm").augment
    assert (augment.flip, augment.crop, augment.shift) == ("horizontal", 4, 0.0)
    assert params.load().train_of("baseline").augment.flip is None


def test_every_stage_refuses_invalid_params_before_it_writes_anything(project, quick_stage, edit):
    edit("seeds: [0]", "seeds: zero")
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    for definition in graph["stages"].values():
        command = definition.get("do", definition)["cmd"]
        for pattern, value in ((r"item(\.model)?", "baseline"), (r"item\.seed|seeds\[0\]", "0")):
            command = re.sub(rf"\$\{{({pattern})\}}", value, command)
        _, _, *argv = command.split()  # python -m
        done = quick_stage(*argv)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert done.stderr == "error: params.yaml: seeds must be a list. Got 'zero'. Write [zero]\n"
    assert [path.name for path in project.iterdir()] == ["params.yaml"]


def test_reading_params_imports_neither_keras_nor_tensorflow(project):
    code = (
        "import sys; from pipeline.config.params import load; load(); print('keras' in sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.stdout == "False\n", done.stderr
    assert time.perf_counter() - start < 10


def test_anchors_and_merge_keys_are_read(edit):
    edit("architecture: baseline", "<<: &same {architecture: baseline}")
    edit("architecture: batchnorm", "<<: *same")
    assert params.load().models["batchnorm"].architecture == "baseline"


@pytest.mark.parametrize(("source", "message"), [
    ("def make(): pass", "StopIteration"),
    ("def build(:", "SyntaxError"),
    ("def build(shape, classes, *, x: keras.Layer = 1): pass", "NameError.*keras"),
    ("def build(shape, classes, *, x: float = 1 / 255): pass", "ValueError: malformed"),
])  # fmt: skip
def test_an_invalid_architecture_file_is_an_error_of_one_line(
    tmp_path, monkeypatch, source, message
):
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setattr(signature, "ARCHITECTURES", tmp_path)
    with pytest.raises(PipelineError, match=rf"mine\.py: must be Python with.*{message}"):
        signature.build_settings("mine")


def test_all_mistakes_are_reported_at_once_each_in_one_line(edit, stage):
    edit("dataset: digits", "dataset: cifar11")
    edit("[baseline, batchnorm]", "[baseline, batchnrom]")
    edit("champion: auto", "champion: vgg16")
    edit("dropout: 0.0", "dropuot: 0.0")
    edit("architecture: tutorial", "architecture: tutoral")
    # these alone are found without other settings, or the file of an architecture
    edit("margin: 1.0", "margin: one")
    edit("optimizer: adam", "optimiser: adam")
    edit("build: {batch_norm_momentum: 0.9}", "train: {epochs: 0}")
    done = stage("pipeline", "params", "check")
    assert (done.returncode, done.stdout) == (1, "")
    found = [line.removeprefix("error: params.yaml: ") for line in done.stderr.splitlines()]
    expected = [
        "train.optimiser is an unknown key. Did you mean optimizer?",
        "margin must be a number > 0 and < 100. Got 'one'",
        "models.batchnorm.train.epochs must be greater than or equal to 1. Got 0",
        "dataset must be digits, folder or a data set of TensorFlow Datasets (nearest: cifar10",
        "compare must contain names from `models:` (nearest: batchnorm, ",
        "champion must be auto or one of baseline, batchnrom. Got 'vgg16'",
        "models.baseline.build.dropuot is an unknown key. Did you mean dropout?",
        "models.tutorial: no file pipeline/architectures/tutoral.py. Architectures: airnet, ",
    ]
    assert len(found) == len(expected), done.stderr
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_all_mistakes_of_a_model_are_reported_at_once(edit):
    edit("architecture: tutorial", "architecture: pretrained")
    edit("[baseline, batchnorm]", "[baseline, tutorial]")
    edit("normalize: unit", "normalize: standardize")
    edit("  tutorial:\n", "  tutorial:\n    build: {fraze: all}\n    train: {warmup_epochs: 20}\n")
    with pytest.raises(PipelineError) as refused:
        params.load()
    unknown, *others = refused.value.args
    assert unknown.startswith("params.yaml: models.tutorial.build.fraze is an unknown key. Did you")
    assert others == [
        "params.yaml: models.tutorial.train must have fewer warmup_epochs than epochs",
        "params.yaml: preprocess.normalize must be unit for pretrained (models.tutorial). Got "
        "'standardize'",
    ]


def test_a_missing_key_is_reported_unless_it_is_the_one_that_a_typo_means(edit):
    edit("seeds: [0]", "seed: [0]")
    edit("margin: 1.0", "")
    with pytest.raises(PipelineError) as refused:
        params.load()
    assert refused.value.args == (
        "params.yaml: seed is an unknown key. Did you mean seeds?",
        "params.yaml: margin is missing. Add it",
    )


def test_dvc_keeps_comments_and_empty_settings_when_it_sets_others(project):
    before = Path("params.yaml").read_text("utf-8").splitlines()
    apply_overrides("params.yaml", ["train.learning_rate=0.1", "seeds=[0,1]"])
    after = Path("params.yaml").read_text("utf-8").splitlines()
    removed = [line.strip() for line in before if line not in after]
    # DVC writes every list with one value a line
    assert [line for line in removed if "[" not in line] == ["learning_rate: 0.001"]
    loaded = params.load()
    assert (loaded.train.learning_rate, loaded.seeds) == (0.1, [0, 1])


def test_the_committed_schema_is_current():
    committed = (REPOSITORY / "params.schema.json").read_text()
    assert committed == params.schema(), "run `make schema`"
    assert json.loads(committed)["additionalProperties"] is False


def test_the_schema_describes_every_setting():
    schema = json.loads(params.schema())
    sections = {"params.yaml": schema, **schema["$defs"]}
    sections["Model.build"] = schema["$defs"]["Model"]["properties"]["build"]
    assert {"Model", "Train", "PartialTrain", "PartialAugment"} <= set(sections)
    undescribed = [
        f"{title}: {name}"
        for title, section in sections.items()
        for name, setting in section["properties"].items()
        if not setting.get("description")
    ]
    assert undescribed == []


def test_params_yaml_names_its_schema_and_has_a_comment_on_every_setting():
    text = (REPOSITORY / "params.yaml").read_text()
    # the first model explains the settings of all models
    others = re.search(r"(?s)\n  batchnorm:\n.*?\n\n", text)
    assert others
    # what a search tries are settings that are explained above
    lines = text.replace(others[0], "\n\n").partition("\nsearch:\n")[0].splitlines()
    assert lines[0] == "# yaml-language-server: $schema=params.schema.json"
    for before, line in zip(lines, lines[1:], strict=False):
        key = line.split(":")[0].strip()
        if (
            line
            and not line.lstrip().startswith("#")
            and key not in ("preprocess", "split", "architecture", "train", "build")
        ):
            assert before.lstrip().startswith("#"), f"{key} has no comment"


def test_a_missing_folder_is_refused(project):
    with pytest.raises(PipelineError, match=r"params\.yaml: folder must be an existing folder: an "
                       r"absolute path.*\. Got 'img'"):  # fmt: skip
        params.check_folder("img")


def test_a_folder_that_an_experiment_would_commit_is_refused(
    project,
):
    (project / "photos/train/cat").mkdir(parents=True)
    for name in ("a.png", "b c.png"):
        (project / "photos/train/cat" / name).touch()
    params.check_folder("photos")  # without Git nothing is committed
    subprocess.run(["git", "init", "-q"], check=True)
    message = (
        r"params\.yaml: folder must not contain files that `dvc exp run` would commit to Git, but "
        rf"contains 2\. Use the absolute path {project}/photos, or run `dvc add photos`\. Got"
    )
    with pytest.raises(PipelineError, match=message):
        params.check_folder("photos")
    params.check_folder(str(project / "photos"))
    (project / ".gitignore").write_text("/photos\n")  # as `dvc add` does
    params.check_folder("photos")
    (project / ".gitignore").unlink()
    subprocess.run(["git", "add", "photos"], check=True)  # as a user may want
    params.check_folder("photos")


@pytest.mark.parametrize("argv", [
    ("pipeline", "params", "check"),
    ("pipeline.inputs", "--lock=uv.lock", "--inputs=result", "--trainings=result",
     "--vega=result"),
    ("pipeline.download", "--raw", "raw"),
])  # fmt: skip
def test_a_missing_folder_is_refused_in_the_first_stage_and_where_it_is_read(
    project, edit, stage, argv
):
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: img")
    done = stage(*argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"error: params\.yaml: folder must be an existing.*\n$", done.stderr)
    assert not list(project.glob("[rv]*"))


def test_every_augmentation_changes_images():
    assert not Augment.model_validate(PLAIN).changes_images
    assert not Augment.model_validate({**PLAIN, "crop_fill": "reflect"}).changes_images
    on = {"flip": "both", "crop": 1} | dict.fromkeys(
        ("shift", "resized_crop", "rotation", "brightness", "contrast", "saturation", "hue",
         "rand_augment", "cutout"), 0.1
    )  # fmt: skip
    assert set(on) == set(Augment.model_fields) - {"crop_fill"}
    for name, value in on.items():
        assert Augment.model_validate({**PLAIN, name: value}).changes_images, name
