"""Sluice, the library: what may be called, when, and what it cost.

Pure: no I/O, no clock, no protobuf, no Kubernetes. `core` decides, `usage` counts, `config` reads the
limits document. The programs (`sluice_sidecar`, `sluice_operator`) are adapters round it.
"""

__version__ = "0.1.0"
