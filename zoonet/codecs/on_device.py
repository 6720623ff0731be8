"""The same codecs over torch tensors, on whatever device they are: the same bytes.

Scales, codes and the choice of places are computed on the device, so that only the payload crosses
to the host. Each operation is a kernel of its own, so nothing is fused; where sums are taken they
are of integers. Imports torch.

N = values of a chunk, B = blocks, K = places of a block
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zoonet.codecs import sparse
from zoonet.codecs.base import Buffer, as_bytes
from zoonet.codecs.blockwise import BLOCK
from zoonet.codecs.registry import codec

_MASK = 0x7FFF_FFFF
_MIN_BITS = (127 - 100) << 23
_MAGIC = 12582912.0
_ONE_127TH = float(np.float32(1 / 127))
_WORDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NOWHERE = 1 << 13  # a place behind all


def encode_tensor(name: str, values_N: Tensor, out: memoryview) -> int:
    """As `Codec.encode`, for a contiguous fp32 tensor. Waits for the device. Raises ValueError."""
    if values_N.dtype != torch.float32 or values_N.ndim != 1 or not values_N.is_contiguous():
        raise ValueError(f"a {values_N.dtype} tensor of shape {tuple(values_N.shape)}")
    num_values = values_N.numel()
    if num_values == 0 or out.readonly or out.nbytes < codec(name).max_bytes(num_values):
        raise ValueError(f"a buffer of {out.nbytes} bytes for {num_values} values")
    _require(values_N, codec(name).max_magnitude)
    if name == "topk2":
        return _encode_topk2(values_N, out)
    if name in _WORDS:
        payload = values_N.to(_WORDS[name]).view(torch.uint8)
    else:
        encode = _encode_int8 if name == "int8" else _encode_e3m0
        cut = num_values - num_values % BLOCK
        parts = [values_N[:cut].view(-1, BLOCK), values_N[cut:].view(1, -1)]
        pairs = [encode(part) for part in parts if part.numel()]
        heads, codes = zip(*pairs, strict=True)
        payload = torch.cat([head.flatten() for head in heads] + [c.flatten() for c in codes])
    target = torch.frombuffer(out, dtype=torch.uint8, count=payload.numel())
    target.copy_(payload)
    return payload.numel()


def decode_tensor(name: str, payload: Buffer, out_N: Tensor) -> None:
    """As `Codec.decode`, into a tensor on any device.

    What a stranger sent is checked and decoded on the host: a chunk at a time, and the copy to the
    device is the longest part of it. Raises ValueError.
    """
    values_N = np.empty(out_N.numel(), np.float32)
    codec(name).decode(payload, values_N)
    out_N.copy_(torch.from_numpy(values_N))


def _require(values_N: Tensor, limit: float) -> None:
    """Raise ValueError where a magnitude is beyond the limit, or NaN."""
    if not bool((values_N.abs().max() <= limit).item()):
        raise ValueError("values that are not finite or too large for the codec")


def _encode_int8(values_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of the scales and of the codes of blocks."""
    top_B = (values_BN.view(torch.int32) & _MASK).amax(1)
    scale_bits_B = (top_B.view(torch.float32) * _ONE_127TH).view(torch.int32)
    upper_B = (scale_bits_B + 0xFFFF) >> 16
    is_zero_B = top_B < _MIN_BITS
    upper_B = upper_B.masked_fill(is_zero_B, 0)
    one_B = (~is_zero_B).to(torch.float32)
    scale_B = (upper_B << 16).view(torch.float32).masked_fill(is_zero_B, 1.0)
    inverse_B = one_B / scale_B
    codes_BN = ((values_BN * inverse_B[:, None]) + _MAGIC) - _MAGIC
    return upper_B.to(torch.int16).view(torch.uint8), codes_BN.to(torch.int8).view(torch.uint8)


