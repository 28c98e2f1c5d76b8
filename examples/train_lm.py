"""Train a small character-level transformer on the sources of Python's standard library, attention from a .mask file.

    python examples/train_lm.py                                         # a sliding window with attention sinks
    python examples/train_lm.py examples/alibi.mask
    python examples/train_lm.py examples/dilated_window.mask -p window=32 -p dilation=2 --steps 100
    python examples/train_lm.py --engine dense --steps 50               # the same losses, from the definition itself

The text lies on every machine that has Python. With the default settings the model learns to write something that looks
like Python in under two minutes on two CPU cores. `losses` is the whole experiment for code that wants the numbers.
"""

import argparse
import math
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

import maskc

DEFAULT_MASK = Path(__file__).parent / "sink_window.mask"


@dataclass(frozen=True)
class Config:
    """One experiment. parameters: values for the mask's own parameters; its other parameters keep their defaults."""

    mask: Path = DEFAULT_MASK
    parameters: Mapping[str, bool | int | float] = field(default_factory=dict)
    engine: str = "auto"
    steps: int = 500
    context: int = 256
    batch: int = 8
    layers: int = 3
    heads: int = 4
    width: int = 128
    learning_rate: float = 3e-3
    seed: int = 0


class Attend(Protocol):
    """What `maskc.compile_attention` returns: attention over (batch, head, seq, dim)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **parameters: Any) -> Tensor:
        """Keyword arguments are the mask's parameters."""
        ...


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding: pairs of channels turn with the position, [batch, heads, seq, dim] to the same."""
    seq, dim = x.shape[-2:]
    frequencies = 1000.0 ** -torch.linspace(0, 1, dim // 2, device=x.device)
    angles = torch.arange(seq, device=x.device)[:, None] * frequencies
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class SelfAttention(nn.Module):
    """Multi-head attention whose pairs and scores are the mask's business."""

    def __init__(self, config: Config, attend: Attend) -> None:
        super().__init__()
        self.heads = config.heads
        self.parameters_of_mask = dict(config.parameters)
        self.attend = attend
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, seq, width] to the same."""
        batch, seq, width = x.shape
        q, k, v = self.qkv(x).view(batch, seq, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y: Tensor = self.attend(rotated(q), rotated(k), v, **self.parameters_of_mask)
        y = self.out(y.transpose(1, 2).reshape(batch, seq, width))
        return y


class Block(nn.Module):
    """Attention and a small network, each on normalised input and added to what came in."""

    def __init__(self, config: Config, attend: Attend) -> None:
        super().__init__()
        self.attention = SelfAttention(config, attend)
        self.network = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )
        self.before_attention = nn.LayerNorm(config.width)
        self.before_network = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, seq, width] to the same."""
        x = x + self.attention(self.before_attention(x))
        x = x + self.network(self.before_network(x))
        return x


class LanguageModel(nn.Module):
    """Characters in, scores of the next character out."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        attend = maskc.compile_attention(config.mask, engine=config.engine)
        self.characters = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.Sequential(*(Block(config, attend) for _ in range(config.layers)))
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, vocabulary, bias=False))
        for weights in self.parameters():
            if weights.dim() == 2:
                nn.init.normal_(weights, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [batch, seq] to float [batch, seq, vocabulary]."""
        scores: Tensor = self.head(self.blocks(self.characters(tokens)))
        return scores


@dataclass(frozen=True)
class Text:
    """Characters as numbers; the last tenth is kept for validation."""

    alphabet: str
    train: Tensor
    validation: Tensor

    def spell(self, tokens: Tensor) -> str:
        """Numbers back to characters."""
        return "".join(self.alphabet[i] for i in tokens.tolist())


def standard_library(limit: int = 4_000_000) -> Text:
    """The modules at the top of Python's standard library, in alphabetical order: plain ASCII, `limit` characters."""
    pieces: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        piece = path.read_bytes()
        if piece.isascii():
            pieces.append(piece.decode("ascii"))
    text = "\n".join(pieces)[:limit]
    alphabet = "".join(sorted(set(text)))
    number = {character: i for i, character in enumerate(alphabet)}
    tokens = torch.tensor([number[character] for character in text])
    cut = len(tokens) * 9 // 10
    return Text(alphabet, tokens[:cut], tokens[cut:])


