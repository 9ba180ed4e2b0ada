"""`python -m kdcache_cli`, and so `torchrun -m kdcache_cli train ...`."""

from .main import main

if __name__ == "__main__":  # worker processes import this module again
    main()
