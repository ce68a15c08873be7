"""A plan as tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from keyekit.models.memory import Activations
from keyekit.models.plan import Costs, Plan, Setting

__all__ = ["render"]

_GIB = 2**30

_OPERATIONS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("dense", (("linear", "projections, feed-forward"), ("attention", "attention"), ("head", "output layer"))),
    ("mixture", (("router", "routers"), ("experts", "experts"))),
    (
        "sparse",
        (
            ("indexer", "indexer projections"),
            ("selection", "scores of visible pairs"),
            ("sparse_attention", "attention over selected"),
            ("indexer_loss", "indexer loss"),
        ),
    ),
    (
        "vision",
        (("vision_linear", "tower"), ("vision_attention", "tower attention"), ("projector", "projector")),
    ),
)
"""Groups of operations with the fields of :class:`~keyekit.models.flops.Flops` in each and what they are called."""


def render(plan: Plan, console: Console | None = None) -> None:
    """Print a plan.

    Args:
        plan: What to print.
        console: Where; standard output by default.
    """
    console = console or Console(highlight=False)
    console.print(f"\n[bold]{plan.name}[/]\n")
    console.print(_parameters(plan))
    if plan.costs is not None:
        console.print(_operations(plan, plan.costs))
    console.print(_memory(plan))
    if plan.costs is not None:
        console.print(_caches(plan, plan.costs))
    for note in _notes(plan):
        console.print(f"[dim]· {note}[/]")
    console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters", "part", "shipped", "used", "active")
    for part in plan.parts:
        style = None if part.used else "dim"
        table.add_row(part.name, _count(part.shipped), _count(part.used), _count(part.active), style=style)
    table.add_section()
    table.add_row("total", _count(plan.shipped), _count(plan.used), _count(plan.active), style="bold")
    if plan.trainable != plan.used:
        table.add_row("of which trained", "", _count(plan.trainable), "")
    return table


def _count(number: int) -> str:
    return f"{number:,}" if number else "–"


def _operations(plan: Plan, costs: Costs) -> Table:
    tokens = plan.setting.sequence_length
    table = _table(
        f"Operations per token, averaged over a sequence of {tokens:,}", "", "forward", "training", "share of training"
    )

    def row(name: str, forward: float, training: float, style: str | None = None) -> None:
        share = f"{training / costs.training.total:.1%}"
        table.add_row(name, _flops(forward / tokens), _flops(training / tokens), share, style=style)

    for group, members in _OPERATIONS:
        if not getattr(costs.training, group):
            continue
        row(group, getattr(costs.forward, group), getattr(costs.training, group), "bold")
        for field, name in members:
            if getattr(costs.training, field):
                row(f"  {name}", getattr(costs.forward, field), getattr(costs.training, field))
    table.add_section()
    row("total", costs.forward.total, costs.training.total, "bold")
    return table


def _flops(number: float) -> str:
    if not number:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.2f} {unit}FLOP"
    return f"{number / 1e3:,.2f} kFLOP"


def _memory(plan: Plan) -> Table:
    setting, state, costs = plan.setting, plan.state, plan.costs
    columns = _activation_columns(plan)
    names = tuple(columns) or ("bytes",)
    ranks = f"{setting.devices} rank{'s' if setting.devices > 1 else ''}"
    if setting.parts is None:
        ranks += ", fully sharded" if setting.sharding == "full" else ", not sharded"
    table = _table(f"Memory per rank: {ranks}, {setting.precision}", "", *names)
    gathers = setting.parts is not None or setting.sharding == "full"
    rows = (
        ("weights", state.weights),
        ("gradients", state.gradients),
        ("AdamW moments", state.optimizer),
        ("gathered layers" if gathers else "16-bit copies", state.gathered),
        *([("frozen reference", state.frozen_reference)] if state.frozen_reference else []),
    )
    for name, held in rows:
        table.add_row(name, *[_bytes(held)] * len(names))
    if costs is not None:
        for name, field in (
            ("activations, decoder", "decoder"),
            ("activations, vision", "vision"),
            ("output layer and loss", "head"),
        ):
            table.add_row(name, *(_bytes(getattr(kept, field)) for kept in columns.values()))
    table.add_section()
    totals = [kept.total for kept in columns.values()] or [0.0]
    table.add_row("total", *(_bytes(state.total + extra) for extra in totals), style="bold")
    return table


def _activation_columns(plan: Plan) -> dict[str, Activations]:
    """Activations with nothing and with every layer recomputed; and as the recipe has it, if that is neither."""
    if plan.costs is None:
        return {}
    columns = {"layers kept": plan.costs.activations, "layers recomputed": plan.costs.checkpointed}
    planned = plan.costs.planned
    if plan.setting.parts is not None and planned not in columns.values():
        columns = {"as in the recipe": planned, **columns}
    elif plan.setting.parts is not None:
        columns = {f"{name}{' (recipe)' * (kept == planned)}": kept for name, kept in columns.items()}
    return columns


def _spread(setting: Setting) -> str:
    """How the parts are spread, in words."""
    parts = [
        f"{part} {'on each rank' if placement.shards == 1 else f'over {placement.shards or setting.devices} ranks'}"
        for part, placement in (setting.parts or {}).items()
    ]
    groups = [
        f"{number} ranks share {what}"
        for number, what in ((setting.sequence_ranks, "a pack"), (setting.expert_ranks, "the experts"))
        if number > 1
    ]
    return "; ".join([", ".join(parts), *groups])


def _bytes(number: float) -> str:
    for unit, size in (("GiB", _GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f} B" if number else "–"


def _caches(plan: Plan, costs: Costs) -> Table:
    context = plan.context or plan.setting.sequence_length
    table = _table("Caches while decoding", "", "a token", f"{context:,} tokens")
    rows = [("keys and values, 16 bits", costs.cache.key_value)]
    if costs.cache.index:
        rows.append(("index keys, 8 bits and scales", costs.cache.index))
        rows.append(("index keys, 16 bits", costs.cache.index_wide))
    for name, held in rows:
        table.add_row(name, _bytes(held), _bytes(held * context))
    return table


def _notes(plan: Plan) -> list[str]:
    setting, notes = plan.setting, list(plan.notes)
    if setting.parts is not None:
        notes.append(_spread(setting))
    if plan.host:
        notes.append(f"offloaded: {_bytes(plan.host)} of every rank lie in its host's memory")
    if plan.costs is None:
        return notes
    vision = setting.frames * setting.frame_tokens
    frames = f"{setting.frames:,} frame{'s' if setting.frames != 1 else ''}"
    notes.insert(
        0,
        f"one sequence: {setting.sequence_length - vision:,} text tokens and {vision:,} vision tokens in {frames} of "
        f"{setting.frame_tokens}",
    )
    if plan.costs.reference is not None:
        extra = _bytes(plan.costs.reference.decoder)
        notes.append(
            "activations are those of sparse attention through kernels; its PyTorch definition copies the selected keys and "
            f"values of every query, and the decoder then keeps {extra}"
        )
    notes.append("active: parameters that a text token passes; a vision token passes tower and projector first")
    notes.append("workspace of kernels, communication and the allocator's waste come on top")
    return notes
