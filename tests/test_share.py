"""Share: a clone that pulls what another has pushed has nothing to run."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline.core.files import sha256
from tests.conftest import png
from tests.test_graph import Clone

# all tests in one worker, so that the graph runs once
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("share")]
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
UP_TO_DATE = "Data and pipelines are up to date."


class Second(Clone):
    """A `git clone` of another clone."""

    def __init__(self, first: Clone, folder: Path):
        self.folder = folder
        first.run("git", "clone", "-q", str(first.folder), str(folder))


class Remote(NamedTuple):
    url: str
    """The argument of `dvc remote add`"""
    folder: Path
    """The folder that holds its files"""
    options: dict[str, str]
    """Settings that each clone makes for itself"""


def outputs(clone: Clone) -> dict[str, bytes]:
    """Read every file that dvc.lock records as an output."""
    recorded = yaml.safe_load((clone.folder / "dvc.lock").read_text())["stages"].values()
    paths = [out["path"] for stage in recorded for out in stage["outs"]]
    return clone.read(*paths, *(f"{path}/**/*" for path in paths))


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Clone:
    """A clone whose graph has run with one model for one epoch, and is committed.

    Its first part ran with another seed too.
    """
    clone = Clone(tmp_path_factory.mktemp("first"), alone=True, epochs=1)
    clone.edit(
        "params.yaml", "[layers, feature_maps, grad_cam, flow, kernels, filters]", "[kernels]"
    )
    clone.edit("params.yaml", "seeds: [0]", "seeds: [0, 1]")
    clone.repro("compare")
    clone.edit("params.yaml", "seeds: [0, 1]", "seeds: [0]")
    clone.repro()
    clone.commit("run")
    return clone


@pytest.fixture
def folder_remote(tmp_path: Path) -> Remote:
    return Remote(str(tmp_path / "remote"), tmp_path / "remote", {})


@pytest.fixture
def ssh_remote(tmp_path: Path) -> Iterator[Remote]:
    """A folder served by a separate sshd on a local port."""
    pytest.importorskip("dvc_ssh")
    if not SSHD:
        pytest.skip("no sshd: apt-get install openssh-server")
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(make, check=True)
    if os.geteuid() == 0:  # created by the service where sshd runs as one
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\n"
        f"HostKey {tmp_path}/host\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    with (tmp_path / "sshd.log").open("w") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log
        )
    try:
        wait_for(port, process, tmp_path / "sshd.log")
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/remote"
        yield Remote(url, tmp_path / "remote", {"keyfile": str(tmp_path / "user")})
    finally:
        process.terminate()
        process.wait()
    assert "Accepted publickey" in (tmp_path / "sshd.log").read_text()


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(100):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"sshd accepts no connection: {log.read_text()}")


@pytest.mark.parametrize("kind", ["folder_remote", "ssh_remote"])
def test_a_second_clone_pulls_what_the_first_pushed_and_runs_nothing(
    first, kind, request, tmp_path
):
    remote = request.getfixturevalue(kind)

    def configure(clone: Clone) -> None:
        for option, value in remote.options.items():
            clone.run("dvc", "remote", "modify", "--local", "share", option, value)

    first.run("dvc", "remote", "add", "-f", "-d", "share", remote.url)
    first.commit(f"remote: {kind}")
    configure(first)
    first.run("dvc", "push")
    assert list((remote.folder / "files/md5").glob("*/*"))

    second = Second(first, tmp_path / "second")
    assert not (second.folder / "data/raw").exists()
    configure(second)
    second.run("dvc", "pull")
    assert UP_TO_DATE in second.run("dvc", "repro")
    assert second.run("git", "status", "--porcelain") == ""
    pushed, pulled = outputs(first), outputs(second)
    assert len(pushed) > 15
    assert [name for name in pushed if pushed[name] != pulled.get(name)] == []
    # a change there reruns only the stages that depend on it
    second.edit("params.yaml", "champion: auto", "champion: baseline")
    assert second.repro() == {"compare", "model_card", "report"}


def test_a_registered_champion_is_the_file_that_was_evaluated(first, folder_remote, tmp_path):
    # a name of its own: a remote over SSH keeps its key file in the clone's configuration
    first.run("dvc", "remote", "add", "-d", "registry", folder_remote.url)
    first.commit("remote of a registry")
    first.run("dvc", "push")
    first.run("gto", "register", "champion", "--version", "v1.0.0")
    # a later version is another file
    (first.folder / "models/champion.keras").write_bytes(b"later")
    first.run("dvc", "commit", "-f", "compare")
    first.commit("later")
    first.run("dvc", "push", "compare")
    first.run("gto", "register", "champion", "--version", "v1.1.0")

    origin = str(Second(first, tmp_path / "origin").folder)  # without a cache
    user = tmp_path / "user"
    user.mkdir()

    def get(*argv: str) -> None:
        first.run("dvc", *argv, folder=user)

    get("artifacts", "get", origin, "champion", "--rev", "v1.0.0")
    get("artifacts", "get", origin, "champion", "-o", "latest.keras")
    get("get", origin, "models/champion", "--rev", "champion@v1.0.0", "-o", "published")
    assert (user / "latest.keras").read_bytes() == b"later"
    (training,) = json.loads((first.folder / "metrics/test/baseline.json").read_text())["seeds"]
    assert sha256(user / "champion.keras") == training["sha256"]
    published = user / "published"
    assert sha256(published / "champion.keras") == training["sha256"]
    first.run("sha256sum", "-c", "--strict", "SHA256SUMS", folder=published)
    card = ModelCard.load(published / "README.md")
    (accuracy,) = [each for each in card.data.eval_results if each.metric_type == "accuracy"]
    assert accuracy.metric_value == pytest.approx(training["accuracy"], abs=1e-6)

    # the example in the card runs
    (published / "photo.jpg").write_bytes(png(np.zeros((20, 30), np.uint8)))
    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    predicted, probability = first.run(sys.executable, "-c", example, folder=published).split()
    assert predicted in set("0123456789")
    assert 0.1 <= float(probability) <= 1
