"""The command line: `sft run run.yaml` and what belongs to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from configs.errors import ConfigError
from flows.command import GivenConfig, command, config_command, say, write_json
from flows.server import need_server

if TYPE_CHECKING:
    from flows.deployments.register import PoolType
    from stages.artifacts import Artifact
    from stages.pipeline import StageName

CONFIG_FILES = {".yaml", ".yml"}
STAGES = ("fetch", "tokenize", "pack", "train", "merge", "publish")

gpu_option = click.option("--gpu", metavar="NAME", help="GPU to judge for, h100 or 8xh100; default: this machine's.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
quiet_option = click.option("--quiet", is_flag=True, help="Only errors and retries, for logs.")
refresh_option = click.option(
    "--refresh", multiple=True, type=click.Choice(STAGES), help="Produce this stage again. Can be given several times."
)
store_option = click.option(
    "--store", default="artifacts", show_default=True, help="The store: a folder, s3://bucket/prefix or gs://..."
)
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="YAML file of a run whose artifact_store is meant, with its options.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sft-flow")
def cli() -> None:
    """Fine-tune language models: one YAML file, one command, nothing done twice.

    fetch -> tokenize -> pack -> train -> merge -> publish
    """


@config_command(cli)
@click.option("--until", type=click.Choice(STAGES), default="publish", help="The last stage that is wanted.")
@refresh_option
@quiet_option
@json_option
def run(given: GivenConfig, until: StageName, refresh: Sequence[StageName], quiet: bool, as_json: bool) -> None:
    """Take CONFIG from its data set to a published model."""
    _run(given, until=until, refresh=refresh, quiet=quiet, as_json=as_json)


@config_command(cli)
@click.option("--debug", is_flag=True, help="Show the label mask of a few rows.")
@click.option("--rows", default=3, show_default=True, help="Rows that --debug shows.")
@refresh_option
@quiet_option
@json_option
def preprocess(
    given: GivenConfig,
    debug: bool,
    rows: int,
    refresh: Sequence[StageName],
    quiet: bool,
    as_json: bool,
) -> None:
    """Fetch, tokenize and pack the data of CONFIG."""
    artifacts = _run(given, until="pack", refresh=refresh, quiet=quiet, as_json=as_json)
    if debug:
        from configs.load import load_run
        from flows.inspecting import show_rows

        run = load_run(given.path, given.overrides, lenient=given.lenient).run
        show_rows(run, artifacts["fetch"], artifacts["tokenize"], rows, to_stderr=as_json)


def _stage_command(name: StageName, text: str) -> None:
    @config_command(cli, name=name, help=text)
    @refresh_option
    @quiet_option
    @json_option
    def run_until(given: GivenConfig, refresh: Sequence[StageName], quiet: bool, as_json: bool) -> None:
        _run(given, until=name, refresh=refresh, quiet=quiet, as_json=as_json)


_stage_command("train", "Train the model of CONFIG, and do what training lacks.")
_stage_command("merge", "Merge the adapter of CONFIG into its base model, and do what merging lacks.")
_stage_command("publish", "Publish the model of CONFIG, and do what publishing lacks.")


@config_command(cli)
@click.option("--until", type=click.Choice(STAGES), default="publish", help="The last stage that is wanted.")
@refresh_option
@gpu_option
@json_option
def plan(given: GivenConfig, until: StageName, refresh: Sequence[StageName], gpu: str | None, as_json: bool) -> None:
    """Say what a run of CONFIG would do, what it would reuse and why, whether it fits, and what is wrong with it."""
    from flows.planning import plan_document

    document = plan_document(given.load(), until=until, refresh=refresh, gpu=gpu)
    if as_json:
        write_json(document)
    else:
        from flows.plan_view import show_plan

        show_plan(document)
    _refuse(document, strict=given.strict)


@config_command(cli)
@gpu_option
@json_option
def validate(given: GivenConfig, gpu: str | None, as_json: bool) -> None:
    """Check CONFIG: its keys and values, its model, tokenizer and data, and what would go wrong in training."""
    from flows.planning import validate_document

    document = validate_document(given.load(), gpu=gpu, strict=given.strict)
    if as_json:
        write_json(document)
    else:
        from flows.plan_view import show_findings, show_keys

        show_keys(document, to_stderr=True)
        show_findings(document, to_stderr=True)
        say(f"{given.path}: {'valid' if document['valid'] else 'not valid'}")
    _refuse(document, strict=given.strict)


@config_command(cli)
@click.option("--jsonl", is_flag=True, help="Every tokenized row as a JSON line on standard output.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="A page to look at in a browser.")
@click.option("--rows", type=int, help="Rows of each data set that are shown: 3, on a page 8 at random.")
def inspect(given: GivenConfig, jsonl: bool, html: Path | None, rows: int | None) -> None:
    """Show the rows of CONFIG turn by turn, with what is learned from each.

    A file or folder of data in place of CONFIG: say which type fits it, and what to write.
    """
    from flows.inspecting import inspect_data, inspect_run

    if given.path.suffix.lower() not in CONFIG_FILES:
        if jsonl or html is not None or given.overrides:
            raise click.UsageError(f"{given.path} is no YAML file: without a configuration, only --rows is understood")
        inspect_data(re.sub(r"^(\w+):/+", r"\1://", str(given.path)), rows)  # a path has lost a slash of s3://
        return
    inspect_run(given.load(), jsonl=jsonl, html=html, rows=rows)


@command(cli)
@click.argument("output_dir", type=click.Path(path_type=Path))
@json_option
def profile(output_dir: Path, as_json: bool) -> None:
    """Say where the time of the profiled steps in OUTPUT_DIR went, and what that suggests."""
    from flows.profile_view import show_profile

    show_profile(output_dir, as_json=as_json)


@config_command(cli)
@click.option(
    "--pool-type",
    type=click.Choice(["process", "docker", "kubernetes"]),
    help="Type of the work pool; default: of the one that is there, process for a new one.",
)
@click.option("--image", help="Container image of Docker and Kubernetes runs.")
@click.option("--gpu-limit", default=1, show_default=True, type=click.IntRange(min=1), help="Trainings at a time.")
@click.option("--job-variable", "-j", multiple=True, metavar="KEY=JSON", help="Variable of the pool's job template.")
@click.option("--notify", metavar="TYPE/NAME", help="Notification block that is told of failures and sick trainings.")
@json_option
def deploy(
    config: GivenConfig,
    pool_type: PoolType | None,
    image: str | None,
    gpu_limit: int,
    job_variable: Sequence[str],
    notify: str | None,
    as_json: bool,
) -> None:
    """Register CONFIG with the Prefect server of PREFECT_API_URL: whole, preparation, training, publishing."""
    loaded = config.load()
    need_server()
    from flows.deployments import show
    from flows.deployments.register import Target, job_variables

    target = Target(pool_type, image, gpu_limit, job_variables(job_variable))
    show.deploy(loaded, config.overrides, target, notify, as_json=as_json)


@config_command(cli)
@click.option("--parallel", type=click.IntRange(min=1), help="Trainings at a time; default: what the GPUs allow.")
@click.option("--until", type=click.Choice(STAGES[3:]), default="train", show_default=True, help="The last stage.")
@json_option
def sweep(config: GivenConfig, parallel: int | None, until: StageName, as_json: bool) -> None:
    """Train CONFIG with every combination of values (key=a,b,c) on one preprocessing, and compare."""
    from flows.sweep.command import sweep as run_sweep

    run_sweep(config, parallel=parallel, until=until, as_json=as_json)


@config_command(cli)
@click.option("--every", type=click.FloatRange(min=1), metavar="SECONDS", help="Go on looking; default: once.")
def watch(config: GivenConfig, every: float | None) -> None:
    """Tell Prefect's server when the data of CONFIG has changed: its deployment prepares and trains."""
    config.load()
    need_server()
    from flows.deployments.show import keep_watching

    keep_watching(config.path.resolve(), config.overrides, every)


