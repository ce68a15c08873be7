"""How answers of KC-MMBench are compared with what is right (Keye-VL 8B sheet 8.3 and 8.4)."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from keyekit.evaluation.benchmark import Verdict
from keyekit.evaluation.judges import Judge, ask_until
from keyekit.metrics.extraction import extract_yes_no

__all__ = ["judge_open", "judge_yes_no", "last_list", "read_attributes", "read_order", "read_topics"]

NO_VERDICT = "neither yes nor no"
NO_REPLY = "no usable reply of the judge"
NO_LIST = "no list named"
NO_ATTRIBUTES = "no attributes named"

_RIGHT, _WRONG = "回答正确", "回答错误"

_ASK_YES_NO = (
    "下面有一个只能用“是”或“否”回答的问题，以及一个回答。请判断这个回答表示“是”还是“否”；如果两者都不是，请输出 Unknown。"
    "只输出：是、否、Unknown 三者之一。\n问题：{question}\n回答：{answer}\n输出："
)
_ASK_TOPICS = (
    "下面的文字判断了列表中每个视频与第一个视频是否属于同一主题，其中可能有分析过程。请只提取最后的结论，"
    "按顺序写成由“是”和“否”组成的列表，形式为[是, 否, 是]。\n文字：{answer}\n列表："
)
_ASK_SAME = (
    "下面有一个标准答案和一个回答。请忽略回答中的分析过程，只比较回答的结论与标准答案是否一致。"
    f"一致请输出“{_RIGHT}”，不一致请输出“{_WRONG}”。\n标准答案：{{gold}}\n回答：{{answer}}\n输出："
)


def judge_yes_no(response: str, gold: str, question: str, judge: Judge | None, as_released: bool) -> Verdict:
    """Compare 是 and 否; a response that says neither goes to the judge, and is wrong without one (8B sheet 8.3).

    Args:
        response: The extracted answer.
        gold: 是 or 否.
        question: The question, for the judge.
        judge: The judge, if there is one.
        as_released: See :func:`~keyekit.metrics.extraction.extract_yes_no`.
    """
    said = extract_yes_no(response, as_released)
    if said is None and judge is not None:
        prompt = _ASK_YES_NO.format(question=question, answer=_without_thought(response))
        said = ask_until(judge, prompt, lambda reply: extract_yes_no(reply, as_released))
    return Verdict(score=float(said == gold), extracted=said, problem=NO_VERDICT if said is None else None)


def judge_open(kind: str, response: str, gold: str, judge: Judge | None) -> Verdict:
    """Compare lists of topics, orders and attributes (8B sheet 8.4).

    With a judge: it takes the list of topics out of the response, or says itself whether an order or attributes are right.
    Without one, the response has to hold a list, or an object of attributes, that equals the right one.

    Args:
        kind: ``topics``, ``order`` or ``attributes``.
        response: The extracted answer.
        gold: What is right, as the table has it.
        judge: The judge, if there is one.
    """
    answer = _without_thought(response)
    if kind == "topics":
        if judge is not None:
            said = ask_until(judge, _ASK_TOPICS.format(answer=answer), lambda reply: reply)
            return _compared(None if said is None else read_topics(said), gold.split("_"), NO_REPLY)
        return _compared(read_topics(answer), gold.split("_"), NO_LIST)
    if judge is not None:
        said = ask_until(judge, _ASK_SAME.format(gold=gold, answer=answer), lambda reply: reply)
        right = said is not None and _RIGHT in said
        return Verdict(score=float(right), extracted=said, problem=NO_REPLY if said is None else None)
    if kind == "order":
        return _compared(read_order(answer), read_order(gold), NO_LIST)
    return _compared(read_attributes(answer), read_attributes(gold), NO_ATTRIBUTES)


def last_list(text: str) -> str | None:
    """Inside of the last pair of brackets.

    Example:
        >>> last_list("[1] or rather [2, 3].")
        '2, 3'
    """
    found = re.findall(r"\[(.*?)\]", text)
    return found[-1] if found else None


def read_topics(text: str) -> list[str] | None:
    """是 and 否 of the last list, in order; ``None`` if there is no list.

    Example:
        >>> read_topics("结论：[是, 否，是]")
        ['是', '否', '是']
    """
    inside = last_list(text)
    return None if inside is None else re.findall("[是否]", inside)


def read_order(text: str) -> list[int] | None:
    """Numbers of the last list, in order; ``None`` if there is no list.

    Example:
        >>> read_order("[Video 3, Video 1, Video 2]")
        [3, 1, 2]
    """
    inside = last_list(text)
    return None if inside is None else [int(number) for number in re.findall(r"\d+", inside)]


def read_attributes(text: str) -> dict[str, list[str]] | None:
    """Values of each attribute, sorted; ``None`` if the text holds no object.

    Example:
        >>> read_attributes("{'colour': ['red', 'blue'], 'size': 'L'}")
        {'colour': ['blue', 'red'], 'size': ['L']}
    """
    start, end = text.find("{"), text.rfind("}")
    value: Any = None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text[start : end + 1])
            break
        except (ValueError, SyntaxError, RecursionError):
            continue
    if start < 0 or not isinstance(value, dict):
        return None
    listed = {name: entry if isinstance(entry, list) else [entry] for name, entry in value.items()}
    return {str(name).strip(): sorted(str(entry).strip() for entry in entries) for name, entries in listed.items()}


def _compared(said: Any, gold: Any, problem: str) -> Verdict:
    return Verdict(
        score=float(said is not None and said == gold), extracted=said, problem=problem if said is None else None
    )


def _without_thought(text: str) -> str:
    return re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
