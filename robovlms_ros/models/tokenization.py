"""From an instruction to token ids: prompt templates as RoboVLMs trains them, and a strict wrapper
of a tokenizer.

Nothing is cut or replaced in silence: an instruction that is empty, too long, or holds a word that
a small vocabulary does not know is refused (`InstructionRefused`) with the reason.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robovlms_ros.core.caps import MAX_TOKENIZER_BYTES
from robovlms_ros.core.file_boundary import file_boundary, require_file
from robovlms_ros.core.schema import did_you_mean
from robovlms_ros.core.structured_text import from_json
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import InstructionRefused, RoboVLMsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_INSTRUCTION_CHARACTERS = 1000
PAD = "<pad>"
EOS = "<eos>"
BOS = "<bos>"
UNKNOWN = "<unk>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


class TokenizerError(RoboVLMsError):
    """A tokenizer is missing, cannot be read or does not fit the prompt."""


@dataclass(frozen=True)
class PromptTemplate:
    """Template of a family's instruction. text holds `{instruction}` and may hold `{eos}`.

    add_special_tokens: whether the tokenizer adds its own (bos, eos). max_length: tokens at most.
    """

    text: str
    add_special_tokens: bool = True
    max_length: int = 512

    def render(self, instruction: str, eos: str = "") -> str:
        """The prompt; the instruction is stripped, its case kept."""
        return self.text.replace("{eos}", eos).replace("{instruction}", instruction.strip())


_GAP = " " * 13  # the reference's own line continuations are part of what its model was trained on
TEMPLATES = {
    "kosmos": PromptTemplate("<grounding>An image of a robot {instruction}"),
    "paligemma": PromptTemplate("{eos}{instruction}\n", add_special_tokens=False),
    "flamingo": PromptTemplate("<image>{instruction}<|endofchunk|>{eos}", max_length=256),
    "llava": PromptTemplate("{instruction}", max_length=2048),
    "llava_orig": PromptTemplate(
        "<s>You are a helpful language and vision assistant."
        f"{_GAP}You are able to understand the visual content that the user provides,"
        f"{_GAP}and assist the user with a variety of tasks using natural language."
        "This is the static camera observation: <image>This is the egocentric girpper camera observation: <image>"
        "{instruction}</s>",
        max_length=256,
    ),
    "qwen": PromptTemplate("{instruction}"),
    "uform": PromptTemplate("<image> {instruction}"),
    "moondream": PromptTemplate("<|endoftext|>{instruction}"),
}
DEFAULT_TEMPLATE = TEMPLATES["moondream"]


def discrete_template(steps: int, closing: str = " \n{eos}") -> PromptTemplate:
    """The prompt of the discrete action space for `steps` steps (RoboVLMs writes one more than its
    chunk size).

    closing: what follows `Output:`; empty for tokenizers without bos and eos (Qwen). At inference
        the last eos id is
    dropped: the action tokens take its place.
    """
    question = f"Input: What {steps} step actions should the robot take to {{instruction}}?"
    return PromptTemplate(f"{question}\nOutput:{closing}")


@dataclass(frozen=True)
class TokenBatch:
    """input_ids (B, L) int64, padded on the right; attention_mask (B, L) int64, 1 where a token
    counts."""

    input_ids: Tensor
    attention_mask: Tensor


def check_instruction(instruction: str) -> str:
    """The instruction, stripped. Raises InstructionRefused when it is empty or longer than any
    task."""
    text = instruction.strip()
    if not text:
        raise InstructionRefused("The instruction is empty. Give the task in words, for instance 'lift the red cube'.")
    if len(text) > MAX_INSTRUCTION_CHARACTERS:
        raise InstructionRefused(
            f"The instruction has {len(text)} characters ('{printable(text, 40)}'): at most "
            f"{MAX_INSTRUCTION_CHARACTERS} are accepted. Shorten it to the task itself."
        )
    return text


class PromptTokenizer:
    """A transformers tokenizer and a template, with the rules above. Not thread-safe where the
    tokenizer is not.

    open_end: a trailing eos is dropped, for a model that goes on from the prompt.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: PromptTemplate,
        max_length: int | None = None,
        open_end: bool = False,
    ):
        self.open_end = open_end
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = min(template.max_length, max_length or template.max_length)
        self.eos_id = tokenizer.eos_token_id
        self.controls = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(i for i in pads if i is not None)
        if "{eos}" in template.text and self.eos_id is None:
            raise TokenizerError(f"The prompt '{template.text}' needs an eos token; the tokenizer has none.")

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added ones included."""
        return len(self.tokenizer)

    @property
    def special_tokens(self) -> int:
        """Number of the tokenizer's special entries, each counted once per role
        (`ActionTokenizer`'s rule)."""
        listed = self.tokenizer.special_tokens_map.values()
        return sum(1 if isinstance(entry, str) else len(entry) for entry in listed)

    def prompt(self, instruction: str) -> str:
        """The text that is tokenized. Raises InstructionRefused for an unusable instruction."""
        text = check_instruction(instruction)
        for token in self.controls:
            if token in text:
                raise InstructionRefused(
                    f"The instruction '{printable(text)}' holds '{token}', a control token of the model. Write it in "
                    "plain words."
                )
        return self.template.render(text, self.tokenizer.eos_token or "")

    def ids(self, instruction: str) -> list[int]:
        """Token ids of one instruction, unpadded. Raises InstructionRefused: empty, too long, or
        unknown words."""
        prompt = self.prompt(instruction)
        ids = list(self.tokenizer(prompt, add_special_tokens=self.template.add_special_tokens)["input_ids"])
        while self.open_end and len(ids) > 1 and ids[-1] == self.eos_id:
            ids.pop()
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            self._refuse_unknown(check_instruction(instruction))
        if len(ids) > self.max_length:
            raise InstructionRefused(
                f"The instruction makes {len(ids)} tokens, the model takes {self.max_length}. Shorten it."
            )
        return ids

    def encode(self, instructions: Sequence[str], length: int | None = None) -> TokenBatch:
        """Ids of a batch, padded on the right to the longest, or to `length` columns.

        Raises InstructionRefused for an instruction that is unusable or longer than `length`.
        """
        rows = [self.ids(text) for text in instructions]
        longest = max(len(row) for row in rows)
        columns = longest if length is None else length
        if longest > columns:
            raise InstructionRefused(f"The instruction makes {longest} tokens, at most {columns} fit. Shorten it.")
        padded = [row + [self.pad_id] * (columns - len(row)) for row in rows]
        counts = [[1] * len(row) + [0] * (columns - len(row)) for row in rows]
        return TokenBatch(torch.tensor(padded, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64))

    def _refuse_unknown(self, text: str) -> None:
        unknown = self.tokenizer.unk_token_id
        words = dict.fromkeys(text.split())
        missing = [w for w in words if unknown in self.tokenizer(w, add_special_tokens=False)["input_ids"]] or [text]
        known = [w for w in self.tokenizer.get_vocab() if w not in (*self.controls, UNKNOWN) and not w.isspace()]
        if len(known) > 200:
            hint = " Use other words."
        else:
            hint = (
                did_you_mean(missing[0], known) if len(missing) == 1 else f" Known words: {', '.join(sorted(known))}."
            )
        named = printable(", ".join(repr(word) for word in missing))
        raise InstructionRefused(
            f"The instruction '{printable(text)}' holds {named}, which this policy never learned.{hint}"
        )


def build_word_tokenizer(
    words: Iterable[str], template: PromptTemplate, add_bos: bool = True, add_eos: bool = True
) -> "PreTrainedTokenizerBase":
    """A word-level tokenizer that knows `words`, the words of `template`, and pad 0, eos 1, bos 2,
    unknown 3.

    Words are separated by blanks and case counts. add_bos, add_eos: what it adds around a prompt
    where the template contains special tokens. Ids follow the order of `words`, so that a list that
    grows keeps a model's embeddings.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    frame = template.text.replace("{eos}", " ").replace("{instruction}", " ")
    controls = dict.fromkeys(re.findall(r"<[^<>\s]+>", frame))
    plain = re.sub(r"<[^<>\s]+>", " ", frame)
    entries = [PAD, EOS, BOS, UNKNOWN, "\n", *controls, *plain.replace("?", " ? ").split(), *words]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(entries))}
    for word in vocabulary:
        if word != "\n" and word.split() != [word]:
            raise TokenizerError(f"vocabulary word {word!r}: must be one word without blanks.")
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"), pre_tokenizers.Split(Regex(r"[\n?]"), "isolated")]
    )
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in (PAD, EOS, BOS, *controls)])
    around = f"{BOS + ' ' if add_bos else ''}$A{' ' + EOS if add_eos else ''}"
    inner.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(token, vocabulary[token]) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=EOS, bos_token=BOS, unk_token=UNKNOWN, padding_side="right"
    )


def check_json(path: Path) -> None:
    """Raise TokenizerError for a file of a tokenizer that is no JSON: the tokenizer's library
    aborts on some."""
    require_file(TokenizerError, path, MAX_TOKENIZER_BYTES, "MAX_TOKENIZER_BYTES")
    with file_boundary(TokenizerError, path, "Copy the tokenizer's files again.", "JSON"):
        from_json(path.read_text(encoding="utf-8"))


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a local folder. Raises TokenizerError that names the files looked for."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise TokenizerError(
            f"{folder}: no tokenizer there (looked for {', '.join(TOKENIZER_FILES)}). "
            "Copy the tokenizer files of the base VLM into that folder."
        )
    remedy = "Copy the tokenizer files of the base VLM into that folder again."
    with file_boundary(TokenizerError, folder, remedy, "a tokenizer"):
        for path in sorted(folder.glob("*.json")):
            check_json(path)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
    raise AssertionError("the boundary raises or the tokenizer was read")


def build_byte_tokenizer(
    template: PromptTemplate, add_bos: bool = True, add_eos: bool = True
) -> "PreTrainedTokenizerBase":
    """pad 0, eos 1, bos 2, the template's control tokens, then the 256 bytes: takes any text,
    for models without a vocabulary."""
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
