"""A tokenizer that takes any text: one token per byte."""

import re
from typing import TYPE_CHECKING

from robovlms_ros.models.tokenization import BOS, EOS, PAD, PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_byte_tokenizer(
    template: PromptTemplate, add_bos: bool = True, add_eos: bool = True
) -> "PreTrainedTokenizerBase":
    """pad 0, eos 1, bos 2, the template's control tokens, then the 256 bytes: for models without a
    vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    controls = [t for t in dict.fromkeys(re.findall(r"<[^<>\s{}]+>", template.text)) if t not in (PAD, EOS, BOS)]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([PAD, EOS, BOS, *controls, *symbols])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in (PAD, EOS, BOS, *controls)])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS + ' ' if add_bos else ''}$A{' ' + EOS if add_eos else ''}",
        special_tokens=[(token, vocabulary[token]) for token in (BOS, EOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=EOS, bos_token=BOS, padding_side="right"
    )
