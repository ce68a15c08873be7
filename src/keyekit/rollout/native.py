"""The toolkit's own rollout engine: continuous batching over the one generation code, in the process that trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from torch import nn
from torch.distributed.tensor import DTensor

from keyekit.data.packing import collate
from keyekit.models.decoding import DecodeState, decode_step, prefill
from keyekit.models.sampling import Draw
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.ledger import Recorder, split_by_sequence
from keyekit.rollout.trajectory import Prompt, Trajectory, TrajectoryEnd

__all__ = ["NativeEngine"]


class NativeEngine(RolloutEngine):
    """Responses take the place of those that ended, so that a batch stays full while their lengths differ.

    A prompt is read once, whatever the number of its responses: each starts from a copy of its keys and values. What a
    response says depends on the seed, on the prompt's name and on the response's number alone, not on what runs beside it.

    Args:
        spec: The model and how it is asked.
        slots: Responses that go on at the same time.
        prefill_tokens: Tokens of prompts that are read together; a longer prompt is read alone.
        collapsed: Says whether a response, token by token, has collapsed into repetition; it then ends.
        collapse_every: Tokens between two such questions.

    Raises:
        ValueError: If a number is not positive, or ranks share the weights between them.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        slots: int = 64,
        prefill_tokens: int = 8192,
        collapsed: Callable[[Sequence[int]], bool] | None = None,
        collapse_every: int = 16,
    ) -> None:
        super().__init__(spec)
        for name, number in (
            ("slots", slots),
            ("prefill_tokens", prefill_tokens),
            ("collapse_every", collapse_every),
        ):
            if number < 1:
                raise ValueError(f"{name}={number}: give at least 1")
        _check_that_weights_are_whole(spec.network)
        self.network = spec.network
        self.stop_tokens = frozenset(spec.stop_tokens)
        self.max_new_tokens = spec.max_new_tokens
        self.sampler = spec.sampler
        self.record = spec.record
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.collapsed = collapsed
        self.collapse_every = collapse_every

    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        """See :class:`RolloutEngine`; dropout is off meanwhile."""
        if responses < 1:
            raise ValueError(f"responses={responses}: a prompt needs at least one")
        if not prompts:
            return []
        was_training = self.network.training
        self.network.eval()
        try:
            return self._answer(prompts, responses, seed)
        finally:
            self.network.train(was_training)

    def _answer(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        longest = max(map(len, prompts)) + self.max_new_tokens
        seats = min(self.slots, len(prompts) * responses)
        state = DecodeState.reserved(self.network, seats, longest)
        queue = _Queue(self, prompts, responses, seed)
        finished: dict[tuple[int, int], Trajectory] = {}
        going: list[_Response] = []
        while going or queue:
            going += queue.admit(state, seats - len(going))
            draw = self.sampler.draw(state.logits, [response.source for response in going])
            ends = self._take(going, draw)
            for response, end in zip(going, ends, strict=True):
                if end is not None:
                    finished[response.place] = response.whole(end)
            kept = [row for row, end in enumerate(ends) if end is None]
            tokens = draw.tokens
            if len(kept) < len(going):
                going = [going[row] for row in kept]
                state.keep(kept)
                tokens = tokens[kept]
            if going:
                decode_step(self.network, state, tokens)
                self._remember(going, state)
        return [[finished[prompt, number] for number in range(responses)] for prompt in range(len(prompts))]

    def _take(self, going: Sequence[_Response], draw: Draw) -> list[TrajectoryEnd | None]:
        """Give every response its token; returns why those that end do so."""
        columns = zip(*(part.tolist() for part in draw), strict=True)
        return [self._end(response.take(*values)) for response, values in zip(going, columns, strict=True)]

    def _end(self, response: _Response) -> TrajectoryEnd | None:
        taken = len(response.tokens)
        if response.tokens[-1] in self.stop_tokens:
            return "stop_token"
        if self.collapsed is not None and taken % self.collapse_every == 0 and self.collapsed(response.tokens):
            return "repetition"
        return "length" if taken >= self.max_new_tokens else None

    def _remember(self, going: Sequence[_Response], state: DecodeState) -> None:
        if not self.record:
            return
        assert state.segments is not None
        for response, layers in zip(going, split_by_sequence(state.selections, state.segments), strict=True):
            response.recorder.add(layers)


def _check_that_weights_are_whole(network: nn.Module) -> None:
    """Ranks that hold parts of a weight take every pass together, but each has responses of its own length."""
    for name, parameter in network.named_parameters():
        if isinstance(parameter, DTensor) and any(
            placement.is_shard() and parameter.device_mesh.size(axis) > 1
            for axis, placement in enumerate(parameter.placements)
        ):
            raise ValueError(
                f"NativeEngine draws responses on each rank by itself, and {name} is divided among ranks, which would wait for "
                "each other: give every rank whole weights (Sharded with vision, projector and decoder {sharding: replicate} "
                "and expert_parallel: 1), or take an engine that draws from a server"
            )


@dataclass(slots=True, kw_only=True)
class _Response:
    """A response that goes on."""

    prompt: Prompt
    place: tuple[int, int]
    source: Random
    recorder: Recorder
    recorded: bool
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    sampling_log_probabilities: list[float] = field(default_factory=list)

    def take(self, token: int, log_probability: float, sampling_log_probability: float) -> _Response:
        if log_probability != log_probability:
            raise ValueError(f"the logits for {self.prompt.name} are not numbers: nothing can be drawn from them")
        self.tokens.append(token)
        self.log_probabilities.append(log_probability)
        self.sampling_log_probabilities.append(sampling_log_probability)
        return self

    def whole(self, end: TrajectoryEnd) -> Trajectory:
        return Trajectory(
            prompt=self.prompt,
            tokens=tuple(self.tokens),
            log_probabilities=tuple(self.log_probabilities),
            sampling_log_probabilities=tuple(self.sampling_log_probabilities),
            end=end,
            ledger=self.recorder.ledger() if self.recorded else None,
        )


class _Queue:
    """Responses that wait for a seat, and the prompts of those, read a few at a time."""

    def __init__(self, engine: NativeEngine, prompts: Sequence[Prompt], responses: int, seed: int) -> None:
        self.engine = engine
        self.prompts = prompts
        self.responses = responses
        self.seed = seed
        self._unread = deque(range(len(prompts)))
        self._ready: deque[tuple[_Response, DecodeState, int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._unread or self._ready)

    def admit(self, state: DecodeState, seats: int) -> list[_Response]:
        """Seat as many as there is room for; a prompt's state is dropped when its last response has copied it."""
        seated = []
        for _ in range(seats):
            if not self._ready:
                self._read(seats - len(seated))
            if not self._ready:
                break
            response, source, sequence = self._ready.popleft()
            state.adopt(source, [sequence])
            seated.append(response)
        return seated

    def _read(self, seats: int) -> None:
        """Read the next prompts together: no more than seats can take, nor than may be read at a time."""
        chosen: list[int] = []
        room = self.engine.prefill_tokens
        while self._unread and len(chosen) * self.responses < seats:
            length = len(self.prompts[self._unread[0]])
            if chosen and length > room:
                break
            room -= length
            chosen.append(self._unread.popleft())
        if chosen:
            self._ready.extend(self._started(chosen))

    def _started(self, chosen: list[int]) -> Iterator[tuple[_Response, DecodeState, int]]:
        group = [self.prompts[index] for index in chosen]
        network, record = self.engine.network, self.engine.record
        pictures = [prompt.pictures for prompt in group]
        batch = collate([prompt.encoded for prompt in group], pictures, None, network.vision.patch_size)
        state = prefill(network, batch.to(network.decoder.lm_head.weight.device), 0)
        assert state.segments is not None
        layers = split_by_sequence(state.selections, state.segments) if record else [()] * len(group)
        for sequence, (index, prompt) in enumerate(zip(chosen, group, strict=True)):
            recorder = Recorder()
            recorder.add(layers[sequence])
            for number in range(self.responses):
                response = _Response(
                    prompt=prompt,
                    place=(index, number),
                    source=Random(f"{self.seed}/{prompt.name}/{number}"),
                    recorder=recorder.fork(),
                    recorded=record,
                )
                yield response, state, sequence
