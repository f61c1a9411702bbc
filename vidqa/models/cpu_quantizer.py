"""The quantizer with which transformers loads the layers of `cpu_linear`: each matrix is quantized when it is read."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from vidqa.models.cpu_linear import QuantizedLinear, layer_class

_METHOD = "vidqa-cpu"


@register_quantization_config(_METHOD)
class CpuQuantizationConfig(QuantizationConfigMixin):
    """Precision `int8` or `int4`, and the names of modules that stay whole with all below them."""

    def __init__(self, weights: str, skipped: Sequence[str]) -> None:
        self.quant_method: Any = _METHOD
        self.weights, self.skipped = weights, tuple(skipped)


@register_quantizer(_METHOD)
class CpuQuantizer(HfQuantizer):
    """Replaces linear layers before their weights are read, and quantizes each matrix when it is."""

    is_trainable = False
    quantization_config: CpuQuantizationConfig

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        config = self.quantization_config
        for name, module in list(model.named_modules()):
            made = layer_class(config.weights, module)
            if made is not None and not f"{name}.".startswith(tuple(f"{one}." for one in config.skipped)):
                model.set_submodule(name, made(module))
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Return whether a tensor is the weight of a replaced layer."""
        module = param_name.removesuffix(".weight")
        return module != param_name and isinstance(model.get_submodule(module), QuantizedLinear)

    def get_quantize_ops(self) -> "Quantize":
        """Return the operation that quantizes one matrix."""
        return Quantize()

    def is_serializable(self) -> bool:
        """Return that the model is not saved."""
        return False


class Quantize(ConversionOps):
    """Turns a stored matrix into codes and scales."""

    def convert(self, input_dict: Any, model: Any = None, **_: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the parameters of the layer, by their names in the model."""
        made: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            module = name.rpartition(".")[0]
            codes, scales = model.get_submodule(module).quantize(value[0] if isinstance(value, list) else value)
            made |= {name: nn.Parameter(codes, False), f"{module}.scales": nn.Parameter(scales, False)}
        return made
