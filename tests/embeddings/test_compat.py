"""The private parts of PyTorch, TorchRec and FBGEMM that dlrm_mtl/embeddings/torchrec/compat.py relies on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests.embeddings import two_phase_model as tiny
from tests.processes import run_processes

REMEDY = "upstream has changed: mend the function of this name in dlrm_mtl/embeddings/torchrec/compat.py"


def examine(rank: int) -> dict[str, Any]:
    """The functions of compat on a sharded model with replicated and split tables."""
    import torch

    from dlrm_mtl.embeddings.torchrec import compat
    from dlrm_mtl.embeddings.torchrec.lookups import CollectingTables
    from dlrm_mtl.embeddings.torchrec.sharders import CollectingEmbeddingBagCollection

    model = tiny.shard({"tables": {"a": "row_wise", "b": "column_wise", "c": "data_parallel"}})
    collection = next(m for m in model.modules() if isinstance(m, CollectingEmbeddingBagCollection))
    lookups = compat.lookups_of(collection)
    kernels = list(compat.kernels_of(lookups))
    found: dict[str, Any] = {
        "lookups_of": len(lookups) == 3,
        "kernels_of": len(kernels) == 3,
        "table_configs": sorted(config.name for kernel in kernels for config in compat.table_configs(kernel)),
        "bag_configs": sorted(config.name for config in compat.bag_configs(collection)),
        "is_fused": sum(compat.is_fused(kernel) for kernel in kernels),
        "is_dense": sum(compat.is_dense(kernel) for kernel in kernels),
        "tables_of": all(isinstance(compat.tables_of(kernel), torch.nn.Module) for kernel in kernels),
        "become": all(
            isinstance(compat.tables_of(kernel), CollectingTables) == compat.is_fused(kernel) for kernel in kernels
        ),
        "row_state": [
            compat.row_state(compat.tables_of(kernel)).numel() for kernel in kernels if compat.is_fused(kernel)
        ],
        "tables_of_features": [compat.tables_of_features(kernel) for kernel in kernels if compat.is_dense(kernel)],
        "set_pooling_of_split_rows": collection._has_mean_pooling_callback,
    }
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    (result,) = run_processes(1, examine)
    return result


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lookups_of", True),
        ("kernels_of", True),
        ("table_configs", ["a", "b", "c"]),
        ("bag_configs", ["a", "b", "c"]),
        ("is_fused", 2),
        ("is_dense", 1),
        ("tables_of", True),
        ("become", True),
        ("row_state", [40, 25]),
        ("tables_of_features", [[0]]),
        ("set_pooling_of_split_rows", False),
    ],
)
def test_a_sharded_module_is_as_expected(found: dict[str, Any], name: str, wanted: object) -> None:
    assert found[name] == wanted, f"{name}: {REMEDY}"


def test_torchrec_still_divides_by_the_names_that_are_set() -> None:
    from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

    source = inspect.getsource(ShardedEmbeddingBagCollection)
    for name in ("_pooling_type_to_rs_features", "_has_mean_pooling_callback", "_create_lookups", "_lookups"):
        assert name in source, f"set_pooling_of_split_rows or lookups_of: {REMEDY}"


def test_sharded_tensors_are_made_from_local_shards() -> None:
    from dlrm_mtl.embeddings.torchrec.compat import ShardedTensor

    maker = ShardedTensor._init_from_local_shards_and_global_metadata
    assert list(inspect.signature(maker).parameters)[:2] == ["local_shards", "sharded_tensor_metadata"], (
        f"sharded_tensor: {REMEDY}"
    )


def test_fbgemm_still_looks_up_by_forward() -> None:
    """CollectingTables overrides it, and takes its first three arguments by position."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

    names = list(inspect.signature(SplitTableBatchedEmbeddingBagsCodegen.forward).parameters)
    assert names[:4] == ["self", "indices", "offsets", "per_sample_weights"], f"CollectingTables.forward: {REMEDY}"
    source = inspect.getsource(SplitTableBatchedEmbeddingBagsCodegen)
    for name in ("embedding_specs", "weights_physical_offsets", "feature_table_map", "placeholder_autograd_tensor"):
        assert name in source, f"{name} in lookups.collect_gradients: {REMEDY}"


def test_triton_compiles_and_launches_as_the_short_cut_assumes() -> None:
    """kernels/triton_launch.py calls compiled kernels without Triton's own launcher, which takes longer than the kernels."""
    triton = pytest.importorskip("triton")
    from triton.runtime.jit import JITFunction

    assert hasattr(JITFunction, "run"), f"triton_launch: {REMEDY}"
    assert triton.__version__.split(".")[0] == "3", f"triton_launch: {REMEDY}"
