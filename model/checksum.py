"""Sums over the bits of tensors, wherever they are."""

from collections.abc import Sequence

import torch
import xxhash


def checksum(tensors: Sequence[torch.Tensor]) -> int:
    """xxh3_64 of the tensors' bytes; on a GPU, of the sums of their words, so that they need not be copied.

    A sum changes with any one word of a tensor.
    """
    digest = xxhash.xxh3_64()
    for tensor in tensors:
        words = tensor.detach().contiguous().view(-1).view(_WORDS[tensor.element_size()])
        if tensor.device.type == "cpu":
            digest.update(words.numpy())
        else:
            digest.update(words.sum(dtype=torch.int64).cpu().numpy())
    return digest.intdigest()


_WORDS = {2: torch.int16, 4: torch.int32}
"""Bytes of an element -> integers of that size."""
