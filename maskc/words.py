"""The words that expressions know: those of the language, and those that users of other libraries may write instead."""

from maskc.spec import UnaryOp

FUNCTIONS = {
    "abs": UnaryOp.ABS,
    "floor": UnaryOp.FLOOR,
    "ceil": UnaryOp.CEIL,
    "round": UnaryOp.ROUND,
    "exp": UnaryOp.EXP,
    "log": UnaryOp.LOG,
    "tanh": UnaryOp.TANH,
    "erf": UnaryOp.ERF,
    "sigmoid": UnaryOp.SIGMOID,
    "softplus": UnaryOp.SOFTPLUS,
    "relu": UnaryOp.RELU,
    "sqrt": UnaryOp.SQRT,
}
BUILTINS = {
    *FUNCTIONS,
    *("min", "max", "clamp", "where", "range", "rand"),
    *("any", "all", "sum", "count", "cumsum", "dot", "bucket"),
}
PRELUDE = {
    *("q", "k", "q_len", "k_len", "head", "heads", "kv_head", "batch", "inf"),
    *("query", "key", "scale", "score", "mass", "weight"),
}
REDUCTIONS = {"mean", "logsumexp"}  # behind 'reduce' and 'output' alone; the others have other meanings, too
OPTIONS = {"q_offset", "k_offset", "engine", "return_lse", "aux", "validate", "mask"}
PARAMETER_NAMES = frozenset((PRELUDE - {"inf"}) | OPTIONS)  # names that parameters of functions may take over

# Words of other languages and libraries, and what they are here.
HABITS = {
    "q_idx": "q",
    "kv_idx": "k",
    "k_idx": "k",
    "i": "q",
    "j": "k",
    "b": "batch",
    "h": "head",
    "true": "True",
    "false": "False",
    "infinity": "inf",
    "seq_len": "q_len",
    "seqlen": "q_len",
    "kv_len": "k_len",
    "num_heads": "heads",
    "pow": "**",
    "sign": "where(x > 0, 1, where(x < 0, -1, 0))",
    "int": "floor(x), ceil(x) or round(x)",
    "float": "1.0 * x",
    "bool": "x != 0",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
}
OPTION_HINTS = dict.fromkeys(("q_offset", "k_offset"), "'q' and 'k' begin at their offsets already")
MODULES = {"torch", "np", "numpy", "math", "jnp", "tl", "F"}
