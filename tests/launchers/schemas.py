"""The schemas of what schedulers are sent: Kubernetes' by its client's models, Volcano's by its API, AWS Batch's by botocore.

Kubernetes drops or refuses unknown fields, depending on its version; here they are errors.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

LABEL = r"([a-z0-9A-Z]([\w.-]{0,61}[a-z0-9A-Z])?)?"
DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
SERVICE = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
QUANTITY = r"\d+(\.\d+)?(m|k|[MGTPE]i?|Ki)?"

EVENTS = {
    *("*", "PodPending", "PodRunning", "PodFailed", "PodEvicted", "Unknown", "TaskCompleted", "OutOfSync"),
    *("CommandIssued", "JobUpdated", "TaskFailed"),
}
POLICY: dict[str, Any] = {"action": str, "event": EVENTS, "events": [EVENTS], "exitCode": int, "timeout": str}
TASK: dict[str, Any] = {
    "name": re.compile(DNS_LABEL),
    "replicas": int,
    "minAvailable": int,
    "maxRetry": int,
    "policies": [POLICY],
    "template": "V1PodTemplateSpec",
}
JOB: dict[str, Any] = {
    "apiVersion": {"batch.volcano.sh/v1alpha1"},
    "kind": {"Job"},
    "metadata": "V1ObjectMeta",
    "spec": {
        "schedulerName": str,
        "queue": re.compile(SUBDOMAIN),
        "priorityClassName": re.compile(SUBDOMAIN),
        "minAvailable": int,
        "minSuccess": int,
        "maxRetry": int,
        "plugins": {str: [str]},
        "policies": [POLICY],
        "tasks": [TASK],
    },
}
"""Volcano's Job, as far as torchx uses it; the fields, types and patterns of its custom resource definition."""
QUEUE: dict[str, Any] = {
    "apiVersion": {"scheduling.volcano.sh/v1beta1"},
    "kind": {"Queue"},
    "metadata": "V1ObjectMeta",
    "spec": {"weight": int, "reclaimable": bool, "capability": {str: re.compile(QUANTITY)}, "priority": int},
}
"""Volcano's Queue."""


def check_manifest(value: dict[str, Any]) -> None:
    """Check a manifest: of Volcano, or of Kubernetes itself."""
    ours = {"Job": JOB, "Queue": QUEUE}.get(value["kind"])
    check(value, ours or f"V1{value['kind']}", value["kind"])


def check_job(job: dict[str, Any]) -> None:
    """Check a job of Volcano, and rules that its admission webhook and Kubernetes have beyond the schema."""
    check_manifest(job)
    name, tasks = job["metadata"]["name"], job["spec"]["tasks"]
    assert re.fullmatch(SERVICE, name), "the plugin svc makes a service of this name"
    assert len({task["name"] for task in tasks}) == len(tasks)
    assert all(task["minAvailable"] <= task["replicas"] for task in tasks)
    variables = {f"VC_{task['name'].upper().replace('-', '_')}_HOSTS" for task in tasks}
    for task in tasks:
        assert re.fullmatch(DNS_LABEL, f"{name}-{task['name']}-0"), "the name of the pod is its host's"
        labels = task["template"]["metadata"]["labels"]
        assert all(re.fullmatch(LABEL, label, re.ASCII) for label in labels.values()), labels
        (container,) = task["template"]["spec"]["containers"]
        for amounts in container["resources"].values():
            assert all(re.fullmatch(QUANTITY, amount) for amount in amounts.values()), amounts
        used = set(re.findall(r"\$\{(\w+):=localhost\}", container["command"][2]))
        given = variables | {entry["name"] for entry in container["env"]}
        assert used <= given, "the address of the first host is in a variable that nobody sets"
        assert len(used) == (len(tasks) > 1)


def check(value: Any, wanted: Any, place: str) -> None:
    """Check a value against a type, a pattern, a set of values, a list, a mapping, or the name of a model."""
    if isinstance(wanted, str):
        _check_model(value, wanted, place)
    elif isinstance(wanted, list):
        assert isinstance(value, list), place
        for number, each in enumerate(value):
            check(each, wanted[0], f"{place}[{number}]")
    elif isinstance(wanted, dict) and str in wanted:
        assert isinstance(value, dict), place
        for key, each in value.items():
            check(each, wanted[str], f"{place}.{key}")
    elif isinstance(wanted, dict):
        assert isinstance(value, dict), place
        assert set(value) <= set(wanted), f"{place}: no field {set(value) - set(wanted)}"
        for key, each in value.items():
            check(each, wanted[key], f"{place}.{key}")
    elif isinstance(wanted, set):
        assert value in wanted, f"{place}: {value}"
    elif isinstance(wanted, re.Pattern):
        assert isinstance(value, str), place
        assert wanted.fullmatch(value), f"{place}: {value}"
        assert len(value) <= 253, place
    else:
        assert type(value) is wanted, f"{place}: {value!r} is no {wanted.__name__}"


def _check_model(value: Any, kind: str, place: str) -> None:
    """Check a value against a type of the OpenAPI description, as the generated client spells it."""
    models = pytest.importorskip("kubernetes.client.models")
    if kind.startswith("list["):
        assert isinstance(value, list), place
        for number, each in enumerate(value):
            _check_model(each, kind[5:-1], f"{place}[{number}]")
    elif kind.startswith(("dict(", "dict[")):
        assert isinstance(value, dict), place
        for key, each in value.items():
            _check_model(each, kind[5:-1].split(", ", 1)[1], f"{place}.{key}")
    elif hasattr(models, kind):
        model = getattr(models, kind)
        assert isinstance(value, dict), place
        types = {model.attribute_map[name]: type_ for name, type_ in model.openapi_types.items()}
        names = {model.attribute_map[name]: name for name in model.openapi_types}
        assert set(value) <= set(types), f"{place}: {kind} has no field {set(value) - set(types)}"
        for key, each in value.items():
            _check_model(each, types[key], f"{place}.{key}")
        try:
            model(
                **{names[key]: each for key, each in value.items()}
            )  # raises ValueError where a required field is missing
        except ValueError as error:
            raise AssertionError(f"{place}: {error}") from None
    elif kind != "object":
        expected = {"str": str, "int": int, "bool": bool, "float": (int, float)}[kind]
        assert isinstance(value, expected), f"{place}: {value!r} is no {kind}"
        assert kind == "bool" or not isinstance(value, bool), place


def check_batch(operation: str, parameters: dict[str, Any]) -> None:
    """Check parameters of an operation of AWS Batch, unknown ones included."""
    session = pytest.importorskip("botocore.session")
    validate = pytest.importorskip("botocore.validate")
    model = session.get_session().get_service_model("batch")
    shape = model.operation_model(operation).input_shape
    report = validate.ParamValidator().validate(parameters, shape)
    assert not report.has_errors(), report.generate_report()
