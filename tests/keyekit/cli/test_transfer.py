import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.transfer import byte_count, transfer_progress


def test_sizes_in_words() -> None:
    assert [byte_count("--x", text) for text in ("5GB", "1.5 mb", "2kb", "7")] == [5 * 10**9, 1_500_000, 2000, 7]
    for text in ("huge", "0", "-1", "3TB", "", "1.5.2MB"):
        with pytest.raises(CommandError, match=r"^--x=.*write a number of bytes"):
            byte_count("--x", text)


def test_the_bar_counts_on_the_error_stream(capsys) -> None:
    with transfer_progress("two models → out") as bar:
        bar.begin(2_000_000)
        bar.advance(500_000)
        bar.advance(1_500_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "two models → out" in err
    assert "2.0/2.0 MB" in err