@command(cli)
@click.option("--markdown", is_flag=True, help="The reference page instead.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of a configuration, for editors, or the reference page of its keys."""
    if markdown:
        from configs import reference

        click.echo(reference.markdown(), nl=False)
    else:
        from configs.json_schema import json_schema

        write_json(json_schema())


@command(cli)
@click.argument("path", type=click.Path(path_type=Path), default="run.yaml")
@click.option("--model", help="Hub id or folder of the model that is trained.")
@click.option("--data", help="Hub id, or a file or folder with the rows.")
@click.option("--type", "kind", help="Format of a row; default: found from the rows, where they are here.")
@click.option("--adapter", type=click.Choice(["lora", "qlora", "full"]), help="Default: as is usual for the size.")
@click.option("--gpu", metavar="NAME", help="GPU to train on, rtx4090 or 8xh100; cpu: none.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def init(path: Path, **answers: Any) -> None:
    """Write a commented file to start from (PATH, run.yaml); what is not given is asked for."""
    from flows import starting

    starting.init(path, **answers)


@cli.group()
def artifacts() -> None:
    """Look at and look after the artifact store."""


@command(artifacts, name="ls")
@store_option
@config_option
@click.option("--stage", type=click.Choice(STAGES), help="Only this stage.")
@json_option
def artifacts_ls(store: str, config: Path | None, stage: str | None, as_json: bool) -> None:
    """List the artifacts."""
    from flows import store_view

    store_view.ls(store_view.open_named(store, config), stage, as_json=as_json)


@command(artifacts, name="show")
@click.argument("key")
@store_option
@config_option
@json_option
def artifacts_show(key: str, store: str, config: Path | None, as_json: bool) -> None:
    """Show the artifact whose key begins with KEY."""
    from flows import store_view

    store_view.show(store_view.open_named(store, config), key, as_json=as_json)


@command(artifacts, name="verify")
@click.argument("key", default="")
@store_option
@config_option
@click.option("--repair", is_flag=True, help="Remove damaged artifacts and orphaned files.")
@json_option
def artifacts_verify(key: str, store: str, config: Path | None, repair: bool, as_json: bool) -> None:
    """Read every byte of the artifacts (whose key begins with KEY), compare the digests, and find orphaned files."""
    from flows import store_view

    store_view.verify(store_view.open_named(store, config), key, repair=repair, as_json=as_json)


@command(artifacts, name="gc")
@store_option
@config_option
@click.option("--days", default=7.0, show_default=True, help="Days since the last use for which an artifact is kept.")
@click.option("--forget", multiple=True, metavar="OUTPUT_DIR", help="Release what the run with this output_dir holds.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def artifacts_gc(
    store: str, config: Path | None, days: float, forget: Sequence[str], dry_run: bool, as_json: bool
) -> None:
    """Remove what no run refers to and nobody has used lately."""
    from flows import store_view

    store_view.gc(store_view.open_named(store, config), days, forget, dry_run=dry_run, as_json=as_json)


def _refuse(document: dict[str, Any], *, strict: bool) -> None:
    """End with the exit code of a wrong configuration if the findings say so."""
    if document["problems"] or (strict and document["warnings"]):
        sys.exit(ConfigError.exit_code)


def _run(
    given: GivenConfig,
    *,
    until: StageName,
    refresh: Sequence[StageName],
    quiet: bool,
    as_json: bool,
) -> dict[str, Artifact]:
    from flows.running import run_pipeline

    loaded = given.load()
    results = run_pipeline(
        loaded, given.overrides, until=until, refresh=refresh, quiet=quiet or as_json, strict=given.strict
    )
    if as_json:
        stages: list[dict[str, Any]] = [
            {
                "stage": result.stage,
                "key": result.artifact.key,
                "status": result.status,
                "seconds": round(result.seconds, 3),
                "path": result.artifact.address,
            }
            for result in results
        ]
        write_json({"stages": stages, "output_dir": loaded.run.output_dir})
    elif not quiet and until == "publish":
        say(f"model   {loaded.run.publish_to}\nreport  {Path(loaded.run.output_dir) / 'report.html'}")
    return {result.stage: result.artifact for result in results}


def main() -> None:
    """Run the command line."""
    cli.main(prog_name="sft")


if __name__ == "__main__":
    main()
