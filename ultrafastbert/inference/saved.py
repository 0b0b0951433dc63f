"""Optimised models on disk: saved as they run, and loaded ready to run.

- Transformers knows models with weights in other formats as quantized ones. So `save_pretrained` writes a
  `quantization_config` into config.json, and `from_pretrained` finds the class below by its `quant_method`.
- The file has the weights as they are multiplied: int8 with scales, or bfloat16. It is mapped into memory, so that the
  trees, most of a model, are not even read before they are used. Only the linear layers are packed again, for the
  processor that loads them, in milliseconds: a layout that oneDNN chose elsewhere would be wrong here.
"""

from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ultrafastbert.inference.operators import (
    Int8Linear,
    PackedLinear,
    UnpaddedLayers,
    linear_layers,
)
from ultrafastbert.modeling_ultrafastbert import UltraFastBertModel
from ultrafastbert.ops import native
from ultrafastbert.utils.hardware import multiplies_int8
from ultrafastbert.utils.validation import check, one_of

METHOD = "ultrafastbert"
LINEAR = {"plain": None, "packed": PackedLinear, "int8": Int8Linear}
"""The classes of linear layers inside the encoder, by their names in config.json; None: PyTorch's."""
INT8_WEIGHTS = ", their weights rounded to int8 (the processor has no instructions to multiply in it)"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class OptimizedConfig(QuantizationConfigMixin):
    """The choices of `optimize_for_inference`, in config.json.

    Args:
        dtype: of weights and products, `torch.float32` or `torch.bfloat16`, or its name.
        linear: the class of linear layers, or its name in `LINEAR`.
        unpadded: whether native operators run the layers, without padding.

    Raises:
        ValueError: another value.
    """

    def __init__(
        self,
        dtype: torch.dtype | str,
        linear: type[PackedLinear] | str | None,
        unpadded: bool,
        quant_method: str = METHOD,
    ):
        dtype = str(dtype).removeprefix("torch.")
        linear = {known: name for name, known in LINEAR.items()}.get(linear, linear)  # pyright: ignore
        check("quantization_config.dtype", dtype, one_of(*DTYPES))
        check("quantization_config.linear", linear, one_of(*LINEAR))
        check("quantization_config.unpadded", unpadded, one_of(True, False))
        self.quant_method = quant_method  # pyright: ignore[reportAttributeAccessIssue] - an enumeration of known ones
        self.dtype, self.linear, self.unpadded = dtype, cast(str, linear), unpadded


class OptimizedLoader(HfQuantizer):
    """Loads and saves optimised models; transformers calls its methods in `from_pretrained` and `save_pretrained`."""

    @property
    def options(self) -> OptimizedConfig:
        """The choices."""
        return cast(OptimizedConfig, self.quantization_config)

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Checks that the model can run here.

        Raises:
            ValueError: it is to be on another device than the CPU, or it is an ordinary model.
            RuntimeError: the model needs native operators or oneDNN, which are not available here.
        """
        devices = set(map(str, device_map.values())) if isinstance(device_map, dict) else {str(device_map or "cpu")}
        if devices - {"cpu", "auto"}:
            raise ValueError(f"device_map is {device_map}; an optimised model should be on cpu, or load the original")
        if not self.pre_quantized:
            raise ValueError("quantization_config is for models that optimize_for_inference made; call it instead")
        options = self.options
        if options.linear != "plain" and not torch.backends.mkldnn.is_available():
            raise RuntimeError("the model needs oneDNN, which this build of PyTorch does not have; load the original")
        if options.unpadded and not native.available():
            raise RuntimeError("the model needs the native operators (see the warning); load the original")

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that the model was saved in, whatever is asked for."""
        return DTYPES[self.options.dtype]

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """None: tensors are as the file has them."""
        return None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        linear_class = LINEAR[self.options.linear]
        if linear_class is None:
            return
        replaced = set(linear_layers(model.base_model))  # pyright: ignore[reportArgumentType]
        for parent in list(model.modules()):
            for name, module in parent.named_children():
                if module in replaced:
                    sizes = module.in_features, module.out_features, module.bias is not None
                    with torch.device("meta"):
                        setattr(parent, name, linear_class(*sizes, dtype=DTYPES[self.options.dtype]))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.pack()
        self.attach(model.requires_grad_(False).eval())

    def attach(self, model: PreTrainedModel) -> None:
        """Makes an encoder or head, whose weights are in place, run as an optimised model, and able to be saved."""
        options, encoder = self.options, model.base_model
        assert isinstance(encoder, UltraFastBertModel)
        done = [f"weights in {options.dtype}"]
        if options.linear != "plain":
            packed = [module.packed.is_mkldnn for module in encoder.modules() if isinstance(module, PackedLinear)]
            where = "packed for oneDNN" if all(packed) else "in PyTorch (oneDNN has no bfloat16 on this processor)"
            done += [f"{len(packed)} linear layers {where}"]
            if options.linear == "int8":
                done[-1] += ", multiplying in int8" if multiplies_int8() else INT8_WEIGHTS
        if options.unpadded:
            encoder.run_layers = UnpaddedLayers(encoder, DTYPES[options.dtype])  # pyright: ignore
            done += [
                "padding removed, attention, residuals and norms computed by native operators, residuals in float32"
            ]
        else:
            done += ["no native operators (see the warning), so layers, padding and attention did not change"]
        model.config.quantization_config = options
        model.hf_quantizer = self  # pyright: ignore[reportArgumentType]
        model.optimizations = tuple(done)  # pyright: ignore[reportArgumentType]

    def is_serializable(self) -> bool:
        """Whether models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether models can be trained."""
        return False


# not decorators, which have no type
register_quantization_config(METHOD)(OptimizedConfig)
register_quantizer(METHOD)(OptimizedLoader)
