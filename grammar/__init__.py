"""Text to syntax tree: the only place that knows lark, and Pygments for colours."""
