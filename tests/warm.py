"""Recipes by the command, in this process and in kernels that need not import PyTorch and ModelOpt, 8 seconds each.

A kernel is forked from a process that has imported others' packages and done nothing else. The command as a process of
its own that starts its own kernel is what recipe fp8 runs with in test_recipes, and what test_interrupt is about.
"""
import contextlib
import ctypes
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from tqcook import cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ['nbdev.test', 'modelopt.torch.quantization', 'matplotlib.pyplot', 'scipy.stats']


def fresh():
    "Makes processes that are fresh and yet have imported these packages."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PACKAGES)
    return context


def kernel(argv, env, folder, log):
    "In a process of its own: what `python -m ipykernel_launcher` does in this environment."
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # no kernel outlives the tests
    os.environ.clear()
    os.environ.update(env | dict(JPY_PARENT_PID=str(os.getppid())))
    os.chdir(folder)
    for fd in 1, 2:
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), fd)
    sys.path[:0] = env['PYTHONPATH'].split(os.pathsep)
    sys.argv = ['ipykernel_launcher', *argv]
    tempfile.tempdir = None
    import matplotlib
    matplotlib.rcParams['backend'] = env['MPLBACKEND']
    sys.modules.pop('matplotlib_inline.backend_inline', None)  # it meets the kernel when it is imported
    from ipykernel import kernelapp
    kernelapp.launch_new_instance()


class Forked:
    "As much of a subprocess.Popen as jupyter_client needs."
    stdin = stdout = stderr = None

    def __init__(self, *args):
        self.process = fresh().Process(target=kernel, args=args)
        self.process.start()
        self.pid = self.process.pid
        while os.getpgid(self.pid) != self.pid:  # the group that is killed in the end must be its own
            time.sleep(.005)

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


def launch(argv, env, stdout, **_):
    "In the place of jupyter_client's launch_kernel."
    return Forked(argv[3:], env, os.getcwd(), stdout.name)


def kernels():
    "While this lasts the runner's kernels are forked."
    return mock.patch('jupyter_client.provisioning.local_provisioner.launch_kernel', launch)


def command(*args, cwd):
    "`tqcook ARGS` as typed in a folder that is not the checkout, with its recipes: exit code, stdout and stderr."
    out, err = io.StringIO(), io.StringIO()
    env = mock.patch.dict(os.environ, TQCOOK_RECIPES=str(ROOT/'recipes'), PYTHONPATH=str(ROOT))
    with env, kernels(), contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(a) for a in args])
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())
