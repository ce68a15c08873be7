import subprocess
import sys
import unicodedata

import pytest

from keyekit.data.tokenizer import REQUIRED_TOKENS, SPECIAL_TOKENS, SpecialTokens, load_tokenizer, train_tokenizer
from keyekit.data.world import FAMILIES, World


@pytest.fixture(scope="module")
def texts():
    world = World("unused", train=dict.fromkeys(FAMILIES, 60), heldout={})
    return [
        part["text"]
        for task in FAMILIES
        for sample in world.samples(task, "train")
        for message in sample["messages"]
        for part in message["content"]
        if part["type"] == "text"
    ]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "trained"
    train_tokenizer(texts, path, vocab_size=512)
    return path


def test_special_tokens_follow_the_vocabulary_in_order(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    first = len(tokenizer) - len(SPECIAL_TOKENS)
    assert ids == list(range(first, first + len(SPECIAL_TOKENS)))
    assert len(tokenizer) <= 512
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert SPECIAL_TOKENS[0] == "<|endoftext|>"
    assert len(SPECIAL_TOKENS) == 151674 - 151643 + 1 + 3
    for token, number in zip(SPECIAL_TOKENS, ids, strict=True):
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"].count(number) == 1


def test_the_order_is_that_of_the_released_tokenizer():
    # Ids of the Keye-VL-8B-Preview tokenizer that its configuration and code refer to.
    released = {"<|im_end|>": 151645, "<|vision_start|>": 151652, "<|image_pad|>": 151655, "<|video_pad|>": 151656}
    released |= {"<tool_call>": 151657, "<think>": 151667, "<|point_start|>": 151669, "<|clip_time_end|>": 151674}
    for token, number in released.items():
        assert SPECIAL_TOKENS.index(token) == number - 151643


def test_world_texts_come_back(folder, texts):
    tokenizer = load_tokenizer(folder)
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  two  spaces , and a comma .\n\n\ttab\r\n",
        "Ünïcödé — 你好，世界 🎥👩‍👩‍👧 \u200b",
        unicodedata.normalize("NFD", "é is two code points here"),
        "don't 12345 3.14",
        "".join(chr(code) for code in range(1, 512)),
        "<|im_start|>user\nhi<|im_end|>\n",
    ],
)
def test_every_text_comes_back(folder, text):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_stay_single_and_frequent_words_are_whole(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("2048")["input_ids"]) == list("2048")
    assert len(tokenizer("red\nblue")["input_ids"]) == 3
    assert len(tokenizer("<|im_start|>assistant\n")["input_ids"]) == 3


def test_training_twice_gives_the_same_files(folder, texts, tmp_path):
    train_tokenizer(iter(texts), tmp_path, vocab_size=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_folder_loads_in_transformers_offline(folder):
    code = (
        "from transformers import AutoTokenizer; import sys\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(len(t), t.eos_token, t.pad_token, t('a red circle<|im_end|>')['input_ids'])"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    tokenizer = load_tokenizer(folder)
    ids = tokenizer("a red circle<|im_end|>")["input_ids"]
    assert done.stdout.strip() == f"{len(tokenizer)} <|im_end|> <|endoftext|> {ids}"


def test_special_tokens_are_looked_up(folder):
    tokenizer = load_tokenizer(folder)
    special = SpecialTokens.of(tokenizer)
    assert tokenizer.decode([special.im_start]) == "<|im_start|>"
    assert tokenizer.convert_ids_to_tokens(special.frame) == "<|frame|>"
    assert special.video_pad == special.image_pad + 1


def _save_with(tokens, path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.add_special_tokens(list(tokens))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)


def test_a_tokenizer_without_video_tokens_is_refused(tmp_path):
    _save_with([token for token in REQUIRED_TOKENS if token != "<|video_pad|>"], tmp_path)
    with pytest.raises(ValueError, match=r"lacks the special tokens <\|video_pad\|>; take"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_frame_tokens_is_accepted(tmp_path):
    _save_with(REQUIRED_TOKENS, tmp_path)
    assert SpecialTokens.of(load_tokenizer(tmp_path)).frame is None


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 291"):
        train_tokenizer(["a"], tmp_path, vocab_size=290)


def test_importing_the_module_is_light():
    code = "import sys, keyekit.data.tokenizer; print({'transformers', 'torch', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
