"""The names that users choose number types and quantizations by; knows no torch, so that `--help` may list them."""

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
KV_DTYPES = ("auto", "int8")
BEST_DEVICE = "auto"
DEVICES = "cpu, cuda, cuda:1 or mps (default auto: a GPU, if torch sees one)"

EACH_ITS_OWN = -1  # in place of a length (blocks.batch.Row): tokens that came one by one, and are run again together
