"""Block sizes of attention kernels, the KV cache and small weights, shared by the code that allocates and the planner.

No torch.
"""

TILE_QUERIES = 128  # query positions that the tiled kernel takes at a time
TILE_KEYS = 1024  # keys that the tiled kernel takes at a time
FLEX_BLOCK = 128  # query and key positions of a block of FlexAttention
KV_BLOCK_TOKENS = 128  # the KV cache is a multiple of this many tokens
INT8_BLOCK_TOKENS = 1024  # int8 keys or values that a decode step converts to the compute precision at a time
INT4_GROUP = 64  # input channels that share a scale and an offset in 4-bit weights for CPUs
INT4_MULTIPLE = 64  # output channels of a block of these; other matrices stay whole
INT4_PACKED_ROWS = 64  # rows up to which packed weights are multiplied as they are: dequantizing pays for more
CPU_LINEAR_ROWS = 256  # rows that an int8 layer on a CPU multiplies at a time
CPU_LINEAR_COLUMNS = 1024  # output channels that a 4-bit layer on a CPU dequantizes at a time
QUANTIZATION_ROWS = 256  # output channels that are quantized at a time for a CPU
VISION_MLP_ROWS = 2048  # rows that a vision block's MLP takes at a time
PROBE_ROWS = 8  # query positions whose attention is computed at a time where a question selects slices
