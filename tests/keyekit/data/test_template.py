"""The chat template: text, placeholders, what is learnt, positions."""

from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.data.sample import parse_sample
from keyekit.data.template import DEFAULT_SYSTEM, ChatTemplate, MediaGrid, TimeAxis, TimestampedFrames
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


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "<|im_start|>", "<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|frame|>", "<|fast_end|>"],
)
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


def text_of(tokenizer, sample, grids=(), template=None, **arguments) -> str:
    return decode(tokenizer, (template or ChatTemplate()).render(sample, list(grids), tokenizer, **arguments).tokens)


def test_fast_frames_stand_between_their_own_tokens(tokenizer) -> None:
    # Keye-VL 8B sheet 3.3
    grid = MediaGrid(
        rows=2, columns=2, frames=3, timestamps=(0.0, 0.5, 12.25), fps=2.0, fast=(False, True, False), fast_grid=(1, 2)
    )
    rendered = ChatTemplate().render(conversation(("user", "x"), ("assistant", "y")), [grid], tokenizer)
    pad = "<|video_pad|>"
    assert (
        f"<|vision_start|><|frame|>0.0{pad * 4}<|frame|>0.5<|fast_start|>{pad * 2}<|fast_end|><|frame|>12.2{pad * 4}"
        "<|vision_end|>x"
    ) in decode(tokenizer, rendered.tokens)
    assert [(span.rows, span.columns) for span in rendered.spans] == [(2, 2), (1, 2), (2, 2)]
    positions = multimodal_positions(len(rendered.tokens), rendered.spans)
    for span in rendered.spans:  # every frame is a block of its own that advances by its longer side
        before, after = positions[0, span.start - 1], positions[0, span.stop]
        assert positions[0, span.start] == before + 1
        assert after == before + 1 + max(span.rows, span.columns)


def test_frames_without_times_have_the_mark_alone(tokenizer) -> None:
    grid = MediaGrid(rows=1, columns=1, frames=2, fps=2.0)
    found = text_of(tokenizer, conversation(("user", "x"), ("assistant", "y")), [grid])
    assert "<|vision_start|><|frame|><|video_pad|><|frame|><|video_pad|><|vision_end|>" in found


def test_the_wording_of_times_is_an_argument(tokenizer) -> None:
    layout = TimestampedFrames(mark="", seconds="<{:.2f} seconds>")
    grid = MediaGrid(rows=1, columns=1, frames=1, timestamps=(1.5,), fps=2.0)
    found = text_of(tokenizer, conversation(("user", "x"), ("assistant", "y")), [grid], ChatTemplate(layout))
    assert "<|vision_start|><1.50 seconds><|video_pad|><|vision_end|>" in found
    for seconds in ("now", "{:.1q}", "{", "{name}", "{} {}"):
        with pytest.raises(ValueError, match="seconds="):
            TimestampedFrames(seconds=seconds)


def test_the_time_axis_cuts_to_whole_steps(tokenizer) -> None:
    def steps(fps: float, **arguments) -> tuple[int, ...]:
        (run,) = TimeAxis(**arguments).pieces(MediaGrid(rows=1, columns=1, frames=6, fps=fps))
        return run.time_steps

    assert steps(2.0) == steps(2.0, tolerance=0.0) == (0, 1, 2, 3, 4, 5)
    assert steps(3.0, tolerance=0.0) == (0, 0, 1, 2, 2, 3)
    rounded = 2.0000000000000004  # what a rate of two may be after division and multiplication
    assert steps(rounded) == (0, 1, 2, 3, 4, 5)
    assert steps(rounded, tolerance=0.0) == (0, 0, 1, 2, 3, 4)  # Keye-VL 8B sheet 2.3: neighbours share an index
    assert steps(1.0, steps_per_second=25.0) == (0, 25, 50, 75, 100, 125)
    grid = MediaGrid(rows=1, columns=1, frames=1, fast=(True,), fast_grid=(1, 1))
    with pytest.raises(ValueError, match="give slow and fast frames TimestampedFrames"):
        TimeAxis().pieces(grid)
    with pytest.raises(ValueError, match="tolerance < 1"):
        TimeAxis(tolerance=1.0)


def test_grids_agree_with_themselves() -> None:
    with pytest.raises(ValueError, match="3 frames, but 2 entries in timestamps"):
        MediaGrid(rows=1, columns=1, frames=3, timestamps=(0.0, 1.0))
    with pytest.raises(ValueError, match="3 frames, but 1 entries in fast"):
        MediaGrid(rows=1, columns=1, frames=3, fast=(True,))


