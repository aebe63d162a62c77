"""Search space: which values of which settings a search may try."""

import pytest

from pipeline.config import params
from pipeline.config.search_space import Interval, search_space
from pipeline.core.errors import PipelineError


def set_space(project, text: str) -> None:
    """Replace the section `search` of params.yaml by that of batchnorm alone."""
    path = project / "params.yaml"
    before = path.read_text("utf-8").partition("\nsearch:\n")[0]
    path.write_text(f"{before}\nsearch: {{batchnorm: {text}}}\n", "utf-8")


def test_a_range_has_whole_numbers_if_the_setting_takes_only_these(project):
    set_space(
        project,
        "{build: {dense_dropout: [0, 0.5], batch_norm_momentum: {low: 0, high: 0.99}}, train: "
        "{batch_size: {low: 8, high: 64, log: true}, learning_rate: {low: 1, high: 2}, "
        "augment: {shift: [0.0, 0.1]}}}",
    )
    assert search_space(params.load(), "batchnorm") == {
        "build.dense_dropout": [0, 0.5],
        "build.batch_norm_momentum": Interval(0.0, 0.99, False),
        "train.batch_size": Interval(8, 64, True),
        "train.learning_rate": Interval(1.0, 2.0, False),
        "train.augment.shift": [0.0, 0.1],
    }
    whole = search_space(params.load(), "batchnorm")["train.batch_size"]
    assert isinstance(whole, Interval)
    assert isinstance(whole.low, int)


def test_settings_that_fit_together_only_in_some_trials_are_accepted(project):
    set_space(
        project,
        "{build: {kernel_regularizer: [null, l2], kernel_regularizer_factor: [0.01]}, "
        "train: {optimizer: [adam, sgd], momentum: [0.0, 0.9]}}",
    )
    assert len(search_space(params.load(), "batchnorm")) == 4


INVALID = [
    ("{}", r"search\.batchnorm must have settings to search, as in \{train: "),
    ("{train: {}, other: 1}", r"search\.batchnorm\.other is an unknown key\. Keys: build, train"),
    ("{train: 3}", r"search\.batchnorm\.train must be a mapping of keys to values\. Got 3"),
    ("{train: {learning_rat: [0.1]}}",
     r"search\.batchnorm\.train\.learning_rat is an unknown key\. Did you mean learning_rate\?"),
    ("{train: {augment: {shft: [0.1]}}}", r"search\.batchnorm\.train\.augment\.shft is an unknown"),
    ("{build: {dense_droput: [0.1]}}", r"search\.batchnorm\.build\.dense_droput is an unknown key"),
    ("{train: {learning_rate: 0.1}}", r"search\.batchnorm\.train\.learning_rate must be a list of "
     r"values, or \{low: \.\.\., high: \.\.\.\}\. Got 0\.1"),
    ("{train: {learning_rate: []}}", r"learning_rate must be a list of values, or .*Got \[\]"),
    ("{train: {learning_rate: [0.1, -1]}}",
     r"search\.batchnorm\.train\.learning_rate must be greater than 0\. Got -1"),
    ("{train: {optimizer: [adam, adm]}}", r"train\.optimizer must be 'adam', .*\. Got 'adm'"),
    ("{train: {optimizer: {low: 1, high: 2}}}", r"train\.optimizer must be 'adam', .*\. Got 1"),
    ("{train: {epochs: {low: 0, high: 9}}}", r"train\.epochs must be greater than or equal to 1"),
    ("{train: {epochs: {low: 1.5, high: 9}}}", r"train\.epochs must be an integer >= 1\. Got 1\.5"),
    ("{train: {learning_rate: {low: 1}}}", r"train\.learning_rate\.high is missing\. Add it"),
    ("{train: {learning_rate: {low: 1, hihg: 2}}}",
     r"learning_rate\.hihg is an unknown key\. Did you mean high\?"),
    ("{train: {learning_rate: {low: 2, high: 1}}}", r"learning_rate must have low < high\. Got 2"),
    ("{train: {momentum: {low: 0, high: 0.9, log: true}}}",
     r"momentum must have low > 0, because of log: true\. Got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), INVALID)
def test_an_invalid_space_is_one_error_line(project, text, message):
    set_space(project, text)
    with pytest.raises(PipelineError, match=rf"^params\.yaml: .*{message}") as refused:
        params.load()
    assert "\n" not in str(refused.value)


def test_a_space_must_name_a_model(project, edit):
    set_space(project, "{train: {epochs: [1]}}")
    edit("search: {batchnorm:", "search: {batchnrom:")
    with pytest.raises(PipelineError, match=r"search must contain names from .*nearest: batchnorm"):
        params.load()