def _encode_e3m0(values_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of the exponents and of the codes of blocks."""
    bits_BN = values_BN.view(torch.int32)
    magnitudes_BN = bits_BN & _MASK
    top_B = magnitudes_BN.amax(1)
    exponents_B = (top_B + (1 << 22)) >> 23
    base_B1 = (exponents_B - 7)[:, None]
    levels_BN = (((magnitudes_BN + (1 << 22)) >> 23) - base_B1).clamp(min=1)
    signs_BN = (bits_BN >> 28) & 8
    is_zero_BN = (magnitudes_BN < base_B1 << 23) | (top_B < _MIN_BITS)[:, None]
    codes_BN = (levels_BN | signs_BN).masked_fill(is_zero_BN, 0).to(torch.uint8)
    half = (codes_BN.shape[1] + 1) // 2
    packed_BN = codes_BN[:, :half].clone()
    packed_BN[:, : codes_BN.shape[1] - half] |= codes_BN[:, half:] << 4
    return exponents_B.masked_fill(top_B < _MIN_BITS, 0).to(torch.uint8), packed_BN


def _encode_topk2(values_N: Tensor, out: memoryview) -> int:
    """Choose on the device, write the bits on the host."""
    num_values = values_N.numel()
    chosen = sparse.Chosen.room_for(num_values)
    cut = num_values - num_values % sparse.BLOCK
    first = 0
    for part in (values_N[:cut].view(-1, sparse.BLOCK), values_N[cut:].view(1, -1)):
        if part.numel():
            _choose(part.view(torch.int32), chosen, first)
            first += part.shape[0]
    return sparse.pack(num_values, chosen, as_bytes(out))


def _choose(bits_BN: Tensor, chosen: sparse.Chosen, first: int) -> None:
    """Fill in `chosen` for blocks from number `first` on."""
    num_blocks, size = bits_BN.shape
    k = (size + sparse.PLACES - 1) // sparse.PLACES
    magnitudes_BN = (bits_BN & _MASK).to(torch.int64)
    backwards_N = size - 1 - torch.arange(size, device=bits_BN.device)
    keys_BK = ((magnitudes_BN << 12) | backwards_N).topk(k, dim=1).values
    places_BK = size - 1 - (keys_BK & 0xFFF)
    places_BK = places_BK.masked_fill(keys_BK >> 12 < _MIN_BITS, _NOWHERE).sort(dim=1).values
    is_sent_BK = places_BK < _NOWHERE
    counts_B = is_sent_BK.sum(1)
    sent_BK = bits_BN.gather(1, places_BK.masked_fill(~is_sent_BK, 0)).to(torch.int64)
    sizes_BK = (sent_BK & _MASK).masked_fill(~is_sent_BK, 0)
    exponents_B = sizes_BK.amax(1) >> 23
    shifts_BK = (exponents_B[:, None] - (sizes_BK >> 23)).clamp(max=31)
    fixed_BK = (((sizes_BK & 0x7F_FFFF) | 0x80_0000) >> shifts_BK).masked_fill(~is_sent_BK, 0)
    low_B, high_B, is_high_BK = _levels(fixed_BK, is_sent_BK, counts_B)
    low_bits_B = low_B.to(torch.float32).view(torch.int32).to(torch.int64)
    codes_B = (low_bits_B + ((exponents_B - 150) << 23) + (1 << 19)) >> 20
    codes_B = codes_B.masked_fill(counts_B == 0, 0)
    shift_B = ((codes_B >> 3) - exponents_B + 23).clamp(min=0)
    coded_low_B = (8 + (codes_B & 7)) << shift_B
    ratios = torch.tensor(sparse.RATIOS, device=bits_BN.device)
    middles_R = ratios[:-1] + ratios[1:]
    ratio_codes_B = (high_B[:, None] * 128 >= coded_low_B[:, None] * middles_R).sum(1)
    ratio_codes_B = ratio_codes_B.masked_fill(~is_high_BK.any(1), 0)

    blocks = slice(first, first + num_blocks)
    chosen.counts_B[blocks] = counts_B.cpu().numpy()
    chosen.low_codes_B[blocks] = codes_B.cpu().numpy()
    chosen.ratio_codes_B[blocks] = ratio_codes_B.cpu().numpy()
    for target, source in (
        (chosen.places_BK, places_BK),
        (chosen.is_negative_BK, sent_BK < 0),
        (chosen.is_high_BK, is_high_BK),
    ):
        target.reshape(-1, sparse.PLACES)[blocks, :k] = source.cpu().numpy()


def _levels(
    fixed_BK: Tensor, is_sent_BK: Tensor, counts_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `select_kernels._levels`, for all blocks at once."""
    counts_B = counts_B.clamp(min=1)
    smallest_B = fixed_BK.masked_fill(~is_sent_BK, 1 << 30).amin(1)
    cut_B = smallest_B + (fixed_BK.sum(1) // counts_B - smallest_B) * 51 // 32
    for _ in range(3):
        is_high_BK = (fixed_BK > cut_B[:, None]) & is_sent_BK
        num_high_B = is_high_BK.sum(1)
        high_sum_B = (fixed_BK * is_high_BK).sum(1)
        low_sum_B = fixed_BK.sum(1) - high_sum_B
        low_B = (low_sum_B // (counts_B - num_high_B).clamp(min=1)).clamp(min=1)
        high_B = torch.where(num_high_B > 0, high_sum_B // num_high_B.clamp(min=1), low_B)
        cut_B = torch.maximum((low_B + high_B) // 2, smallest_B)
    return low_B, high_B, is_high_BK
