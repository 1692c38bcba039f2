"""Find the level and the block's richness of each token of a coded sample."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.codecs.base import BlockTokens
from pipeline.codecs.frs.find import find_symbols
from pipeline.codecs.frs.map import BatchMaps
from pipeline.codecs.frs.order import SymbolOrder
from pipeline.codecs.frs.tokens import read_tokens


def locate_tokens(tokens: Tensor, order: SymbolOrder, maps: BatchMaps) -> BlockTokens:
    """Locate the tokens (T,) int32 of one tensor of one sample. maps: that of the sample alone."""
    (numbers,), (values,) = read_tokens([tokens[None]])
    used = values[0] != 0
    (block,) = find_symbols([order], [numbers[:, used]])[0].block
    counts = [h * w for h, w in maps.canvas.blocks]
    richness = torch.cat([_rank_blocks(sums) for sums in maps.block_sums[0].split(counts)])
    return BlockTokens(tokens[used].numpy(), maps.canvas.block_level[block].numpy(), richness[block].numpy())


def _rank_blocks(sums: Tensor) -> Tensor:
    """Return the rank of each block (N_l,) of a level by its sum of the map, from 0 (weakest) to 1."""
    place = sums.argsort(stable=True).argsort(stable=True)
    return (2 * place.double() + 1) / (2 * len(sums))
