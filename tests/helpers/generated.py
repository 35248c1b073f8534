"""The files of this repository that are written by it; run as a program, it writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sluice.config.crd import crd_text
from sluice.config.merge import merge
from sluice.config.reference import BEGIN, END, reference
from sluice_sidecar.envoy_files import EnvoyFiles
from sluice_sidecar.envoy_settings import EnvoySettings
from sluice_sidecar.settings import TcpAddress

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "providerlimits.yaml"
LIMITS_MD = ROOT / "docs" / "limits.md"
GATEWAY = ROOT / "operator" / "sluice_operator" / "data" / "envoy-gateway.json"
"""The bootstrap of an Envoy in a pod of its own beside a gate. What changes with the limits is not in it."""
GATEWAY_FOLDER: Final = "/run/sluice"
GATEWAY_LISTEN: Final = TcpAddress("0.0.0.0", 10000)


def generated() -> dict[Path, str]:
    """What each of the files should hold."""
    before, _, rest = LIMITS_MD.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return {CRD: crd_text(), LIMITS_MD: before + reference() + after, GATEWAY: _gateway()}


def _gateway() -> str:
    run = Path(GATEWAY_FOLDER)
    settings = EnvoySettings(run / "gate.sock", run / "envoy.sock", GATEWAY_LISTEN, run / "xds")
    return EnvoyFiles(settings).bootstrap(merge(())) + "\n"


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
