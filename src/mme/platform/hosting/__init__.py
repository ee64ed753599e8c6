"""Decides what runs behind an endpoint: its variants' instances, and which models each of them holds."""

from mme.platform.hosting.fleet import Instance
from mme.platform.hosting.plans import DeploymentFailed, EndpointPlan, HostingFault, VariantPlan
from mme.platform.hosting.routing import Endpoint, Variant
from mme.platform.hosting.service import Hosting

__all__ = [
    "DeploymentFailed",
    "Endpoint",
    "EndpointPlan",
    "Hosting",
    "HostingFault",
    "Instance",
    "Variant",
    "VariantPlan",
]
