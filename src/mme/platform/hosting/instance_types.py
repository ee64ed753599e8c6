"""Decides how much memory and how many processors an instance type has.

From AWS's "Amazon SageMaker pricing" and the EC2 instance type pages: within a family, memory grows with the vCPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

_GIB_PER_VCPU = {
    "c4": 1.875, "c5": 2, "c5d": 2, "c5n": 2.625, "c6i": 2, "c6id": 2, "c6g": 2, "c6gd": 2, "c7i": 2, "c7g": 2,
    "m4": 4, "m5": 4, "m5d": 4, "m6i": 4, "m6id": 4, "m6g": 4, "m6gd": 4, "m7i": 4, "m7g": 4,
    "r5": 8, "r5d": 8, "r6i": 8, "r6id": 8, "r6g": 8, "r6gd": 8, "r7i": 8, "r7g": 8,
    "t2": 4, "t3": 4, "g4dn": 4, "g5": 4, "g6": 4, "inf1": 2, "inf2": 4,
}  # fmt: skip
_EXCEPTIONS = {
    "t2.medium": (2, 4), "t3.medium": (2, 4), "c7i.medium": (1, 2), "c6g.medium": (1, 2), "m6g.medium": (1, 4),
    "p2.xlarge": (4, 61), "p3.2xlarge": (8, 61), "p3.8xlarge": (32, 244), "p3.16xlarge": (64, 488),
    "g6.48xlarge": (192, 768),
}  # fmt: skip


@dataclass(frozen=True)
class InstanceType:
    vcpus: int
    memory_mb: int


def instance_type(name: str) -> InstanceType | None:
    """The figures of an `ml.*` type, or None for one that is not in the table."""
    family, _, size = name.removeprefix("ml.").partition(".")
    if exception := _EXCEPTIONS.get(f"{family}.{size}"):
        return InstanceType(exception[0], exception[1] * 1024)
    factor = size.removesuffix("xlarge")
    if family not in _GIB_PER_VCPU or not (
        size == "large" or (size.endswith("xlarge") and (not factor or factor.isdigit()))
    ):
        return None
    vcpus = 2 if size == "large" else 4 * int(factor or 1)
    return InstanceType(vcpus, int(vcpus * _GIB_PER_VCPU[family] * 1024))


def memory_budget_mb(name: str, cap_mb: int) -> int:
    """What an instance's container may use: the type's memory, at most `cap_mb`; `cap_mb` for a type we don't know."""
    known = instance_type(name)
    return min(known.memory_mb, cap_mb) if known else cap_mb
