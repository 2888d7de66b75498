"""A program of ours does without what transformers would import beside; a library's user keeps it."""

from __future__ import annotations

import subprocess
import sys

from shoal.blocks.lean import MASKS

CODE = """
import sys
{before}
import shoal.blocks.span, bitsandbytes, hivemind
import transformers.models.gemma3.modeling_gemma3
found = [name for name in ("accelerate", "sklearn", "pandas", "torchvision") if sys.modules.get(name)]
print(" ".join(found) or "none", "pandas" in sys.modules)
"""


def run(before: str) -> str:
    code = CODE.format(before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_layers_and_quantization_load_without_the_packages_that_are_left_out() -> None:
    assert run("from shoal.blocks.lean import leave_out; leave_out()") == "none True"


def test_nothing_is_hidden_from_who_imports_the_library() -> None:
    code = "import shoal.blocks.span, shoal.client.swarm, sys; print(None in sys.modules.values())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


LATER = """
import gc, sys
gc.disable()  # what torch brings would be searched again and again
from shoal.blocks.lean import leave_out
leave_out()
import shoal.blocks.span, bitsandbytes, transformers.models.llama.modeling_llama, torch
heavy = ("torch._dynamo.eval_frame", "torch._inductor", "torch.distributed.tensor", "sympy")
print(*(name for name in heavy if name in sys.modules))
import os, traceback
for then in {thens}:
    print("--", flush=True)
    if (child := os.fork()) == 0:  # each goes on from here: to come here takes seconds
        try:
            exec(then)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


COMPILED = "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item(), heavy[0] in sys.modules)"
MARKED = """
@torch.compile(backend="eager")
def f(x):
    return -x
print(heavy[0] in sys.modules, f(torch.ones(1)).item())
"""
MODULE = "print(type(torch.compile(torch.nn.Linear(1, 1), backend='eager')).__name__)"
PART = "import torch._dynamo.config as c; print(c is torch._dynamo.config, c.__spec__.name)"
WHOLE = "torch._dynamo.reset(); print(torch._dynamo.__file__.endswith('__init__.py'))"
CLASS = "from transformers.masking_utils import TransformGetItemToIndex as T; print(T().__class__.__module__)"


SAID = {
    COMPILED: "2.0 True",
    MARKED: "False -1.0",
    MODULE: "OptimizedModule",
    PART: "True torch._dynamo.config",
    WHOLE: "True",
    CLASS: MASKS,
}


def test_the_compiler_is_imported_once_somebody_compiles() -> None:
    code = LATER.format(thens=list(SAID))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    before, *after = (part.strip() for part in done.stdout.split("--\n"))
    assert before == "", done.stderr
    assert dict(zip(SAID, after, strict=True)) == SAID, done.stderr


def test_the_command_line_leaves_them_out() -> None:
    code = (
        "import sys; from shoal.client.cli.main import run;"
        "run(lambda: lambda argv: print('pandas' in sys.modules and sys.modules['pandas'] is None) or 0, [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("True"), done.stderr


def test_a_client_imports_no_modeling_code_and_of_hivemind_only_what_it_uses() -> None:
    code = (
        "import sys; from shoal.blocks.lean import leave_out; leave_out();"
        "from shoal.client.cli.completion import complete; from shoal.client.local import load_model;"
        "import shoal.dht.foreign; load_model('demo', None);"
        "heavy = ('transformers.activations', 'torch._dynamo.eval_frame', 'hivemind.averaging', 'rich');"
        "print({name for name in heavy if name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
