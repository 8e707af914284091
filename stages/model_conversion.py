"""Weights that are not safetensors, turned into a folder of safetensors once per machine.

    <cache>/sft-flow/models/<digest of the files and of the libraries that convert>/

GGUF files are read as transformers reads them: dequantised, with the tokenizer that they hold. Pickles are read by
torch's loader for weights only, which builds tensors and nothing else. `python -m stages.model_conversion` is the
process that does it, with a JSON request on standard input and a JSON answer (`{}` or `{"error"}`) on standard output.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import orjson

from stages.errors import ConfigError, Problem, StageError
from stages.lifeline import bound
from stages.own_process import python_path
from stages.remote.download import cache_folder


@dataclass(frozen=True)
class Conversion:
    """How a model's files become safetensors.

    Attributes:
        kind: what they are.
        file: gguf only: the name of the file.
        trust_remote_code: whether code that comes with the model may run.
    """

    kind: Literal["gguf", "pickle"]
    file: str
    trust_remote_code: bool

    @classmethod
    def of(cls, inputs: dict[str, Any], trust_remote_code: bool) -> Conversion:
        """Return the conversion that `inputs` tell of."""
        return cls(inputs["kind"], inputs.get("file", ""), trust_remote_code)

    def inputs(self) -> dict[str, Any]:
        """Return what, besides the files, determines the result.

        Raises:
            ConfigError: the package that reads GGUF is missing.
        """
        if self.kind == "pickle":
            return {"kind": self.kind, "transformers": version("transformers")}
        try:
            return {"kind": self.kind, "file": self.file, **{p: version(p) for p in ("transformers", "gguf")}}
        except PackageNotFoundError as error:
            rule, remedy = f"it needs a package that is not installed ({error.name})", "pip install 'sft-flow[gguf]'"
            raise ConfigError([Problem("configuration", "gguf_file", self.file, rule, remedy)]) from None

    def files(self) -> tuple[str, ...]:
        """Return the patterns of the files that are read."""
        if self.kind == "gguf":
            return (self.file,)
        return ("*.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.model", "*.jinja", "*.txt", "*.py")

    def converted(self, digest: str, source: Callable[[], Path]) -> Path:
        """Return the folder with the converted model; makes it if it is not on this machine yet.

        Args:
            digest: of all that determines the result.
            source: brings the folder with the files here.

        Raises:
            ConfigError: the files are not what they are said to be.
            StageError: the converting process ended before it was done.
        """
        final = cache_folder() / "models" / digest
        final.parent.mkdir(parents=True, exist_ok=True)
        with (final.parent / f"{digest}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not final.is_dir():
                draft = final.with_name(f"{digest}.draft")
                shutil.rmtree(draft, ignore_errors=True)
                self._convert(source().resolve(), draft)
                draft.rename(final)
        return final

    def _convert(self, source: Path, draft: Path) -> None:
        request = {"source": str(source), "out": str(draft), "file": self.file, "remote_code": self.trust_remote_code}
        done = subprocess.run(
            bound([sys.executable, "-m", "stages.model_conversion"]),
            input=orjson.dumps(request),
            env={**os.environ, "PYTHONPATH": python_path(), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise StageError(
                f"converting {self.file or source} ended with code {done.returncode}; memory may be short."
            )
        answer: dict[str, str] = orjson.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            key = "gguf_file" if self.kind == "gguf" else "base_model"
            rule = f"it cannot be converted to safetensors: {answer['error']}"
            remedy = "Check that the file is whole and of an architecture that transformers reads."
            raise ConfigError([Problem("configuration", key, self.file or str(source), rule, remedy)])


def convert(request: dict[str, Any]) -> None:
    """Load a model and its tokenizer, and write both as safetensors and plain files."""
    import transformers  # here, because whoever describes a conversion needs none of it

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": request["remote_code"]}
    options |= {"gguf_file": request["file"]} if request["file"] else {}
    weights: dict[str, Any] = {} if request["file"] else {"use_safetensors": False, "weights_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(request["source"], **options, **weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["source"], **options)
    model.config.quantization_config = None  # it is dequantised: nothing must take the weights for anything else
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(request["out"])
    tokenizer.save_pretrained(request["out"])
    for code in Path(request["source"]).glob("*.py"):
        shutil.copy(code, request["out"])


def main() -> None:
    """Answer the request on standard input."""
    try:
        convert(orjson.loads(sys.stdin.buffer.read()))
        answer: dict[str, str] = {}
    except Exception as error:  # noqa: BLE001  the process's whole purpose; its caller words the error
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.buffer.write(b"\n" + orjson.dumps(answer))


if __name__ == "__main__":
    main()
