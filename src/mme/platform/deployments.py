"""Decides what is kept of a deployment: an endpoint's plan, since when, and how DescribeEndpoint shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mme.platform.hosting.plans import EndpointPlan, VariantPlan

_DESCRIBED = (
    "EndpointName",
    "EndpointArn",
    "EndpointConfigName",
    "EndpointStatus",
    "FailureReason",
    "CreationTime",
    "LastModifiedTime",
    "LastDeploymentConfig",
)


def dumped(plan: EndpointPlan, config_name: str, since: float) -> dict[str, Any]:
    return {"config": config_name, "since": since, **asdict(plan)}


def loaded(document: Mapping[str, Any], member: str) -> EndpointPlan:
    kept = document[member]
    return EndpointPlan(kept["name"], kept["arn"], tuple(VariantPlan(**variant) for variant in kept["variants"]))


def retaining(plan: EndpointPlan, current: EndpointPlan, excluded: set[str]) -> EndpointPlan:
    """The plan with the weights and instance counts that variants of the same name have now, but for those excluded."""
    before = {variant.name: variant for variant in current.variants}

    def retained(variant: VariantPlan) -> VariantPlan:
        old = before.get(variant.name, variant)
        return replace(
            variant,
            weight=variant.weight if "DesiredWeight" in excluded else old.weight,
            instance_count=variant.instance_count if "DesiredInstanceCount" in excluded else old.instance_count,
        )

    return replace(plan, variants=tuple(retained(variant) for variant in plan.variants))


def described(document: Mapping[str, Any]) -> dict[str, Any]:
    """An endpoint's document as DescribeEndpoint answers it."""
    answer = {name: document[name] for name in _DESCRIBED if name in document}
    plan, pending = document["plan"], document["pending"]
    if plan is not None:
        desired = pending if pending is not None and pending["config"] == plan["config"] else plan
        answer["ProductionVariants"] = [
            _summary(variant, plan["since"], "Current")
            | _counts(next((new for new in desired["variants"] if new["name"] == variant["name"]), variant), "Desired")
            for variant in plan["variants"]
        ]
    if pending is not None:
        answer["PendingDeploymentSummary"] = {
            "EndpointConfigName": pending["config"],
            "ProductionVariants": [
                _summary(variant, pending["since"], "Current") | _counts(variant, "Desired")
                for variant in pending["variants"]
            ],
            "StartTime": pending["since"],
        }
    return answer


def _counts(variant: Mapping[str, Any], which: str) -> dict[str, Any]:
    return {f"{which}Weight": variant["weight"], f"{which}InstanceCount": variant["instance_count"]}


def _summary(variant: Mapping[str, Any], since: float, which: str) -> dict[str, Any]:
    image = {"SpecifiedImage": variant["image"], "ResolvedImage": variant["image"], "ResolutionTime": since}
    return {"VariantName": variant["name"], "DeployedImages": [image], **_counts(variant, which)}
