"TensorRT-LLM against the stand-in: where it is, what it is told, and the contract."
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import trtllm_standin
from tqcook import endpoint, serving, trtllm
from tqcook.core import CookError
from tqcook.trtllm import Workload
from trtllm_contract import check_contract

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT/'recipes/params/serve.slurm'

# finding it

def test_found_with_its_version(found):
    assert found.version == '1.2.1' and found.where == 'TQCOOK_TRTLLM_PYTHON'

@pytest.mark.parametrize('version', ['0.20.0', '2.0.0', 'unknown'])
def test_unknown_version_is_refused(version, tmp_path, monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(trtllm_standin.install(tmp_path/'e', version)))
    with pytest.raises(CookError, match='version|known'):
        trtllm.find()

def test_a_python_without_it_is_named(monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', sys.executable)
    with pytest.raises(CookError, match='TQCOOK_TRTLLM_PYTHON leads nowhere.*no tensorrt_llm'):
        trtllm.find()

def test_container_command_is_split_without_a_shell(standin, tmp_path, monkeypatch):
    never = tmp_path/'never'
    monkeypatch.delenv('TQCOOK_TRTLLM_PYTHON', raising=False)
    monkeypatch.setenv(
        'TQCOOK_TRTLLM_COMMAND', f'/usr/bin/env PATH="{standin.parent}:/usr/bin:/bin" A="$(touch {never})"'
    )
    (standin.parent/'python3').unlink(missing_ok=True)
    (standin.parent/'python3').symlink_to(standin)
    r = trtllm.find()
    assert r.version == '1.2.1' and r.tool('trtllm-serve')[-1] == 'trtllm-serve' and not never.exists()

def test_found_by_its_program_on_the_path(standin, tmp_path, monkeypatch):
    for k in ('TQCOOK_TRTLLM_PYTHON', 'TQCOOK_TRTLLM_COMMAND'):
        monkeypatch.delenv(k, raising=False)
    tool = tmp_path/'trtllm-serve'
    tool.write_text(f'#!{standin}\nprint()\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    r = trtllm.find()
    assert r.python == [str(standin)] and r.version == '1.2.1' and r.tool('trtllm-serve') == [str(tool)]
    with pytest.raises(CookError, match='trtllm-nothing'):
        r.tool('trtllm-nothing')

# engines

def test_a_converted_checkpoint_needs_the_build_alone(tmp_path):
    (tmp_path/'rank0.safetensors').write_bytes(b'')
    (command, _), = trtllm.engine_commands(tmp_path, tmp_path/'out')
    assert command[0] == 'trtllm-build' and command[command.index('--checkpoint_dir') + 1] == str(tmp_path)

def test_no_engines_in_new_versions():
    with pytest.raises(CookError, match='no engine backend.*1.2.1'):
        trtllm.engine_commands('m', 'o', version='1.4.0rc1')

def test_engine_commands_are_taken_by_the_stand_in(found, tmp_path):
    examples = str(Path(found.tools).parent/'examples')
    commands = trtllm.engine_commands(tmp_path/'model', tmp_path/'out', workload=Workload(16, 4, 2), scoring=True,
                                      examples=examples)
    (convert, _), (build, _) = commands
    serving.call([*found.python, *convert[1:]], tmp_path/'convert.log', 60)
    serving.call([*found.tool(build[0]), *build[1:]], tmp_path/'build.log', 60)
    assert (tmp_path/'out/engine/rank0.engine').exists()

# the contract

def test_contract_agrees_with_the_stand_in(found):
    assert check_contract(found) == []

def test_contract_check_can_fail(found):
    more = [trtllm.Item(kind, name, '1.0', '', 'invented') for kind, name in
            [('serve', '--max_tokens'), ('LLM', 'nosuch'), ('import', 'tensorrt_llm.Nothing')]]
    assert len(check_contract(found, trtllm.CONTRACT + more)) == 3

def test_nothing_in_the_contract_is_unused_and_no_flag_is_outside_it():
    source = Path(trtllm.__file__).read_text()
    table = source[source.index("_NAMES = '''"):source.index('_ROWS')]
    others = ''.join(Path(m.__file__).read_text() for m in (serving, endpoint))
    code = source.replace(table, '') + others + TEMPLATE.read_text()
    unused = [i.name for i in trtllm.CONTRACT if i.name.rpartition('.')[2] not in code and i.kind != 'RequestOutput']
    assert not unused, unused
    flags = set(re.findall(r"'(--[a-zA-Z_-]+)'", code)) - {'--help'}
    assert flags <= {i.name for i in trtllm.CONTRACT}, flags - {i.name for i in trtllm.CONTRACT}

def test_the_slurm_template_stays_inside_the_contract():
    text = TEMPLATE.read_text()
    assert subprocess.run(['bash', '-n', str(TEMPLATE)]).returncode == 0
    command = text[text.index('trtllm-llmapi-launch trtllm-serve'):].replace('\\\n', ' ')
    launch, serve, *rest = shlex.split(command)
    assert trtllm.use('launch', launch, '1.2.1') and serve == 'trtllm-serve'
    for flag in rest:
        if flag.startswith('--'):
            trtllm.use('serve', flag, '1.2.1')

def test_imports_nothing_heavy():
    code = ("import sys, tqcook.trtllm, tqcook.serving, tqcook.compile, tqcook.memory; "
            "print([m for m in ('torch', 'modelopt', 'transformers', 'onnx', 'tensorrt_rtx') if m in sys.modules])")
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert r.stdout.strip() == '[]', r.stderr
