"""Live curves: the rows of trainings that run at the same time, and of models that were removed."""

import threading
from pathlib import Path

import pytest

from pipeline.core import live_curves

HEADER = "model,seed,split,epoch,accuracy\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "plots/live"


def history(*accuracies: float) -> list[dict[str, float]]:
    """Return rows of epochs with these training accuracies; those of validation are half."""
    return [
        {"epoch": number, "loss": 1.0, "accuracy": accuracy, "val_loss": 2.0,
         "val_accuracy": accuracy / 2, "learning_rate": 0.1}
        for number, accuracy in enumerate(accuracies, 1)
    ]  # fmt: skip


def test_a_training_replaces_its_own_rows_and_no_others(folder):
    live_curves.show("b", 0, history(0.5, 0.75, 1.0))
    live_curves.show("a", 1, history(0.25))
    live_curves.show("b", 0, history(0.5))  # it starts again
    rows = "a,1,train,1,0.25\na,1,validation,1,0.125\nb,0,train,1,0.5\nb,0,validation,1,0.25\n"
    assert (folder / "accuracy.csv").read_text() == HEADER + rows
    assert (folder / "loss.csv").read_text().endswith("\nb,0,train,1,1.0\nb,0,validation,1,2.0\n")
    live_curves.show("b", 0, [])
    assert "b" not in (folder / "loss.csv").read_text().split("\n", 1)[1]


def test_removed_models_and_seeds_leave_no_rows(folder):
    live_curves.remove_others(["a"], [0])
    assert not folder.exists()
    for model, seed in (("a", 0), ("a", 1), ("b", 0)):
        live_curves.show(model, seed, history(0.5))
    live_curves.remove_others(["a"], [0])
    rows = "a,0,train,1,0.5\na,0,validation,1,0.25\n"
    assert (folder / "accuracy.csv").read_text() == HEADER + rows
    live_curves.remove_others(["c"], [0])
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_trainings_that_write_at_once_lose_no_rows(folder):
    def train(seed: int) -> None:
        for epochs in range(1, 11):
            live_curves.show("a", seed, history(*[0.5] * epochs))

    threads = [threading.Thread(target=train, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((folder / "accuracy.csv").read_text().splitlines()) == 1 + 4 * 10 * 2


def test_without_validation_images_there_is_only_the_training_curve(folder):
    live_curves.show("a", 0, [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1}])
    assert (folder / "accuracy.csv").read_text() == HEADER + "a,0,train,1,0.5\n"


def test_a_file_with_other_columns_is_replaced(folder):
    folder.mkdir(parents=True)
    (folder / "accuracy.csv").write_text("step,accuracy\n1,0.5\n")
    live_curves.show("a", 0, history(0.5))
    rows = "a,0,train,1,0.5\na,0,validation,1,0.25\n"
    assert (folder / "accuracy.csv").read_text() == HEADER + rows


def test_vs_code_is_told_of_each_epoch_where_dvclive_tells_it(tmp_path, monkeypatch):
    live_curves.show("a", 0, history(0.5))
    assert not (tmp_path / ".dvc").exists()  # without DVC
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    live_curves.show("a", 0, history(0.5, 0.6))
    signal = tmp_path / ".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED"
    assert '"step": 2' in signal.read_text()
