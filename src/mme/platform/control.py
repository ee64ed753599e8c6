"""Decides what the control plane does with models, endpoint configurations and tags. No HTTP; requests were validated.

What AWS can and this platform can't is refused by name, so that nothing is silently left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mme.platform import listing
from mme.platform.errors import UnsupportedOperation, ValidationException
from mme.platform.hosting.plans import EndpointPlan, VariantPlan
from mme.platform.resources import (
    ENDPOINT,
    ENDPOINT_CONFIG,
    MODEL,
    TAGS,
    WORDS,
    Answer,
    Operation,
    Request,
    Resources,
    merge_tags,
    now,
    present,
    refuse_member,
)

_UNSUPPORTED = {
    "CreateModel": ("InferenceExecutionConfig",),
    "ContainerDefinition": (
        "ImageConfig",
        "AdditionalModelDataSources",
        "ModelPackageName",
        "InferenceSpecificationName",
        "ContainerMetricsConfig",
    ),
    "CreateEndpointConfig": (
        "DataCaptureConfig",
        "AsyncInferenceConfig",
        "ExplainerConfig",
        "ShadowProductionVariants",
        "CrossRegionTrafficConfig",
    ),
    "ProductionVariant": (
        "ServerlessConfig",
        "InstancePools",
        "ManagedInstanceScaling",
        "CapacityReservationConfig",
        "AcceleratorPartitionLayouts",
        "CoreDumpConfig",
        "AcceleratorType",
    ),
}


class Catalog:
    """Models, endpoint configurations and tags: what is only written down."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._state = resources.state
        self.operations: dict[str, Operation] = {
            "CreateModel": self._create_model,
            "DescribeModel": self._describe_model,
            "ListModels": self._list_models,
            "DeleteModel": self._delete_model,
            "CreateEndpointConfig": self._create_config,
            "DescribeEndpointConfig": self._describe_config,
            "ListEndpointConfigs": self._list_configs,
            "DeleteEndpointConfig": self._delete_config,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    def plan(self, endpoint_name: str, config: Mapping[str, Any]) -> EndpointPlan:
        """What an endpoint of this configuration is to run; raises ValidationException if a model has gone."""
        variants = tuple(
            _variant_plan(variant, self._resources.get(MODEL, variant["ModelName"]))
            for variant in config["ProductionVariants"]
        )
        return EndpointPlan(endpoint_name, self._resources.arn(ENDPOINT, endpoint_name), variants)

    async def _create_model(self, request: Request) -> Answer:
        name = request["ModelName"]
        refuse(request, "CreateModel")
        given = list(request.get("Containers", ()))
        if "PrimaryContainer" in request:
            given.append(request["PrimaryContainer"])
        if len(given) > 1:
            raise UnsupportedOperation(
                f"model {name!r} has {len(given)} containers; this platform runs models of one container"
            )
        if not given:
            raise ValidationException(f"model {name!r} has no container; give it a PrimaryContainer")
        container = dict(given[0])
        refuse(container, "ContainerDefinition")
        if "Image" not in container:
            raise ValidationException(f"the container of model {name!r} has no Image; name one")
        if not model_data_url(container) and container.get("Mode") == "MultiModel":
            raise ValidationException(
                f"model {name!r} is MultiModel and has no ModelDataUrl; give it the S3 prefix of its packages"
            )
        self._resources.refuse_existing(MODEL, name)
        arn = self._resources.arn(MODEL, name)
        document = {
            "ModelName": name,
            "PrimaryContainer": {"Mode": "SingleModel", **container},
            "CreationTime": now(),
            "ModelArn": arn,
            "EnableNetworkIsolation": request.get("EnableNetworkIsolation", False),
            **{member: request[member] for member in ("ExecutionRoleArn", "VpcConfig") if member in request},
        }
        self._resources.create(MODEL, name, document, request.get("Tags", []))
        return {"ModelArn": arn}

    async def _describe_model(self, request: Request) -> Answer:
        return self._resources.get(MODEL, request["ModelName"])

    async def _list_models(self, request: Request) -> Answer:
        members = ("ModelName", "ModelArn", "CreationTime")
        found, token = listing.page(self._state.all(MODEL), request, kind="Model", members=members)
        return present({"Models": found, "NextToken": token})

    async def _delete_model(self, request: Request) -> Answer:
        """Delete a model, also one in use: an endpoint keeps what it was deployed with."""
        self._resources.get(MODEL, request["ModelName"])
        self._resources.delete(MODEL, request["ModelName"])
        return {}

    async def _create_config(self, request: Request) -> Answer:
        name = request["EndpointConfigName"]
        refuse(request, "CreateEndpointConfig")
        self._resources.refuse_existing(ENDPOINT_CONFIG, name)
        variants = [self._variant(name, variant) for variant in request["ProductionVariants"]]
        names = [variant["VariantName"] for variant in variants]
        if len(set(names)) < len(names):
            raise ValidationException(
                f"the variants of endpoint configuration {name!r} are called {', '.join(names)}; give each its own name"
            )
        arn = self._resources.arn(ENDPOINT_CONFIG, name)
        document = {
            **{member: value for member, value in request.items() if member != "Tags"},
            "EndpointConfigArn": arn,
            "ProductionVariants": variants,
            "CreationTime": now(),
            "EnableNetworkIsolation": request.get("EnableNetworkIsolation", False),
        }
        self._resources.create(ENDPOINT_CONFIG, name, document, request.get("Tags", []))
        return {"EndpointConfigArn": arn}

    def _variant(self, config_name: str, variant: Mapping[str, Any]) -> dict[str, Any]:
        refuse(variant, "ProductionVariant")
        where = f"variant {variant['VariantName']!r} of endpoint configuration {config_name!r}"
        if "ModelName" not in variant:
            raise UnsupportedOperation(f"{where} names no model; this platform has no inference components")
        for member in ("InstanceType", "InitialInstanceCount"):
            if member not in variant:
                raise ValidationException(f"{where} has no {member}; give it one")
        self._resources.get(MODEL, variant["ModelName"])
        return {"InitialVariantWeight": 1.0, **variant}

    async def _describe_config(self, request: Request) -> Answer:
        return self._resources.get(ENDPOINT_CONFIG, request["EndpointConfigName"])

    async def _list_configs(self, request: Request) -> Answer:
        members = ("EndpointConfigName", "EndpointConfigArn", "CreationTime")
        configs = self._state.all(ENDPOINT_CONFIG)
        found, token = listing.page(configs, request, kind="EndpointConfig", members=members)
        return present({"EndpointConfigs": found, "NextToken": token})

    async def _delete_config(self, request: Request) -> Answer:
        self._resources.get(ENDPOINT_CONFIG, request["EndpointConfigName"])
        self._resources.delete(ENDPOINT_CONFIG, request["EndpointConfigName"])
        return {}

    def _tags(self, arn: str) -> dict[str, str]:
        """The tags of the resource with this ARN; raises as its Describe does when there is none in this account."""
        kind, _, name = arn.split(":", 5)[5].partition("/")
        if kind not in WORDS:
            raise UnsupportedOperation(f"{arn} is a {kind}; this platform has only {', '.join(WORDS)}")
        if arn.lower() != self._resources.arn(kind, name).lower():
            raise ValidationException(f'Could not find {WORDS[kind]} "{arn}".')
        self._resources.get(kind, name)
        return self._state.get(TAGS, arn) or {}

    async def _add_tags(self, request: Request) -> Answer:
        arn = request["ResourceArn"]
        tags = merge_tags(self._tags(arn), request["Tags"])
        self._state.put(TAGS, arn, tags)
        return {"Tags": _tag_list(tags)}

    async def _list_tags(self, request: Request) -> Answer:
        """All tags, on one page: a page has at least as many as a resource can have."""
        return {"Tags": _tag_list(self._tags(request["ResourceArn"]))}

    async def _delete_tags(self, request: Request) -> Answer:
        arn = request["ResourceArn"]
        self._state.put(TAGS, arn, {key: v for key, v in self._tags(arn).items() if key not in request["TagKeys"]})
        return {}


def refuse(members: Mapping[str, Any], what: str) -> None:
    """Raise UnsupportedOperation naming the first member of a request that this platform can't honour."""
    for name in _UNSUPPORTED[what]:
        refuse_member(members, name, what)


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def model_data_url(container: Mapping[str, Any]) -> str:
    """Where a container's model data is, "" if it has none; raises UnsupportedOperation for a source not in S3."""
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    if source is None:
        url: str = container.get("ModelDataUrl", "")
    elif (source["S3DataType"], source["CompressionType"]) in (("S3Object", "Gzip"), ("S3Prefix", "None")):
        url = source["S3Uri"]
    else:
        raise UnsupportedOperation(
            f"S3DataType {source['S3DataType']} with CompressionType {source['CompressionType']} is not supported by "
            "the local platform; use S3Object with Gzip, or ModelDataUrl"
        )
    if url and not url.startswith("s3://"):
        raise UnsupportedOperation(f"model data at {url} is not supported by the local platform; put it into S3")
    return url


def _variant_plan(variant: Mapping[str, Any], model: Mapping[str, Any]) -> VariantPlan:
    container = model["PrimaryContainer"]
    return VariantPlan(
        name=variant["VariantName"],
        model_name=model["ModelName"],
        image=container["Image"],
        model_data_url=model_data_url(container),
        environment=container.get("Environment", {}),
        mode=container["Mode"],
        model_cache=container.get("MultiModelConfig", {}).get("ModelCacheSetting", "Enabled"),
        instance_type=variant["InstanceType"],
        instance_count=variant["InitialInstanceCount"],
        weight=variant["InitialVariantWeight"],
    )
