"""A program of ours does without what transformers would import beside; a library's user keeps it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from shoal.blocks.lean import MASKS


def test_nothing_is_hidden_from_who_imports_the_library() -> None:
    code = "import shoal.blocks.span, shoal.client.swarm, sys; print(None in sys.modules.values())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


LATER = """
import gc, os, sys, traceback
gc.disable()  # what torch brings would be searched again and again
from shoal.blocks.lean import leave_out
leave_out()
heavy = ("torch._dynamo.eval_frame", "torch._inductor", "torch.distributed.tensor", "sympy")
def fork(then):
    print("--", flush=True)
    if (child := os.fork()) == 0:  # each goes on from here: to come here takes seconds
        try:
            exec(then, globals())
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
import torch
fork({client!r})
import shoal.blocks.span, bitsandbytes, transformers.models.llama.modeling_llama
print("--")
print(*(name for name in heavy if name in sys.modules))
for then in {thens}:
    fork(then)
"""

CLIENT = """
from shoal.client.cli.completion import complete; from shoal.client.local import load_model
import shoal.dht.foreign; load_model('demo', None)
unused = ('transformers.activations', 'torch._dynamo.eval_frame', 'hivemind.averaging', 'rich')
print({name for name in unused if name in sys.modules})
"""
LEFT_OUT = """
import hivemind
import transformers.models.gemma3.modeling_gemma3
found = [name for name in ("accelerate", "sklearn", "pandas", "torchvision") if sys.modules.get(name)]
print(" ".join(found) or "none", "pandas" in sys.modules)
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


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What a program that leaves these out says, by what it has then done, and "" for what it has imported by itself;
    what it wrote to stderr as well."""
    code = LATER.format(client=CLIENT, thens=[LEFT_OUT, *SAID])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    first, *parts = (part.strip() for part in done.stdout.split("--\n"))
    assert first == "", done.stderr
    return {**dict(zip((CLIENT, "", LEFT_OUT, *SAID), parts, strict=True)), "stderr": done.stderr}


def test_layers_and_quantization_load_without_the_packages_that_are_left_out(said) -> None:
    assert said[LEFT_OUT] == "none True", said["stderr"]


def test_the_compiler_is_imported_once_somebody_compiles(said) -> None:
    assert said[""] == "", said["stderr"]
    assert {then: said[then] for then in SAID} == SAID, said["stderr"]


def test_a_client_imports_no_modeling_code_and_of_hivemind_only_what_it_uses(said) -> None:
    assert said[CLIENT] == "set()", said["stderr"]


def test_the_command_line_leaves_them_out() -> None:
    code = (
        "import sys; from shoal.client.cli.main import run;"
        "run(lambda: lambda argv: print('pandas' in sys.modules and sys.modules['pandas'] is None) or 0, [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("True"), done.stderr
