"""UltraFastBERT: BERT-like encoders whose feedforward layers are fast feedforward trees.

Importing the package registers its models with the Auto classes of transformers, so that
`AutoModelForMaskedLM.from_pretrained(directory)` and `pipeline("fill-mask", directory)` can load them.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ultrafastbert.configuration_ultrafastbert import UltraFastBertConfig
from ultrafastbert.inference.optimize import optimize_for_inference
from ultrafastbert.layers.baselines import FeedForward, MixtureOfExperts
from ultrafastbert.layers.fff import FFF
from ultrafastbert.layers.growing import grow_trees
from ultrafastbert.layers.hard import HardFFF
from ultrafastbert.layers.replace import replace_feedforward
from ultrafastbert.layers.soft import SoftFFF
from ultrafastbert.modeling_ultrafastbert import (
    UltraFastBertForMaskedLM,
    UltraFastBertForMultipleChoice,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
    UltraFastBertPreTrainedModel,
)

__version__ = "0.2.0"

AUTO_CLASSES = {
    AutoModel: UltraFastBertModel,
    AutoModelForPreTraining: UltraFastBertForMaskedLM,
    AutoModelForMaskedLM: UltraFastBertForMaskedLM,
    AutoModelForSequenceClassification: UltraFastBertForSequenceClassification,
    AutoModelForTokenClassification: UltraFastBertForTokenClassification,
    AutoModelForQuestionAnswering: UltraFastBertForQuestionAnswering,
    AutoModelForMultipleChoice: UltraFastBertForMultipleChoice,
}
"""The models, by the Auto class of transformers that loads them."""

# exist_ok, because a notebook may reload the package.
AutoConfig.register(UltraFastBertConfig.model_type, UltraFastBertConfig, exist_ok=True)
for auto_class, model_class in AUTO_CLASSES.items():
    auto_class.register(UltraFastBertConfig, model_class, exist_ok=True)

__all__ = [
    "FFF",
    "FeedForward",
    "HardFFF",
    "MixtureOfExperts",
    "SoftFFF",
    "UltraFastBertConfig",
    "UltraFastBertForMaskedLM",
    "UltraFastBertForMultipleChoice",
    "UltraFastBertForQuestionAnswering",
    "UltraFastBertForSequenceClassification",
    "UltraFastBertForTokenClassification",
    "UltraFastBertModel",
    "UltraFastBertPreTrainedModel",
    "grow_trees",
    "optimize_for_inference",
    "replace_feedforward",
]
