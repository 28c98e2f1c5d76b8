"""Block maps as text."""

import numpy as np
import pytest

from maskc.commands import picture
from maskc.commands.picture import ASCII, UNICODE

DIAGONAL = np.array([[1, 0, 0], [2, 1, 0], [2, 2, 1]], np.uint8)


def test_one_cell_per_tile_is_doubled_where_it_fits() -> None:
    assert picture.draw(DIAGONAL, 1, 6, UNICODE) == ["▒▒····", "██▒▒··", "████▒▒"]
    assert picture.draw(DIAGONAL, 1, 5, UNICODE) == ["▒··", "█▒·", "██▒"]


def test_a_square_of_tiles_is_shaded_by_its_live_share() -> None:
    tiles = np.zeros((4, 6), np.uint8)
    tiles[:2, 2:4] = [[1, 0], [0, 1]]  # half live
    tiles[:2, 4:] = [[1, 1], [0, 2]]  # more than half
    tiles[2:, :2] = 2  # all full
    tiles[2:, 4:] = [[2, 2], [2, 1]]  # all live, not all full
    assert picture.draw(tiles, 2, 3, ASCII) == [".-*", "#.*"]


def test_ragged_squares_count_the_tiles_they_have() -> None:
    tiles = np.full((3, 3), 2, np.uint8)
    assert picture.draw(tiles, 2, 2, ASCII) == ["##", "##"]


@pytest.mark.parametrize(
    ("rows", "columns", "width", "height", "cell"),
    [(64, 80, 80, 64, 1), (64, 81, 80, 64, 2), (65, 10, 80, 64, 2), (1, 8192, 80, 64, 103), (1, 1, 1, 1, 1)],
)
def test_cells_grow_until_the_picture_fits(rows: int, columns: int, width: int, height: int, cell: int) -> None:
    assert picture.cell_size(rows, columns, width, height) == cell


def test_equal_maps_are_drawn_once() -> None:
    other = np.ones((3, 3), np.uint8)
    assert picture.same_maps(np.stack([DIAGONAL, other, DIAGONAL])) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("encoding", "shades"),
    [("utf-8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII), (None, ASCII), ("no-such-encoding", ASCII)],
)
def test_shades_are_those_that_the_output_can_print(encoding: str | None, shades: picture.Shades) -> None:
    assert picture.shades_for(encoding) == shades


def test_long_lists_are_cut() -> None:
    assert picture.listed(range(3)) == "0, 1, 2"
    assert picture.listed(range(11)) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
