"""Named resources of hosts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from torchx.specs.named_resources_aws import K8S_ITYPE

from dlrm_mtl.launching.resources import AWS, GCP, SMALLEST, named_resource, names
from tests.docs.pages import ROOT


@pytest.mark.parametrize("name", names())
def test_a_job_leaves_something_to_the_system(name: str) -> None:
    node = {
        **SMALLEST,
        **{f"aws_{key}": one for key, one in AWS.items()},
        **{f"gcp_{key}": one for key, one in GCP.items()},
    }
    resource = named_resource(name)
    if name in node:
        assert 0 < resource.cpu < node[name].cpus
        assert 0 < resource.memMB < 0.91 * 1024 * node[name].memory
        assert resource.gpu == node[name].gpus
    if name.startswith(("aws_", "gcp_")) and name != "aws_t3.medium":
        assert resource.capabilities[K8S_ITYPE] == name[4:]


def test_machines_of_aws_are_what_aws_says() -> None:
    """moto carries the answers of AWS's DescribeInstanceTypes."""
    ec2 = pytest.importorskip("moto.ec2")
    described = json.loads(
        gzip.decompress((Path(ec2.__file__).parent / "resources/instance_types.json.gz").read_bytes())
    )
    for name, node in AWS.items():
        said = described[name]
        (gpu,) = said["GpuInfo"]["Gpus"]
        efa = said["NetworkInfo"].get("EfaInfo", {}).get("MaximumEfaInterfaces", 0)
        assert node == (gpu["Count"], said["VCpuInfo"]["DefaultVCpus"], said["MemoryInfo"]["SizeInMiB"] // 1024, efa), (
            name
        )
    machines = [each for each in described.values() if "GpuInfo" in each]
    for name, node in SMALLEST.items():
        kind, _, count = name.rpartition("x")
        for each in machines:
            gpu = each["GpuInfo"]["Gpus"][0]
            if (gpu["Name"].lower(), gpu["Count"]) != (kind, int(count)):
                continue
            assert node.cpus <= each["VCpuInfo"]["DefaultVCpus"], name
            assert node.memory * 1024 <= each["MemoryInfo"]["SizeInMiB"], name


def test_the_documents_list_them() -> None:
    page = (ROOT / "launchers/README.md").read_text().replace(",", " ").split()
    for name in [*SMALLEST, *(f"aws_{key}" for key in AWS), *(f"gcp_{key}" for key in GCP)]:
        assert name in page


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'h100x8'"):
        named_resource("h100_8")
    with pytest.raises(KeyError, match=r"did you mean 'aws_g6e\.12xlarge'"):
        named_resource("aws_g6e_12xlarge")
    with pytest.raises(KeyError, match="names are a100x1, "):
        named_resource("?")
