"""The ends of a process, each in a process of its own: what is called, with which name, and what the process ends with."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

START = """
import os, signal, sys, threading
from vault_middleware.exits import ExitHooks

def say(*words):
    print(*words, flush=True)

hooks = ExitHooks(lambda hook: say("closed by", hook))
"""


def run(script: str) -> tuple[int, list[str]]:
    """The exit status of *script* and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_an_orderly_end_closes_by_atexit() -> None:
    status, said = run("hooks.install()")
    assert (status, said[0]) == (0, "closed by atexit")


def test_a_status_of_the_applications_own_stays() -> None:
    status, said = run("hooks.install(); sys.exit(3)")
    assert (status, said[0]) == (3, "closed by atexit")


def test_after_remove_nothing_is_called() -> None:
    assert run("hooks.install(); hooks.remove()") == (0, [])


def test_without_install_nothing_is_called() -> None:
    assert run("hooks.take_sigterm()") == (0, [])


def test_install_twice_is_install_once() -> None:
    status, said = run("hooks.install(); hooks.install()")
    assert status == 0
    assert said.count("closed by atexit") == 1


def test_sigterm_over_the_default_handler_becomes_an_orderly_end() -> None:
    status, said = run(
        """
        hooks.take_sigterm()
        hooks.install()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
        say("not reached")
        """
    )
    assert status == 128 + signal.SIGTERM
    assert set(said) == {"closed by sigterm"}


def test_sigterm_runs_the_finally_blocks_on_its_way() -> None:
    _, said = run(
        """
        hooks.take_sigterm()
        hooks.install()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(30)
        finally:
            say("finally")
        """
    )
    assert said[:2] == ["finally", "closed by sigterm"]


def test_a_second_sigterm_kills_a_close_that_hangs() -> None:
    status, said = run(
        """
        def hang(hook):
            say("closing by", hook)
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(30)
            say("not reached")

        hooks = ExitHooks(hang)
        hooks.take_sigterm()
        hooks.install()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
        """
    )
    assert (status, said) == (-signal.SIGTERM, ["closing by sigterm"])


def test_one_sigterm_is_the_hook_of_every_manager_of_the_process() -> None:
    _, said = run(
        """
        other = ExitHooks(lambda hook: say("the other, closed by", hook))
        for each in (hooks, other):
            each.take_sigterm()
            each.install()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
        """
    )
    assert set(said) == {"closed by sigterm", "the other, closed by sigterm"}


def test_a_handler_of_the_applications_own_is_left_alone() -> None:
    status, said = run(
        """
        def own(*_):
            say("the application's own")
            sys.exit(5)

        signal.signal(signal.SIGTERM, own)
        hooks.take_sigterm()
        assert signal.getsignal(signal.SIGTERM) is own
        hooks.install()
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert status == 5
    assert said[:2] == ["the application's own", "closed by atexit"]


def test_an_ignored_sigterm_stays_ignored() -> None:
    status, said = run(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hooks.take_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        say("goes on")
        """
    )
    assert (status, said) == (0, ["goes on"])


def test_off_the_main_thread_no_signal_is_taken() -> None:
    status, said = run(
        """
        thread = threading.Thread(target=hooks.take_sigterm)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        """
    )
    assert (status, said) == (0, [])


def test_a_server_that_raises_sigterm_again_at_its_end_dies_of_it_after_the_close() -> None:
    """What uvicorn does: its handler notes the signal; at the end it puts the default back and raises the signal."""
    status, said = run(
        """
        caught = threading.Event()

        def handle_exit(number, frame):
            say("noted")
            caught.set()

        handle_exit.__module__ = "uvicorn.server"
        signal.signal(signal.SIGTERM, handle_exit)
        hooks.take_sigterm()
        hooks.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught.wait(30)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        say("the end of the server")
        """
    )
    assert status == -signal.SIGTERM
    assert said == ["noted", "the end of the server", "closed by sigterm"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_ends_by_multiprocessing_closes_by_its_finalizers(method: str) -> None:
    """A forked one leaves by os._exit: before Python 3.13 it runs no atexit of Python's own."""
    status, said = run(
        f"""
        import multiprocessing

        script = (
            "from vault_middleware.exits import ExitHooks; "
            "ExitHooks(lambda hook: print('closed by', hook, flush=True)).install()"
        )
        worker = multiprocessing.get_context("{method}").Process(target=exec, args=(script, {{}}))
        worker.start()
        worker.join(30)
        assert worker.exitcode == 0
        """
    )
    assert status == 0
    assert said[0] == ("closed by atexit" if sys.version_info >= (3, 13) else "closed by finalize")


def test_a_forked_child_that_installs_anew_is_closed_and_its_parent_too() -> None:
    status, said = run(
        """
        hooks.install()
        pid = os.fork()
        if pid == 0:
            hooks = ExitHooks(lambda hook: say("the child's, closed by", hook))
            hooks.install()
            sys.exit(0)
        os.waitpid(pid, 0)
        say("the parent goes on")
        """
    )
    assert status == 0
    assert said.index("the child's, closed by atexit") < said.index("the parent goes on")
    assert said[-1].startswith("closed by")
