"""Publishing that waits for a person, after a training that was judged sick."""

from __future__ import annotations

from prefect import get_run_logger, suspend_flow_run
from prefect.runtime import deployment

from stages.artifacts import Artifact
from stages.errors import StageError
from stages.report.page import sick_rows

HELD_SECONDS = 30 * 24 * 3600.0
"""How long a held run can be released; after that it fails, and is to be started again."""


def hold_if_sick(train: Artifact) -> None:
    """Go on if the training is not sick; else wait for somebody to resume the run in Prefect's UI.

    A held run of a deployment occupies nothing: its process ends, and the resumed run reuses every stage.

    Raises:
        StageError: nobody can resume a run that was not started by a deployment.
    """
    sick = sick_rows(train)
    if not sick:
        return
    why = "; ".join(f"{row['row']}: {row['text']}" for row in sick)
    if not deployment.id:
        raise StageError(
            f"not published, because the training is sick ({why}). Look at the report; to publish it all the same, "
            "give orchestration.hold_unhealthy=false."
        )
    get_run_logger().warning(
        "Publishing is held, because the training is sick (%s). Resume this run to publish the model, or cancel it.",
        why,
    )
    suspend_flow_run(timeout=int(HELD_SECONDS), key="publish-a-sick-training")
