"""What must hold before a model is published: that it is at inference what it was in training.

Its tokenizer and chat template must be those that made the tokens, and must ask as it was trained (`asked.py`). That
its weights are base + adapter is measured by `merge`, which keeps nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import RunConfig
from configs.secrets import redacted
from stages.artifacts import Artifact
from stages.errors import StageError
from stages.publish.asked import Comparison, compare
from stages.stage import Upstream

MODEL, TOKENIZER = "model/", "tokenizer/"
"""Where a tokenizer's files lie in the artifacts of merge and of tokenize."""


def check_as_trained(run: RunConfig, upstream: Upstream) -> Comparison:
    """Return how prompts were compared.

    Raises:
        StageError: the model would not be at inference what it was in training.
    """
    _check_tokenizer(upstream["tokenize"], upstream["merge"])
    asked = compare(run, upstream)
    if asked.differences and not (run.publish and run.publish.allow_prompt_difference):
        raise StageError(_refusal(run, asked.differences))
    return asked


def _check_tokenizer(tokens: Artifact, merged: Artifact) -> None:
    """Check that the model's tokenizer and chat template are, byte for byte, those that made the tokens.

    Raises:
        StageError: a file is missing or another one.
    """
    published = {entry.path.removeprefix(MODEL): entry.sha256 for entry in merged.manifest.files}
    for entry in tokens.manifest.files:
        name = entry.path.removeprefix(TOKENIZER)
        if entry.path.startswith(TOKENIZER) and published.get(name) != entry.sha256:
            found = "is another one" if name in published else "is missing"
            raise StageError(
                f"{name} of the model {found}: not what made the tokens that it was trained on. Nothing is published; "
                "run again with --refresh train, or --refresh merge for an adapter."
            )


def _refusal(run: RunConfig, differences: Sequence[str]) -> str:
    listed = "\n".join(f"  {difference}" for difference in differences)
    return (
        f"the model is not published, because at inference its chat template asks otherwise than it was trained:\n"
        f"{listed}\nSet chat_template, or chat_template_kwargs, to one that asks as it writes, and run again. Or "
        f"publish it as it is, with publish: {{to: {redacted(run.publish_to)}, allow_prompt_difference: true}}. "
        "The merged model is kept."
    )
