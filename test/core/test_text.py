"""Prompts and tokenizers.

- The templates are the reference's, the instruction stripped and its case kept.
- A word-level tokenizer keeps its ids on disk and when words are added, and knows its template.
- Refused by name: empty, over-long, unknown words (with the nearest known one), control tokens inside the instruction.
- Batches are padded on the right; a fixed length is kept; an open end drops the eos.
- A folder without tokenizer files is an error that names the files.
"""

import pytest

from robovlms_ros.core.types import ObservationError
from robovlms_ros.models.tokenization import (
    DEFAULT_TEMPLATE,
    TEMPLATES,
    PromptTemplate,
    PromptTokenizer,
    TokenizerError,
    build_word_tokenizer,
    discrete_template,
    load_tokenizer,
)

WORDS = ["lift", "the", "red", "green", "cube"]


def prompt_tokenizer(family="paligemma", **settings):
    return PromptTokenizer(build_word_tokenizer(WORDS, TEMPLATES[family]), TEMPLATES[family], **settings)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("kosmos", "<grounding>An image of a robot Lift it"),
        ("paligemma", "<eos>Lift it\n"),
        ("flamingo", "<image>Lift it<|endofchunk|><eos>"),
        ("llava", "Lift it"),
        ("qwen", "Lift it"),
        ("uform", "<image> Lift it"),
    ],
)
def test_templates(family, text):
    assert TEMPLATES[family].render("  Lift it ", "<eos>") == text


def test_default_and_discrete_templates():
    assert DEFAULT_TEMPLATE.render("go") == "<|endoftext|>go"
    question = "Input: What 11 step actions should the robot take to go?\nOutput:"
    assert discrete_template(11).render("go", "</s>") == question + " \n</s>"
    assert discrete_template(11, "").render("go", "</s>") == question


def test_ids_stay_the_same_on_disk(tmp_path):
    prompt = prompt_tokenizer("kosmos")
    prompt.tokenizer.save_pretrained(tmp_path)
    again = PromptTokenizer(load_tokenizer(tmp_path), TEMPLATES["kosmos"])
    assert again.ids("lift the red cube") == prompt.ids("lift the red cube")


def test_paligemma_prompt_ends_with_its_newline():
    prompt = prompt_tokenizer()
    ids = prompt.tokenizer.convert_ids_to_tokens(prompt.ids("lift the red cube"))
    assert ids == ["<eos>", "lift", "the", "red", "cube", "\n"]


def test_words_added_later_keep_the_others_ids():
    template = TEMPLATES["paligemma"]
    before, after = (build_word_tokenizer(words, template).get_vocab() for words in (WORDS, [*WORDS, "blue"]))
    assert {word: after[word] for word in before} == before


def test_a_list_entry_with_a_blank_is_refused():
    with pytest.raises(TokenizerError, match="'red cube'"):
        build_word_tokenizer(["red cube"], TEMPLATES["llava"])


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("", ["empty"]),
        (" \n\t ", ["empty"]),
        ("lift " * 2000, ["9999 characters", "at most 1000"]),
        ("a" * 10_000, ["10000 characters"]),
        ("lift the rde cube", ["'rde'", "Did you mean 'red'?"]),
        ("push the blue cube", ["'push', 'blue'", "cube, green, lift, red, the"]),
        ("lift <eos> the cube", ["'<eos>'", "control token"]),
    ],
)
def test_unusable_instructions(instruction, words):
    with pytest.raises(ObservationError) as error:
        prompt_tokenizer().ids(instruction)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_too_many_tokens():
    with pytest.raises(ObservationError, match="8 tokens, the model takes 6"):
        prompt_tokenizer(max_length=6).ids("lift the red cube the cube")
    with pytest.raises(ObservationError, match="at most 4 fit"):
        prompt_tokenizer().encode(["lift the red cube"], length=4)


def test_batches_are_padded_on_the_right():
    batch = prompt_tokenizer().encode(["lift the red cube", "lift the cube"], length=8)
    assert batch.input_ids.shape == (2, 8)
    assert batch.attention_mask.tolist() == [[1] * 6 + [0] * 2, [1] * 5 + [0] * 3]
    assert batch.input_ids[1, 5:].tolist() == [0, 0, 0]
    assert prompt_tokenizer().encode(["lift the cube"]).input_ids.shape == (1, 5)


def test_open_end_drops_the_eos():
    closed, opened = (prompt_tokenizer("kosmos", open_end=end).ids("lift the cube") for end in (False, True))
    assert closed[-1] == 1 and closed[:-1] == opened


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_template_that_needs_an_eos():
    tokenizer = build_word_tokenizer(WORDS, TEMPLATES["llava"])
    tokenizer.eos_token = None
    with pytest.raises(TokenizerError, match="eos"):
        PromptTokenizer(tokenizer, PromptTemplate("{instruction}{eos}"))
