"""A small teacher with dense layers, its tokenizer, and texts."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ultrafastbert import UltraFastBertConfig, UltraFastBertModel
from ultrafastbert.distillation.arguments import DistillArguments, FitArguments, TextArguments, TrainArguments

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(40)]
BERT = {
    "position_embedding": "learned",
    "norm_position": "post",
    "projection_bias": True,
    "head_transform": True,
    "decoder_bias": True,
}


def make_tokenizer():
    vocabulary = {name: index for index, name in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=20, **names)


def make_teacher(model_class=UltraFastBertModel, **options):
    """Weights and biases are large, so that each part matters."""
    torch.manual_seed(0)
    defaults = {"vocab_size": 45, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    defaults |= {"max_position_embeddings": 20, "feedforward": "dense", "intermediate_size": 24}
    config = UltraFastBertConfig(**(defaults | {"initializer_range": 0.4, "classifier_hidden_size": 8} | options))
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def save_teacher(directory, model_class=UltraFastBertModel, **options):
    make_teacher(model_class, **options).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


def write_texts(path, count=300):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    lines = [torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    path.write_text("\n".join(" ".join(WORDS[word] for word in line) for line in lines))
    return str(path)


def arguments(model, source, output_dir, fff="1x2x4", seed=0, resume="auto", fit=None, data=None, **train):
    """Those of a run of a second; keywords change the training."""
    steps = {"max_steps": 12, "batch_size": 8, "log_every": 2, "eval_every": 6, "checkpoint_every": 4}
    return DistillArguments(
        model=model,
        fff=fff,
        pooling="mean",
        data=TextArguments(source=source, **({"max_length": 16, "validation_sequences": 16} | (data or {}))),
        fit=FitArguments(**({"tokens": 1500, "steps": 60, "batch_size": 128, "lr": 0.01} | (fit or {}))),
        train=TrainArguments(**(steps | {"precision": "fp32", "keep_checkpoints": 9} | train)),
        output_dir=str(output_dir),
        seed=seed,
        resume=resume,
    )
