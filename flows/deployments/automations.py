"""Automations on Prefect's server: runs whose machine is gone are ended, and a person is told what went wrong."""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows import events
from stages.errors import ConfigError, Problem

SILENT_SECONDS = 100
"""A run that shows itself every 30 seconds and has not for so long is gone with its machine."""

LOST = "sft: end runs whose machine is gone"
FAILED = "sft: tell of failed runs"
SICK = "sft: tell of sick trainings"
OUR_FLOW = {"prefect.resource.role": "flow", "prefect.resource.name": "sft"}


def ensure_automations(client: SyncPrefectClient, notify: str | None) -> list[str]:
    """Create or replace our automations and return their names.

    Args:
        client: of the server.
        notify: `type/name` of a notification block (`slack-webhook/team`) that is told of failures and bad verdicts.

    Raises:
        ConfigError: there is no such block.
    """
    wanted = [_lost()]
    if notify:
        wanted += _telling(client, notify)
    for automation in wanted:
        there = client.read_automations_by_name(automation.name)
        if there:
            client.update_automation(there[0].id, automation)
        else:
            client.create_automation(automation)
    return [automation.name for automation in wanted]


def _lost() -> AutomationCore:
    trigger = EventTrigger(
        posture=Posture.Proactive,
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=OUR_FLOW,
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(seconds=SILENT_SECONDS),
    )
    message = (
        "The machine of this run does not answer any more. Start it again: it continues from what is in the store."
    )
    crash = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)
    return AutomationCore(name=LOST, description=message, trigger=trigger, actions=[crash])


def _telling(client: SyncPrefectClient, notify: str) -> list[AutomationCore]:
    kind, _, name = notify.partition("/")
    try:
        block = client.read_block_document_by_name(name=name, block_type_slug=kind, include_secrets=False)
    except ObjectNotFound:
        rule = "the server has no notification block of this type and name"
        remedy = (
            "Create it in the UI under Blocks (Slack, e-mail, a webhook), and give it as type/name: slack-webhook/team."
        )
        raise ConfigError([Problem("command line", "--notify", notify, rule, remedy)]) from None
    run = "{{ flow_run.name }} of {{ deployment.name }}"
    failed = SendNotification(
        block_document_id=block.id,
        subject=f"sft: {run} is {{{{ flow_run.state.name }}}}",
        body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
    )
    sick = SendNotification(
        block_document_id=block.id,
        subject="sft: the training {{ event.resource.name }} is sick",
        body="{% for row in event.payload.findings %}{{ row.row }}: {{ row.text }} {{ row.remedy }}\n{% endfor %}",
    )
    on_failure = EventTrigger(
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=OUR_FLOW,
        posture=Posture.Reactive,
    )
    on_sick = EventTrigger(expect={events.SICK}, match={"prefect.resource.id": "sft.run.*"}, posture=Posture.Reactive)
    return [
        AutomationCore(name=FAILED, trigger=on_failure, actions=[failed]),
        AutomationCore(name=SICK, trigger=on_sick, actions=[sick]),
    ]
