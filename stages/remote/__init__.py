"""Objects behind URLs: found and pinned to their content, and brought to this machine whole or not at all."""

from stages.remote.download import Downloads
from stages.remote.objects import RemoteFolder, RemoteObject, is_remote, open_folder

__all__ = ["Downloads", "RemoteFolder", "RemoteObject", "is_remote", "open_folder"]
