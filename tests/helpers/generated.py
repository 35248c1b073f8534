"""The files of this repository that are written by it; run as a program, it writes them."""

from __future__ import annotations

from pathlib import Path

from sluice.config.crd import crd_text
from sluice.config.reference import BEGIN, END, limits_reference, providers_reference
from sluice_sidecar.envoy_files import gateway_bootstrap

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "providerlimits.yaml"
LIMITS_MD = ROOT / "docs" / "limits.md"
PROVIDERS_MD = ROOT / "docs" / "providers.md"
GATEWAY = ROOT / "operator" / "sluice_operator" / "data" / "envoy-gateway.json"
"""The operator hands it out, and does not know the program that makes it."""


def generated() -> dict[Path, str]:
    """What each of the files should hold."""
    return {
        CRD: crd_text(),
        LIMITS_MD: _between_marks(LIMITS_MD, limits_reference()),
        PROVIDERS_MD: _between_marks(PROVIDERS_MD, providers_reference()),
        GATEWAY: gateway_bootstrap(),
    }


def _between_marks(page: Path, text: str) -> str:
    """The page with this text, marks and all, in the place of what stands between its marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + text + after


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
