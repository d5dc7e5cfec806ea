"""`--loss FILE.py:NAME`: what is found, and one line for each mistake."""

import pytest

from aludel.errors import UserError
from aludel.train import load_loss


def _file(tmp_path, text, name="my_losses.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_loss_is_found_and_may_import_its_neighbours(tmp_path):
    _file(tmp_path, "FACTOR = 3\n", "neighbour_of_loss.py")
    path = _file(
        tmp_path, "from neighbour_of_loss import FACTOR\ndef focal(*_):\n    return FACTOR\n"
    )
    assert load_loss(f"{path}:focal")() == 3


@pytest.mark.parametrize(
    "text, name, reason",
    [
        ("def focal(): pass\n", "fokal", "has no 'fokal'; did you mean focal?"),
        ("def focal(): pass\n", "zz", "has no 'zz'; it has focal"),
        ("x = 1\n", "zz", "has no 'zz' and no function at all"),
        ("focal = 3\n", "focal", "is int, not a function"),
        ("x = 1\ndef focal(:\n", "focal", "my_losses.py:2: "),
        ("x = 1\ny = x / 0\n", "focal", "my_losses.py:2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "focal", "my_losses.py:1: ModuleNotFoundError"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, text, name, reason):
    with pytest.raises(UserError) as error:
        load_loss(f"{_file(tmp_path, text)}:{name}")
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["focal", "my_losses.py", "my_losses.py:", ":focal", "a.py:1x"])
def test_a_spec_of_another_form_is_refused(spec):
    with pytest.raises(UserError, match="write FILE.py:NAME"):
        load_loss(spec)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"there is no file nowhere/my.py"):
        load_loss("nowhere/my.py:focal")


def test_a_file_that_is_no_python_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"its name must end in \.py"):
        load_loss(f"{_file(tmp_path, '', 'loss.txt')}:focal")
