"""Secrets of Kubernetes as environment variables of a job; torchx 0.7 passes on plain values only.

A plain value stands in the job's description, which everyone who may list jobs can read.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torchx.specs as specs
from torchx.schedulers import kubernetes_scheduler

from dlrm_mtl.launching.client import refuse

if TYPE_CHECKING:
    from kubernetes.client.models import V1Pod

KEY = "kubernetes.dlrm_mtl.secrets"
"""Entry of a role's metadata: names of secrets."""


def give_secrets(role: specs.Role, names: Sequence[str]) -> None:
    """Let the role's containers have every entry of these secrets as an environment variable."""
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name):
            refuse(f"--secrets: '{name}' is no name of a secret in Kubernetes; kubectl get secrets lists them.")
    given = [after for before, after in pairwise(sys.argv) if before in ("-s", "--scheduler")]
    if given and given[0] != "kubernetes":
        refuse(
            f"--secrets: only Kubernetes has secrets, and the scheduler is {given[0]}; leave it out, or write -s kubernetes."
        )
    role.metadata[KEY] = list(names)
    _extend()


@functools.cache
def _extend() -> None:
    """Let torchx put the secrets in the pods that it describes."""
    plain = kubernetes_scheduler.role_to_pod

    @functools.wraps(plain)
    def role_to_pod(name: str, role: specs.Role, service_account: str | None) -> V1Pod:
        from kubernetes.client import models

        pod = plain(name, role, service_account)
        secrets = [models.V1SecretEnvSource(name=secret) for secret in role.metadata.get(KEY, [])]
        if secrets:
            pod.spec.containers[0].env_from = [models.V1EnvFromSource(secret_ref=secret) for secret in secrets]
        return pod

    kubernetes_scheduler.role_to_pod = role_to_pod
