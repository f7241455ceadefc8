"""`python -m tqcook` is the `tqcook` command."""
from tqcook.cli import main

if __name__ == '__main__': raise SystemExit(main())
