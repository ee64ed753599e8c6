"""Decides which variant and which instance a call goes to."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from mme.platform.hosting.fleet import Instance
from mme.platform.hosting.metrics import Meter
from mme.platform.hosting.plans import VariantPlan

# A model whose calls pile up like this on one instance gets a second one.
_REPLICATE_AT = 8


class Variant:
    """The instances of one production variant."""

    def __init__(self, plan: VariantPlan, meter: Meter, instances: Iterable[Instance], *, replicate: bool) -> None:
        self.plan = plan
        self.meter = meter
        self.instances = tuple(instances)
        self.weight = plan.weight
        self._replicate = replicate

    def instance_for(self, target: str | None) -> Instance:
        """Where a call goes: to the instance that has the model, else to the emptiest; at best a healthy one.

        A model whose calls pile up on its instances is loaded on a further one, as SageMaker does with popular models.
        """
        if len(self.instances) == 1:
            return self.instances[0]
        healthy = [instance for instance in self.instances if instance.container is not None] or list(self.instances)
        if target is None:
            return min(healthy, key=lambda instance: instance.in_flight)
        holders = [(model.in_use, instance) for instance in healthy if (model := instance.cache.holds(target))]
        others = [instance for instance in healthy if instance.cache.holds(target) is None]
        if holders:
            in_use, instance = min(holders, key=lambda holder: holder[0])
            if not (self._replicate and others and in_use >= _REPLICATE_AT):
                return instance
        return min(others, key=lambda instance: (instance.cache.held_count, instance.in_flight, random.random()))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.plan.name,
            "model": self.plan.model_name,
            "mode": self.plan.mode,
            "instance_type": self.plan.instance_type,
            "weight": self.weight,
            "instances": [instance.describe() for instance in self.instances],
        }


class Endpoint:
    """A deployed endpoint: its variants, as the runtime routes to them."""

    def __init__(self, name: str, variants: dict[str, Variant]) -> None:
        self.name = name
        self.variants = variants
        self._only = next(iter(variants.values())) if len(variants) == 1 else None

    def choose(self) -> Variant | None:
        """A variant by weight; None where every weight is 0."""
        if self._only is not None:
            return self._only if self._only.weight > 0 else None
        total = sum(variant.weight for variant in self.variants.values())
        mark = random.random() * total
        for variant in self.variants.values():
            mark -= variant.weight
            if mark < 0:
                return variant
        return None

    @property
    def instances(self) -> list[Instance]:
        return [instance for variant in self.variants.values() for instance in variant.instances]
