"""What torchx would send to Kubernetes and AWS Batch, against their schemas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.launchers.schemas import check_batch, check_job, check_manifest
from tests.s3 import object_store

ROOT = Path(__file__).resolve().parents[2]
TRAIN = f"{ROOT}/launchers/train.py:ddp"
USE = f"{ROOT}/launchers/use.py"
CONTAINER = ("--image", "registry.example.com/dlrm_mtl:1")
JOBS = {
    "train": (
        TRAIN,
        "--config",
        "/app/configs/mine.yaml",
        "-j",
        "2x8",
        "-h",
        "h100x8",
        "--output",
        "s3://bucket/it's $HOME",
    ),
    "train_elastic": (
        TRAIN,
        "--config",
        "/app/mine.yaml",
        "-j",
        "2:4x8",
        "--gpu",
        "8",
        "--cpu",
        "8",
        "--memMB",
        "64000",
    ),
    "train_name": (
        TRAIN,
        "--config",
        "/app/mine.yaml",
        "-j",
        "2x1",
        "--name",
        "My-long_Name-of-30-characters1",
        "-h",
        "l4x1",
    ),
    "train_retries": (
        TRAIN,
        "--config",
        "/app/mine.yaml",
        "--max_retries",
        "3",
        "-h",
        "gpu.small",
        "--env",
        "A=1,B=x y",
    ),
    "train_one": (TRAIN, "--config", "/app/mine.yaml", "-j", "1x8", "-h", "aws_p5en.48xlarge"),
    "evaluate": (f"{USE}:evaluate", "--run", "s3://bucket/runs/a", "-h", "cpu.xlarge", "--", "--watch"),
    "predict": (
        f"{USE}:predict",
        "--run",
        "/a",
        "--input",
        "/b",
        "--output",
        "/c.csv",
        "-j",
        "2x2",
        "-h",
        "gcp_g2-standard-48",
    ),
    "prepare": (f"{USE}:prepare", "-h", "cpu.xlarge", "--", "--input", "raw", "--output", "/d"),
    "doctor": (f"{USE}:doctor", "-j", "4x8", "-h", "aws_p4d.24xlarge"),
}
MOUNTS = {
    "kubernetes": "type=bind,src=/mnt/data,dst=/data,readonly,type=volume,src=claim,dst=/scratch",
    "aws_batch": "type=bind,src=/mnt/data,dst=/data,readonly,type=volume,src=fs-0123456789abcdef0,dst=/scratch",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "kubernetes": {"queue": "training", "namespace": "ranking", "service_account": "trainer", "priority_class": "high"},
    "aws_batch": {
        "queue": "training",
        "share_id": "ranking",
        "priority": 7,
        "job_role_arn": "arn:aws:iam::1:role/trainer",
    },
}


def render(jobs: list[tuple[str, str, list[str], dict[str, Any]]]) -> list[dict[str, Any]]:
    """What torchx would send to the scheduler of each job."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/launchers/render.py"],
        input=json.dumps(jobs),
        env={**os.environ, "PYTHONPATH": str(ROOT), "AWS_DEFAULT_REGION": "us-east-1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    """The requests for all jobs, by scheduler and name of the job."""
    pytest.importorskip("kubernetes")
    pytest.importorskip("boto3")
    names, jobs = [], []
    for scheduler, options in OPTIONS.items():
        for name, (component, *arguments) in JOBS.items():
            at = arguments.index("--") if "--" in arguments else len(arguments)
            container = [*CONTAINER, "--mounts", MOUNTS[scheduler]]
            secrets = ["--secrets", "storage,other"] if scheduler == "kubernetes" else []
            names.append(f"{scheduler} {name}")
            jobs.append((scheduler, component, [*arguments[:at], *container, *secrets, *arguments[at:]], options))
    return dict(zip(names, render(jobs), strict=True))


@pytest.mark.parametrize("name", JOBS)
def test_volcano_takes_the_job(rendered: dict[str, dict[str, Any]], name: str) -> None:
    job = rendered[f"kubernetes {name}"]
    check_job(job)
    for task in job["spec"]["tasks"]:
        (container,) = task["template"]["spec"]["containers"]
        assert [each["secretRef"]["name"] for each in container["envFrom"]] == ["storage", "other"]
        assert container["image"] == CONTAINER[1]


@pytest.mark.parametrize("name", JOBS)
def test_aws_batch_takes_the_job(rendered: dict[str, dict[str, Any]], name: str) -> None:
    request = rendered[f"aws_batch {name}"]
    check_batch("RegisterJobDefinition", request["job_def"])
    submitted = {"jobName": request["name"], "jobQueue": request["queue"], "jobDefinition": request["name"]}
    check_batch("SubmitJob", {**submitted, "tags": request["job_def"]["tags"], "shareIdentifier": "ranking"})
    properties = request["job_def"]["nodeProperties"]
    (group,) = properties["nodeRangeProperties"]
    assert group["targetNodes"] == f"0:{properties['numNodes'] - 1}"
    assert properties["numNodes"] == 1 or "$AWS_BATCH_JOB_NODE_INDEX" in group["container"]["command"][2]


def test_a_machine_of_a_cloud_is_selected(rendered: dict[str, dict[str, Any]]) -> None:
    key = "node.kubernetes.io/instance-type"
    for name, machine in (("train_one", "p5en.48xlarge"), ("predict", "g2-standard-48"), ("doctor", "p4d.24xlarge")):
        for task in rendered[f"kubernetes {name}"]["spec"]["tasks"]:
            assert task["template"]["spec"]["nodeSelector"] == {key: machine}
    container = rendered["aws_batch predict"]["job_def"]["nodeProperties"]["nodeRangeProperties"][0]["container"]
    assert container["instanceType"] == "g2-standard-48"
    limits = rendered["kubernetes train_one"]["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ]
    assert (limits["nvidia.com/gpu"], limits["vpc.amazonaws.com/efa"]) == ("8", "16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job["spec"].update(queues="a"), "no field {'queues'}"),
        (lambda job: job["spec"]["tasks"][0].update(name="A_b"), "A_b"),
        (lambda job: job["spec"]["tasks"][0]["template"]["spec"].update(restart="Never"), "V1PodSpec has no field"),
        (lambda job: job["spec"]["tasks"][0]["template"]["spec"]["containers"][0].pop("name"), "`name`"),
        (
            lambda job: job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["ports"][0].update(
                containerPort="1"
            ),
            "int",
        ),
    ],
)
def test_the_schema_refuses(rendered: dict[str, dict[str, Any]], change: Any, message: str) -> None:
    job = json.loads(json.dumps(rendered["kubernetes train"]))
    change(job)
    with pytest.raises(AssertionError, match=message):
        check_manifest(job)


def test_the_schema_of_aws_batch_refuses() -> None:
    with pytest.raises(AssertionError, match="Unknown parameter"):
        check_batch("SubmitJob", {"jobName": "a", "jobQueue": "b", "jobDefinition": "c", "image": "d"})


def test_a_job_is_submitted_to_aws_batch(tmp_path: Path) -> None:
    """By the real client, to a server that speaks AWS's protocol; the job itself does nothing there."""
    boto3 = pytest.importorskip("boto3")
    with object_store() as variables:
        url = variables["AWS_ENDPOINT_URL"]
        urlopen(Request(f"{url}/moto-api/config", json.dumps({"batch": {"use_docker": False}}).encode(), method="POST"))
        session = boto3.Session("nobody", "nothing", region_name="us-east-1")
        role = session.client("iam", endpoint_url=url).create_role(RoleName="batch", AssumeRolePolicyDocument="{}")
        batch = session.client("batch", endpoint_url=url)
        hosts = {"computeEnvironmentName": "hosts", "type": "UNMANAGED", "serviceRole": role["Role"]["Arn"]}
        place = batch.create_compute_environment(**hosts)["computeEnvironmentArn"]
        order = [{"order": 1, "computeEnvironment": place}]
        batch.create_job_queue(jobQueueName="training", state="ENABLED", priority=1, computeEnvironmentOrder=order)
        command = ["torchx.cli.main", "--log_level", "WARNING", "run", "--workspace", "", "-s", "aws_batch", "-cfg"]
        job = [TRAIN, "--config", "/app/mine.yaml", "-j", "2x8", "-h", "aws_p4d.24xlarge", *CONTAINER]
        done = subprocess.run(
            [sys.executable, "-m", *command, "queue=training", *job],
            cwd=tmp_path,
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        name = done.stdout.strip().removeprefix("aws_batch://torchx/training:")
        (definition,) = batch.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
        assert definition["type"] == "multinode"
        (listed,) = batch.list_jobs(jobQueue="training", filters=[{"name": "JOB_NAME", "values": [name]}])[
            "jobSummaryList"
        ]
        assert listed["jobName"] == name
