"""Finding: what `make doctor` has to say of one thing."""

from typing import NamedTuple


class Finding(NamedTuple):
    """Where it is, what it is, and the way out."""

    where: str
    what: str
    remedy: str = ""
    mend: bool = True
    """False: good to know, and nothing to do about"""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f". {self.remedy}" if self.remedy else "")
