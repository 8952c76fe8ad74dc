"""Named resources for hosts with GPUs: ``-h h100x8`` in the place of ``--cpu``, ``--gpu`` and ``--memMB``."""

from __future__ import annotations

from typing import NamedTuple

import torchx.specs as specs
from torchx.specs.named_resources_aws import EFA_DEVICE, K8S_ITYPE

from dlrm_mtl.core.suggest import did_you_mean


class Node(NamedTuple):
    """A host, with all that it has."""

    gpus: int
    cpus: int
    """Virtual CPUs."""
    memory: int
    """Memory in GiB."""
    efa: int = 0
    """Network interfaces of the kind EFA, of AWS."""


SMALLEST = {
    "a100x1": Node(1, 12, 85),
    "a100x2": Node(2, 24, 170),
    "a100x4": Node(4, 48, 340),
    "a100x8": Node(8, 96, 680),
    "a10gx1": Node(1, 4, 16),
    "a10gx4": Node(4, 48, 192),
    "a10gx8": Node(8, 192, 768),
    "b200x8": Node(8, 192, 2048),
    "h100x1": Node(1, 16, 234),
    "h100x2": Node(2, 52, 468),
    "h100x4": Node(4, 104, 936),
    "h100x8": Node(8, 96, 1872),
    "h200x8": Node(8, 96, 1850),
    "l4x1": Node(1, 4, 16),
    "l4x2": Node(2, 24, 96),
    "l4x4": Node(4, 48, 192),
    "l4x8": Node(8, 96, 384),
    "l40sx1": Node(1, 4, 32),
    "l40sx4": Node(4, 48, 384),
    "l40sx8": Node(8, 192, 1536),
    "t4x1": Node(1, 4, 16),
    "t4x4": Node(4, 48, 192),
    "t4x8": Node(8, 96, 384),
}
"""Kind and number of GPUs; CPUs and memory of the smallest such machine of AWS, Google Cloud and Azure."""
AWS = {
    "p5.4xlarge": Node(1, 16, 256, 1),
    "p5e.48xlarge": Node(8, 192, 2048, 32),
    "p5en.48xlarge": Node(8, 192, 2048, 16),
    "p6-b200.48xlarge": Node(8, 192, 2048, 8),
    "g6.xlarge": Node(1, 4, 16),
    "g6.2xlarge": Node(1, 8, 32),
    "g6.12xlarge": Node(4, 48, 192, 1),
    "g6.48xlarge": Node(8, 192, 768, 1),
    "g6e.xlarge": Node(1, 4, 32),
    "g6e.12xlarge": Node(4, 48, 384, 1),
    "g6e.48xlarge": Node(8, 192, 1536, 4),
}
"""Machines of AWS that torchx does not know."""
GCP = {
    "a2-highgpu-1g": Node(1, 12, 85),
    "a2-highgpu-2g": Node(2, 24, 170),
    "a2-highgpu-4g": Node(4, 48, 340),
    "a2-highgpu-8g": Node(8, 96, 680),
    "a2-ultragpu-1g": Node(1, 12, 170),
    "a2-ultragpu-2g": Node(2, 24, 340),
    "a2-ultragpu-4g": Node(4, 48, 680),
    "a2-ultragpu-8g": Node(8, 96, 1360),
    "a3-highgpu-8g": Node(8, 208, 1872),
    "a3-megagpu-8g": Node(8, 208, 1872),
    "a3-ultragpu-8g": Node(8, 224, 2952),
    "g2-standard-4": Node(1, 4, 16),
    "g2-standard-8": Node(1, 8, 32),
    "g2-standard-24": Node(2, 24, 96),
    "g2-standard-48": Node(4, 48, 192),
    "g2-standard-96": Node(8, 96, 384),
}
"""Machines of Google Cloud."""


def names() -> list[str]:
    """Names of all resources, ours and torchx's."""
    theirs = specs._named_resource_factories
    return sorted({*theirs, *SMALLEST, *(f"aws_{name}" for name in AWS), *(f"gcp_{name}" for name in GCP)})


def named_resource(name: str) -> specs.Resource:
    """The resource with this name; ours before torchx's.

    Raises:
        KeyError: there is none; the error's argument says which is meant, or how the names are made.
    """
    if name in SMALLEST:
        return _resource(SMALLEST[name])
    vendor, _, machine = name.partition("_")
    node = {"aws": AWS, "gcp": GCP}.get(vendor, {}).get(machine)
    if node is not None:
        return _resource(node, machine)
    if name in specs.named_resources:
        return specs.named_resources[name]
    raise KeyError(
        f"{did_you_mean(name, names())}names are {', '.join(SMALLEST)}, and machines of clouds, such as aws_g6.xlarge"
    )


def _resource(node: Node, machine: str | None = None) -> specs.Resource:
    """What a job may ask for on this host: less than all, as the operating system and the scheduler's agent take some."""
    share = 0.9 if node.memory >= 64 else 0.8
    return specs.Resource(
        cpu=node.cpus - max(1, node.cpus // 16),
        gpu=node.gpus,
        memMB=int(node.memory * 1024 * share),
        capabilities={K8S_ITYPE: machine} if machine else {},
        devices={EFA_DEVICE: node.efa} if node.efa else {},
    )
