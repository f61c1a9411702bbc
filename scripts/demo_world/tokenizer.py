"""The demo model's tokenizer: byte-level BPE, Qwen-VL's special tokens and chat format."""

from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_world.questions import NAMED, QUESTIONS, STILL_PICTURE_QUESTIONS, SYSTEM_PROMPTS
from demo_world.times import BETWEEN, CHANGES, NEVER, WHEN
from demo_world.world import COLORS, DIRECTIONS, SHAPES

VOCABULARY = 768
_TIMED = (*WHEN, *CHANGES, *BETWEEN, *NAMED)
DEFAULT_SYSTEM = "You are a helpful assistant."
# In Qwen2-VL's own order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Words as Qwen2 cuts them: contractions, letters with one leading mark, single digits, marks, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first and message.role != 'system' -%}"
    "{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'text' -%}{{ part.text }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def _corpus(*, timed: bool) -> Iterator[str]:
    if timed:
        yield from (text.format(what="red circle", color="blue", begin="0:01", end="0:02") for text in _TIMED)
        yield from ("<0.3 seconds>", "<12.8 seconds>", "at 0:03.5.", NEVER, "there is no red circle.") * 20
    for wordings in QUESTIONS.values():
        for text in wordings:
            yield from (text, text.capitalize(), text.lower(), text.upper())
    yield from (*SYSTEM_PROMPTS, *STILL_PICTURE_QUESTIONS, DEFAULT_SYSTEM, "system\nuser\nassistant\n")
    for shape in SHAPES:
        for color in COLORS:
            for verb in (
                *(f"moves {way}" for way in DIRECTIONS),
                "stays still",
                "appears",
                *(f"turns {c}" for c in COLORS),
            ):
                yield f"first a {color} {shape} {verb}, then a {color} {shape} {verb}."
    yield "one. two. none. nothing visible. it stays still. red, then blue. the video shows two shapes: one shape:"


def build_tokenizer(*, timed: bool = False) -> PreTrainedTokenizerFast:
    """Train the merges on the generator's own sentences; any other text falls back to bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(timed=timed), trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
