"""Deployments: a run as Prefect starts it by schedule, by event or by hand."""
