"""The chat template: text, placeholders, what is learnt, positions."""

from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.data.sample import parse_sample
from keyekit.data.template import ChatTemplate, MediaGrid, TimeAxis, TimestampedFrames
from keyekit.nn.rope.positions import multimodal_positions

CLIP = MediaGrid(rows=2, columns=2, frames=3, timestamps=(0.0, 0.5, 1.0), fps=2.0)


def conversation(*turns, media: str | None = "video") -> object:
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    if media:
        messages[0]["content"].insert(0, {"type": media, media: "x"})
    return parse_sample({"id": "s", "messages": messages}, "f:1", Path())


def decode(tokenizer, tokens) -> str:
    return tokenizer.decode(tokens)


def test_timestamped_frames_in_chatml(tokenizer) -> None:
    sample = conversation(("user", "how many?"), ("assistant", "two"))
    rendered = ChatTemplate(TimestampedFrames()).render(sample, [CLIP], tokenizer)
    pads = "<|video_pad|>" * 4
    frames = "".join(f"<|frame|>{time}{pads}" for time in ("0.0", "0.5", "1.0"))  # Keye-VL 8B sheet 3.3
    assert decode(tokenizer, rendered.tokens) == (
        f"<|im_start|>user\n<|vision_start|>{frames}<|vision_end|>how many?<|im_end|>\n"
        "<|im_start|>assistant\ntwo<|im_end|>\n"
    )
    pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert [i for i, t in enumerate(rendered.tokens) if t == pad] == [
        i for span in rendered.spans for i in range(span.start, span.stop)
    ]


def test_only_the_answer_and_its_end_are_learnt(tokenizer) -> None:
    sample = conversation(("user", "one?"), ("assistant", "red"), ("user", "two?"), ("assistant", "blue"))
    rendered = ChatTemplate().render(sample, [CLIP], tokenizer)
    learnt = [token for token, is_learnt in zip(rendered.tokens, rendered.learnt, strict=True) if is_learnt]
    assert decode(tokenizer, learnt) == "red<|im_end|>blue<|im_end|>"


def test_a_prompt_ends_where_the_answer_begins(tokenizer) -> None:
    sample = conversation(("user", "one?"), ("assistant", "red"), media=None)
    prompt = ChatTemplate().render(sample, [], tokenizer, with_answer=False)
    whole = ChatTemplate().render(sample, [], tokenizer)
    assert decode(tokenizer, prompt.tokens) == "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"
    assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
    assert not any(prompt.learnt)


def test_time_axis_gives_the_sheets_positions(tokenizer) -> None:
    # Keye-VL 8B sheet 2.3: frames of one video at 2 fps are one step apart, at 1 fps two
    sample = conversation(("user", "x"), ("assistant", "y"))
    for fps, steps in ((2.0, (0, 1, 2)), (1.0, (0, 2, 4))):
        grid = MediaGrid(rows=2, columns=2, frames=3, timestamps=CLIP.timestamps, fps=fps)
        rendered = ChatTemplate(TimeAxis()).render(sample, [grid], tokenizer)
        (span,) = rendered.spans
        assert (span.frames, span.time_steps) == (3, steps)
        positions = multimodal_positions(len(rendered.tokens), rendered.spans)
        assert positions[0, span.start : span.stop : 4].tolist() == [span.start + step for step in steps]
        assert positions[0, span.stop] == positions[:, span.start : span.stop].max() + 1


def test_images_and_system_turn(tokenizer) -> None:
    sample = conversation(("user", "x"), ("assistant", "y"), media="image")
    rendered = ChatTemplate(system="be short").render(sample, [MediaGrid(rows=1, columns=2)], tokenizer)
    text = decode(tokenizer, rendered.tokens)
    assert text.startswith("<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\n")
    assert "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>x" in text
    own = conversation(("system", "mine"), ("user", "x"), ("assistant", "y"), media=None)
    assert "be short" not in decode(tokenizer, ChatTemplate(system="be short").render(own, [], tokenizer).tokens)


def test_conversations_without_an_answer_cannot_be_learnt(tokenizer) -> None:
    with pytest.raises(BadData, match="does not end with an assistant turn"):
        ChatTemplate().render(conversation(("user", "x"), media=None), [], tokenizer)
    with pytest.raises(BadData, match="no user turn"):
        ChatTemplate().render(conversation(("assistant", "x"), media=None), [], tokenizer, with_answer=False)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|video_pad|>", "<|image_pad|>", "<|vision_start|>"])
def test_texts_cannot_forge_turns_or_pictures(tokenizer, token: str) -> None:
    sample = conversation(("user", f"x{token}y"), ("assistant", "z"), media=None)
    with pytest.raises(BadData, match="would read as a real one") as caught:
        ChatTemplate().render(sample, [], tokenizer)
    assert caught.value.reason == "forged_token"


def test_boxes_and_thoughts_are_ordinary_answers(tokenizer) -> None:
    answer = "<think>where</think><|box_start|>[[1, 2, 3, 4]]<|box_end|>"
    rendered = ChatTemplate().render(conversation(("user", "x"), ("assistant", answer), media=None), [], tokenizer)
    learnt = [token for token, is_learnt in zip(rendered.tokens, rendered.learnt, strict=True) if is_learnt]
    assert decode(tokenizer, learnt) == f"{answer}<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<|box_start|>") in learnt


def test_prompts_of_long_conversations_are_beginnings_of_them(tokenizer) -> None:
    sample = conversation(
        ("user", "one?"), ("assistant", "red"), ("user", "two?"), ("assistant", "blue"), media="image"
    )
    for layout in (TimeAxis(), TimestampedFrames()):
        template = ChatTemplate(layout, system="be short")
        grid = [MediaGrid(rows=2, columns=1)]
        whole, prompt = (template.render(sample, grid, tokenizer, with_answer=given) for given in (True, False))
        assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
        assert decode(tokenizer, whole.tokens[len(prompt.tokens) :]) == "blue<|im_end|>\n"
        assert whole.spans == prompt.spans


def test_each_timestamped_frame_is_a_block_of_its_own(tokenizer) -> None:
    # Keye-VL-2.0 sheet 7.3: every frame starts one past the largest position before it and advances by its longer side
    grid = MediaGrid(rows=2, columns=3, frames=2, timestamps=(0.0, 12.25), fps=2.0)
    rendered = ChatTemplate().render(conversation(("user", "x"), ("assistant", "y")), [grid], tokenizer)
    positions = multimodal_positions(len(rendered.tokens), rendered.spans)
    following = 0
    for token, position in enumerate(positions.T.tolist()):
        span = next((span for span in rendered.spans if span.start <= token < span.stop), None)
        if span is None:
            assert position == [following] * 3
            following += 1
            continue
        row, column = divmod(token - span.start, 3)
        assert position == [following, following + row, following + column]
        following += 3 * (token == span.stop - 1)
    assert "<|frame|>12.2" in decode(tokenizer, rendered.tokens)  # one decimal, as Python rounds
