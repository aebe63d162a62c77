"""Lean: Keras imported without the modules that it and TensorFlow load for nobody here."""

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# Loaded when first used, and not before; a name that a version lacks is never asked for. Behind
# them: what a plain `import keras` (Keras 3.15, TensorFlow 2.21) loads 4,400 modules for.
WHEN_USED = {
    "keras.src.visualization",  # matplotlib
    "keras.visualization",
    "keras.wrappers",  # scikit-learn
    "tensorflow._api.v2.__internal__.feature_column",
    "tensorflow._api.v2.compat",  # all of TensorFlow 1
    "tensorflow._api.v2.feature_column",
    "tensorflow._api.v2.lite",
    "tensorflow.python.keras.engine.training_v1",  # SciPy
}


@contextmanager
def imports() -> Iterator[None]:
    """Import what stands in the block without what it does not need at once.

    Nothing is taken away: what is put off loads when it is used, by the ordinary way. JAX and
    pandas alone are hidden, and only for the length of the block, from a Keras that does without
    them: it runs on TensorFlow, and nobody here gives it tables.
    """
    finder, collecting = _Finder(), gc.isenabled()
    sys.meta_path.insert(0, finder)
    gc.disable()  # nothing of a million new objects is garbage
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        gc.freeze()  # nor does what is loaded become garbage: later collections pass it over
        if collecting:
            gc.enable()


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        tensorflow = "keras.src.backend.tensorflow" in sys.modules
        if name == "pandas" or (name == "jax" and tensorflow):
            raise ModuleNotFoundError("put off by pipeline.runtime.lean", name=name)
        if name == "tensorflow._api.v2.lite":
            # an empty package of that name, which would take the place of tf.lite if it came later
            importlib.import_module("tensorflow.lite")
        spec = PathFinder.find_spec(name, path, target) if name in WHEN_USED else None
        if spec and spec.loader:
            spec.loader = _WhenUsed(spec.loader)
        return spec


class _WhenUsed(Loader):
    """Loads a module when an attribute is asked for that it has only once it is loaded.

    As importlib.util.LazyLoader, which however loads for `__file__` too: `inspect.getmodule`
    asks every module for that, and TensorFlow calls it when it traces a training step.
    """

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # a package imports a part of itself by its path: without it, it is loaded first
        path = vars(module).pop("__path__", None)

        def load(name: str) -> Any:
            del vars(module)["__getattr__"]
            if path is not None:
                vars(module)["__path__"] = path
            self.loader.exec_module(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = load
