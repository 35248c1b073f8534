"""The files of this repository that are written by it; run as a program, it writes them."""

from __future__ import annotations

from pathlib import Path

from sluice.config.crd import crd_text
from sluice.config.reference import BEGIN, END, reference
from sluice_sidecar.envoy_files import gateway_bootstrap

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "providerlimits.yaml"
LIMITS_MD = ROOT / "docs" / "limits.md"
GATEWAY = ROOT / "operator" / "sluice_operator" / "data" / "envoy-gateway.json"
"""The operator hands it out, and does not know the program that makes it."""


def generated() -> dict[Path, str]:
    """What each of the files should hold."""
    before, _, rest = LIMITS_MD.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return {CRD: crd_text(), LIMITS_MD: before + reference() + after, GATEWAY: gateway_bootstrap()}


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
