"""The command line: one function per command, which prints its answer to stdout and everything else to stderr.

Exit status: 0; 1 when a spec, an input or a result is wrong; 2 when the command line is. Torch and Triton are loaded by
the commands that run something (`run`, `verify`) and by the machine stages of `emit`, not by the others.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, TypeAlias

import maskc
from maskc import features
from maskc.check import check, load, path_and_mask, read_source, source_of
from maskc.commands import options
from maskc.commands.cache import cache_command
from maskc.commands.check import check_command
from maskc.commands.emit import STAGES, emit_command
from maskc.commands.explain import (
    call_title,
    dtype_of,
    engine_of,
    explanation,
    explanation_text,
    planned_call,
    title,
)
from maskc.commands.options import UsageError
from maskc.commands.show import print_picture, show_command
from maskc.commands.why import Pair, why
from maskc.compiler import compile_attention
from maskc.diagnostics import MaskError
from maskc.grammar.format import formatted, replace_file
from maskc.grammar.parser import BYTE_LIMIT, parse
from maskc.spec import MaskSpec

if TYPE_CHECKING:
    from maskc.runtime.verify import Outcome

MOST_CHECKED = 2**25  # pairs, batch rows and heads counted, that are compared with the definition: about 3 GB
INTERRUPTED = 130  # what a shell reports for a process that SIGINT or SIGPIPE ended
PIPE_CLOSED = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Nothing that a user can get wrong leaves a traceback."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text that it can print
    try:
        chosen = command_line().parse_args(arguments)
    except SystemExit as stop:  # --help, --version, or a mistake that argparse has explained
        return stop.code if isinstance(stop.code, int) else 2
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except UsageError as error:
        return _failed(f"maskc {chosen.command}: error: {error}", 2)
    except MaskError as error:
        return _failed(str(error), 1)
    except ModuleNotFoundError as error:
        return _failed(f"maskc {chosen.command} needs the package {error.name!r}, which is not installed here", 1)
    except MemoryError:
        return _failed(f"maskc {chosen.command}: not enough memory for these sizes", 1)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        return _failed(f"maskc {chosen.command}: not enough memory for these sizes", 1)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _failed(f"maskc {chosen.command}: {error}", 1)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    return status


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate a tensor; on the CPU only the words tell."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _failed(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


# --- the grammar of the command line --------------------------------------------------------------------------------


def command_line() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="maskc", description="Attention masks: from a few lines of text to a kernel.")
    parser.add_argument("--version", action="version", version=f"maskc {maskc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _command(commands, "check", check_command, "find the mistakes of specs; with sizes, refute claims too")
    _specs_argument(command)
    command.add_argument("--claims", action="store_true", help="prove each claim for all sizes, or look for a witness")
    _call_options(command)

    command = _command(commands, "fmt", fmt_command, "give specs their canonical layout")
    command.add_argument("paths", nargs="+", metavar="SPEC", help="file.mask, changed in place; - for stdin to stdout")
    command.add_argument("--check", action="store_true", help="change nothing; say what would change, and exit 1 then")

    command = _command(commands, "show", show_command, "draw the block map, or with --tokens every pair")
    command.add_argument("--tokens", action="store_true", help="one cell per pair of a query and a key")
    command.add_argument("--png", metavar="FILE", help="write the map to a file (needs matplotlib)")
    _spec_argument(command)
    _call_options(command)
    _engine_options(command)
    command.add_argument("--width", type=options.positive, help="columns of the picture (default: the terminal's)")

    command = _command(commands, "explain", explain_command, "say what the analysis found and what it is worth")
    _spec_argument(command)
    _call_options(command)
    _engine_options(command)
    command.add_argument("--json", action="store_true", help="one JSON object")

    command = _command(commands, "why", why_command, "say what keeps or drops a pair, and the class of its tile")
    _spec_argument(command)
    command.add_argument("q", type=options.count, metavar="Q", help="position of the query")
    command.add_argument("k", type=options.count, metavar="K", help="position of the key")
    command.add_argument("--head", type=options.count, default=0, metavar="H", help="which of --heads (default: 0)")
    command.add_argument("--batch-row", type=options.count, default=0, metavar="B", help="of --batch (default: 0)")
    _call_options(command)
    _engine_options(command)

    command = _command(commands, "emit", emit_command, "print one stage of the way from text to machine code")
    _spec_argument(command)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", choices=STAGES, help="which one")
    what.add_argument("--variants", action="store_true", help="list the kernels that calls can ask for instead")
    command.add_argument("--kernel", metavar="NAME", help="of a machine stage, only this kernel (default: all)")
    command.add_argument("--indexed", action="store_true", help="kernels for plans that give positions of tokens")
    command.add_argument(
        "--open",
        type=options.numbers,
        metavar="0,2",
        help="clauses that partial tiles evaluate, or none (default: all)",
    )
    command.add_argument("--json", action="store_true", help="with --variants, one JSON object")
    _call_options(command)
    _engine_options(command)

    command = _command(commands, "run", run_command, "run forward and backward here, check the result, time it")
    _spec_argument(command)
    _call_options(command)
    _tensor_options(command)
    command.set_defaults(target=None, tile=None)  # those of the engine that really runs

    command = _command(commands, "verify", verify_command, "compare every engine of this machine with the definition")
    _specs_argument(command)
    _parameter_option(command)
    command.add_argument("--engine", choices=options.ENGINES, action="append", help="only this one (repeatable)")
    command.add_argument("--dtype", choices=options.DTYPES, action="append", help="only this one (repeatable)")
    _dim_options(command, 16)
    command.add_argument(
        "--heads", type=options.positive, metavar="N", help="query heads (default: 4, or 2 of long rows)"
    )
    command.add_argument("--kv-heads", type=options.positive, metavar="N", help="KV heads (default: as many)")
    command.add_argument(
        "--strides",
        choices=options.LAYOUTS,
        default="plain",
        metavar="S",
        help=f"of q, k, v: {', '.join(options.LAYOUTS[2:])}, or odd for all of these in turn (default: plain)",
    )
    command.add_argument("--seed", type=options.count, default=0, metavar="N", help="of all tensors (default: 0)")

    command = _command(commands, "cache", cache_command, "say where generated files are kept and how large they are")
    command.add_argument("--clear", action="store_true", help="delete them")
    command.add_argument("--older", type=options.age, metavar="AGE", help="only what is older: 90s, 30m, 12h, 30d")
    command.add_argument("--list", action="store_true", help="a line per kernel file: hash, size, age, mask")
    command.add_argument("--json", action="store_true", help="one JSON object")
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Option: TypeAlias = "argparse.ArgumentParser | argparse._ArgumentGroup"


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _spec_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="file.mask (its last mask) or file.mask:name")


def _specs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="file.mask (all its masks) or file.mask:name")


def _parameter_option(parser: Option) -> None:
    _repeatable(parser, "-p", "NAME=VALUE", "value of a parameter (repeatable)", dest="parameter")


def _repeatable(parser: Option, flag: str, form: str, summary: str, **more: str) -> None:
    parser.add_argument(flag, type=options.assignment, action="append", default=[], metavar=form, help=summary, **more)  # type: ignore[arg-type]


def _call_options(parser: argparse.ArgumentParser) -> None:
    """Sizes, parameters and inputs."""
    group = parser.add_argument_group("the call")
    group.add_argument("--seq", type=options.count, metavar="N", help="number of queries and of keys")
    group.add_argument("--q-len", type=options.count, metavar="N", help="number of queries where it differs")
    group.add_argument("--k-len", type=options.count, metavar="N", help="number of keys where it differs")
    group.add_argument("--q-offset", type=options.count, metavar="N", help="position of the first query (default: 0)")
    group.add_argument("--grid", type=options.grid, default={}, metavar="y=64,x=64", help="sizes of axes")
    group.add_argument("--batch", type=options.positive, default=1, metavar="N", help="batch rows (default: 1)")
    group.add_argument("--heads", type=options.positive, default=1, metavar="N", help="query heads (default: 1)")
    group.add_argument("--kv-heads", type=options.positive, metavar="N", help="KV heads (default: as many)")
    _parameter_option(group)
    _repeatable(group, "--input", "NAME=FILE.npy", "an input, or NAME=[[0, 1]]; the others are drawn at random")
    group.add_argument("--seed", type=options.count, default=0, metavar="N", help="of what is drawn (default: 0)")


def _engine_options(parser: argparse.ArgumentParser) -> None:
    """What a plan or a kernel is made for."""
    group = _tensor_options(parser)
    group.add_argument("--target", help="sm_80, sm_90, sm_100, gfx942, ... (default: this machine's GPU, else sm_90)")
    group.add_argument("--tile", type=options.tile, metavar="QxK", help="queries x keys (default: the engine's tile)")


def _tensor_options(parser: argparse.ArgumentParser) -> Option:
    """The engine and the tensors that it takes."""
    group = parser.add_argument_group("the engine")
    group.add_argument("--engine", choices=options.PLANNING_ENGINES, default="auto", help="default: by the device")
    group.add_argument("--device", type=options.device, default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    _dim_options(group, 64)
    group.add_argument("--dtype", choices=options.DTYPES, help="default: float16 for a GPU, else float32")
    return group


def _dim_options(parser: Option, default: int) -> None:
    """Head dims."""
    summary = f"head dim (default: {default})"
    parser.add_argument("--dim", type=options.positive, default=default, metavar="D", help=summary)
    parser.add_argument("--dim-v", type=options.positive, metavar="D", help="head dim of v where it differs")


# --- the commands ---------------------------------------------------------------------------------------------------


def fmt_command(chosen: argparse.Namespace) -> int:
    """The canonical layout of every file; a line per file that changes to stdout, diagnoses to stderr."""
    if "-" in chosen.paths:
        if len(chosen.paths) > 1:
            raise UsageError("'-' is stdin and stands alone")
        return _format_stdin(chosen.check)
    return 1 if sum(not _is_formatted(path, chosen.check) for path in chosen.paths) else 0


def _is_formatted(path: str, check_only: bool) -> bool:
    """Whether a file has its canonical layout, or has it now."""
    try:
        source = read_source(path)
        text = formatted(source)
        if text == source.text:
            return True
        if not check_only:
            replace_file(path, text)
    except MaskError as error:
        print(error, file=sys.stderr)
        return False
    except OSError as error:
        print(f"cannot write '{path}': {error.strerror or error}", file=sys.stderr)
        return False
    print(f"{path}: {'would change' if check_only else 'formatted'}")
    return not check_only


def _format_stdin(check_only: bool) -> int:
    source = source_of("<stdin>", sys.stdin.buffer.read(BYTE_LIMIT + 1))
    text = formatted(source)
    if not check_only:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8"))  # whatever encoding the terminal has: it is a file's text
        return 0
    if text != source.text:
        print("<stdin>: would change")
    return int(text != source.text)


def explain_command(chosen: argparse.Namespace) -> int:
    """What the analysis found, as text or as one JSON object."""
    planned = planned_call(load(chosen.spec), chosen)
    found = explanation(planned)
    print(json.dumps(found, indent=2) if chosen.json else explanation_text(planned, found))
    return 0


def why_command(chosen: argparse.Namespace) -> int:
    """Whether a pair is kept, the clauses that decide it, and its tile."""
    planned = planned_call(load(chosen.spec), chosen)
    answer = why(planned.plan, Pair(chosen.q, chosen.k, chosen.head, chosen.batch_row), planned.inputs)
    print(f"{title(planned)}\n{answer}")
    return 0


def run_command(chosen: argparse.Namespace) -> int:
    """Times, the comparison with the definition, and the block map; 1 when the result is wrong.

    Unless an engine is named, a spec that the device's engine cannot run is run by the definition, which has no map.
    """
    spec = load(chosen.spec)
    refused = features.refusal(spec, engine_of(chosen)) if chosen.engine == "auto" else None
    if refused is None:
        planned = planned_call(spec, chosen)
        call = options.Given(planned.spec, planned.sizes, planned.inputs)
        passed = _runs(call, planned.engine, planned.target, title(planned), chosen)
        print_picture(planned, None)
    else:
        call = options.given_call(spec, chosen)
        print(f"{refused.message}; running the definition, dense, in its place")
        heading = f"{call_title(call.spec, call.sizes)}; dense on {chosen.device}"
        passed = _runs(call, "dense", chosen.device, heading, chosen)
    return 0 if passed else 1


def _runs(call: options.Given, engine: str, target: str, heading: str, chosen: argparse.Namespace) -> bool:
    """Runs a call, prints what it took, and whether its values are those of the definition."""
    from maskc.runtime import tolerance, verify

    device = verify.device_named(chosen.device)
    attention = compile_attention(call.spec, engine=engine)
    problem = verify.random_problem(call.spec, call.sizes, call.inputs, chosen.dim, chosen.seed, chosen.dim_v)
    problem = problem.to(verify.DTYPES[dtype_of(target, chosen)], device)
    _progress(f"running {engine} forward and backward")
    values = problem.run(attention)
    forward, backward = verify.median_seconds(problem, attention)
    print(heading)
    print(f"forward   {1000 * forward:.2f} ms")
    print(f"backward  {1000 * backward:.2f} ms")
    pairs = call.sizes.batch * call.sizes.heads * call.sizes.q_len * call.sizes.k_len
    if pairs > MOST_CHECKED:
        print(f"not checked: the definition would hold all {pairs:,} pairs at once; at most {MOST_CHECKED:,} are")
        return True
    _progress("computing the definition in float64")
    report = tolerance.check(problem.call, values, problem.d_out, problem.d_lse)
    print(report)
    return report.passed


def verify_command(chosen: argparse.Namespace) -> int:
    """A table of what every engine did with every mask; 1 when anything missed, or a mask ran nowhere."""
    from maskc.runtime import verify

    engines = chosen.engine or verify.available_engines()
    grouped = options.grouped_heads(chosen)
    found: list[verify.Summary] = []
    passed = True
    for text in chosen.specs:
        for spec in load_all(text):
            given = options.given_parameters(spec, chosen)
            outcomes = verify.verify(
                spec,
                verify.cases(spec, given, grouped, chosen.strides),
                engines=engines,
                dtypes=chosen.dtype,
                dim=chosen.dim,
                dim_v=chosen.dim_v,
                seed=chosen.seed,
            )
            summaries = verify.summarise(spec.name, _watched(spec.name, outcomes))
            passed &= any(s.judged for s in summaries) and not any(s.misses for s in summaries)
            for line in (line for summary in summaries for line in summary.misses):
                print(line, file=sys.stderr)
            found += summaries
    print(verify.table(found))
    return 0 if passed else 1


def load_all(text: str) -> tuple[MaskSpec, ...]:
    """Every mask of a file, or the one that is named behind its path."""
    path, name = path_and_mask(text)
    return check(parse(read_source(path))) if name is None else (load(text),)


def _watched(name: str, outcomes: "Iterator[Outcome]") -> "Iterator[Outcome]":
    """The outcomes as they come, announced on stderr; on a terminal each in a line that the next overwrites."""
    terminal = sys.stderr.isatty()
    if not terminal:
        _progress(f"verifying {name}")
    for outcome in outcomes:
        if terminal:
            print(f"\r\x1b[K{outcome}", end="", file=sys.stderr, flush=True)
        yield outcome
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _progress(message: str) -> None:
    print(f"{message} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
