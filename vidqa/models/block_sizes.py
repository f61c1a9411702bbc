"""Block sizes of attention kernels and the KV cache, shared by the code that allocates and the planner. No torch."""

TILE_QUERIES = 128  # query positions that the tiled kernel takes at a time
TILE_KEYS = 1024  # keys that the tiled kernel takes at a time
FLEX_BLOCK = 128  # query and key positions of a block of FlexAttention
KV_BLOCK_TOKENS = 128  # the KV cache is a multiple of this many tokens
INT8_BLOCK_TOKENS = 1024  # int8 keys or values that a decode step converts to the compute precision at a time
VISION_MLP_ROWS = 2048  # rows that a vision block's MLP takes at a time
