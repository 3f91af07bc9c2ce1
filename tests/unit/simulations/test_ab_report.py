"""The page of an example in the documentation is what its command writes."""

from pathlib import Path

from tests.pages import page
from tests.simulations.ab_report import PAGE, PLOT, main


def test_page_and_plot_are_what_the_command_writes(tmp_path: Path) -> None:
    main(tmp_path)
    assert (tmp_path / PAGE).read_text() == page(PAGE)
    assert (tmp_path / PLOT).read_text() == page(PLOT)
