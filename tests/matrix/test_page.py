"""The page tells what the matrix has found, and nothing else."""

from __future__ import annotations

from tests.matrix.__main__ import PAGE, in_order, read_environments, read_results, write_page


def test_the_page_tells_the_results() -> None:
    text = PAGE.read_text("utf-8")
    assert write_page(text, in_order(read_results())) == text


def test_all_that_was_tried_was_green() -> None:
    assert [result.name for result in read_results().values() if not result.is_green] == []


def test_each_line_of_the_matrix_has_a_name_and_tests() -> None:
    environments, tests = read_environments()
    names = [environment.name for environment in environments]
    assert len(names) == len(set(names))
    assert {environment.group for environment in environments} == set(tests)
