"""A cluster in a temporary directory, for those who test their software on Gabion: see README.md beside this package."""

from .cluster import Cluster, HarnessError
from .machines import Machines
from .mounted import Mounted

__all__ = ["Cluster", "HarnessError", "Machines", "Mounted"]
