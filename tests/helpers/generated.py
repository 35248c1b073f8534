"""The files of this repository that are written from the declaration; run as a program, it writes them."""

from __future__ import annotations

from pathlib import Path

from sluice.config.crd import crd_text
from sluice.config.reference import BEGIN, END, reference

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "providerlimits.yaml"
LIMITS_MD = ROOT / "docs" / "limits.md"


def generated() -> dict[Path, str]:
    """What each of the files should hold."""
    before, _, rest = LIMITS_MD.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return {CRD: crd_text(), LIMITS_MD: before + reference() + after}


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
