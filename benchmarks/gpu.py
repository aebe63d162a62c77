"""GPU: batchnorm on JAX with the images on the device, in bfloat16 and in float32.

Only by its name, `python -m benchmarks gpu`, and left out where JAX finds no GPU. airnet's way
to 94 % on a GPU is the benchmark `accuracy` with `backend: jax` in params.yaml.
"""

import subprocess
from functools import partial
from importlib.util import find_spec

from benchmarks import data, train
from benchmarks.harness import OURS, Plan, python, take_turns

# nearly all training images of CIFAR-10: 50,000 / (images/s) is the seconds of an epoch
CASE = train.Case("batchnorm", 512, 49_664)
FIND = "import jax; print(jax.default_backend())"


def measure(plan: Plan) -> list[dict]:
    found = find_spec("jax") and subprocess.run(python("-c", FIND), capture_output=True, text=True)
    if not found or found.stdout.strip() != "gpu":
        print('  left out: JAX finds no GPU. `uv pip install "jax[cuda13]"` on a machine with one')
        return []
    data.prepare(plan.folder)
    return [compare(CASE, plan)]


def compare(case: train.Case, plan: Plan) -> dict:
    on_jax = partial(train.ours, backend="jax")
    ways = {OURS: on_jax, "itself in float32": partial(on_jax, precision="float32")}
    title = f"train {case.model} on JAX, batch {case.batch_size}"
    return take_turns(title, "images/s", ways, (plan.folder / "data/arrays", case), plan.runs)
