"""GPU: measure training of batchnorm on JAX, in bfloat16 and in float32.

The images are on the device. Runs by name only, `python -m benchmarks gpu`, and only if JAX finds a
GPU. For the accuracy of a whole training, set `backend: jax` in params.yaml and run
`python -m benchmarks.trainings cifar10 --models airnet_15`.
"""

import subprocess
from functools import partial
from importlib.util import find_spec

from benchmarks import data, train
from benchmarks.harness import OURS, Plan, compare, python

# nearly all 50,000 training images of CIFAR-10, so that a turn lasts as long as an epoch
CASE = train.Case("batchnorm", 512, 49_664)
FIND = "import jax; print(jax.default_backend())"


def measure(plan: Plan) -> list[dict]:
    """Measure `CASE` in both precisions, if there is a GPU."""
    done = find_spec("jax") and subprocess.run(python("-c", FIND), capture_output=True, text=True)
    if not done or done.stdout.strip() != "gpu":
        print('  skipped: JAX finds no GPU. `uv pip install "jax[cuda13]"` on a machine with one')
        return []
    data.prepare(plan.folder)
    on_jax = partial(train.ours, backend="jax")
    variants = {OURS: on_jax, "itself in float32": partial(on_jax, precision="float32")}
    title = f"train {CASE.model} on JAX, batch {CASE.batch_size}"
    args = (plan.folder / "data/arrays", CASE)
    return [compare(title, "images/s", variants, args, plan.runs)]