def test_the_default_system_turn_is_qwens(tokenizer) -> None:
    # Keye-VL 8B sheet 2.4
    template = ChatTemplate(system=DEFAULT_SYSTEM)
    prompt = text_of(tokenizer, conversation(("user", "x"), media=None), template=template, with_answer=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_pictures_and_videos_may_be_numbered(tokenizer) -> None:
    items = [{"type": "image", "image": "a"}, {"type": "video", "video": "b"}, {"type": "image", "image": "c"}]
    sample = parse_sample(
        {"messages": [{"role": "user", "content": items}, {"role": "assistant", "content": "y"}]}, "f:1", Path()
    )
    grids = [
        MediaGrid(rows=1, columns=1),
        MediaGrid(rows=1, columns=1, timestamps=(0.0,)),
        MediaGrid(rows=1, columns=1),
    ]
    found = text_of(tokenizer, sample, grids, ChatTemplate(add_vision_id=True))
    assert (
        "user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>"
        "Video 1: <|vision_start|><|frame|>0.0<|video_pad|><|vision_end|>"
        "Picture 2: <|vision_start|><|image_pad|><|vision_end|><|im_end|>"
    ) in found
    assert "Picture" not in text_of(tokenizer, sample, grids)


@pytest.mark.parametrize(("mode", "suffix"), [("auto", ""), ("think", "/think"), ("no_think", "/no_think")])
def test_the_mode_is_asked_for_behind_the_last_user_text(tokenizer, mode, suffix: str) -> None:
    # Keye-VL 8B sheet 2.5: appended to the last user text, no space added
    sample = conversation(("user", "one?"), ("assistant", "red"), ("user", "two?"), media=None)
    prompt = text_of(tokenizer, sample, template=ChatTemplate(mode=mode), with_answer=False)
    assert prompt.endswith(f"user\ntwo?{suffix}<|im_end|>\n<|im_start|>assistant\n")
    assert "one?<|im_end|>" in prompt


def test_a_question_without_words_still_asks_for_its_mode(tokenizer) -> None:
    items = [{"type": "text", "text": "this"}, {"type": "image", "image": "a"}]
    for content, expected in ((items, "this/think<|vision_start|>"), (items[1:], "<|vision_end|>/think<|im_end|>")):
        sample = parse_sample({"messages": [{"role": "user", "content": content}]}, "f:1", Path())
        template, grids = ChatTemplate(mode="think"), [MediaGrid(rows=1, columns=1)]
        assert expected in text_of(tokenizer, sample, grids, template, with_answer=False)


def thinking(mode: str | None = None, **parts: str) -> object:
    messages = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "red", "thought": "first thought"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "blue", **parts},
    ]
    return parse_sample({"messages": messages, "meta": {} if mode is None else {"mode": mode}}, "f:1", Path())


@pytest.mark.parametrize(
    ("mode", "parts", "said"),
    [
        ("think", {"thought": "t", "analysis": "a"}, "<think>t</think><answer>blue</answer>"),
        ("no_think", {"thought": "t"}, "blue"),
        (
            "auto",
            {"thought": "t", "analysis": "hard."},
            "<analysis>hard. /think</analysis><think>t</think><answer>blue</answer>",
        ),
        ("auto", {"analysis": "easy."}, "<analysis>easy. /no_think</analysis>blue"),
        ("auto", {}, "blue"),
        ("think", {}, "blue"),
    ],
)
def test_training_targets_have_the_shape_of_their_mode(tokenizer, mode: str, parts, said: str) -> None:
    for template, sample in ((ChatTemplate(mode=mode), thinking(**parts)), (ChatTemplate(), thinking(mode, **parts))):  # pyright: ignore
        rendered = template.render(sample, [], tokenizer)
        learnt = [token for token, is_learnt in zip(rendered.tokens, rendered.learnt, strict=True) if is_learnt]
        assert decode(tokenizer, learnt) == f"red<|im_end|>{said}<|im_end|>"  # thoughts of earlier turns are left out
        prompt = template.render(sample, [], tokenizer, with_answer=False)
        assert rendered.tokens[: len(prompt.tokens)] == prompt.tokens


@pytest.mark.parametrize(
    ("mode", "parts", "problem"),
    [
        ("auto", {"thought": "t"}, "needs an analysis"),
        ("think", {"analysis": "a"}, "needs a thought"),
        ("loud", {}, "choose auto, think, no_think"),
    ],
)
def test_samples_that_do_not_fit_their_mode_are_bad_data(tokenizer, mode: str, parts, problem: str) -> None:
    with pytest.raises(BadData, match=problem) as caught:
        ChatTemplate().render(thinking(mode, **parts), [], tokenizer)
    assert caught.value.reason == "bad_mode"


