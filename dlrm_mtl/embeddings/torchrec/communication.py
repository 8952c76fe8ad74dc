"""Number formats in which vectors and their gradients travel between processes, as codecs of TorchRec."""

from __future__ import annotations

import torch
from torch import Tensor
from torchrec.distributed.types import CommOp, NoOpQuantizedCommCodec, QuantizedCommCodecs

from dlrm_mtl.embeddings.config import CommunicationConfig

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class HalfCodec(NoOpQuantizedCommCodec[None]):
    """Codec of float32 tensors as two bytes a number.

    Unlike FBGEMM's codec it keeps what is not finite, so that such a step is still skipped, and scales in float32.

    Args:
        dtype: number format on the way.
        scale: factor on the way, a power of two; it keeps small gradients above the smallest numbers of float16.
    """

    def __init__(self, dtype: torch.dtype, scale: float = 1.0) -> None:
        self.dtype = dtype
        self.scale = scale

    def encode(self, input_tensor: Tensor, ctx: None = None) -> Tensor:
        """Return the tensor to send."""
        return (input_tensor * self.scale).to(self.dtype)

    def decode(self, input_grad: Tensor, ctx: None = None) -> Tensor:
        """Return the received tensor in float32."""
        return input_grad.float() / self.scale

    @property
    def quantized_dtype(self) -> torch.dtype:  # type: ignore[override]  # a property, as in FBGEMM's codec and in its uses
        """Number format on the way."""
        return self.dtype


def codecs(config: CommunicationConfig, batch_size: int) -> dict[str, QuantizedCommCodecs] | None:
    """TorchRec's registry of codecs; None if everything travels as float32.

    Args:
        config: number formats.
        batch_size: rows of a global batch. Gradients of a mean over them are multiplied by the next power of two on the way.
    """
    if config.forward == config.backward == "fp32":
        return None
    pair = QuantizedCommCodecs()
    if config.forward != "fp32":
        pair.forward = HalfCodec(DTYPES[config.forward])
    if config.backward != "fp32":
        pair.backward = HalfCodec(DTYPES[config.backward], float(1 << (batch_size - 1).bit_length()))
    exchanges = (
        CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL,
        CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER,
        CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL,
    )
    return {exchange.name: pair for exchange in exchanges}
