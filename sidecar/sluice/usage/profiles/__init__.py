"""What is known of each provider, as data: a YAML file each. `declaration.py` says what may stand in one."""

from __future__ import annotations

from sluice.usage.profiles.catalog import BUILT_IN, Catalog
from sluice.usage.profiles.profile import Api, Profile, Shape

__all__ = ["BUILT_IN", "Api", "Catalog", "Profile", "Shape"]
