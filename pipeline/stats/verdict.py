"""Verdict: the words for a difference between two models."""

THAN = {
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
}


def verdict(difference: float, distinguishable: bool) -> str:
    """Return the word for a difference to the reference, a key of THAN."""
    if not distinguishable:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"