def batches(tokens: Tensor, config: Config, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pieces of the text, int64 [batch, context], each with the piece one character further on."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - config.context, (config.batch, 1), generator=generator)
        index = starts + torch.arange(config.context)
        yield tokens[index], tokens[index + 1]


def loss_of(model: LanguageModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of the next character, in nats."""
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(model: LanguageModel, text: Text, config: Config, pieces: int = 8) -> float:
    """The loss on text that is never trained on; the same pieces at every call."""
    drawn = zip(range(pieces), batches(text.validation, config, seed=1), strict=False)
    return sum(float(loss_of(model, inputs, targets)) for _, (inputs, targets) in drawn) / pieces


def pace(step: int, steps: int, warm_up: int = 20) -> float:
    """Share of the learning rate at a step: it rises for `warm_up` steps and falls as a cosine to the end."""
    return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2


def training(model: LanguageModel, text: Text, config: Config) -> Iterator[float]:
    """The loss of every step; the model has taken the step when its loss is there."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step, config.steps))
    for _, (inputs, targets) in zip(range(config.steps), batches(text.train, config, config.seed), strict=False):
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def new_model(config: Config, text: Text) -> LanguageModel:
    """A model whose weights depend on the seed alone."""
    torch.manual_seed(config.seed)
    return LanguageModel(config, len(text.alphabet))


def losses(config: Config, text: Text) -> list[float]:
    """The training loss of every step, from a new model."""
    return list(training(new_model(config, text), text, config))


@torch.no_grad()
def sample(model: LanguageModel, text: Text, config: Config, prompt: str, length: int) -> str:
    """The prompt and `length` characters that the model puts behind it."""
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.tensor([[text.alphabet.index(character) for character in prompt]])
    for _ in range(length):
        scores = model(tokens[:, -config.context :])[:, -1]
        following = torch.multinomial(torch.softmax(scores / 0.8, -1), 1, generator=generator)
        tokens = torch.cat([tokens, following], 1)
    return text.spell(tokens[0])


def run(config: Config, report_every: int = 25) -> None:
    """Train, telling how it goes, and show what the model writes."""
    text = standard_library()
    model = new_model(config, text)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"text: {len(text.train) + len(text.validation):,} characters, {len(text.alphabet)} different ones")
    print(f"model: {weights:,} weights, {config.layers} layers, {config.heads} heads, context {config.context}")
    numbers = "".join(f" {name}={value}" for name, value in config.parameters.items())
    print(f"attention: {config.mask.name}{numbers}, engine {config.engine}\n")
    start = time.perf_counter()
    for step, loss in enumerate(training(model, text, config), 1):
        if step % report_every == 0 or step in (1, config.steps):
            seconds = time.perf_counter() - start
            left = seconds / step * (config.steps - step)
            speed = step * config.batch * config.context / seconds
            print(
                f"step {step:4d}/{config.steps}  loss {loss:.3f}  {speed:7,.0f} characters/s  {left:4.0f} s left",
                flush=True,
            )
    print(f"\nvalidation loss {validation_loss(model, text, config):.3f} nats per character")
    print("\nsample:\n")
    print(sample(model, text, config, prompt="def ", length=300))


def parameter(text: str) -> tuple[str, bool | int | float]:
    """`name=value` with a value of a mask's parameter: true, false, an integer or a float."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected name=value, got '{text}'")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, int(value)
    except ValueError:
        pass
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"the value of '{name}' is no number: '{value}'") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; 1 and the message alone when the mask cannot be used."""
    parser = argparse.ArgumentParser(description="Train a small language model with attention from a .mask file.")
    parser.add_argument(
        "mask", nargs="?", type=Path, help="the attention pattern (default: sink_window.mask with window=64)"
    )
    parser.add_argument("-p", dest="parameters", type=parameter, action="append", metavar="NAME=VALUE", default=[])
    parser.add_argument("--engine", default=Config.engine, help="auto, tiled, dense, triton or interpret")
    parser.add_argument("--steps", type=int, default=Config.steps)
    parser.add_argument("--context", type=int, default=Config.context)
    parser.add_argument("--seed", type=int, default=Config.seed)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.context < 1:
        parser.error("--steps and --context must be at least 1")
    default = {"window": 64} if options.mask is None else {}
    config = Config(
        mask=options.mask or DEFAULT_MASK,
        parameters=default | dict(options.parameters),
        engine=options.engine,
        steps=options.steps,
        context=options.context,
        seed=options.seed,
    )
    try:
        run(config)
    except maskc.MaskError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
