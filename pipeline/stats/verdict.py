"""Verdict: a difference between two models in words."""

THAN = {
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
}


def verdict(difference: float, distinguishable: bool) -> str:
    """Return `better`, `worse` or `not distinguishable`, the keys of THAN."""
    if not distinguishable:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"
