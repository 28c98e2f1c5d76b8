"""The words that expressions know: those of the language, and those that users of other libraries may write instead."""

from maskc.expr import UnaryOp

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
    **dict.fromkeys(("q_idx", "q_index", "query_idx", "i"), "q"),
    **dict.fromkeys(("kv_idx", "k_idx", "kv_index", "key_idx", "j"), "k"),
    **dict.fromkeys(("b", "batch_idx"), "batch"),
    **dict.fromkeys(("h", "head_idx", "q_head"), "head"),
    **dict.fromkeys(("seq_len", "seqlen", "seqlen_q"), "q_len"),
    **dict.fromkeys(("kv_len", "seqlen_k", "seqlen_kv"), "k_len"),
    **dict.fromkeys(("scores", "logits", "attn_score"), "score"),
    **dict.fromkeys(("weights", "probs", "attn_weights"), "weight"),
    **dict.fromkeys(("queries", "query_vector"), "query"),
    **dict.fromkeys(("keys", "key_vector"), "key"),
    "num_heads": "heads",
    "true": "True",
    "false": "False",
    "infinity": "inf",
    "pow": "**",
    "mod": "%",
    "fmod": "%",
    "remainder": "%",
    "sign": "where(x > 0, 1, where(x < 0, -1, 0))",
    "int": "floor(x), ceil(x) or round(x)",
    "float": "1.0 * x",
    "bool": "x != 0",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
    "logical_xor": "!=",
    "minimum": "min",
    "maximum": "max",
    "amin": "min",
    "amax": "max",
    "isin": "x in row",
    **dict.fromkeys(("searchsorted", "bucketize", "digitize"), "bucket"),
    **dict.fromkeys(("matmul", "einsum", "inner", "vdot"), "dot"),
    **dict.fromkeys(("random", "uniform", "randint"), "rand"),
    "dropout": "weight *= where(rand(seed, head, q, k) < p, 0, 1 / (1 - p))",
    "tril": "keep k <= q",
    "triu": "keep k >= q",
}
SIZES_HINT = "sizes have names: 'q_len', 'k_len', 'y.size', or the name of the dim"
ADVICE = {
    **dict.fromkeys(("sin", "cos", "tan", "sine"), "there are no angles; give what depends on them as an input"),
    "len": SIZES_HINT,
    "softmax": "scores become weights by softmax unless a line 'normalize ...' says otherwise",
    "head_dim": "'scale' is 1 / sqrt of it",
    "None": "there is no such value; write a number",
}
# What follows a dot in other languages, and what to write here.
_GATHERED = "write '{0}(... for i in range(n))'; over pairs 'reduce NAME[...] = {0}(...)'"
ATTRIBUTES = {
    **dict.fromkeys(("shape", "size", "numel"), SIZES_HINT),
    **{name: f"write '{name}(...)'" for name in FUNCTIONS},
    **{name: _GATHERED.format(name) for name in ("sum", "any", "all")},
    **{name: f"over pairs: 'reduce NAME[...] = {name}(...)'" for name in ("mean", "max", "min", "logsumexp")},
    **dict.fromkeys(("float", "int", "long", "bool", "to", "double"), "numbers convert by themselves"),
    **dict.fromkeys(("masked_fill", "masked_fill_"), "write 'keep', or 'score = where(..., score, ...)'"),
    "cumsum": "write 'cumsum(table, dim)'",
    "clamp": "write 'clamp(x, low, high)'",
    "T": "write the indices in the other order",
}
OPTION_HINTS = dict.fromkeys(("q_offset", "k_offset"), "'q' and 'k' begin at their offsets already")
MODULES = {"torch", "np", "numpy", "math", "jnp", "tl", "F"}
