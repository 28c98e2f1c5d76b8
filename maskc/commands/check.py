"""`maskc check`: the mistakes of specs, and what is known of their claims."""

import sys
from argparse import Namespace

from maskc.check import check, diagnose, load_source, path_and_mask, read_source
from maskc.commands import options
from maskc.diagnostics import Diagnostic, MaskError, Source
from maskc.features import reads_scores
from maskc.grammar.parser import parse
from maskc.proofs import claims
from maskc.proofs.witness import Witness, refute
from maskc.spec import MaskSpec

LONG_CHECK = 2**26  # pairs whose claims take seconds


def check_command(chosen: Namespace) -> int:
    """Diagnoses of every file to stderr, one line per spec that is right to stdout; with --claims one per claim too."""
    return 1 if sum(not _is_right(text, chosen) for text in chosen.specs) else 0


def _is_right(text: str, chosen: Namespace) -> bool:
    try:
        path, name = path_and_mask(text)
        source = read_source(path)
        found = diagnose(source)
        for diagnostic in found:
            print(diagnostic, file=sys.stderr)
        if any(d.severity == "error" for d in found):
            return False
        if chosen.claims:
            broken = [w for spec in _chosen_masks(source, name, chosen) for w in _judged(spec, chosen)]
        else:
            spec = load_source(source, name)
            broken = _broken(spec, chosen) if options.has_sizes(chosen) else []
        if broken:
            raise MaskError([Diagnostic(str(witness), witness.claim.expr.span) for witness in broken])
    except MaskError as error:
        print(error, file=sys.stderr)
        return False
    print(f"{text}: ok")
    return True


def _chosen_masks(source: Source, name: str | None, chosen: Namespace) -> tuple[MaskSpec, ...]:
    """Every mask of a file; the one that is named; or the main one where sizes or parameters speak of one."""
    if name is not None or options.has_sizes(chosen) or chosen.parameter:
        return (load_source(source, name),)
    return check(parse(source))


def _judged(spec: MaskSpec, chosen: Namespace) -> list[Witness]:
    """A line per claim to stdout, what nobody can have meant to stderr; the witnesses of the claims that fail."""
    for diagnostic in claims.lints(spec):
        print(diagnostic, file=sys.stderr)
    if options.has_sizes(chosen):
        call = options.given_call(spec, chosen)
        _announce(call.spec, call.sizes.q_len * call.sizes.k_len)
        verdicts = claims.judge_at(call.spec, call.sizes, call.inputs)
    else:
        verdicts = claims.judge(spec, options.given_parameters(spec, chosen))
    for verdict in verdicts:
        print(verdict)
    return [v.witness for v in verdicts if v.witness is not None]


def _broken(spec: MaskSpec, chosen: Namespace) -> list[Witness]:
    """The witnesses of the claims that fail at the sizes given."""
    call = options.given_call(spec, chosen)
    if reads_scores(call.spec):
        return []
    _announce(call.spec, call.sizes.q_len * call.sizes.k_len)
    return refute(call.spec, call.sizes, call.inputs)


def _announce(spec: MaskSpec, pairs: int) -> None:
    """Says on stderr what takes long."""
    if pairs > LONG_CHECK and any(claim.over_pairs for claim in spec.claims):
        print(f"looking at {pairs:,} pairs for one that breaks a claim of {spec.name} ...", file=sys.stderr, flush=True)