def test_thoughts_cannot_forge_turns(tokenizer) -> None:
    with pytest.raises(BadData, match="would read as a real one"):
        ChatTemplate().render(thinking("think", thought="x<|im_end|>"), [], tokenizer)


def test_a_document_is_its_text_and_an_end(tokenizer) -> None:
    content = [
        {"type": "image", "image": "x.png"},
        {"type": "text", "text": "a red bus"},
        {"type": "end"},
        {"type": "text", "text": "which one?", "learnt": False},
        {"type": "text", "text": "red"},
    ]
    sample = parse_sample({"messages": [{"role": "document", "content": content}]}, "f:1", Path())
    rendered = ChatTemplate(system=DEFAULT_SYSTEM).render(sample, [MediaGrid(rows=1, columns=2)], tokenizer)
    picture = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    assert decode(tokenizer, rendered.tokens) == f"{picture}a red bus<|im_end|>which one?red<|endoftext|>"
    learnt = [token for token, is_learnt in zip(rendered.tokens, rendered.learnt, strict=True) if is_learnt]
    assert decode(tokenizer, learnt) == "a red bus<|im_end|>red<|endoftext|>"
    assert [(span.start, span.stop) for span in rendered.spans] == [(1, 3)]
    with pytest.raises(BadData, match="asks nothing"):
        ChatTemplate().render(sample, [MediaGrid(rows=1, columns=2)], tokenizer, with_answer=False)


def test_a_document_stands_alone_and_conversations_hold_no_ends() -> None:
    document, turn = {"role": "document", "content": "x"}, {"role": "user", "content": "y"}
    with pytest.raises(BadData, match="stands alone"):
        parse_sample({"messages": [document, turn]}, "f:1", Path())
    with pytest.raises(BadData, match="needs a type"):
        parse_sample({"messages": [{"role": "user", "content": [{"type": "end"}]}]}, "f:1", Path())


def test_what_a_tool_shows_is_context_and_every_turn_of_the_assistant_is_learnt(tokenizer) -> None:
    call = '<tool_call>{"name": "crop"}</tool_call>'
    turns = (("user", "one?"), ("assistant", call), ("tool", "how many"), ("assistant", "red"))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image", "image": "x"})
    messages[2]["content"].append({"type": "image", "image": "y"})
    sample = parse_sample({"id": "s", "messages": messages}, "f:1", Path())
    grids = [MediaGrid(rows=1, columns=2), MediaGrid(rows=2, columns=2)]
    template = ChatTemplate()
    rendered = template.render(sample, grids, tokenizer)
    learnt = [token for token, is_learnt in zip(rendered.tokens, rendered.learnt, strict=True) if is_learnt]
    assert decode(tokenizer, learnt) == f"{call}<|im_end|>red<|im_end|>"
    shown = f"<tool_response>how many<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|></tool_response>"
    assert decode(tokenizer, rendered.tokens) == (
        f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 2}<|vision_end|>one?<|im_end|>\n"
        f"<|im_start|>assistant\n{call}<|im_end|>\n<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    )
    prompt = template.render(sample, grids[:1], tokenizer, with_answer=False)
    assert rendered.tokens[: len(prompt.tokens)] == prompt.tokens  # the answer begins with the call

    reply = template.reply(sample.messages[2], grids[1:], tokenizer, before=["image"])
    said = tokenizer.encode(f"{call}<|im_end|>", add_special_tokens=False)
    start = len(prompt.tokens) + len(said)
    assert rendered.tokens[start : start + len(reply.tokens)] == reply.tokens
    assert [span.start + start for span in reply.spans] == [rendered.spans[1].start]
    with pytest.raises(BadData, match="would read as a real one"):
        template.reply(conversation(("user", "<|im_end|>"), media=None).messages[0], [], tokenizer)


def test_numbers_of_pictures_go_on_in_replies(tokenizer) -> None:
    message = parse_sample(
        {"id": "s", "messages": [{"role": "tool", "content": [{"type": "image", "image": "y"}]}]}, "f:1", Path()
    ).messages[0]
    template = ChatTemplate(add_vision_id=True)
    reply = template.reply(message, [MediaGrid(rows=1, columns=1)], tokenizer, before=["image", "video"])
    assert "Picture 2: " in decode(tokenizer, reply.tokens)
