"""Selecting the backend: GPUs are used only if its packages support them."""

from types import SimpleNamespace

from pipeline.runtime import select_backend


def test_a_backend_supports_gpus_if_its_packages_for_them_are_installed(monkeypatch):
    names = ["jax", "JAX-cuda13-plugin", "tensorflow", None]  # the last: a damaged package
    monkeypatch.setattr(
        select_backend, "distributions", lambda: [SimpleNamespace(name=name) for name in names]
    )
    assert select_backend.supports_gpu("jax")
    assert not select_backend.supports_gpu("tensorflow")
