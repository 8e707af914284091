"""Immutable, content-addressed artifacts: `<store>/<stage>/<key>/` with data files and `manifest.json`."""

from stages.artifacts.digests import FileDigests, canonical_json, digest_of, sha256_file
from stages.artifacts.manifest import FileEntry, Manifest
from stages.artifacts.store import Artifact, ArtifactWriter, Store

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
