"README.md is made from nbs/index.ipynb, and what it tells people to type exists."
import re
from make_readme import ROOT, readme

def test_readme_is_current():
    assert (ROOT/'README.md').read_text() == readme(), 'README.md and nbs/index.ipynb differ: run `make readme`'

def test_links_lead_somewhere():
    for link in re.findall(r'\]\((?!https?:|#)([^)#]+)', readme()): assert (ROOT/link).exists(), link

def test_commands_exist():
    text = readme(); make = (ROOT/'Makefile').read_text()
    for t in re.findall(r'^(?:\$ )?make (\w[\w-]*)', text, re.M): assert re.search(rf'^{t}:', make, re.M), t
    verbs = set(re.findall(r'tqcook (run|list|doctor|compare|check)\b', text))
    assert {'run', 'list'} <= verbs
    from tqcook.recipe import recipes
    names = {r.name for r in recipes()}
    for r in re.findall(r'tqcook run (\w+)', text): assert r in names, r
    for p in re.findall(r'(?:recipes|nbs)/[\w/.-]+\.ipynb', text): assert (ROOT/p).exists(), p
