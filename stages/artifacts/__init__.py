"""Immutable, content-addressed artifacts: `<store>/<stage>/<key>/` with data files and `manifest.json`."""

from stages.artifacts.artifact import Artifact
from stages.artifacts.digests import FileDigests, canonical_json, digest_of, sha256_file
from stages.artifacts.manifest import FileEntry, Manifest
from stages.artifacts.store import Store
from stages.artifacts.writer import ArtifactWriter

__all__ = [
    "Artifact",
    "ArtifactWriter",
    "FileDigests",
    "FileEntry",
    "Manifest",
    "Store",
    "canonical_json",
    "digest_of",
    "sha256_file",
]
