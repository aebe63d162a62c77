"""Import Keras without the modules that this project never uses.

A plain `import keras` (Keras 3.15, TensorFlow 2.21) loads 4,400 modules, in every stage. With
this module the default `dvc repro` takes 64 s, without it 86 s (medians of 5, in turn, 2 cores).
"""

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# Loaded when first used. A name that is missing in another version does no harm: it is never
# imported.
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
    """Make imports in the block faster by loading the modules of WHEN_USED later.

    Each of these loads as usual when it is first used. JAX and pandas are optional for Keras. They
    are hidden from it in the block: JAX if the backend is TensorFlow, and pandas because no table
    is passed to Keras here.
    """
    finder, collecting = _Finder(), gc.isenabled()
    sys.meta_path.insert(0, finder)
    gc.disable()  # imports create a million objects, none of them garbage
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        gc.freeze()  # modules stay loaded, so later collections can skip them
        if collecting:
            gc.enable()


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        tensorflow = "keras.src.backend.tensorflow" in sys.modules
        if name == "pandas" or (name == "jax" and tensorflow):
            raise ModuleNotFoundError("hidden by pipeline.runtime.lean", name=name)
        if name == "tensorflow._api.v2.lite":
            # an empty package of the same name, which would replace tf.lite if it were loaded later
            importlib.import_module("tensorflow.lite")
        spec = PathFinder.find_spec(name, path, target) if name in WHEN_USED else None
        if spec and spec.loader:
            spec.loader = _WhenUsed(spec.loader)
        return spec


class _WhenUsed(Loader):
    """Loads a module when one of its attributes is first used.

    Like importlib.util.LazyLoader, but reading `__file__` does not load the module:
    `inspect.getmodule`, which TensorFlow calls when it traces a training step, reads it of every
    module.
    """

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # without its path, importing a submodule loads the package first
        path = vars(module).pop("__path__", None)

        def load(name: str) -> Any:
            del vars(module)["__getattr__"]
            if path is not None:
                vars(module)["__path__"] = path
            self.loader.exec_module(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = load
