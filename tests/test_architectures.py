"""Architectures: the contract of every file in pipeline/architectures/."""

import json
import math
import socket
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline import export
from pipeline.architectures import vgg16
from pipeline.config.schema import Model
from pipeline.config.signature import ARCHITECTURES, build_arguments
from pipeline.config.signature import build_settings as settings_of
from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor
from pipeline.data.preprocessor import store as store_preprocessor
from pipeline.runtime import acceleration, backend
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import building, loop
from tests.conftest import EXPORT, PLAIN, settings, write_arrays

NAMES = sorted(path.stem for path in ARCHITECTURES.glob("[!_]*.py"))
SHAPE = (32, 32, 3)
# shapes of architectures for which 32×32 is too small
SHAPES = {"deep_bn": (128, 128, 3)}
# settings that are required here, without a network to download weights from
REQUIRED: dict[str, dict[str, Any]] = {
    "efficientnet_lite": {"weights": None, "freeze": "none"},
    "pretrained": {"base": "mobilenet_v2", "weights": None, "freeze": "none"},
    "transfer": {"freeze": "none"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model with batch normalization to start from."""
    path = tmp_path_factory.mktemp("source") / "source.keras"
    keras.utils.set_random_seed(1)
    images = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(images)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(6, activation="relu", name="hidden")(x)
    backend.save(keras.Model(images, keras.layers.Dense(3, name="logits")(x)), path)
    return path


@pytest.fixture
def make(source: Path):
    """Return a function that builds an architecture by its name."""

    def make(name: str, shape: tuple[int, ...] = (), classes: int = 10, **arguments) -> keras.Model:
        build = {**REQUIRED.get(name, {}), **arguments}
        from_model = str(source) if name == "transfer" else None
        model = Model(architecture=name, build=build, from_model=from_model)
        return building.build(model, shape or SHAPES.get(name, SHAPE), classes, seed=0)

    return make


def images(model: keras.Model, count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *model.input_shape[1:]), dtype=np.float32)


def compile_eagerly(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compile without a graph: tracing one takes eight times as long as two steps."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=True)


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_maps_images_to_logits_uncompiled(name, make):
    model = make(name, classes=7)
    assert model.input_shape == (None, *SHAPES.get(name, SHAPE))
    assert model.output_shape == (None, 7)
    assert not model.compiled
    # logits, so that the loss is numerically exact on every backend
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_receives_a_gradient(name, make):
    model = make(name)
    before = [weight.numpy() for weight in model.trainable_weights]
    compile_eagerly(model, keras.optimizers.SGD(0.01))
    model.train_on_batch(images(model, 8), np.arange(8) % model.output_shape[1])
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert np.isfinite(weight.numpy()).all()
        # a bias before batch normalization has a gradient of 0, but for rounding
        if "bias" not in weight.path:
            assert not np.array_equal(old, weight.numpy()), weight.path


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_equal_after_saving(name, make, tmp_path):
    model = make(name)
    backend.save(model, tmp_path / "model.keras")
    loaded = backend.load(tmp_path / "model.keras")
    assert np.array_equal(model(images(model, 2)), loaded(images(model, 2)))


# `make test-long` exports the networks of keras.applications
MARKS = dict.fromkeys(NAMES, pytest.mark.slow) | dict.fromkeys(
    ("pretrained", "vgg16"), pytest.mark.long
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "baseline" else MARKS[n]) for n in NAMES]
)
def test_onnx_and_litert_exports_predict_the_same(name, make, project):
    model = make(name)
    random = np.random.default_rng(0)
    # as if trained: initial batch normalization is the identity, which would hide errors
    model.set_weights([w * random.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    shape = model.input_shape[1:]
    preprocessor = Preprocessor([str(i) for i in range(10)], [*shape], "standardize",
                                [0.5, 0.4, 0.3], [0.2, 0.3, 0.25])  # fmt: skip
    backend.save(model, project / "champion.keras")
    store_preprocessor(project / "champion.keras", preprocessor)
    pixels = random.integers(0, 256, (40, *shape)).astype(np.uint8)
    write_arrays(project / "arrays/test", preprocessor.normalized(pixels), np.arange(40) % 10)
    (project / "arrays/info.json").write_text(json.dumps(vars(preprocessor)))
    export.main(EXPORT)
    metrics = json.loads((project / "export.json").read_text())
    assert metrics["onnx"]["largest_difference"] < 1e-4
    assert metrics["litert"]["largest_difference"] < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_known_without_importing_keras(name, make):
    """The settings are read from the signature; their defaults must be those of build."""
    specific = set(settings_of(name).model_fields) - set(settings_of("plain").model_fields)
    defaults = {key: field.default for key, field in settings_of(name).model_fields.items()}
    explicit = {key: defaults[key] for key in specific - set(REQUIRED.get(name, {}))}
    assert make(name, **explicit).count_params() == make(name).count_params()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "transfer"])
def test_an_architecture_accepts_grayscale_images(name, make):
    height, width, _ = SHAPES.get(name, SHAPE)
    assert make(name, (height, width, 1), 2).output_shape == (None, 2)


@pytest.mark.parametrize("name", [name for name in NAMES if "dropout" in build_arguments(name)])
def test_the_dropout_rate_can_be_set(name, make):
    value = [0.1, 0.2, 0.7] if name == "batchnorm" else 0.7
    layers = make(name, dropout=value)._flatten_layers()
    assert 0.7 in [layer.rate for layer in layers if type(layer) is keras.layers.Dropout]


def parameters(model: keras.Model) -> tuple[int, int]:
    """Return the numbers of all and of the trainable parameters."""
    return model.count_params(), sum(math.prod(w.shape) for w in model.trainable_weights)


def test_baseline_has_the_parameters_of_the_reference(make):
    # 3*3*3*16+16 = 448; 3*3*16*32+32 = 4,640; 3*3*32*64+64 = 18,496;
    # 4*4*64*128+128 = 131,200; 128*10+10 = 1,290
    assert make("baseline").count_params() == 448 + 4_640 + 18_496 + 131_200 + 1_290 == 156_074


def test_dropout_of_baseline_comes_before_flatten_and_adds_no_parameters(make):
    layers = make("baseline", dropout=0.2).layers
    names = [type(layer).__name__ for layer in layers]
    assert names[names.index("Dropout") + 1] == "Flatten"
    assert make("baseline", dropout=0.2).count_params() == 156_074
    assert "Dropout" not in [type(layer).__name__ for layer in make("baseline").layers]


def test_batchnorm_has_the_parameters_of_the_reference(make):
    # non-trainable: two moving averages for each of 2*64 + 4*128 + 256 features
    assert parameters(make("batchnorm")) == (1_517_450, 1_517_450 - 2 * (128 + 512 + 256))


def test_each_block_of_batchnorm_has_its_own_dropout_rate(make):
    model = make("batchnorm", dropout=[0.1, 0.3, 0.4], dense_dropout=0.6)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.1, 0.3, 0.4, 0.6]


def test_tutorial_has_the_parameters_of_the_reference(make):
    # 3*3*3*32+32 = 896; 3*3*32*64+64 = 18,496; 3*3*64*64+64 = 36,928: 56,320 before Flatten;
    # 32-2=30, 15, 13, 6, 4: 4*4*64*64+64 = 65,600; 64*10+10 = 650
    assert make("tutorial").count_params() == 56_320 + 65_600 + 650 == 122_570


def test_airnet_has_the_expected_parameters(make):
    # patches of 2*2*3 values, two filters per value: 12*24+24 = 312; 3*3*24*64 = 13,824;
    # 3*3*64*64 = 36,864; 3*3*64*128 = 73,728; three of 3*3*128*128 = 147,456;
    # batch normalization: 4 * (2*64 + 4*128) = 2,560; 128*10+10 = 1,290
    assert make("airnet").count_params() == 312 + 13_824 + 36_864 + 73_728 + 3 * 147_456 + 3_850
    assert make("airnet").count_params() == 570_946
    # one block of one convolution: 3*3*24*16 = 3,456; 4*16; 16*10+10 = 170
    small = make("airnet", widths=[16], depth=1)
    assert small.count_params() == 312 + 3_456 + 64 + 170
    # patches of 3*3*1 values, 18 filters: 9*18+18
    grey = make("airnet", (9, 9, 1), patch=3, widths=[4], depth=1)
    assert grey.layers[1].count_params() == 180


def test_airnet_reports_the_smallest_supported_image_size(make):
    with pytest.raises(PipelineError, match=r"smallest that fits is .*image_size: \[9, 9\]"):
        make("airnet", (8, 8, 1))


def test_batch_normalized_classifiers_have_the_parameters_of_the_reference(make):
    # batch normalization of 3 channels: 12, of which 6 are moving averages
    photo = (224, 224, 3)
    assert parameters(make("logistic_bn", photo, 2)) == (12 + 224 * 224 * 3 * 2 + 2, 301_064)
    assert make("logistic_bn", photo, 2).count_params() == 301_070
    # 2*2*3*100+100 = 1,300; 223/16 = 13: 13*13*100*2+2 = 33,802
    assert parameters(make("wide_bn", photo, 2)) == (12 + 1_300 + 33_802, 35_108)
    # 2*2*3*20+20 = 260; six times 2*2*20*20+20 = 1,620; 224/2**7 = 1: 20*2+2 = 42
    assert parameters(make("deep_bn", photo, 2)) == (12 + 260 + 6 * 1_620 + 42, 10_028)


def test_vgg16_has_the_published_parameter_counts(make):
    # the convolutions of configuration D
    assert make("vgg16", dense=[]).count_params() == 14_714_688 + 512 * 10 + 10
    assert make("vgg16").count_params() == 14_714_688 + (512 * 512 + 512) + (512 * 10 + 10)
    # scale, shift and two moving averages for each of the 4,224 filters
    assert make("vgg16", batch_norm=True, dense=[]).count_params() == 14_719_818 + 4 * 4_224
    # and for each of the 512 units of the head
    with_head = make("vgg16", batch_norm=True)
    assert with_head.count_params() == 14_982_474 + 4 * (4_224 + 512)
    layers = [type(layer).__name__ for layer in with_head.layers]
    assert layers[1:4] == ["Conv2D", "BatchNormalization", "Activation"]


def test_vgg16_with_its_own_head_is_the_published_network():
    # counted from shapes, without initializing 138 million weights
    with keras.StatelessScope():
        model = vgg16.build((224, 224, 3), 1000, dense=[4096, 4096])
        assert model.count_params() == 138_357_544


def test_plain_has_the_configured_depth_and_width(make):
    # 3*3*3*4+4 = 112; twice 3*3*4*4+4 = 148; 32*32*4*10+10 = 40,970
    assert make("plain", depth=3, filters=4).count_params() == 112 + 2 * 148 + 40_970


@pytest.mark.parametrize(("name", "size", "smallest"), [
    ("baseline", 4, 8), ("batchnorm", 7, 8), ("tutorial", 8, 18), ("wide_bn", 8, 17),
    ("deep_bn", 8, 128), ("deep_bn", 100, 128), ("vgg16", 8, 32), ("pretrained", 8, 32),
])  # fmt: skip
def test_the_error_for_small_images_names_the_smallest_size(name, size, smallest, make):
    with pytest.raises(PipelineError) as refused:
        make(name, (size, size, 3), 2)
    message = str(refused.value)
    start = f"{name}: cannot be built for {size} × {size} × 3 images and 2 classes: "
    assert message.startswith(start)
    assert message.endswith(
        f"The smallest that fits is preprocess.image_size: [{smallest}, {smallest}]"
    )
    assert "\x1b" not in message
    assert "Arguments received" not in message


# pretrained and transfer, which start from trained weights


def train(model: keras.Model) -> None:
    """Train for two steps with a high learning rate."""
    compile_eagerly(model, keras.optimizers.SGD(1.0))
    for _ in range(2):
        model.train_on_batch(images(model, 8), np.arange(8) % model.output_shape[1])


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    # numbered: layers of two models may share a name
    return {f"{number} {w.path}": w.numpy() for number, w in enumerate(model.weights)}


def changed(before: dict[str, np.ndarray], model: keras.Model) -> set[str]:
    after = weights(model)
    return {path for path in after if not np.array_equal(after[path], before[path])}


@pytest.mark.parametrize(
    "base", ["vgg16", "mobilenet_v2", pytest.param("EfficientNetB0", marks=pytest.mark.slow)]
)
def test_frozen_weights_of_a_pretrained_base_do_not_change(base, make):
    model = acceleration.accelerate(make("pretrained", base=base, freeze="all"), "float32")
    before = weights(model)
    train(model)
    assert len(before) > 20
    head = list(before)[-2:]  # kernel and bias
    assert head[1] in changed(before, model) <= set(head)


def test_a_base_is_frozen_up_to_a_layer_including_batch_normalization(make):
    model = acceleration.accelerate(make("pretrained", freeze="block_15_add"), "float32")
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    last = [layer.name for layer in base.layers].index("block_15_add")
    frozen, trainable = (
        {w.path: w for layer in layers for w in layer.weights}
        for layers in (base.layers[: last + 1], base.layers[last + 1 :])
    )
    before = {path: w.numpy() for path, w in {**frozen, **trainable}.items()}
    train(model)
    assert len(frozen) > 100
    assert all(np.array_equal(before[path], w) for path, w in frozen.items())
    variances = {path: w for path, w in trainable.items() if "moving_variance" in path}
    assert len(variances) == 4  # three in block 16, and the last one
    assert not any(np.array_equal(before[path], w) for path, w in variances.items())


def test_frozen_batch_normalization_is_in_inference_mode(make):
    """With batch statistics, the logits of an image would depend on the rest of the batch."""
    model = make("pretrained", freeze="all", dropout=0.0)
    two = images(model, 2)
    alone = model(two[:1], training=True)
    assert np.allclose(model(two, training=True)[:1], alone, atol=1e-6)


@pytest.mark.parametrize("base", ["vgg16", "mobilenet_v2", "resnet50"])
def test_a_base_receives_images_in_its_own_preprocessing(base, make):
    model = make("pretrained", base=base)
    body = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    module = getattr(keras.applications, base)
    pixels = images(model, 2)
    head = model.layers[-1]
    features = np.mean(body(module.preprocess_input(pixels * 255.0)), axis=(1, 2))
    assert np.allclose(head(features), model(pixels), rtol=1e-4, atol=1e-5)


def test_a_base_is_initialized_from_a_weights_file(tmp_path):
    keras.utils.set_random_seed(5)
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=SHAPE)
    path = tmp_path / "base.weights.h5"
    base.save_weights(path)
    model = building.build(Model(architecture="pretrained", from_model=str(path)), SHAPE, 2, seed=0)
    body = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    for expected, actual in zip(base.weights, body.weights, strict=True):
        assert np.array_equal(expected, actual)


@pytest.mark.parametrize(("build", "message"), [
    ({"base": "vgg17"}, r"build\.base must be a network of keras\.applications \(.*VGG16.*vgg17"),
    ({"weights": "vgg.h5"}, r"build\.weights must be imagenet or null\. .*from_model: pretrained/"),
    ({"freeze": "conv99"}, r"freeze must be .* the \d+ layers of mobilenet_v2, .*99"),
])  # fmt: skip
def test_invalid_settings_of_pretrained_are_one_error_line(make, build, message):
    with pytest.raises(PipelineError, match=message) as refused:
        make("pretrained", **build)
    assert "smallest" not in str(refused.value)


@pytest.mark.slow
def test_a_failed_download_of_imagenet_weights_is_one_error_line(project, stage):
    code = """if True:
        from pipeline.training import building
        from pipeline.core.errors import PipelineError, run
        from pipeline.config.schema import Model
        for size in (32, 8):
            model = Model(architecture="pretrained")
            try:
                building.build(model, (size, size, 3), 2, seed=0)
            except PipelineError as error:
                print(error)
        run(lambda: building.build(model, (32, 32, 3), 2, seed=0))
    """
    (project / "program.py").write_text(code)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = stage("program", HTTPS_PROXY=proxy, KERAS_HOME=str(project / "keras"))
    assert done.returncode == 1
    # images that are too small are reported without downloading weights
    assert "The smallest that fits is preprocess.image_size: [32, 32]" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: pretrained: the ImageNet weights cannot be downloaded: URL fetch failure on "
        "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/mobilenet_v2_"
    )
    assert (
        "Download the file elsewhere, and set from_model: pretrained/FILE; delete damaged files"
    ) in last
    assert "Traceback" not in done.stderr


def test_a_file_without_weights_is_one_error_line(tmp_path):
    path = tmp_path / "base.weights.h5"
    path.write_text("not HDF5")
    model = Model(architecture="pretrained", from_model=str(path))
    with pytest.raises(PipelineError, match=r"base\.weights\.h5: must hold the weights of mobile"):
        building.build(model, SHAPE, 2, seed=0)


def test_transfer_keeps_trained_weights_and_replaces_the_head(make, source):
    model = make("transfer", freeze="all", classes=5)
    assert model.output_shape == (None, 5)
    original = keras.saving.load_model(source, compile=False)
    before = weights(model)
    train(model)
    assert {path.split("/")[-1] for path in changed(before, model)} == {"kernel", "bias"}
    expected = [w.numpy() for layer in original.layers[:-1] for w in layer.weights]
    body = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    assert len(expected) == 8
    assert all(np.array_equal(a, b) for a, b in zip(expected, body.get_weights(), strict=True))


def test_transfer_drops_layers_and_freezes_up_to_a_layer(make):
    model = make("transfer", drop_layers=2, freeze="conv")
    body = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    assert [layer.name for layer in body.layers[1:]] == ["conv", "norm", "pool"]
    assert [layer.trainable for layer in body.layers[1:]] == [False, True, True]
    before = weights(model)
    train(model)
    assert not any("conv/" in path for path in changed(before, model))
    assert sum("norm/" in path for path in changed(before, model)) == 4


@pytest.mark.parametrize(("build", "shape", "message"), [
    ({}, (32, 32, 1), r"source\.keras takes 3 channels\. The images have 1"),
    ({"drop_layers": 5}, SHAPE, r"must leave a layer after the input; .* has 6 layers\. Got 5"),
    ({"freeze": "logits"}, SHAPE, r"freeze must be .* 5 remaining layers, .* to hidden\. Got log"),
    ({}, (48, 48, 3), r"source\.keras takes 32 × 32 pixels\. Set preprocess\.image_size: \[32"),
])  # fmt: skip
def test_invalid_settings_of_transfer_are_one_error_line(make, build, shape, message):
    with pytest.raises(PipelineError, match=message):
        make("transfer", shape, **build)


@pytest.mark.parametrize(("content", "message"), [
    (None, r"source\.keras must be a saved model\. File not found"),
    (b"PK", r"source\.keras must be a saved model\. .*source\.keras"),
])  # fmt: skip
def test_a_file_that_is_not_a_model_is_one_error_line(tmp_path, content, message):
    path = tmp_path / "source.keras"
    if content:
        path.write_bytes(content)
    with pytest.raises(PipelineError, match=message):
        building.build(Model(architecture="transfer", from_model=str(path)), SHAPE, 2, seed=0)


class Custom(keras.layers.Layer):
    """A layer whose code is not in the model file."""

    def call(self, x):
        return x


def saved(path: Path, shape: tuple[int, ...], layer: keras.Layer) -> Path:
    images = keras.Input(shape)
    x = keras.layers.Flatten()(layer(images))
    keras.Model(images, keras.layers.Dense(2)(x)).save(path)
    return path


@pytest.mark.parametrize(("shape", "layer", "message"), [
    (SHAPE, keras.layers.Lambda(lambda x: x), r"source\.keras must be a saved model\. .*[Ll]ambda"),
    (SHAPE, Custom(), r"source\.keras must be a saved model\. .*Custom"),
    ((4,), keras.layers.Flatten(),
     r"source\.keras must take images \(n, height, width, channels\)\. Got \(None, 4\)"),
])  # fmt: skip
def test_models_with_custom_code_or_without_image_input_are_refused(
    tmp_path, shape, layer, message
):
    path = saved(tmp_path / "source.keras", shape, layer)
    with pytest.raises(PipelineError, match=message) as refused:
        building.build(Model(architecture="transfer", from_model=str(path)), SHAPE, 2, seed=0)
    assert "smallest" not in str(refused.value)


def test_truncated_and_damaged_models_are_refused(source, tmp_path):
    intact = source.read_bytes()
    path = tmp_path / "source.keras"
    model = Model(architecture="transfer", from_model=str(path))
    middle = intact.index(b"model.weights.h5") + 3000
    damaged = intact[:middle] + bytes([intact[middle] ^ 255]) + intact[middle + 1 :]
    for content in (intact[: len(intact) // 2], intact[:-1], damaged):
        path.write_bytes(content)
        with pytest.raises(PipelineError, match="transfer: "):
            building.build(model, SHAPE, 2, seed=0)


def test_a_model_saved_frozen_can_be_unfrozen_and_used_as_a_source(source, tmp_path):
    """The usual two steps of fine-tuning: first the new head, then all layers."""
    first = building.build(Model(architecture="transfer", from_model=str(source)), SHAPE, 5, seed=0)
    assert len(first.trainable_weights) == 2
    backend.save(first, tmp_path / "first.keras")
    unfrozen = Model(
        architecture="transfer", from_model=str(tmp_path / "first.keras"), build={"freeze": "none"}
    )
    second = building.build(unfrozen, SHAPE, 4, seed=0)
    assert second.output_shape == (None, 4)
    # convolution 2, batch normalization 2, hidden 2, head 2
    assert len(second.trainable_weights) == 8
    pixels = images(first, 2)
    features = keras.Model(first.input, first.layers[-1].input)(pixels)
    kernel, bias = second.layers[-1].get_weights()
    assert np.allclose(features @ kernel + bias, second(pixels), atol=1e-6)


@pytest.mark.parametrize("name", ["transfer", pytest.param("pretrained", marks=pytest.mark.slow)])
def test_frozen_weights_do_not_change_in_fit(name, source, tmp_path):
    """Including what fit adds to a network: an accelerated copy, and augmentation."""
    model = Model(architecture=name, build={"base": "mobilenet_v2", "weights": None})
    if name == "transfer":
        # two levels of nested models
        first = Model(architecture=name, from_model=str(source), build={"freeze": "none"})
        backend.save(building.build(first, SHAPE, 5, seed=0), tmp_path / "first.keras")
        model = Model(architecture=name, from_model=str(tmp_path / "first.keras"))
    network = building.build(model, SHAPE, 2, seed=0)
    pixels = images(network, 16)
    before = [w.numpy() for w in network.weights]
    subset = Subset(pixels, np.arange(16) % 2, np.arange(16))
    loop.fit(
        network,
        subset,
        subset,
        settings(epochs=2, augment={**PLAIN, "flip": "both"}),
        ["a", "b"],
        seed=0,
        verbose=False,
    )
    after = [w.numpy() for w in network.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before[:-2], after[:-2], strict=True))
    assert not np.array_equal(before[-1], after[-1])
