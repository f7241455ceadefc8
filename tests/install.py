"""Install into this Python's environment, as `pip install` would: with uv, in a fifth of the time, or with pip itself.

uv reads none of pip's settings, so they are told to it. Where one is set that has no counterpart here, and where uv
does not manage, pip does it.
"""
import ast
import importlib.util
import os
import re
import subprocess
import sys

NAMES = {'index-url': 'UV_DEFAULT_INDEX', 'extra-index-url': 'UV_INDEX', 'find-links': 'UV_FIND_LINKS',
         'constraint': 'UV_CONSTRAINT', 'cert': 'SSL_CERT_FILE'}
ELSEWHERE = {'cache-dir', 'default-timeout', 'disable-pip-version-check', 'no-cache-dir', 'no-input', 'progress-bar',
             'require-virtualenv', 'retries', 'root-user-action', 'timeout'}  # the outcome is the same without
ORDER = 'global', 'install', ':env:'  # what comes later wins


def translated(listed):
    "What `pip config list` says, as uv's environment variables; None where it says what has no counterpart."
    found = re.findall(r'^(global|install|:env:)\.([\w-]+)=(.*)$', listed, re.M)
    found.sort(key=lambda one: ORDER.index(one[0]))
    told = {name: ast.literal_eval(value).split() for _, name, value in found}
    if told.keys() - NAMES - ELSEWHERE:
        return None
    said = {NAMES[name]: values for name, values in told.items() if name in NAMES and values}
    return {name: (',' if name == 'UV_FIND_LINKS' else ' ').join(values) for name, values in said.items()}


def pip(*args, **kw):
    "The finished process."
    return subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', *args], text=True, **kw)


def uv(*args):
    "Whether uv, which pip brings, has installed it."
    settings = translated(pip('config', 'list', capture_output=True).stdout)
    if settings is None:
        return False
    if not importlib.util.find_spec('uv') and pip('install', '-q', '-c', 'constraints.txt', 'uv').returncode:
        return False
    ours = dict(UV_INDEX_STRATEGY='unsafe-best-match')  # pip's: the best version, whichever index has it
    command = [sys.executable, '-m', 'uv', 'pip', 'install', '-q', '--python', sys.executable, *args]
    return not subprocess.run(command, env=ours | settings | os.environ, capture_output=True).returncode


def main(args):
    "The exit code."
    return 0 if uv(*args) else pip('install', '-q', '--progress-bar', 'off', *args).returncode


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
