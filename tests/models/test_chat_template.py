"""Chat templates: rendered as by transformers, and within limits of time, memory and length."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.models.hostile import copy_demo
from vidqa import EngineConfig, Request, Session
from vidqa.errors import Interrupted, ModelError
from vidqa.models.chat_template import ChatTemplate
from vidqa.models.hub import demo_folder

CLIP = str(Path(__file__).parents[2] / "assets" / "demo.mp4")
SPECIAL = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief. <&> é \U0001f3ac"},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?\n"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A \\ circle."}]},
    {"role": "user", "content": [{"type": "text", "text": "Which 'colour' has it?"}]},
]
NORMAL = {
    "demo": (demo_folder() / "chat_template.jinja").read_text(),
    "special tokens": "{{ eos_token }}{{ pad_token }}{{ bos_token }}{{ tools }}{{ add_generation_prompt }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages | tojson(ensure_ascii=true) }}",
    "generation": "{% for m in messages %}{% generation %}<{{ m.role }}>{% endgeneration %}{% endfor %}",
    "namespaces": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "dictionaries": "{{ dict(a=1, b=messages[0].role) }}{{ dict.fromkeys('ab', 2) }}",
    "macros": "{% macro say(m) %}[{{ m.role | upper }}]{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "today": "{{ strftime_now('%Y-%m') }}",
    "types": "{% for m in messages %}{{ m.content is string }}{{ m.content is iterable }}{% endfor %}",
}
BROKEN = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "takes too long",
    "{{ 10 ** (10 ** 8) }}": "takes too long",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}": "writes more than 105",
    "{{ 'x' * 10**9 }}": "more than 512 MiB",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "calls itself without end",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{{ raise_exception.__globals__['os'] }}": "SecurityError",
    "{% set n = namespace(_x=1) %}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{{ raise_exception('only images') }}": "only images",
    "{% if %}": "TemplateSyntaxError",
    "{% include 'config.json' %}": "no loader",
    "{{ nothing.here }}": "UndefinedError",
}


def transformers_text(template: str) -> str:
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(demo_folder() / "tokenizer.json"), **SPECIAL)
    text = tokenizer.apply_chat_template(MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True)
    return str(text)


def make_template(template: str) -> ChatTemplate:
    return ChatTemplate(template, "some/chat_template.jinja", SPECIAL)


@pytest.mark.parametrize("name", NORMAL)
def test_renders_as_transformers(name: str) -> None:
    assert make_template(NORMAL[name]).render(MESSAGES) == transformers_text(NORMAL[name])


@pytest.mark.parametrize("template", BROKEN)
def test_failing_template_is_a_model_error(template: str) -> None:
    began = time.monotonic()
    with pytest.raises(ModelError, match=BROKEN[template]) as failed:
        make_template(template).render(MESSAGES)
    assert failed.value.what.startswith("some/chat_template.jinja: the chat template cannot be rendered: ")
    assert "instruct" in failed.value.remedy
    assert time.monotonic() - began < 7


def test_one_process_renders_all_prompts() -> None:
    template = make_template(NORMAL["demo"])
    template.start()
    process = template._process
    assert process is not None
    assert template.render(MESSAGES) == template.render(MESSAGES) and template._process is process
    assert process.poll() is None
    del template
    assert process.poll() is not None


def test_long_conversation() -> None:
    content = "word " * 400_000  # 2 MB: more than the capacity of a pipe, and than the constant limit
    assert make_template("{{ messages[0].content }}").render([{"role": "user", "content": content}]) == content


def test_next_prompt_after_a_failure() -> None:
    template = make_template("{% if messages|length > 3 %}{{ 'x' * 10**9 }}{% endif %}{{ messages[0].role }}")
    with pytest.raises(ModelError):
        template.render(MESSAGES)
    assert template.render(MESSAGES[:1]) == "system"


def test_rendering_is_cancelled(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(next(iter(BROKEN)))
    session = Session(EngineConfig(model=str(folder), device="cpu", isolate_decoder=False, remember=False))
    began: list[float] = []

    def cancel() -> None:
        while session.loaded is None:
            time.sleep(0.01)
        time.sleep(0.3)  # the loop has begun
        began.append(time.monotonic())
        session.cancel()

    threading.Thread(target=cancel).start()
    with session, pytest.raises(Interrupted, match="while the prompt was made"):
        list(session.ask(Request(CLIP, "what?")))
    assert time.monotonic() - began[0] < 1
