"""The quick start of the README, for real, in about a minute on two CPU cores; `make demo` runs it.

A spec is compiled and run forward and backward, its block map is drawn, the result is compared with the definition and
timed against torch's attention with the same mask as a tensor; then a small language model trains with it on real text.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import train_lm
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import maskc
from maskc.commands.picture import picture, shades_for
from maskc.runtime import tolerance
from maskc.runtime.attention import Attention
from maskc.runtime.inputs import prepare

SPEC = Path(__file__).parent / "sink_window.mask"
BATCH, HEADS, DIM = 1, 8, 64
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def heading(text: str) -> None:
    """A line above each part."""
    print(f"\n== {text}\n", flush=True)


def random_tensors(heads: int, seq: int) -> list[Tensor]:
    """q, k, v and the gradient that comes back to the output, all (batch, heads, seq, dim)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(BATCH, heads, seq, DIM, generator=generator) for _ in range(4)]


def forward_and_backward(attend: Attend, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
    """Output and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, d_out)


def compile_and_run(seq: int) -> Attention:
    """From the file to an output and its gradients."""
    heading(f"a spec, {SPEC.name}")
    print(SPEC.read_text(encoding="utf-8"), end="")
    heading(f"compiled, then run forward and backward: {HEADS} heads, {seq} tokens, dim {DIM}, float32")
    start = time.perf_counter()
    attend = maskc.compile_attention(SPEC, window=256)
    compiled = time.perf_counter()
    out, *gradients = forward_and_backward(attend, *random_tensors(HEADS, seq))
    ran = time.perf_counter()
    print(f"compile_attention  {1e3 * (compiled - start):6.1f} ms")
    print(f"the first call     {1e3 * (ran - compiled):6.1f} ms, plan and backward included")
    print(f"output {tuple(out.shape)}, gradients {', '.join(str(tuple(g.shape)) for g in gradients)}")
    return attend


def draw(attend: Attention, seq: int) -> None:
    """The tiles that are computed."""
    heading("its block map")
    print(picture(attend.plan(seq), width=64, height=32, shades=shades_for(sys.stdout.encoding)))


def compare_with_the_definition(attend: Attention, seq: int) -> bool:
    """Output and gradients against every pair evaluated one by one in float64."""
    heading(f"compared with the definition in float64: 2 heads, {seq} tokens (a length that no tile divides)")
    q, k, v, d_out = random_tensors(2, seq)
    names = [name for name in tolerance.QUANTITIES if name != "lse"]
    values = dict(zip(names, forward_and_backward(attend, q, k, v, d_out), strict=True))
    report = tolerance.check(prepare(attend.spec, q, k, v, attend.given), values, d_out)
    print(report)
    return report.passed


def seconds(work: Callable[[Attend], object], attend: Attend) -> float:
    """How long the work takes."""
    start = time.perf_counter()
    work(attend)
    return time.perf_counter() - start


def time_against_masked_sdpa(attend: Attention, seq: int, rounds: int) -> None:
    """Both in turns, so that what else the machine does meets both; the ratio is the median over the rounds."""
    heading(f"timed against torch's attention with the mask as a tensor: {HEADS} heads, {seq} tokens, {rounds} rounds")
    mask = torch.from_numpy(attend.mask(seq))
    tensors = random_tensors(HEADS, seq)

    def masked_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    both: tuple[Attend, Attend] = (masked_sdpa, attend)
    passes: dict[str, Callable[[Attend], object]] = {
        "forward": lambda f: f(*tensors[:3]),
        "forward + backward": lambda f: forward_and_backward(f, *tensors),
    }
    for name, work in passes.items():
        times = [[seconds(work, f) for f in both] for _ in range(rounds + 1)][1:]  # the first round warms up
        sdpa, ours = (1e3 * median(column) for column in zip(*times, strict=True))
        ratio = median(a / b for a, b in times)
        print(f"{name:18}  masked SDPA {sdpa:7.1f} ms   maskc {ours:7.1f} ms   {ratio:.1f}x")


def main() -> int:
    """Run all of it; 1 if the result is wrong."""
    print(f"maskc {maskc.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    attend = compile_and_run(seq=4096)
    draw(attend, seq=4096)
    passed = compare_with_the_definition(attend, seq=1001)
    time_against_masked_sdpa(attend, seq=4096, rounds=5)
    heading("a language model on the sources of Python's standard library, its attention from the same file")
    train_lm.run(train_lm.Config(parameters={"window": 64}, steps=150))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
