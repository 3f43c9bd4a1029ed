"""One bar: whole lines in a log, every ten seconds at most; tqdm's own where somebody looks on."""

import io

from fedlib.data.progress import LOG_EVERY_S, ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(file, seconds):
    """What a bar of 100 steps writes, a step every `seconds`."""
    now = [0.0]
    bar = ProgressBar(total=100, desc="preparing", unit="case", file=file)
    bar._time, bar.start_t, bar.last_print_t = (lambda: now[0]), 0.0, 0.0
    for _ in range(100):
        now[0] += seconds
        bar.update()
    bar.close()
    return file.getvalue()


def test_a_log_gets_whole_lines_now_and_then():
    lines = shown(io.StringIO(), LOG_EVERY_S / 4)
    assert "\r" not in lines
    assert lines.startswith("preparing: 4 of 100 cases, ")
    assert lines.splitlines()[-1].startswith("preparing: 100 of 100 cases, ")
    assert 24 <= len(lines.splitlines()) <= 26
    assert len(set(lines.splitlines())) == len(lines.splitlines())


def test_a_log_gets_nothing_of_what_takes_seconds():
    assert shown(io.StringIO(), LOG_EVERY_S / 1000) == ""


def test_a_terminal_gets_tqdm_s_bar():
    assert "\r" in shown(Terminal(), LOG_EVERY_S)
