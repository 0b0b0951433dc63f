"""`ultrafastbert export aoti`: a model compiled ahead of time by PyTorch's AOTInductor, to run without Python code.

The package is machine code for processors like the one that compiled it. It calls the native operator, whose library
is written beside it; without a native operator, trees are unrolled, which is slower.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ultrafastbert.export.graph import TOLERANCE, Outputs, compare, dynamic_shape, inputs_of, quiet
from ultrafastbert.export.loading import load_model
from ultrafastbert.export.unrolled import unroll
from ultrafastbert.ops import native
from ultrafastbert.ops.native import build
from ultrafastbert.utils.errors import UserError
from ultrafastbert.utils.files import copy_tokenizer, new_directory, written_whole
from ultrafastbert.utils.validation import NOT_EMPTY, check_fields

FILE, LIBRARY = "model.pt2", "native.so"


@dataclass
class AotiArguments:
    """Options of `ultrafastbert export aoti`."""

    model: str
    """Directory of the model, as pretraining and fine-tuning leave it."""
    output_dir: str
    """Directory to create, for model.pt2, the library of the native operator and the tokenizer; it must not exist, or
    be empty."""

    def __post_init__(self):
        check_fields(self, NOT_EMPTY, "model", "output_dir")


def export_aoti(arguments: AotiArguments) -> None:
    """Writes `OUT/model.pt2`, compares it with PyTorch, and prints the largest difference.

    Raises:
        UserError: the model cannot be loaded or compiled, the directory cannot be written, or the outputs differ by
            more than 0.001 of their norm; then nothing is written.
    """
    model = load_model(arguments.model)
    try:
        destination = new_directory(arguments.output_dir)
        with written_whole(destination) as directory:
            uses_native = compile_model(model, directory / FILE)
            print(compare(model, load_compiled(directory / FILE), TOLERANCE, FILE))
            if uses_native:
                shutil.copyfile(build.build(), directory / LIBRARY)
            copy_tokenizer(Path(arguments.model), directory)
    except OSError as error:
        raise UserError(str(error)) from error
    print(f"wrote {destination}: {', '.join(sorted(file.name for file in destination.iterdir()))}")
    if uses_native:
        print("before it, load the native operator, unless this package has done so in the same process:")
        print(f'torch.ops.load_library("{destination / LIBRARY}")')
    else:
        print("it has no native operator: no layer needs one, or it is not available here (see the warning)")


def compile_model(model: PreTrainedModel, path: Path) -> bool:
    """Compiles a model in evaluation mode for any number of sequences and any length; takes a minute.

    Args:
        model: the encoder or one of its heads, in float32, on the CPU.
        path: of the package, NAME.pt2.

    Returns:
        Whether the program calls the native operator.

    Raises:
        UserError: the model cannot be compiled, such as without a C++ compiler.
    """
    exported = model if native.available() else unroll(model)
    shape = dynamic_shape(model)
    try:
        with quiet(), torch.no_grad():
            inputs = tuple(inputs_of(model)[0].values())
            program = torch.export.export(Outputs(exported), inputs, dynamic_shapes=(shape, shape))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except RuntimeError as error:
        raise UserError(f"the model cannot be compiled: {str(error).splitlines()[0]}") from error
    return any("ultrafastbert" in str(node.target) for node in program.graph.nodes)


def load_compiled(path: Path) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """A compiled model, as a function from inputs to outputs; the native operator is loaded already."""
    compiled = torch._inductor.aoti_load_package(str(path))

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        return list(compiled(*inputs.values()))

    return run
