"""How many instructions an element takes in the kernels' loops, as Triton compiles them for an H100; needs no GPU.

    python benchmarks/instructions.py

Products of 32 by 32 bits are counted again by themselves: they pass at half the rate of the others.
"""

from __future__ import annotations

import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zoreward.kernels import gpu, triton_kernels

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {"table": "*i64", "units": "*i32", "script": "*i64", "factors": "*fp32"}
WEIGHTS = ("like", "base", "out")
NUMBERS = {"members": "i32", "updates": "i32", "kind": "i32", "apart": "i64"}


def compiled(kernel: triton.JITFunction, unit: int, **constants: object) -> bytes:
    """A kernel for bfloat16, the `normal` distribution and tensors of whole blocks, as machine code."""
    constants |= {"BF16": True, "WHOLE": True, "QUADS": True, "DISTRIBUTION": 0, "NATIVE": True}
    constants |= {"BLOCK": gpu.BLOCK, "UNIT": unit}
    names = kernel.arg_names
    types = POINTERS | NUMBERS | dict.fromkeys(WEIGHTS, "*u16")
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = [name for name in names if name in (*POINTERS, *WEIGHTS, "apart")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {"num_warps": gpu.WARPS, "enable_fp_fusion": False}
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=HOPPER, options=options).asm["cubin"]


def longest_loop(code: bytes) -> list[str]:
    """The instructions of the longest loop of machine code, in their order."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    labels, loops, instructions = {}, [], []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?(\S+)(.*);", line):
            instructions.append(found[1])
            target = re.search(r"`\((\.L_x_\d+)\)", found[2]) if found[1].startswith("BRA") else None
            if target and target[1] in labels:
                loops.append(instructions[labels[target[1]] :])
    return max(loops, key=len)


def main() -> None:
    kernels = {
        "update, one term": (triton_kernels.update, gpu.UPDATE_UNIT, {"ONE": True, "LOW_RANK": 0}),
        "update, one low-rank term": (triton_kernels.update, gpu.UPDATE_UNIT, {"ONE": True, "LOW_RANK": 1}),
        "one perturbed copy": (triton_kernels.perturb, gpu.COPY_UNIT, {"ONE": True, "LOW_RANK": 0, "ALIKE": 1}),
        "both copies of a couple": (triton_kernels.perturb, gpu.COPY_UNIT, {"ONE": True, "LOW_RANK": 0, "ALIKE": 2}),
    }
    print(f"{'an element of':<28}instructions  products")
    for name, (kernel, unit, constants) in kernels.items():
        loop = longest_loop(compiled(kernel, unit, **constants))
        elements = gpu.BLOCK // (32 * gpu.WARPS)
        products = sum(one.startswith(("IMAD.WIDE", "IMAD.HI")) or one == "IMAD" for one in loop)
        print(f"{name:<28}{len(loop) / elements:>12.1f}{products / elements:>10.1f}")


if __name__ == "__main__":
    main()
