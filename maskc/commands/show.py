"""`maskc show`: the map of tiles or of pairs, in the terminal or as a PNG file."""

import shutil
import sys
from argparse import Namespace

from maskc.analysis.plan import plan_tiles
from maskc.check import load
from maskc.commands import options, png
from maskc.commands.explain import Planned, call_title, class_counts, planned_call, title
from maskc.commands.options import UsageError
from maskc.commands.picture import picture, shades_for
from maskc.commands.tokens import TokenMaps, TooLargeError, token_maps, token_picture


def show_command(chosen: Namespace) -> int:
    """The map, its scale and legend, and the number of tiles of each class; or where it was written to."""
    if chosen.tokens:
        _show_tokens(chosen)
        return 0
    planned = planned_call(load(chosen.spec), chosen)
    print(title(planned))
    if chosen.png is None:
        print_picture(planned, chosen.width)
    else:
        png.save(png.block_picture(planned.plan, title(planned)), chosen.png)
        print(f"wrote the map of tiles to {chosen.png}")
    return 0


def print_picture(planned: Planned, width: int | None) -> None:
    """The block map, as wide as the terminal unless `width` says otherwise, and the number of tiles of each class."""
    print(picture(planned.plan, width=_columns(width), shades=shades_for(sys.stdout.encoding)))
    print(f"tiles: {class_counts(*plan_tiles(planned.plan))}")


def _show_tokens(chosen: Namespace) -> None:
    call = options.given_call(load(chosen.spec), chosen)
    said = call_title(call.spec, call.sizes)
    try:
        tokens = token_maps(call.spec, call.sizes, call.inputs)
        text = _written(tokens, said, chosen)
    except TooLargeError as error:
        raise UsageError(str(error)) from None
    print(said)
    print(text)


def _written(tokens: TokenMaps, said: str, chosen: Namespace) -> str:
    """The picture, or that it was written to a file."""
    if chosen.png is None:
        return token_picture(tokens, width=_columns(chosen.width), shades=shades_for(sys.stdout.encoding))
    png.save(png.token_png(tokens, said), chosen.png)
    return f"wrote the map of pairs to {chosen.png}"


def _columns(width: int | None) -> int:
    return width or shutil.get_terminal_size((100, 24)).columns
